"""What a process does before it forks, and what the child does first, so that neither hangs nor touches the other.

A fork copies one thread and all memory. What it shares with its parent all the same are open files, sockets and shared
mappings: the child lets go of each, or gets a private one. What it lacks are the other threads: OpenMP's are ended before
the fork and come back when needed; those of the agent are named, so that the observation can say what is gone.
Only the standard library; runs beside the agent's code, so what it reports is a claim.
"""

from __future__ import annotations

import asyncio
import ctypes
import fcntl
import gc
import importlib
import io
import mmap
import os
import random
import re
import socket
import stat
import sys
import threading
import time
from typing import Any, NamedTuple

MAP_SHARED_CAP = 1 << 30
"""Bytes of shared writable mappings that a child may take copies of."""
FILE_CAP = 64 << 20
"""Bytes of a file outside the workspace, open for writing, of which the child gets a private copy; a larger one is closed."""
OURS = frozenset({"IOPub", "Control", "Heartbeat", "Shell channel", "MainThread"})
HARD = 2  # omp_pause_hard: threads and their memory are given back
_OPENMP = re.compile(r"/lib[gi]?omp[^/]*\.so[^/]*$")
MAP_FIXED = 0x10
HELD_S = 6.0
"""How long a fork waits for the moment at which no other thread is inside a file."""
TRIES = 500
"""So often it looks at least, should the machine stand still meanwhile."""
LOCKED = 71


class Refused(Exception):
    """Why this process must not be forked now; the caller starts an empty kernel instead."""


# --- in the parent ---------------------------------------------------------------------------------------------------


def targets() -> dict[int, str]:
    """What each open descriptor is."""
    found = {}
    for entry in os.listdir("/proc/self/fd"):
        try:
            found[int(entry)] = os.readlink(f"/proc/self/fd/{entry}")
        except OSError:  # the listing's own
            continue
    return found


def opened_since(before: dict[int, str]) -> dict[int, str]:
    """Descriptors that are there now and were not, or were something else."""
    return {number: target for number, target in targets().items() if before.get(number) != target}


def foreign_threads() -> list[threading.Thread]:
    """Python threads that neither the kernel nor its streams started."""
    return [
        thread
        for thread in threading.enumerate()
        if thread is not threading.main_thread()
        and thread.name not in OURS
        and getattr(getattr(thread, "_target", None), "__name__", "") != "_watch_pipe_fd"
    ]


class Ready(NamedTuple):
    """What the parent found out, for its child."""

    lost: dict[str, list[str]]
    """What a child will lack, by kind."""
    shared: list[tuple[int, ...]]
    """Start and end of each writable mapping that other processes see."""
    randomness: Any
    """State of Python's generator, which a forked child would otherwise draw anew."""
    files: list[Any]
    """Buffered files that another thread may be writing at the fork."""


def prepare() -> Ready:
    """Make this process ready for a fork. Raises Refused."""
    if any(target.startswith(("/dev/nvidia", "/dev/dri/", "/dev/kfd")) for target in targets().values()):
        raise Refused("a GPU is in use, and its state does not survive a fork")
    cuda = getattr(sys.modules.get("torch"), "cuda", None)
    if cuda is not None and cuda.is_initialized():
        raise Refused("CUDA is initialised, and its state does not survive a fork")
    threads = foreign_threads()
    _refuse_held_imports(threads)
    with open("/proc/self/maps") as file:
        lines = [line for line in file if " rw-s " in line or "omp" in line]
    shared = [tuple(int(part, 16) for part in line.split(" ", 1)[0].split("-")) for line in lines if " rw-s " in line]
    size = sum(end - start for start, end in shared)
    if size > MAP_SHARED_CAP:
        raise Refused(f"{size >> 20} MB of memory are shared with other processes")
    pause_openmp(sorted({line[line.index("/") :].rstrip("\n") for line in lines if _OPENMP.search(line)}))
    files = [one for one in gc.get_objects() if type(one) in (io.BufferedWriter, io.BufferedRandom)] if threads else []
    return Ready({"threads": [thread.name for thread in threads], "processes": children()}, shared, random.getstate(), files)


def _refuse_held_imports(threads: list[threading.Thread]) -> None:
    """A module that a vanished thread is half-way through importing could never be imported again."""
    idents = {thread.ident for thread in threads}
    locks: dict[str, Any] = getattr(importlib._bootstrap, "_module_locks", {})  # noqa: SLF001  the import system's own table
    for name, reference in list(locks.items()):
        lock = reference()
        if lock is not None and getattr(lock, "owner", None) in idents:
            raise Refused(f"a thread is importing {name} at this moment")


