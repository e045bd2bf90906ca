"""First process of a box: starts, interrupts and kills kernels for the host, reaps, reports exits, dies with the host.

Standard input and output carry JSON lines (`op` from the host, `ev` to it). End of input, or a minute without a line,
ends everything in the box. It runs as PID 1 of a PID namespace; `--subreaper` is the mode for a box without a namespace.
What it imports is a part of each box's start: nothing that has another import in its wake for a line or two of ours.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import sys
import time

TYPE_CHECKING = False
if TYPE_CHECKING:
    from typing import Any

SILENCE_S = float(os.environ.get("DOJO_SILENCE_S", "60"))
IGNORED = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGUSR1, signal.SIGUSR2)
PR_SET_PDEATHSIG, PR_SET_DUMPABLE, PR_SET_CHILD_SUBREAPER = 1, 4, 36
HERE = os.path.dirname(os.path.realpath(__file__))
MAX_LINE = 1 << 20
OOM_SCORE = "500"
"""Of what init starts, as in box.Room: when memory runs out, all of it goes before init, and before the host's programs."""
ZYGOTE = "zygote"


def say(**event: object) -> None:
    """One short line to the host."""
    data = json.dumps(event).encode() + b"\n"
    while data:
        data = data[os.write(1, data) :]


def content(path: str) -> bytes:
    """Of a file of /proc. Raises OSError."""
    with open(path, "rb") as file:
        return file.read()


def stat(pid: int) -> list[bytes]:
    """What /proc says of a process after its name: state, parent, ... Raises OSError when it is gone."""
    return content(f"/proc/{pid}/stat").rpartition(b")")[2].split()


def family(root: int) -> dict[int, int]:
    """Parent of each process below `root`, where /proc shows a whole host."""
    found: dict[int, int] = {}
    todo = [root]
    while todo:
        parent = todo.pop()
        with contextlib.suppress(OSError):
            for task in os.listdir(f"/proc/{parent}/task"):
                with contextlib.suppress(OSError):
                    below = [int(child) for child in content(f"/proc/{parent}/task/{task}/children").split()]
                    found.update(dict.fromkeys(below, parent))
                    todo += below
    return found


def parents() -> dict[int, int]:
    """Parent of each process that /proc shows."""
    found = {}
    for entry in os.listdir("/proc"):
        with contextlib.suppress(OSError, ValueError, IndexError):
            found[int(entry)] = int(stat(int(entry))[1])
    return found


def parent_of(pid: int) -> int:
    """0 when it is gone."""
    try:
        return int(stat(pid)[1])
    except OSError:
        return 0


def exit_code(pid: int) -> int:
    """Of a dead process that its parent has not reaped yet; killed, when it has."""
    try:
        fields = stat(pid)
        return os.waitstatus_to_exitcode(int(fields[-1])) if fields[0] == b"Z" else -signal.SIGKILL
    except OSError:
        return -signal.SIGKILL


def descendants(root: int, tree: dict[int, int], without: frozenset[int] = frozenset()) -> set[int]:
    """Every process below `root`, except those of `without` and what is below them."""
    children: dict[int, list[int]] = {}
    for pid, parent in tree.items():
        children.setdefault(parent, []).append(pid)
    found: set[int] = set()
    todo = [root]
    while todo:
        for child in children.get(todo.pop(), ()):
            if child not in found and child not in without:
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
        return mark in content(f"/proc/{pid}/environ").split(b"\0")
    except OSError:
        return False


class Zygote:
    """The process that forks kernels, and the pipes to it."""

    def __init__(self, pid: int, orders: int, answers: int) -> None:
        self.pid, self.orders, self.answers = pid, orders, answers
        self.waiting: list[str] = []
        """Kernels ordered and not yet made."""
        self.early: dict[int, int] = {}
        """Status by pid of processes that ended meanwhile: one may be a kernel whose making is not heard of yet."""
        self.pending = b""

    def close(self) -> None:
        """Its pipes."""
        os.close(self.orders)
        os.close(self.answers)


