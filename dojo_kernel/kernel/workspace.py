"""The agent's directory on the host, and reading one untrusted file out of it.

As root the directory is a tmpfs with a size and a number of files; otherwise it is a plain directory that can be measured
and made smaller. Nothing in it is trusted: no path of it is followed through a link, not to read and not to delete.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import os
import shutil
import stat
from pathlib import Path
from typing import TYPE_CHECKING

from dojo_kernel.errors import SubmissionError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

_SYS_OPENAT2 = 437  # the same on x86-64 and aarch64
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_PLACE = os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_NOSUID, _NODEV, _DETACH = 2, 4, 2  # of mount(2) and umount2(2)
_BLOCK = 512  # bytes; the unit of st_blocks
_CHUNK = 1 << 20
_INODE_BYTES = 1 << 15  # one file allowed for each 32 KiB of a quota


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mount_tmpfs(path: Path, size: int, uid: int, mode: int = 0o700) -> bool:
    """Put a tmpfs of `size` bytes on `path`. False where this process may not."""
    if os.geteuid() != 0:
        return False
    options = f"size={size},nr_inodes={_most_files(size)},mode={mode:o},uid={uid},gid={uid}"
    flags = ctypes.c_ulong(_NOSUID | _NODEV)  # the call, not the program: a PATH without mount(8) is no reason
    return int(ctypes.CDLL(None).mount(b"dojo", os.fsencode(path), b"tmpfs", flags, options.encode())) == 0


def unmount(path: Path) -> None:
    """Lazily, so that an open file does not keep the name."""
    ctypes.CDLL(None).umount2(os.fsencode(path), _DETACH)


def _most_files(size: int) -> int:
    return max(64, size // _INODE_BYTES)


class Workspace:
    """The directory that a box sees as /workspace; written by the agent, so nothing in it is trusted."""

    def __init__(self, path: Path, *, size: int, uid: int, mount: bool = True) -> None:
        self.path = path
        self.uid = uid
        self.size = size
        path.mkdir(mode=0o700, exist_ok=True)
        self.quota = mount and mount_tmpfs(path, size, uid)
        """Whether `size` is enforced."""
        if mount and not self.quota and os.geteuid() == 0:
            os.chown(path, uid, uid)

    def read(self, name: str, max_bytes: int, *, openat2: bool = True) -> bytes | None:
        """The bytes of one regular file, None if there is none. Freeze the box first, or it may change meanwhile.

        Raises:
            SubmissionError: a link, a special file, too big; the code says which. `openat2=False` takes the path for
                kernels without that call.
        """
        if "\0" in name:  # a C string would be cut there
            raise SubmissionError("name", "a file name with a NUL byte")
        directory = os.open(self.path, _PLACE)
        try:
            fd = _open(directory, name, _FLAGS, openat2=openat2)
        except FileNotFoundError:
            return None
        except OSError as error:
            raise _refusal(name, error) from None
        finally:
            os.close(directory)
        try:
            return _read(fd, name, max_bytes)
        finally:
            os.close(fd)

    def signature(self, name: str) -> tuple[int, ...] | None:
        """Changes when the file does; None when there is no such file."""
        try:
            status = os.lstat(f"{self.path}/{name}")
        except (OSError, ValueError):
            return None
        return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def remove(self) -> None:
        """Unmount and delete; again is no error."""
        if self.quota:
            unmount(self.path)
            self.quota = False
        remove_tree(self.path)

    def crowded(self, pids: Iterable[int] = ()) -> bool:
        """Whether there is more than the limit allows, deleted files that `pids` hold open included; where no quota holds it."""
        files = self._files()
        return files is None or sum(size for size, _ in files) + held_open(pids, self.path) > self.size

    def make_room(self) -> None:
        """Delete the largest files until the rest fits; all of them when they are too many or too deep."""
        files = self._files()
        if files is None:
            _empty(self.path)
            return
        used = sum(size for size, _ in files)
        for size, name in sorted(files, reverse=True):
            if used <= self.size:
                return
            with self._folder(os.path.dirname(name)) as folder, contextlib.suppress(OSError):  # noqa: PTH120  relative names
                os.unlink(os.path.basename(name), dir_fd=folder)  # noqa: PTH119
            used -= size

    @contextlib.contextmanager
    def _folder(self, name: str) -> Iterator[int]:
        """One folder below, open for reading; made readable if the agent closed it. Raises OSError."""
        top = os.open(self.path, _PLACE)
        try:
            place = _open(top, name or ".", _PLACE)
            try:
                if os.fstat(place).st_mode & stat.S_IRWXU != stat.S_IRWXU:
                    Path(f"/proc/self/fd/{place}").chmod(0o700)
                fd = os.open(".", _FOLDER, dir_fd=place)
            finally:
                os.close(place)
        finally:
            os.close(top)
        try:
            yield fd
        finally:
            os.close(fd)

    def _files(self) -> list[tuple[int, str]] | None:
        """Bytes on the disk and name of each file; None: too many, or names too long to be opened."""
        found: list[tuple[int, str]] = []
        seen: set[int] = set()  # of files with several names
        todo, entries, most = [""], 0, _most_files(self.size)
        while todo:
            here = todo.pop()
            try:
                with self._folder(here) as folder, os.scandir(folder) as listed:
                    for entry in listed:
                        entries += 1
                        if entries > most:
                            return None
                        with contextlib.suppress(FileNotFoundError):
                            status = entry.stat(follow_symlinks=False)
                            name = f"{here}/{entry.name}" if here else entry.name
                            if stat.S_ISDIR(status.st_mode):
                                todo.append(name)
                            elif status.st_nlink == 1 or status.st_ino not in seen:
                                found.append((status.st_blocks * _BLOCK, name))
                                seen.add(status.st_ino)
            except OSError as error:
                if error.errno == errno.ENAMETOOLONG:
                    return None
                # gone, or no folder any more
        return found


def held_open(pids: Iterable[int], path: Path) -> int:
    """Bytes of files on the disk of `path` that have no name any more and are open in these processes."""
    device, sizes = path.stat().st_dev, {}
    for pid in pids:
        with contextlib.suppress(OSError):
            for name in Path(f"/proc/{pid}/fd").iterdir():
                with contextlib.suppress(OSError):
                    status = name.stat()
                    if stat.S_ISREG(status.st_mode) and status.st_nlink == 0 and status.st_dev == device:
                        sizes[status.st_ino] = status.st_blocks * _BLOCK
    return sum(sizes.values())


def remove_tree(folder: Path) -> None:
    """Delete a tree of the agent's, whatever its depth and permissions; no error if something stays, or is not there."""
    with contextlib.suppress(OSError):
        _empty(folder)
    shutil.rmtree(folder, ignore_errors=True)


