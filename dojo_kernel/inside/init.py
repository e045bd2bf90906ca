"""First process of a box: starts, interrupts and kills kernels for the host, reaps, reports exits, dies with the host.

Standard input and output carry JSON lines (`op` from the host, `ev` to it). End of input, or a minute without a line,
ends everything in the box. It runs as PID 1 of a PID namespace; `--subreaper` is the mode for a box without a namespace.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import json
import os
import resource
import select
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

SILENCE_S = float(os.environ.get("DOJO_SILENCE_S", "60"))
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
HERE = Path(__file__).resolve().parent
MAX_LINE = 1 << 20


def say(**event: object) -> None:
    """One short line to the host."""
    data = json.dumps(event).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def parents() -> dict[int, int]:
    """Parent of each process that /proc shows; ours only, where /proc is shared with a host."""
    found = {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(entry.name)] = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
    return found


def descendants(root: int, tree: dict[int, int]) -> set[int]:
    """Every process below `root`."""
    children: dict[int, list[int]] = {}
    for pid, parent in tree.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found:
                found.add(child)
                todo.append(child)
    return found


def send(pid: int, number: int) -> None:
    """A signal to a process that may be gone."""
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.kill(pid, number)


def marked(pid: int, mark: bytes) -> bool:
    """Whether the process was started with this environment entry. A hint: its program may have cleared it."""
    try:
        return mark in Path("/proc", str(pid), "environ").read_bytes().split(b"\0")
    except OSError:
        return False


class Init:
    """The processes of one box by name."""

    def __init__(self, *, alone: bool, libc: ctypes.CDLL) -> None:
        self.alone = alone  # PID 1 of a namespace: kill(-1) reaches all of the box and nothing else
        self.libc = libc
        self.pids: dict[str, int] = {}

    def in_child(self) -> None:
        """Between fork and exec."""
        for number in IGNORED:
            signal.signal(number, signal.SIG_DFL)
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self.libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or its own oom_score_adj is not writable
        with contextlib.suppress(OSError):
            Path("/proc/self/oom_score_adj").write_text("0")

    def spawn(self, order: dict[str, Any]) -> None:
        """Write the connection file and start one program in a session and process group of its own."""
        name = str(order["name"])
        if name in self.pids:
            raise ValueError(f"{name} runs already")
        where = str(order["connection_file"])
        fd = os.open(where, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(order["connection"], file)
        argv = [str(part) for part in order["argv"]]
        if order.get("scratch"):
            rules = dict(order["scratch"], sockets=str(Path(where).parent))
            argv = [sys.executable, "-I", "-S", "-B", str(HERE / "scratch.py"), json.dumps(rules), "--", *argv]
        process = subprocess.Popen(
            argv,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            preexec_fn=self.in_child,  # noqa: PLW1509  we have one thread
            env={**order["env"], "DOJO_PROCESS": name},
            cwd=order.get("cwd") or "/",
        )
        process.returncode = 0  # reaped below by waitpid(-1), never by subprocess
        self.pids[name] = process.pid
        say(ev="spawn", name=name, pid=process.pid)

    def signal_group(self, name: str, number: int) -> None:
        """To the program and the children that stayed in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pids[name], number)

    def kill(self, name: str) -> None:
        """The program, everything below it, and what it left behind in other sessions."""
        mark = f"DOJO_PROCESS={name}".encode()
        for _ in range(20):  # forks in flight: until a pass finds nothing
            tree = parents()
            mine = descendants(self.pids[name], tree) if name in self.pids else set()
            mine |= {pid for pid in descendants(os.getpid(), tree) if marked(pid, mark)}
            for pid in mine:
                send(pid, signal.SIGKILL)
            if name in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pids[name], signal.SIGKILL)
            self.reap()
            if not mine and name not in self.pids:
                return
            time.sleep(0.005)

    def kill_all(self) -> None:
        """Everything in the box but us."""
        if self.alone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            return
        for _ in range(400):
            below = descendants(os.getpid(), parents())
            if not below:
                return
            for pid in below:
                send(pid, signal.SIGKILL)
            self.reap()
            time.sleep(0.005)

    def reap(self) -> None:
        """Collect the dead; those with a name are reported."""
        while True:
            try:
                pid, status = os.waitpid(-1, os.WNOHANG)
            except ChildProcessError:
                return
            if pid == 0:
                return
            for name in [name for name, known in self.pids.items() if known == pid]:
                del self.pids[name]
                say(ev="exit", name=name, code=os.waitstatus_to_exitcode(status))

    def obey(self, order: dict[str, Any]) -> None:
        """One line of the host."""
        op = order["op"]
        if op == "ping":
            say(ev="pong")
        elif op == "spawn":
            self.spawn(order)
        elif op in ("int", "term"):
            self.signal_group(order["name"], signal.SIGINT if op == "int" else signal.SIGTERM)
        elif op == "kill" and "name" in order:
            self.kill(str(order["name"]))
        elif op == "kill":
            self.kill_all()
        elif op == "remove":
            shutil.rmtree(str(order["path"]), ignore_errors=True)
        else:
            raise ValueError(f"no op {op!r}")

    def die(self) -> None:
        """End the box."""
        self.kill_all()
        os._exit(0)


