"""The room of a forked kernel: a copy of the workspace, and Landlock so that nothing else can be written.

Landlock needs Linux 5.13; without it the copy alone protects the workspace, and relative names still land in the copy.
Only the standard library.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import shutil
import stat
import struct
from pathlib import Path
from typing import Any

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on x86-64 and aarch64
RULE_PATH_BENEATH, VERSION_FLAG = 1, 1
PR_SET_DUMPABLE, PR_SET_NO_NEW_PRIVS = 4, 38
# WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_{CHAR,DIR,REG,SOCK,FIFO,BLOCK,SYM}; REFER from ABI 2; TRUNCATE from ABI 3
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE = 1 << 13, 1 << 14
SCOPE_SIGNAL = 1 << 1
FILE_WRITES = 1 << 1 | TRUNCATE
DEVICES = ("/dev/null", "/dev/shm", "/dev/ptmx", "/dev/pts", "/proc/self")
LINK_BYTES = 8 << 20
"""A trial run gets files larger than this as links to the originals, which it cannot write."""


def copy(source: Path, target: Path, budget: int, *, link_bytes: int | None = None) -> None:
    """Copy regular files and folders; links are left out.

    Args:
        source: Where from; the live kernel may work in there meanwhile.
        target: Where to; made, or emptied first.
        budget: Bytes in all.
        link_bytes: A file larger than this, or beyond the budget, becomes a link to the original; None: OSError instead.
    """
    if target.exists():
        for entry in os.scandir(target):
            if entry.is_dir(follow_symlinks=False):
                shutil.rmtree(entry.path)
            else:
                os.unlink(entry.path)
    else:
        target.mkdir(mode=0o700, parents=True)
    todo = [(source, target)]
    while todo:
        here, there = todo.pop()
        for entry in sorted(os.scandir(here), key=lambda entry: entry.name):
            status = entry.stat(follow_symlinks=False)
            new = there / entry.name
            if stat.S_ISDIR(status.st_mode):
                new.mkdir(mode=0o700)
                todo.append((Path(entry.path), new))
            elif stat.S_ISREG(status.st_mode):
                with contextlib.suppress(FileNotFoundError):
                    if status.st_size > (budget if link_bytes is None else min(budget, link_bytes)):
                        if link_bytes is None:
                            raise OSError(f"the workspace is too large to copy: {entry.name} has {status.st_size >> 20} MB")
                        new.symlink_to(entry.path)
                    else:
                        shutil.copyfile(entry.path, new, follow_symlinks=False)
                        shutil.copystat(entry.path, new, follow_symlinks=False)
                        budget -= status.st_size
                    _copied[str(new)] = status.st_size, status.st_mtime_ns


_copied: dict[str, tuple[int, int]] = {}
CHANGES = 100


def changed(folder: str) -> list[tuple[str, int]]:
    """Files below `folder` that are new or other than copied, with their size; -1: deleted. At most `CHANGES`."""
    now: dict[str, tuple[int, int]] = {}
    for here, _, names in os.walk(folder):
        for name in names:
            path = os.path.join(here, name)
            with contextlib.suppress(OSError):
                status = os.stat(path)
                now[path] = status.st_size, status.st_mtime_ns
    found = [(path, size) for path, (size, time) in now.items() if _copied.get(path) != (size, time)]
    found += [(path, -1) for path in _copied if path.startswith(folder + "/") and path not in now]
    return sorted((os.path.relpath(path, folder), size) for path, size in found)[:CHANGES]


def landlock(writable: list[str]) -> int:
    """Forbid writes outside `writable`, for this process and all that it starts. Returns the ABI; 0 = not available."""
    libc = ctypes.CDLL(None, use_errno=True)
    abi = int(libc.syscall(CREATE_RULESET, None, ctypes.c_size_t(0), ctypes.c_uint32(VERSION_FLAG)))
    if abi < 1:
        return 0
    handled = WRITES | (REFER if abi >= 2 else 0) | (TRUNCATE if abi >= 3 else 0)
    # from ABI 6 signals stay inside, too: a trial run cannot kill the live kernel
    attr = struct.pack("QQQ", handled, 0, SCOPE_SIGNAL) if abi >= 6 else struct.pack("Q", handled)
    ruleset = int(libc.syscall(CREATE_RULESET, attr, ctypes.c_size_t(len(attr)), ctypes.c_uint32(0)))
    if ruleset < 0:
        return 0
    for path in writable:
        try:
            fd = os.open(path, os.O_PATH | os.O_CLOEXEC)
        except FileNotFoundError:
            continue
        allowed = handled if stat.S_ISDIR(os.fstat(fd).st_mode) else handled & FILE_WRITES
        if libc.syscall(ADD_RULE, ruleset, RULE_PATH_BENEATH, struct.pack("=Qi", allowed, fd), ctypes.c_uint32(0)):
            raise OSError(ctypes.get_errno(), "landlock_add_rule", path)
        os.close(fd)
    libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
    if libc.syscall(RESTRICT_SELF, ruleset, ctypes.c_uint32(0)):
        raise OSError(ctypes.get_errno(), "landlock_restrict_self")
    os.close(ruleset)
    return abi


def inherit(*, oom_score: int) -> None:
    """Be the right victim when memory runs out."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or its own oom_score_adj is not writable
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text(str(oom_score))


def enter(room: dict[str, Any]) -> tuple[str, str] | None:
    """Take a room: copy files, move in, set the environment. `restrict` comes last. Returns the copied folder and its copy.

    `room` holds `workspace` (what code calls its workspace from now on), `home` ("" = none of its own), `copy_from` ("" =
    nothing is copied), `max_mb`, `link` (large files as links), `writable` (folders; None = everything), `oom_score`,
    `passing` (it ends soon, or only waits).
    """
    source, target = str(room["copy_from"]), str(room["workspace"])
    moved = None
    here = os.getcwd() if os.path.isdir(".") else ""
    if room["home"]:
        tmp = Path(room["home"], "tmp")
        tmp.mkdir(mode=0o700, parents=True, exist_ok=True)
        os.environ.update(HOME=str(tmp), TMPDIR=str(tmp), IPYTHONDIR=str(tmp / "ipython"))
    if source:
        copy(Path(source), Path(target), int(room["max_mb"]) << 20, link_bytes=LINK_BYTES if room["link"] else None)
        moved = (source, target)
    os.environ["DOJO_WORKSPACE"] = target
    inner = here.removeprefix(source).lstrip("/") if source and (here + "/").startswith(source + "/") else ""
    try:
        os.chdir(Path(target, inner))
    except FileNotFoundError:
        os.chdir(target)
    return moved


def restrict(room: dict[str, Any]) -> None:
    """No writes outside the room from here on; irrevocable, and for all that is started from here."""
    if room["writable"] is not None:
        landlock([*map(str, room["writable"]), *DEVICES])