def _empty(folder: Path) -> None:
    """Folders in folders are moved to the top first, so that neither recursion nor the length of a path is a limit."""
    top = os.open(folder, _FOLDER)
    moved = 0
    try:
        while names := os.listdir(top):  # noqa: PTH208  an open folder, not a path
            for name in names:
                try:
                    inner = _opened_up(top, name)
                except NotADirectoryError:
                    os.unlink(name, dir_fd=top)
                    continue
                try:
                    for child in os.listdir(inner):  # noqa: PTH208
                        try:
                            os.close(_opened_up(inner, child))
                        except NotADirectoryError:
                            os.unlink(child, dir_fd=inner)
                            continue
                        moved += 1
                        os.rename(child, f".{moved}.{os.getpid()}", src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)


def _opened_up(folder: int, name: str) -> int:
    """A folder in an open one, for reading, with all permissions for its owner. Raises NotADirectoryError for a link, too."""
    place = os.open(name, _PLACE, dir_fd=folder)
    try:
        Path(f"/proc/self/fd/{place}").chmod(0o700)
        return os.open(".", _FOLDER, dir_fd=place)
    finally:
        os.close(place)


def _open(directory: int, name: str, flags: int, *, openat2: bool = True) -> int:
    if openat2:
        try:
            return _open_at_once(directory, name, flags)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
    return _open_by_steps(directory, name, flags)


def _open_at_once(directory: int, name: str, flags: int) -> int:
    how = _How(flags, 0, _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return fd


def _open_by_steps(directory: int, name: str, flags: int) -> int:
    """One component at a time, none of them a link."""
    parts = name.split("/")
    if any(part in ("", ".", "..") for part in parts):
        raise OSError(errno.EXDEV, "bad component", name)
    device, here = os.fstat(directory).st_dev, os.dup(directory)
    try:
        for part in parts[:-1]:
            step = os.open(part, os.O_PATH | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=here)
            os.close(here)
            here = step
            if stat.S_ISLNK(os.fstat(here).st_mode):
                raise OSError(errno.ELOOP, "a link", name)
        fd = os.open(parts[-1], flags, dir_fd=here)
    finally:
        os.close(here)
    if os.fstat(fd).st_dev != device:
        os.close(fd)
        raise OSError(errno.EXDEV, "other device", name)
    return fd


def _refusal(name: str, error: OSError) -> SubmissionError:
    if error.errno in (errno.ELOOP, errno.EXDEV):
        return SubmissionError("link", f"{name} is a link, or leads out of the working directory; write a regular file")
    if error.errno in (errno.ENXIO, errno.ENODEV, errno.ENOTDIR, errno.EISDIR):
        return SubmissionError("not_regular", f"{name} is not a regular file")
    return SubmissionError("unreadable", f"{name} cannot be read: {errno.errorcode.get(error.errno or 0, 'unknown error')}")


def _read(fd: int, name: str, max_bytes: int) -> bytes:
    status = os.fstat(fd)
    if not stat.S_ISREG(status.st_mode):
        raise SubmissionError("not_regular", f"{name} is not a regular file")
    if status.st_nlink != 1:
        raise SubmissionError("link", f"{name} has {status.st_nlink} hard links; write a file of its own")
    if status.st_size > max_bytes:
        raise SubmissionError("too_big", f"{name} has {status.st_size} bytes; at most {max_bytes} are read")
    data = bytearray()
    while len(data) <= max_bytes:
        chunk = os.read(fd, min(_CHUNK, max_bytes + 1 - len(data)))
        if not chunk:
            return bytes(data)
        data += chunk
    raise SubmissionError("too_big", f"{name} grew past {max_bytes} bytes while it was read")
