"""What a host process takes from the machine, written down, so that the next one can give back what a dead one left.

A host process holds a lock file under `state_root()/hosts` and beside it a list of leases: run folders, cgroups, processes.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from dojo_kernel.kernel.workspace import remove_tree, unmount
from dojo_kernel.settings import state_root

if TYPE_CHECKING:
    from collections.abc import Callable, Collection


class Lease(NamedTuple):
    """One thing on the machine that must not outlive its host process."""

    kind: str
    """run_dir, cgroup, or pid (`PID:START`, the start time of /proc/PID/stat)."""
    what: str


HOOKS: list[Callable[[str], None]] = []
"""Called with the name of a dead host; removes what has its label, e.g. containers."""

_lock = threading.RLock()
_leases: set[Lease] = set()
_own: dict[int, tuple[Path, int]] = {}  # pid -> lock file and its descriptor; keyed by pid since a fork must not share it


def host_name() -> str:
    """Names this host process: pid and start time, unique until the next boot."""
    return f"{os.getpid()}-{start_time(os.getpid())}"


def start_time(pid: int) -> int | None:
    """In clock ticks since boot; None if there is no such process."""
    try:
        return int(Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[19])
    except (OSError, IndexError):
        return None


def runs(pid: int) -> bool:
    """Whether there is such a process, and it is no zombie."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()[0] not in {b"Z", b"X"}
    except (OSError, IndexError):
        return False


def start() -> None:
    """Take this process's lock, once, and reap what dead ones left."""
    with _lock:
        if os.getpid() in _own:
            return
        _leases.clear()
        folder = state_root() / "hosts"
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{host_name()}.lock"
        _own[os.getpid()] = path, _locked(path)
    reap()


def _locked(path: Path) -> int:
    """The file, new and locked, and still under its name: another host may have taken it for a dead one's before the lock."""
    while True:
        fd = os.open(path, os.O_CREAT | os.O_RDWR | os.O_CLOEXEC, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), path.stat()):
                return fd
        os.close(fd)


def lease(kind: str, what: str) -> None:
    """Write down that this process has taken something."""
    start()
    with _lock:
        _leases.add(Lease(kind, what))
        _write(_own[os.getpid()][0], _leases)


def release(kind: str, what: str) -> None:
    """It was given back."""
    with _lock:
        _leases.discard(Lease(kind, what))
        if os.getpid() in _own:
            _write(_own[os.getpid()][0], _leases)


def _write(lock: Path, leases: Collection[Lease]) -> None:
    """The list beside a lock."""
    listed, new = lock.with_suffix(".json"), lock.with_suffix(".new")
    if not leases:
        listed.unlink(missing_ok=True)
        return
    new.write_text(json.dumps(sorted(leases)))
    new.replace(listed)


def reap() -> list[Lease]:
    """Give back what hosts without a lock left behind; what was given back."""
    folder = state_root() / "hosts"
    found: list[Lease] = []
    for path in sorted(folder.glob("*.lock")):
        try:
            fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        except OSError:
            continue
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            dead = os.path.samestat(os.fstat(fd), path.stat())  # or it lives, with a lock that it made anew
        except OSError:  # its process lives, or another host was faster
            continue
        else:
            found += _reap_host(path) if dead else []
        finally:
            os.close(fd)
    return found


def _reap_host(path: Path) -> list[Lease]:
    listed = path.with_suffix(".json")
    try:
        leases = [Lease(*entry) for entry in json.loads(listed.read_text())]
    except (OSError, ValueError, TypeError):
        leases = []
    left = [one for kind in ("pid", "cgroup", "run_dir") for one in leases if one.kind == kind and not _given_back(one)]
    for hook in HOOKS:
        hook(path.stem)
    if left:  # for the next one to try
        _write(path, left)
    else:
        listed.unlink(missing_ok=True)
        path.unlink(missing_ok=True)
    return [one for one in leases if one not in left]


def _given_back(one: Lease) -> bool:
    """Whether nothing of it is left; what we cannot have written is left alone, and counts."""
    if ".." in Path(one.what).parts:
        return True
    if one.kind == "pid":
        pid, _, started = one.what.partition(":")
        return not started or str(start_time(int(pid))) != started or end_process(int(pid))
    if one.kind == "cgroup" and one.what.startswith("/sys/fs/cgroup/"):
        return remove_cgroup(Path(one.what))
    if one.kind == "run_dir" and one.what.startswith("/tmp/dk-"):  # noqa: S108  a name, not a file that is opened
        return remove_run_dir(Path(one.what))
    return True


def end_process(pid: int) -> bool:
    """Kill it and wait, two seconds at most, until it has let go of its files and mounts; whether it has."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, signal.SIGKILL)
    for _ in range(100):
        if not runs(pid):
            return True
        threading.Event().wait(0.02)
    return False


def remove_cgroup(folder: Path) -> bool:
    """Thaw it, kill what is in it, remove it, for two seconds at most; whether it is gone."""
    for name, thawed in (("freezer.state", "THAWED"), ("cgroup.freeze", "0")):
        with contextlib.suppress(OSError):
            if (folder / name).exists():
                (folder / name).write_text(thawed)
    for _ in range(100):
        with contextlib.suppress(OSError, ValueError):
            for pid in (folder / "cgroup.procs").read_text().split():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
        try:
            folder.rmdir()
        except FileNotFoundError:
            return True
        except OSError:  # busy until the last process is reaped
            threading.Event().wait(0.02)
        else:
            return True
    return False


def remove_run_dir(folder: Path) -> bool:
    """Unmount everything below, then delete, a second at most; whether it is gone.

    The tree was the agent's, so links in it are not followed.
    """
    for _ in range(20):
        for line in reversed(Path("/proc/self/mountinfo").read_text().splitlines()):
            place = line.split()[4]
            if place.startswith(f"{folder}/"):
                unmount(Path(place))
        remove_tree(folder)
        if not folder.exists():
            return True
        threading.Event().wait(0.05)  # a process that is about to die still writes
    return False