def limit(limits: argparse.Namespace) -> None:
    """Resource limits that everything started from here inherits; set inside, so that they count inside."""
    wanted = {
        resource.RLIMIT_NPROC: limits.nproc,
        resource.RLIMIT_NOFILE: limits.nofile,
        resource.RLIMIT_FSIZE: limits.fsize,
        resource.RLIMIT_CORE: 0,
    }
    for kind, value in wanted.items():
        if value is not None:
            hard = resource.getrlimit(kind)[1]
            most = value if hard == resource.RLIM_INFINITY else min(value, hard)
            resource.setrlimit(kind, (most, most))


def main() -> None:
    """Serve the host until it goes."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--subreaper", action="store_true")
    parser.add_argument("--nproc", type=int)
    parser.add_argument("--nofile", type=int)
    parser.add_argument("--fsize", type=int)
    arguments = parser.parse_args()
    if os.getpid() != 1 and not arguments.subreaper:
        sys.exit("init must be PID 1 of its box (no --init; bwrap --as-pid-1): another one would hold our pipes open")
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # closes /proc/1/{mem,environ,fd} to the agent
    if arguments.subreaper:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in IGNORED:  # Python's own SIGINT handler would undo the immunity of PID 1
        signal.signal(number, signal.SIG_IGN)
    limit(arguments)
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    init = Init(alone=not arguments.subreaper, libc=libc)
    say(ev="ready", pid=os.getpid())
    serve(init, wake)


def serve(init: Init, wake: int) -> None:
    """The loop: orders, deaths, silence."""
    pending, heard = b"", time.monotonic()
    while True:
        ready, _, _ = select.select([0, wake], [], [], max(0.0, heard + SILENCE_S - time.monotonic()))
        if wake in ready:
            os.read(wake, 4096)
        init.reap()
        if 0 in ready:
            try:
                chunk = os.read(0, 65536)
            except ConnectionError:
                chunk = b""
            if not chunk or len(pending) > MAX_LINE:
                init.die()
            heard = time.monotonic()
            *lines, pending = (pending + chunk).split(b"\n")
            for line in lines:
                order = {}
                try:
                    order = json.loads(line)
                    init.obey(order)
                except Exception as error:  # noqa: BLE001  whatever an order brings about, PID 1 must live and say so
                    say(ev="error", op=order.get("op"), name=order.get("name"), why=f"{type(error).__name__}: {error}"[:300])
        elif time.monotonic() - heard >= SILENCE_S:
            init.die()


if __name__ == "__main__":
    try:
        main()
    except BrokenPipeError:  # the host went while we spoke
        os._exit(0)