_made: set[int] = set()
"""Kernels that this process has forked and that nobody has reaped."""


def once(files: list[Any]) -> int:
    """Fork, one copy of the page tables and no more. Returns the child's pid, 0 in it. Raises Refused, OSError.

    A child in which one of `files` is locked, by a thread that it does not have, goes at once; then the fork is tried again.
    """
    reap()
    deadline, tries = time.monotonic() + HELD_S, 0
    while any(map(locked, files)) or (pid := _whole(files)) is None:
        tries += 1
        if tries > TRIES and time.monotonic() > deadline:
            raise Refused("a thread is writing to a file without a pause")
        time.sleep(0.0005)
    if pid == 0:
        gc.disable()  # a collection now would copy every page
        _made.clear()
    else:
        _made.add(pid)
    return pid


def _whole(files: list[Any]) -> int | None:
    """As os.fork; None: the child was of no use."""
    if not files:
        return os.fork()
    reading, writing = os.pipe()
    try:
        pid = os.fork()
        if pid == 0:
            if any(map(locked, files)):
                os._exit(LOCKED)
            os.write(writing, b"1")
            return 0
        os.close(writing)
        writing = -1
        if os.read(reading, 1):
            return pid
        os.waitpid(pid, 0)
        return None
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)


def locked(file: Any) -> bool:
    """Whether a thread is inside a buffered file: a child of this moment would wait for it for ever."""
    return bool(_OWNER) and ctypes.c_ulong.from_address(id(file) + _OWNER).value != 0