class Init:
    """The processes of one box by name."""

    def __init__(self, *, alone: bool, libc: ctypes.CDLL) -> None:
        self.alone = alone  # PID 1 of a namespace: kill(-1) reaches all of the box and nothing else
        self.libc = libc
        self.pids: dict[str, int] = {}
        self.watched: dict[int, tuple[str, int]] = {}
        """pidfd -> name and pid of a kernel that another one has forked and would reap."""
        self.zygote: Zygote | None = None
        self.zygote_order: dict[str, Any] = {}

    def in_child(self) -> None:
        """Between fork and exec."""
        os.setsid()
        for number in (*IGNORED, signal.SIGXFSZ):  # the last one is Python's own doing
            signal.signal(number, signal.SIG_DFL)
        self.libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
        self.libc.prctl(PR_SET_DUMPABLE, 1, 0, 0, 0)  # or its own oom_score_adj is not writable
        with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as file:
            file.write(OOM_SCORE)

    def start(self, argv: list[str], env: dict[str, str], cwd: str, streams: tuple[int, int] | None = None) -> int:
        """A program in a session and process group of its own; its pid. Raises OSError where it cannot be run.

        `streams` become its standard input and output; without them, and for its errors, there is /dev/null.
        """
        null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
        heard, told = os.pipe2(os.O_CLOEXEC)  # exec closes it: what is read there, is why there was none
        with os.fdopen(heard, "rb") as file:
            try:
                pid = os.fork()
                if pid == 0:
                    self.become(argv, env, cwd, (*(streams or (null, null)), null), told)
            finally:
                os.close(null)
                os.close(told)
            why = file.read().decode(errors="replace")
        if why:
            raise OSError(why)
        return pid

    def become(self, argv: list[str], env: dict[str, str], cwd: str, streams: tuple[int, ...], told: int) -> None:
        """In the child: the program, or a word to `told` and the end."""
        try:
            self.in_child()
            for number, stream in enumerate(streams):
                os.dup2(stream, number)
            os.chdir(cwd)
            os.execvpe(argv[0], argv, env)
        except BaseException as error:  # noqa: BLE001  nothing may get back into init's loop
            os.write(told, f"{type(error).__name__}: {error}".encode()[:1000])
        finally:
            os._exit(70)

    def prepare(self, order: dict[str, Any]) -> None:
        """Write the connection file of a kernel to come."""
        if str(order["name"]) in self.pids:
            raise ValueError(f"{order['name']} runs already")
        fd = os.open(str(order["connection_file"]), os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
        with os.fdopen(fd, "w") as file:
            json.dump(order["connection"], file)

    def spawn(self, order: dict[str, Any]) -> None:
        """Start one kernel as a program of its own."""
        self.prepare(order)
        name = str(order["name"])
        argv = [str(part) for part in order["argv"]]
        self.register(name, self.start(argv, {**order["env"], "DOJO_PROCESS": name}, order.get("cwd") or "/"))

    def register(self, name: str, pid: int) -> None:
        """From here on its end is reported, and it is killed by its name."""
        self.pids[name] = pid
        say(ev="spawn", name=name, pid=pid)

    def fork(self, order: dict[str, Any]) -> None:
        """Have the zygote make a kernel; `hear_zygote` registers it."""
        self.prepare(order)
        if self.zygote is None:
            self.start_zygote()
        assert self.zygote is not None
        self.zygote.waiting.append(str(order["name"]))
        line = {key: order[key] for key in ("name", "connection_file", "room")} | {"init": os.getpid()}
        try:
            os.write(self.zygote.orders, json.dumps(line).encode() + b"\n")
        except OSError:  # it died; its last words say so
            self.end_zygote()

    def start_zygote(self) -> None:
        """Again after it has died; the host sends its order first."""
        order = self.zygote_order
        argv = [sys.executable, "-B", f"{HERE}/zygote.py", *order["preload"]]
        (theirs, orders), (answers, mine) = os.pipe2(os.O_CLOEXEC), os.pipe2(os.O_CLOEXEC)
        try:
            pid = self.start(argv, {**order["env"], "DOJO_PROCESS": ZYGOTE}, "/", (theirs, mine))
        except OSError:
            os.close(orders)
            os.close(answers)
            raise
        finally:
            os.close(theirs)
            os.close(mine)
        self.zygote = Zygote(pid, orders, answers)

    def end_zygote(self) -> None:
        """Forget one that is gone, and tell the host of the kernels that it did not make."""
        zygote, self.zygote = self.zygote, None
        if zygote is not None:
            send(zygote.pid, signal.SIGKILL)
            zygote.close()
            for name in zygote.waiting:
                say(ev="error", op="spawn", name=name, why="the zygote ended")

    def hear_zygote(self) -> None:
        """Register what it has made."""
        zygote = self.zygote
        if zygote is None:
            return
        chunk = os.read(zygote.answers, 65536)
        if not chunk:
            self.end_zygote()
            return
        *lines, zygote.pending = (zygote.pending + chunk).split(b"\n")
        for line in lines:
            answer = json.loads(line)
            if "pid" in answer and answer["name"] in zygote.waiting:
                zygote.waiting.remove(answer["name"])
                if answer["pid"]:
                    self.register(answer["name"], answer["pid"])
                    if answer["pid"] in zygote.early:
                        self.gone(answer["name"], os.waitstatus_to_exitcode(zygote.early.pop(answer["pid"])))
                else:
                    say(ev="error", op="spawn", name=answer["name"], why="no process is left")
            elif "warning" in answer:
                say(ev="warning", why=answer["warning"])
        if not zygote.waiting:
            zygote.early.clear()

    def adopt(self, order: dict[str, Any]) -> None:
        """A kernel that another kernel of ours has forked; it stays that one's child, and its end is seen all the same."""
        name, pid = str(order["name"]), int(order["pid"])
        known = self.pids.values()
        if name in self.pids or pid in known or parent_of(pid) not in known:
            raise ValueError(f"process {pid} is no child of a kernel")
        self.watched[os.pidfd_open(pid)] = name, pid
        self.register(name, pid)

    def look(self) -> None:
        """Report the forked kernels that ended."""
        for fd in select.select([*self.watched], [], [], 0)[0]:
            name, pid = self.watched[fd]
            self.gone(name, exit_code(pid))

    def gone(self, name: str, code: int) -> None:
        """Say that a kernel ended; once."""
        if self.pids.pop(name, None) is None:
            return
        for fd in [fd for fd, (known, _) in self.watched.items() if known == name]:
            del self.watched[fd]
            os.close(fd)
        say(ev="exit", name=name, code=code)

    def signal_group(self, name: str, number: int) -> None:
        """To the program and the children that stayed in its group."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self.pids[name], number)

    def kill(self, name: str) -> None:
        """The program, everything below it but other kernels, and strays: what no kernel's tree holds.

        A stray that says it belongs to another kernel that lives is left to that one.
        """
        while self.zygote is not None and self.zygote.waiting:  # or its newborn would be a stray
            if not select.select([self.zygote.answers], [], [], 2.0)[0]:
                break
            self.hear_zygote()
        for _ in range(100):  # forks in flight: until a pass finds nothing
            tree = parents() if self.alone else family(os.getpid())
            others = frozenset(pid for known, pid in self.pids.items() if known != name)
            mine = {self.pids[name]} | descendants(self.pids[name], tree, others) if name in self.pids else set()
            mine |= self.strays(tree, but=name)
            for pid in mine:
                send(pid, signal.SIGKILL)
            if name in self.pids:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(self.pids[name], signal.SIGKILL)
            self.reap()
            self.look()
            if not mine and name not in self.pids:
                return
            time.sleep(0.001)

    def strays(self, tree: dict[int, int], but: str) -> set[int]:
        """Processes of the box outside of every program's tree."""
        others = {known: pid for known, pid in self.pids.items() if known != but}
        held = {os.getpid(), *others.values()}
        if self.zygote is not None:
            others[ZYGOTE] = self.zygote.pid
            held |= {self.zygote.pid} | descendants(self.zygote.pid, tree)
        for pid in others.values():
            held |= descendants(pid, tree)
        everything = set(tree) if self.alone else descendants(os.getpid(), tree)
        if but in self.pids:
            held |= {self.pids[but]} | descendants(self.pids[but], tree)
        marks = {f"DOJO_PROCESS={known}".encode() for known in others if known != ZYGOTE}
        return {pid for pid in everything - held if not any(marked(pid, mark) for mark in marks)}

    def kill_all(self) -> None:
        """Everything in the box but us."""
        self.end_zygote()
        if self.alone:
            with contextlib.suppress(ProcessLookupError):
                os.kill(-1, signal.SIGKILL)
            return
        for _ in range(400):
            below = set(family(os.getpid()))
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
            if self.zygote is not None and pid == self.zygote.pid:
                self.end_zygote()
            if self.zygote is not None and self.zygote.waiting and pid not in self.pids.values():
                self.zygote.early[pid] = status
            for name in [name for name, known in self.pids.items() if known == pid]:
                self.gone(name, os.waitstatus_to_exitcode(status))

    def obey(self, order: dict[str, Any]) -> None:
        """One line of the host."""
        op = order["op"]
        if op == "ping":
            say(ev="pong", of=order.get("of"))
        elif op in ("spawn", "fork", "adopt"):
            {"spawn": self.spawn, "fork": self.fork, "adopt": self.adopt}[op](order)
        elif op == "zygote":
            self.zygote_order = order
            self.start_zygote()
        elif op in ("int", "term"):
            self.signal_group(order["name"], signal.SIGINT if op == "int" else signal.SIGTERM)
        elif op == "kill":
            self.kill(str(order["name"])) if "name" in order else self.kill_all()
        elif op == "remove":
            import shutil  # noqa: PLC0415  half of what init needs to start, and few boxes need it

            shutil.rmtree(str(order["path"]), ignore_errors=True)
        else:
            raise ValueError(f"no op {op!r}")

    def die(self) -> None:
        """End the box."""
        self.kill_all()
        os._exit(0)


LIMITS = {"--nproc": resource.RLIMIT_NPROC, "--nofile": resource.RLIMIT_NOFILE, "--fsize": resource.RLIMIT_FSIZE}


def limit(kind: int, value: int) -> None:
    """A resource limit that everything started from here inherits; set inside, so that it counts inside."""
    hard = resource.getrlimit(kind)[1]
    most = value if hard == resource.RLIM_INFINITY else min(value, hard)
    resource.setrlimit(kind, (most, most))


def main() -> None:
    """Serve the host until it goes. Arguments: `--subreaper`, and `--nproc N`, `--nofile N`, `--fsize BYTES`."""
    given = sys.argv[1:]
    subreaper = "--subreaper" in given
    if os.getpid() != 1 and not subreaper:
        sys.exit("init must be PID 1 of its box (no --init; bwrap --as-pid-1): another one would hold our pipes open")
    libc = ctypes.CDLL(None)
    libc.prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)  # closes /proc/1/{mem,environ,fd} to the agent
    if subreaper:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    for number in IGNORED:  # Python's own SIGINT handler would undo the immunity of PID 1
        signal.signal(number, signal.SIG_IGN)
    limit(resource.RLIMIT_CORE, 0)
    for name, kind in LIMITS.items():
        if name in given:
            limit(kind, int(given[given.index(name) + 1]))
    wake, waker = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    signal.set_wakeup_fd(waker, warn_on_full_buffer=False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    init = Init(alone=not subreaper, libc=libc)
    say(ev="ready", pid=os.getpid())
    serve(init, wake)


def serve(init: Init, wake: int) -> None:
    """The loop: orders, deaths, silence."""
    pending, heard = b"", time.monotonic()
    while True:
        answers = [init.zygote.answers] if init.zygote is not None else []
        ready, _, _ = select.select([0, wake, *answers, *init.watched], [], [], max(0.0, heard + SILENCE_S - time.monotonic()))
        if wake in ready:
            os.read(wake, 4096)
        if any(answer in ready for answer in answers):
            init.hear_zygote()
        init.reap()
        init.look()
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
                order: dict[str, Any] = {}
                try:
                    order = dict(json.loads(line))  # no mapping: an error here, not in the report of it
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
