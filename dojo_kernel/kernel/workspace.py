"""The agent's directory on the host, and reading one untrusted file out of it.

As root the directory is a tmpfs with a size and a number of files; otherwise it is a plain directory without a quota.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
import stat
import subprocess
from typing import TYPE_CHECKING

from dojo_kernel.errors import SubmissionError

if TYPE_CHECKING:
    from pathlib import Path

_SYS_OPENAT2 = 437  # the same on x86-64 and aarch64
_NO_XDEV, _NO_MAGICLINKS, _NO_SYMLINKS, _BENEATH = 1, 2, 4, 8
_FLAGS = os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC | os.O_NOFOLLOW
_CHUNK = 1 << 20
_INODE_BYTES = 1 << 15  # one file allowed for each 32 KiB of a quota


class _How(ctypes.Structure):
    _fields_ = (("flags", ctypes.c_uint64), ("mode", ctypes.c_uint64), ("resolve", ctypes.c_uint64))


def mount_tmpfs(path: Path, size: int, uid: int, mode: int = 0o700) -> bool:
    """Put a tmpfs of `size` bytes on `path`. False where this process may not."""
    if os.geteuid() != 0:
        return False
    options = f"size={size},nr_inodes={max(64, size // _INODE_BYTES)},mode={mode:o},uid={uid},gid={uid}"
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"nosuid,nodev,{options}", "dojo", str(path)], capture_output=True, check=False
    )
    return done.returncode == 0


def unmount(path: Path) -> None:
    """Lazily, so that an open file does not keep the name."""
    subprocess.run(["umount", "-l", str(path)], capture_output=True, check=False)


class Workspace:
    """The directory that a box sees as /workspace; written by the agent, so nothing in it is trusted."""

    def __init__(self, path: Path, *, size: int, uid: int) -> None:
        self.path = path
        self.uid = uid
        path.mkdir(mode=0o700, exist_ok=True)
        self.quota = mount_tmpfs(path, size, uid)
        """Whether `size` is enforced."""
        if not self.quota and os.geteuid() == 0:
            os.chown(path, uid, uid)

    def read(self, name: str, max_bytes: int, *, openat2: bool = True) -> bytes | None:
        """The bytes of one regular file, None if there is none. Freeze the box first, or it may change meanwhile.

        Raises:
            SubmissionError: a link, a special file, too big; the code says which. `openat2=False` takes the path for
                kernels without that call.
        """
        if "\0" in name:  # a C string would be cut there
            raise SubmissionError("name", "a file name with a NUL byte")
        directory = os.open(self.path, os.O_PATH | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        try:
            fd = _open(directory, name, openat2=openat2)
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
            status = os.lstat(self.path / name)
        except (OSError, ValueError):
            return None
        return (status.st_dev, status.st_ino, status.st_mode, status.st_size, status.st_mtime_ns, status.st_ctime_ns)

    def remove(self) -> None:
        """Unmount and delete; again is no error."""
        if self.quota:
            unmount(self.path)
            self.quota = False
        shutil.rmtree(self.path, ignore_errors=True)


def _open(directory: int, name: str, *, openat2: bool) -> int:
    if openat2:
        try:
            return _open_at_once(directory, name)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.EPERM):
                raise
    return _open_by_steps(directory, name)


def _open_at_once(directory: int, name: str) -> int:
    how = _How(_FLAGS, 0, _NO_XDEV | _NO_MAGICLINKS | _NO_SYMLINKS | _BENEATH)
    libc = ctypes.CDLL(None, use_errno=True)
    fd = int(libc.syscall(_SYS_OPENAT2, directory, os.fsencode(name), ctypes.byref(how), ctypes.c_size_t(ctypes.sizeof(how))))
    if fd < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), name)
    return fd


def _open_by_steps(directory: int, name: str) -> int:
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
        fd = os.open(parts[-1], _FLAGS, dir_fd=here)
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