def _owner_offset() -> int:
    """Where in memory a buffered file keeps the thread that is inside it; 0: not found.

    No interface tells, nor whether the lock is held; so look at one from inside and from outside.
    """
    words = ctypes.c_ulong * (io.BufferedWriter.__basicsize__ // ctypes.sizeof(ctypes.c_ulong))
    inside: list[int] = []

    class Sink(io.RawIOBase):
        def writable(self) -> bool:
            return True

        def write(self, data: Any) -> int:
            inside[:] = words.from_address(id(file))
            return len(data)

    file = io.BufferedWriter(Sink())
    file.write(b"x")
    file.flush()
    outside = list(words.from_address(id(file)))
    me = threading.get_ident()
    found = [number for number, word in enumerate(inside) if word == me and outside[number] == 0]
    return found[0] * ctypes.sizeof(ctypes.c_ulong) if len(found) == 1 else 0


_OWNER = _owner_offset()


def reap() -> None:
    """Bury the kernels that ended; init has read their exit codes long since."""
    for pid in list(_made):
        try:
            gone = os.waitpid(pid, os.WNOHANG)[0] == pid
        except ChildProcessError:  # the agent's own wait was first
            gone = True
        if gone:
            _made.discard(pid)


def children() -> list[str]:
    """Processes that this one has started for the agent and that run."""
    found = []
    for task in os.listdir("/proc/self/task"):
        try:
            with open(f"/proc/self/task/{task}/children") as file:
                found += [f"process {pid}" for pid in file.read().split() if int(pid) not in _made]
        except OSError:
            continue
    return found


def tasks() -> list[str]:
    """Names of the running loop's tasks that are the agent's."""
    found = []
    for task in asyncio.all_tasks() - {asyncio.current_task()}:
        code = getattr(task.get_coro(), "cr_code", None)
        if code is not None and not any(part in code.co_filename for part in ("/ipykernel/", "/tornado/", "/zmq/")):
            found.append(task.get_name())
    return found


def pause_openmp(paths: list[str]) -> None:
    """End the worker threads of every OpenMP runtime that is loaded; each library brings its own. Raises Refused."""
    for path in paths:
        try:
            code = ctypes.CDLL(path).omp_pause_resource_all(HARD)
        except (OSError, AttributeError) as error:  # AttributeError: older than OpenMP 5.0
            raise Refused(f"the OpenMP runtime {os.path.basename(path)} cannot be paused: {error}") from None
        if code:
            raise Refused(f"the OpenMP runtime {os.path.basename(path)} did not pause (status {code})")


def reseed(seed: int, namespace: dict[str, Any]) -> None:
    """New, reproducible randomness: Python's, numpy's and torch's global generators, and those the user's names hold."""
    random.seed(seed)
    numpy, torch = sys.modules.get("numpy"), sys.modules.get("torch")
    if numpy is not None:
        numpy.random.seed(seed % 2**32)
        for number, name in enumerate(sorted(namespace)):
            value = namespace[name]
            if isinstance(value, numpy.random.Generator):
                kind = type(value.bit_generator)
                value.bit_generator.state = kind(numpy.random.SeedSequence([seed, number])).state
            elif isinstance(value, numpy.random.RandomState):
                value.seed((seed + number) % 2**32)
    if torch is not None:
        torch.manual_seed(seed)


# --- in the child ----------------------------------------------------------------------------------------------------


def make_private(shared: list[tuple[int, ...]]) -> None:
    """Replace shared writable memory by copies at the same place: np.memmap, shared_memory, semaphores."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    for start, end in shared:
        data = ctypes.string_at(start, end - start)
        flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | MAP_FIXED
        if libc.mmap(start, end - start, mmap.PROT_READ | mmap.PROT_WRITE, flags, -1, 0) != start:
            raise OSError(ctypes.get_errno(), "mmap")
        ctypes.memmove(start, data, len(data))


def let_go(own: dict[int, str], folder: str, moved: tuple[str, str] | None) -> None:
    """Give the child descriptors of its own.

    Args:
        own: Those of the parent's kernel, as `targets` gave them: closed, since no object will ask for them again.
        folder: Of the parent's sockets and black box, which are closed as well.
        moved: A folder and where its copy lies: files that are open for writing in one are opened in the other.

    The agent's sockets, pipes and event queues are replaced by /dev/null: reading from one would steal from the parent, and
    a listening one would outlive it. dup2 rather than close, so that no number is used again for something else.
    """
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number, target in targets().items():
        if number <= 2 or number == null:
            continue
        try:
            if own.get(number) == target or _place(number, target).startswith(folder + "/"):
                os.close(number)
                continue
            mode = os.fstat(number).st_mode
            inherited = os.get_inheritable(number)
            if stat.S_ISDIR(mode) or (stat.S_ISCHR(mode) and not target.startswith(("/dev/pts", "/dev/ptmx"))):
                continue
            mine = _own(number, target, moved) if stat.S_ISREG(mode) else -1
            os.dup2(null if mine < 0 else mine, number, inheritable=inherited)
            if mine >= 0:
                os.close(mine)
        except OSError:  # gone, or not to be opened again: without it rather than shared
            os.dup2(null, number, inheritable=False)
    os.close(null)


def _place(number: int, target: str) -> str:
    """Path of a file, or of the address that a Unix socket is bound to; a connection has that of the socket that accepted it."""
    if not target.startswith("socket:"):
        return target
    with socket.socket(fileno=os.dup(number)) as asked:
        name = asked.getsockname()
    return name if isinstance(name, str) else ""


def _own(number: int, target: str, moved: tuple[str, str] | None) -> int:
    """The same file with an offset of its own; private where it is open for writing. -1: too large for a copy."""
    flags = fcntl.fcntl(number, fcntl.F_GETFL)
    offset = os.lseek(number, 0, os.SEEK_CUR)
    if flags & os.O_ACCMODE == os.O_RDONLY:
        mine = os.open(f"/proc/self/fd/{number}", flags | os.O_CLOEXEC)
    elif moved is not None and target.startswith(moved[0] + "/") and not target.endswith(" (deleted)"):
        mine = os.open(moved[1] + target[len(moved[0]) :], flags & ~(os.O_CREAT | os.O_EXCL | os.O_TRUNC) | os.O_CLOEXEC)
    else:
        size = os.fstat(number).st_size
        if size > FILE_CAP:
            return -1
        mine = os.memfd_create("copy", os.MFD_CLOEXEC)
        reading = os.open(f"/proc/self/fd/{number}", os.O_RDONLY | os.O_CLOEXEC)
        while size > 0 and (sent := os.sendfile(mine, reading, None, size)):
            size -= sent
        os.close(reading)
    os.lseek(mine, offset, os.SEEK_SET)
    return mine


def forget_pools() -> None:
    """Worker pools whose manager threads are gone would wait for ever: the next use makes new ones."""
    for name in ("joblib.externals.loky.reusable_executor", "loky.reusable_executor"):
        loaded = sys.modules.get(name)
        if loaded is not None:
            vars(loaded)["_executor"] = None
    for name in ("multiprocessing.resource_tracker", "joblib.externals.loky.backend.resource_tracker"):
        tracker = getattr(sys.modules.get(name), "_resource_tracker", None)
        if tracker is not None:
            vars(tracker).update(_fd=None, _pid=None)
    process = sys.modules.get("multiprocessing.process")
    if process is not None:
        vars(process)["_children"].clear()
