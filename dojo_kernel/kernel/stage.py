"""Last steps of a root host before bubblewrap; run as `python -I -S stage.py ORDER`, stdlib only.

Joins the cgroups, makes a private view of the folders that the box will see (their parents may be closed to others), and
becomes an ordinary user, so that nothing in the box is the host's root. The view vanishes with the box.
"""

import contextlib
import ctypes
import json
import os
import sys
from pathlib import Path

NEW_MOUNTS, BIND, RECURSIVE, PRIVATE = 0x20000, 4096, 16384, 1 << 18


def main() -> None:
    """Exec the command of the order."""
    order = json.loads(sys.argv[1])
    for folder in order["cgroups"]:
        Path(folder, "cgroup.procs").write_text("0")
    with contextlib.suppress(OSError):  # a root without CAP_SYS_RESOURCE may not
        Path("/proc/self/oom_score_adj").write_text("-500")  # init goes last
    libc = ctypes.CDLL(None, use_errno=True)

    def mount(source: str, target: str, kind: str | None, flags: int) -> None:
        if libc.mount(source.encode(), target.encode(), kind.encode() if kind else None, flags, None):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), target)

    if libc.unshare(NEW_MOUNTS):
        raise OSError(ctypes.get_errno(), "unshare")
    mount("none", "/", None, RECURSIVE | PRIVATE)
    mount("dojo", order["stage"], "tmpfs", 0)
    Path(order["stage"]).chmod(0o755)
    for source, target in order["binds"]:
        if Path(source).is_dir():
            Path(target).mkdir()
        else:
            Path(target).touch()
        mount(source, target, None, BIND | RECURSIVE)
    os.setgroups([])
    os.setgid(order["uid"])
    os.setuid(order["uid"])
    os.chdir("/")
    os.execve(order["argv"][0], order["argv"], {})  # noqa: S606  to become bubblewrap is the point


if __name__ == "__main__":
    main()
