"""Enter a scratch home before a trial run: a copy of the workspace, and Landlock so that nothing else can be written.

Called by init as `scratch.py RULES -- ARGV`. RULES is JSON: workspace, home (made here), max_mb, sockets (writable too).
Landlock needs Linux 5.13; without it the copy alone protects the workspace, and relative names still land in the copy.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import shutil
import stat
import struct
import sys
from pathlib import Path

CREATE_RULESET, ADD_RULE, RESTRICT_SELF = 444, 445, 446  # the same on x86-64 and aarch64
RULE_PATH_BENEATH, VERSION_FLAG, PR_SET_NO_NEW_PRIVS = 1, 1, 38
# WRITE_FILE, REMOVE_DIR, REMOVE_FILE, MAKE_{CHAR,DIR,REG,SOCK,FIFO,BLOCK,SYM}; REFER from ABI 2; TRUNCATE from ABI 3
WRITES = 1 << 1 | sum(1 << bit for bit in range(4, 13))
REFER, TRUNCATE = 1 << 13, 1 << 14
SCOPE_SIGNAL = 1 << 1
FILE_WRITES = 1 << 1 | TRUNCATE


def copy(source: Path, target: Path, budget: int) -> None:
    """Copy regular files and folders; links are left out, and a file beyond the budget becomes a link to the original."""
    target.mkdir(mode=0o700)
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
                with contextlib.suppress(FileNotFoundError):  # the live kernel may work in there meanwhile
                    if status.st_size > budget:
                        new.symlink_to(entry.path)
                    else:
                        shutil.copyfile(entry.path, new, follow_symlinks=False)
                        shutil.copystat(entry.path, new, follow_symlinks=False)
                        budget -= status.st_size


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


def main() -> None:
    """Copy, restrict, exec."""
    rules, argv = json.loads(sys.argv[1]), sys.argv[3:]
    home = Path(rules["home"])
    with contextlib.suppress(OSError):  # first victim when memory runs out, so that the live kernel survives
        Path("/proc/self/oom_score_adj").write_text("1000")
    work, tmp = home / "workspace", home / "tmp"
    home.mkdir(mode=0o700)
    tmp.mkdir(mode=0o700)
    copy(Path(rules["workspace"]), work, int(rules["max_mb"]) << 20)
    os.chdir(work)
    landlock([str(home), rules["sockets"], "/dev/null", "/dev/shm", "/dev/ptmx", "/dev/pts", "/proc/self"])
    os.environ.update(HOME=str(tmp), TMPDIR=str(tmp), DOJO_WORKSPACE=str(work), IPYTHONDIR=str(tmp / "ipython"))
    os.execvpe(argv[0], argv, os.environ)


if __name__ == "__main__":
    main()
