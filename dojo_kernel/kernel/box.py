"""What the three kinds of box share: run folders, socket folders and keys by generation, and the wire to init.

All boxes of a host process are served by one background thread with an event loop of its own. So pings go out while the
caller's loop is busy or stopped, and bubblewrap's death signal, which watches the *thread* that started it, is right.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import secrets
import signal
import stat
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

import zmq
from jupyter_client.provisioning.provisioner_base import KernelProvisionerBase
from traitlets import Any as AnyTrait
from traitlets import Float, Unicode
from traitlets import List as ListTrait

from dojo_kernel.errors import BoxLostError, KernelStartError
from dojo_kernel.kernel import reaper
from dojo_kernel.kernel.workspace import Workspace, mount_tmpfs, remove_tree
from dojo_kernel.records import Enforcement, Limits

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable, Coroutine

    from jupyter_client.connect import KernelConnectionInfo

T = TypeVar("T")

INSIDE = Path(__file__).resolve().parent.parent / "inside"
BOX_UID = 10001
"""Owner of everything in a box that a root host opens; others use their own uid."""
PING_S = 5.0
SILENCE_S = 60.0
START_S = 30.0
SPAWN_S = 60.0
OUR_ARGV = ("python3", "-m", "dojo_kernel.inside.app", "-f", "{connection_file}")
STARTS = frozenset({"spawn", "fork", "adopt"})
"""Orders to init after which a kernel runs, or an error says why not."""
CHANNELS = ("shell", "iopub", "stdin", "control", "hb")
SOCKETS_BYTES = 64 << 20
"""Of a box's socket folders and black boxes; a hundred kernels need some 800 files of it."""
"""Without a quota; each kernel's black box holds 16 MiB."""
MAX_LINE = 1 << 16
FAILURE_BYTES = 1 << 16
WATCH_S = 0.5
QUOTA = "the workspace by size and number of files, branches and checkpoints together by as much again"
WATCHED = "the workspace is measured twice a second: it can be exceeded for a moment; RLIMIT_FSIZE holds each file"
GB = 1 << 30
_WAITING = {"GOMP_SPINCOUNT": "1000", "OPENBLAS_THREAD_TIMEOUT": "16"}
"""How long threads of libgomp and OpenBLAS look for work (loops; 2 ** 16 cycles) before they sleep. libgomp takes 1,000 of itself
where it sees more threads than cores, but it does not see other boxes. With three boxes on two cores a gradient boosting takes
half the time, a logistic regression a third; alone nothing takes longer."""


# --- the thread of all boxes -----------------------------------------------------------------------------------------

_loop: asyncio.AbstractEventLoop | None = None
_loop_lock = threading.Lock()


def _boxes_loop() -> asyncio.AbstractEventLoop:
    global _loop  # noqa: PLW0603  one for the process, made when first needed
    with _loop_lock:
        if _loop is None:
            _loop = asyncio.new_event_loop()
            threading.Thread(target=_loop.run_forever, name="dojo-boxes", daemon=True).start()
        return _loop


def _forget_loop() -> None:
    global _loop, _loop_lock
    _loop, _loop_lock = None, threading.Lock()


os.register_at_fork(after_in_child=_forget_loop)


async def on_boxes_thread(work: Coroutine[Any, Any, T]) -> T:
    """Run a coroutine on the thread of all boxes and wait for it."""
    return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(work, _boxes_loop()))


# --- the wire --------------------------------------------------------------------------------------------------------


class Wire:
    """The host's end of init's standard input and output. Lives on the thread of all boxes."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer
        self.ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.warnings: list[str] = []
        """What the zygote could not import."""
        self.spawned: dict[str, asyncio.Future[int]] = {}
        self.pongs: dict[int, asyncio.Future[None]] = {}
        self.on_exit: dict[str, Callable[[int], None]] = {}
        self.over: str | None = None
        """Why nothing can be heard any more."""
        self.frozen = False
        self.heard = time.monotonic()
        self._asked = 0
        self.tasks = [asyncio.create_task(self._listen()), asyncio.create_task(self._ping())]

    async def order(self, **order: object) -> None:
        """One line to init. Raises BoxLostError."""
        if self.over is not None:
            raise BoxLostError(self.over)
        try:
            self.writer.write(json.dumps(order).encode() + b"\n")
            await asyncio.wait_for(self.writer.drain(), PING_S)
        except (OSError, TimeoutError) as error:
            self._end(f"the box does not listen: {error!r}")
            raise BoxLostError(self.over) from None

    async def settle(self) -> None:
        """Return once all is heard that init knew when this came to it: it reaps before it answers. Raises BoxLostError."""
        number = self._asked = self._asked + 1
        pong = self.pongs[number] = asyncio.get_running_loop().create_future()
        try:
            await self.order(op="ping", of=number)
            await asyncio.wait({pong}, timeout=PING_S)
        finally:
            self.pongs.pop(number, None)

    async def close(self) -> None:
        """End of input: init ends the box."""
        self._end("the box was closed")
        for task in self.tasks:
            task.cancel()
        self.writer.close()
        with contextlib.suppress(OSError):
            await self.writer.wait_closed()

    async def _listen(self) -> None:
        try:
            while line := await self.reader.readline():
                self.heard = time.monotonic()
                self._event(json.loads(line))
        except (OSError, ValueError) as error:  # ValueError: too long, or no JSON
            self._end(f"the box speaks no more: {error!r}")
            self.writer.close()
        else:
            self._end("the box is gone")

    def _event(self, event: dict[str, Any]) -> None:
        kind, name = event.get("ev"), str(event.get("name", ""))
        waiting = self.spawned.get(name)
        if kind == "ready" and not self.ready.done():
            self.ready.set_result(None)
        elif kind == "warning":
            self.warnings = [*self.warnings, str(event.get("why"))[:300]][-20:]
        elif kind == "spawn" and waiting is not None and not waiting.done():
            waiting.set_result(int(event["pid"]))
        elif kind == "error" and event.get("op") in STARTS and waiting is not None and not waiting.done():
            waiting.set_exception(KernelStartError(f"the box could not start {name}: {event.get('why')}"))
        elif kind == "pong" and event.get("of") in self.pongs:
            self.pongs.pop(event["of"]).set_result(None)
        elif kind == "exit" and name in self.on_exit:
            self.on_exit.pop(name)(int(event["code"]))

    async def _ping(self) -> None:
        while self.over is None:
            await asyncio.sleep(PING_S)
            if self.frozen:  # pings queue in the pipe; nothing can come back
                self.heard = time.monotonic()
            elif time.monotonic() - self.heard > SILENCE_S:
                self._end("the box has been silent for a minute")
                self.writer.close()
                return
            with contextlib.suppress(BoxLostError):
                await self.order(op="ping")

    def _end(self, why: str) -> None:
        if self.over is not None:
            return
        self.over = why
        everybody: list[asyncio.Future[Any]] = [self.ready, *self.spawned.values(), *self.pongs.values()]
        for waiting in everybody:
            if not waiting.done():
                waiting.set_exception(BoxLostError(why))
                waiting.exception()  # seen: nobody may be waiting
        for tell in self.on_exit.values():
            tell(-signal.SIGKILL)
        self.on_exit.clear()


# --- rooms -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Room:
    """Where a kernel of the box works; inside/confine.py makes it so."""

    workspace: str
    """What its code finds as working directory, as the box names it."""
    home: str = ""
    """A folder of its own that goes with it; "" = none."""
    copy_from: str = ""
    """A folder whose files the workspace gets; "" = nothing is copied."""
    max_mb: int = 0
    """Of files in all."""
    link: bool = False
    """Large files as links that cannot be written; otherwise too much is an error."""
    writable: tuple[str, ...] | None = None
    """Folders; None = all that the box allows."""
    oom_score: int = 500
    """1000 is the first victim when memory runs out; init has 0 or less."""
    passing: bool = False
    """It ends soon, or only waits."""


# --- processes -------------------------------------------------------------------------------------------------------


class BoxProcess:
    """One kernel in a box."""

    def __init__(self, name: str, connection_info: dict[str, Any], sockets: Path) -> None:
        self.name = name
        self.pid = 0
        """As the box numbers it."""
        self.born: int | None = None
        """When, in clock ticks since boot; None where the number is not the host's."""
        self.connection_info = connection_info
        """The host's view; for `AsyncKernelClient.load_connection_info`."""
        self.sockets = sockets
        self.code: int | None = None
        """Exit code, negative for a signal; None while it runs."""
        self.room: Room | None = None
        """Where it works; None for a program of its own."""
        self.failure = ""
        """What it said when it could not come up, its last line; a claim."""
        self.killed_for: str | None = None
        """Why the host killed it of its own accord."""
        self._loop = asyncio.get_running_loop()
        self.exited: asyncio.Future[int] = self._loop.create_future()
        """Done when the process is gone; also, with -9, when the whole box is: see `BoxProvisioner.lost`."""
        self._wire: Wire | None = None

    async def interrupt(self) -> None:
        """SIGINT to its process group; nothing if it is gone."""
        await self._order("int")

    async def terminate(self) -> None:
        """SIGTERM to its process group; nothing if it is gone."""
        await self._order("term")

    async def kill(self) -> None:
        """SIGKILL to it and all that it started; nothing if it is gone."""
        await self._order("kill")

    async def settle(self) -> None:
        """Wait, `PING_S` at most, until its exit is known if init knows it: a death breaks connections before it is told."""
        if self._wire is not None and self._wire.over is None:
            with contextlib.suppress(BoxLostError):
                await on_boxes_thread(self._wire.settle())

    async def _order(self, op: str) -> None:
        if self._wire is not None and self._wire.over is None:
            with contextlib.suppress(BoxLostError):
                await on_boxes_thread(self._wire.order(op=op, name=self.name))

    def seal(self) -> None:
        """Delete the sockets and the connection file: who is connected stays, and nobody else can come, keys or not."""
        with contextlib.suppress(OSError):
            for entry in os.scandir(self.sockets):
                if entry.name == "kernel.json" or entry.name.startswith("s-"):
                    os.unlink(entry.path)  # noqa: PTH108  as scandir gives it

    def _gone(self, code: int) -> None:
        """On the thread of all boxes."""
        self.code = code
        self.failure = _last_line(self.sockets / "failure.txt") if code else ""
        remove_tree(self.sockets)
        with contextlib.suppress(RuntimeError):  # the caller's loop is closed: nobody waits
            self._loop.call_soon_threadsafe(self._tell, code)

    def _tell(self, code: int) -> None:
        if not self.exited.done():
            self.exited.set_result(code)


def _last_line(path: Path) -> str:
    """Of a file that the box may have written; "" where there is none."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return ""
    with os.fdopen(fd, "rb") as file:
        text = file.read(FAILURE_BYTES) if stat.S_ISREG(os.fstat(fd).st_mode) else b""
    return text.decode(errors="replace").strip().rpartition("\n")[2].strip()[:300]


# --- the box ---------------------------------------------------------------------------------------------------------


class BoxProvisioner(KernelProvisionerBase):
    """Base of the three kinds: one box, any number of kernels one after the other.

    With a KernelManager as `parent` it is an ordinary provisioner whose kernel is `live-N`; a KernelSession uses
    `start_box`, `spawn` and `remove_box` directly.
    """

    kind: ClassVar[str]
    watches_disk: ClassVar[bool] = True
    """Where the workspace has no quota, look how large it is."""
    limits: Limits = AnyTrait(Limits(), config=True)  # type: ignore[assignment]  # a trait: what its instances hold
    """A Limits, or the mapping that a kernelspec's config holds."""
    data_dir: Path | None = AnyTrait(None, config=True, allow_none=True)  # type: ignore[assignment]  # a trait: what its instances hold
    """Public files of the competition; read-only in the box."""
    image: str = Unicode("dojo-kernel:latest", config=True)  # type: ignore[assignment]  # a trait: what its instances hold
    preload: list[str] = ListTrait(Unicode(), config=True)  # type: ignore[assignment]  # a trait: what its instances hold
    """Modules that the zygote imports before it forks the first kernel."""
    episode: str = Unicode("", config=True)  # type: ignore[assignment]  # a trait: what its instances hold
    """Names the box in labels and leases."""
    deadline_s: float = Float(86_400.0, config=True)  # type: ignore[assignment]  # a trait: what its instances hold
    """After which any host's reaper removes a container, whoever owns it."""

    run_dir: Path | None = None
    workspace: Workspace
    forks: Workspace
    """Workspaces of branches and checkpoints, one folder each."""
    enforcement: tuple[Enforcement, ...] = ()
    _wire: Wire | None = None
    _live: BoxProcess | None = None
    _prepared: tuple[int, dict[str, Any]] | None = None

    def __init__(self, **traits: Any) -> None:
        super().__init__(**traits)
        self.limits = Limits.model_validate(self.limits)
        if self.data_dir is not None:
            self.data_dir = Path(self.data_dir).resolve()
        self._generation = 0
        self._starting = asyncio.Lock()
        self._running: list[BoxProcess] = []
        self._disk_watch: asyncio.Task[None] | None = None

    # --- what the kinds say for themselves ---

    workspace_path: str = "/workspace"
    """As code in the box names it, like the next ones."""
    data_path: str = "/data"
    sockets_path: str = "/run/k"
    inside_path: str = "/opt/dojo"
    forks_path: str = "/forks"
    scratch_root: str = "/tmp"  # noqa: S108  the box's own tmpfs
    home_path: str = "/tmp"  # noqa: S108

    @property
    def python(self) -> str:
        """The interpreter, as the box names it."""
        return sys.executable

    @property
    def path_variable(self) -> str:
        """PATH in the box."""
        return f"{Path(self.python).parent}:/usr/local/bin:/usr/bin:/bin"

    async def _open_box(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        """Start the box with init as its first process; its standard input and output. Runs on the thread of all boxes."""
        raise NotImplementedError

    async def _close_box(self) -> None:
        """Free what `_open_box` took, after the wire was closed; by force. Runs on the thread of all boxes; again is no error."""

    async def _complaint(self) -> str:
        """What a box that did not start has to say. Runs on the thread of all boxes."""
        return ""

    def _enforcement(self) -> tuple[Enforcement, ...]:
        """What holds each limit, once the box runs."""
        raise NotImplementedError

    async def oom_kills(self) -> int | None:
        """How many processes of the box the memory limit has killed; None = not known."""
        return None

    async def memory_used(self) -> int | None:
        """Bytes; None = not known."""
        return None

    def _pids(self) -> list[int]:
        """Processes of the box, as the host numbers them; [] = not known."""
        return []

    async def _set_frozen(self, *, frozen: bool) -> bool:  # noqa: ARG002  for the kinds that can
        """Stop or go on with everything in the box. False: this kind cannot."""
        return False

    # --- the box's life ---

    @property
    def uid(self) -> int:
        """Owner of the box's files, as the host numbers it."""
        return BOX_UID if os.geteuid() == 0 else os.getuid()

    @property
    def lost(self) -> str | None:
        """Why the box is gone, though nobody closed it; None while it is there, or was never started."""
        return self._wire.over if self._wire is not None else None

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the zygote could not import, a line each."""
        return tuple(self._wire.warnings) if self._wire is not None else ()

    async def start_box(self) -> None:
        """Raises KernelStartError. Again is no error while the box lives."""
        async with self._starting:
            if self._wire is not None and self._wire.over is None:
                return
            if self._wire is not None:
                await self._tear_down()
            try:
                self._make_run_dir()
                await on_boxes_thread(self._start_wire())
            except (OSError, TimeoutError, BoxLostError) as error:
                why = await on_boxes_thread(self._complaint()) or str(error) or type(error).__name__
                await self._tear_down()
                raise KernelStartError(f"the {self.kind} box did not start: {why}") from error
            except BaseException:
                await self._tear_down()
                raise
            self.enforcement = self._enforcement()

    async def _start_wire(self) -> None:
        reader, writer = await self._open_box()
        self._wire = wire = Wire(reader, writer)  # here, since a caller that gives up now never sees a result
        try:
            await asyncio.wait_for(wire.ready, START_S)
        except BaseException:
            await wire.close()
            raise
        if self._ours:
            await wire.order(op="zygote", env=self.environment(), preload=list(self.preload))
        if self.watches_disk and not self.workspace.quota:
            self._disk_watch = asyncio.create_task(self._watch_disk(wire))

    async def _watch_disk(self, wire: Wire) -> None:
        """Where no quota holds: over the limit everything in the box dies, and the largest files go."""
        assert self.run_dir is not None
        sockets = Workspace(self.run_dir / "k", size=SOCKETS_BYTES, uid=self.uid, mount=False)  # the box's to write, too
        spaces = (self.workspace, self.forks, sockets)
        pause = WATCH_S
        while wire.over is None:
            await asyncio.sleep(pause)
            started = time.monotonic()
            crowded = await asyncio.to_thread(lambda: [space for space in spaces if space.crowded(self._pids())])
            pause = max(WATCH_S, 4 * (time.monotonic() - started))  # at most a fifth of a processor
            if not crowded:
                continue
            for process in self._running:
                process.killed_for = (
                    f"its files took more than the {self.limits.disk_gb:g} GB of its disk; the largest were deleted"
                )
            with contextlib.suppress(BoxLostError):
                await wire.order(op="kill")
            for space in crowded:
                await asyncio.to_thread(space.make_room)

    def _make_run_dir(self) -> None:
        if self.run_dir is not None:
            return
        reaper.start()
        self.run_dir = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))  # short: a socket's path holds 107 bytes
        reaper.lease("run_dir", str(self.run_dir))
        self.run_dir.chmod(0o711)
        sockets = self.run_dir / "k"
        sockets.mkdir(mode=0o755)  # as root ours, not the box's: a kernel cannot put a link in place of a socket folder
        mount_tmpfs(sockets, SOCKETS_BYTES, os.geteuid(), mode=0o755)
        size = int(self.limits.disk_gb * GB)
        self.workspace = Workspace(self.run_dir / "w", size=size, uid=self.uid)
        self.forks = Workspace(self.run_dir / "f", size=size, uid=self.uid)

    # --- kernels ---

    async def spawn(self, name: str, room: Callable[[int], Room] | None = None) -> BoxProcess:
        """An empty kernel: new socket folder, new keys. Returns before it listens.

        Args:
            name: Of the process; no other that runs has it.
            room: Called with the number of its socket folder; None: the box's own workspace. Only for our own kernel, which
                the zygote forks; another kernelspec's is a program of its own.

        Raises:
            KernelStartError: init could not.
            BoxLostError: the box is gone.
        """
        generation, info = self._new_connection()
        return await self._begin(self._process(name, generation, info), generation, room)

    @property
    def _ours(self) -> bool:
        return tuple(self.kernel_spec.argv[:3]) == OUR_ARGV[:3]

    async def _begin(self, process: BoxProcess, generation: int, room: Callable[[int], Room] | None = None) -> BoxProcess:
        where = self._connection(generation, process.connection_info)
        if self._ours:
            process.room = room(generation) if room else Room(self.workspace_path)
            order = {"op": "fork", "room": asdict(process.room)}
        else:
            argv = self._argv(where["connection_file"])
            order = {"op": "spawn", "argv": argv, "env": self.environment(), "cwd": self.workspace_path}
        self._numbered(process, await on_boxes_thread(self._order_start(process, {**order, "name": process.name, **where})))
        return process

    async def fork(
        self, name: str, room: Callable[[int], Room], ask: Callable[[dict[str, Any]], Awaitable[int]], seed: int | None = None
    ) -> BoxProcess:
        """A kernel made by another one of this box: with all that it knows.

        Args:
            name: Of the process; no other that runs has it.
            room: Called with the number of its socket folder.
            ask: Sends the content of a `fork_request` to the parent and returns the child's pid.
            seed: For its random generators; None: they go on as in the parent.

        Raises:
            KernelStartError: init could not, or `ask` raised it.
            BoxLostError: the box is gone.
        """
        generation, info = self._new_connection()
        process = self._process(name, generation, info)
        process.room = room(generation)
        where = self._connection(generation, info)
        assert self._wire is not None
        try:
            pid = await ask({"name": name, "room": asdict(process.room), "seed": seed, **where})
            self._numbered(process, await on_boxes_thread(self._order_start(process, {"op": "adopt", "name": name, "pid": pid})))
        except BaseException:
            self._wire.on_exit.pop(name, None)
            remove_tree(process.sockets)
            raise
        return process

    def _numbered(self, process: BoxProcess, pid: int) -> None:
        """Init told its number."""
        process.pid = pid

    def _process(self, name: str, generation: int, info: dict[str, Any]) -> BoxProcess:
        if self._wire is None or self.run_dir is None:
            raise KernelStartError("start_box() first")
        process = BoxProcess(name, info, self.run_dir / "k" / str(generation))
        process._wire = self._wire  # noqa: SLF001  its maker
        self._running = [*(one for one in self._running if one.code is None), process]
        return process

    def _connection(self, generation: int, info: dict[str, Any]) -> dict[str, Any]:
        """As the box sees it."""
        folder = f"{self.sockets_path}/{generation}"
        return {"connection": {**info, "ip": f"{folder}/s"}, "connection_file": f"{folder}/kernel.json"}

    def trial_room(self, source: str, root: str, generation: int) -> Room:
        """For a scratch kernel: a throw-away copy of `source` below `root`, and no other place to write."""
        home = f"{root}/scratch-{generation}"
        sockets = f"{self.sockets_path}/{generation}"
        return Room(f"{home}/workspace", home, source, 512, link=True, writable=(home, sockets), oom_score=1000, passing=True)

    def branch_room(self, source: str, root: str, generation: int) -> Room:
        """For a sibling that lives on: a copy of `source`, and no other place to write; inside the branch that it leaves."""
        home = f"{root}/{generation}"
        return Room(f"{home}/workspace", home, source, self._disk_mb, writable=(home, self.sockets_path))

    def snapshot_room(self, source: str, root: str, generation: int) -> Room:
        """For a checkpoint: files as they are now; it only waits, and is an early victim when memory runs out."""
        return Room(f"{root}/checkpoint-{generation}", "", source, self._disk_mb, oom_score=900, passing=True)

    def restored_room(self, snapshot: Room, target: str, branch: Room | None, *, forked: bool) -> Room:
        """For what a checkpoint becomes: its files in the place of those in `target`; in a branch, behind the branch's walls.

        A forked checkpoint of a branch stands behind them already, and they may be put up 16 times only.
        """
        home, writable = (branch.home, None if forked else branch.writable) if branch is not None else ("", None)
        return Room(target, home, snapshot.workspace, self._disk_mb, writable=writable)

    @property
    def _disk_mb(self) -> int:
        return int(self.limits.disk_gb * 1024)

    def host_path(self, inside: str) -> Path:
        """Of a folder below `forks_path`, as the host names it."""
        return self.forks.path / inside.removeprefix(f"{self.forks_path}/")

    def _new_connection(self) -> tuple[int, dict[str, Any]]:
        """A socket folder and keys that no kernel has seen; the host's view of the connection."""
        if self.run_dir is None:
            raise KernelStartError("start_box() first")
        self._generation += 1
        folder = self.run_dir / "k" / str(self._generation)
        try:
            folder.mkdir(mode=0o700)
        except OSError as error:  # without root the box owns the folder above and can close it
            raise BoxLostError(f"the box has no place for sockets: {error}") from None
        if os.geteuid() == 0:
            os.chown(folder, self.uid, self.uid)
        public, private = zmq.curve_keypair()
        info: dict[str, Any] = {
            "transport": "ipc",
            "ip": str(folder / "s"),
            **{f"{channel}_port": number for number, channel in enumerate(CHANNELS, 1)},
            "signature_scheme": "hmac-sha256",
            "key": secrets.token_hex(16),
            "curve_publickey": public.decode(),
            "curve_secretkey": private.decode(),
        }
        return self._generation, info

    async def _order_start(self, process: BoxProcess, order: dict[str, Any]) -> int:
        """Send it, and wait for what init says of it: the kernel's pid. On the thread of all boxes."""
        name, wire = process.name, self._wire
        if wire is None:
            raise BoxLostError("the box is gone")
        waiting: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        wire.spawned[name] = waiting
        wire.on_exit[name] = process._gone  # noqa: SLF001  its maker
        try:
            await wire.order(**order)
            return await asyncio.wait_for(waiting, SPAWN_S)
        except BaseException as error:
            wire.on_exit.pop(name, None)
            if isinstance(error, TimeoutError):
                raise KernelStartError(f"init did not start {name} in {SPAWN_S:.0f} s") from None
            raise
        finally:
            wire.spawned.pop(name, None)

    def _argv(self, connection_file: str) -> list[str]:
        """The kernelspec's command with the box's interpreter."""
        argv = [part.replace("{connection_file}", connection_file) for part in self.kernel_spec.argv]
        if Path(argv[0]).name.startswith("python"):
            argv[0] = self.python
        return argv

    def environment(self) -> dict[str, str]:
        """All that a kernel's environment holds: a list, never the host's own."""
        threads = str(max(1, int(self.limits.cpus)))
        return {
            "PATH": self.path_variable,
            "HOME": self.home_path,
            "IPYTHONDIR": f"{self.home_path}/.ipython",
            "LANG": "C.UTF-8",
            "NO_COLOR": "1",
            "PYTHONHASHSEED": "0",
            "PYTHONDONTWRITEBYTECODE": "1",
            "PYDEVD_DISABLE_FILE_VALIDATION": "1",
            "MPLBACKEND": "agg",
            **dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "LOKY_MAX_CPU_COUNT"), threads),
            **_WAITING,
            "DOJO_DATA_DIR": self.data_path,
            "DOJO_WORKSPACE": self.workspace_path,
        }

    async def kill_all(self) -> None:
        """Everything in the box but init."""
        if self._wire is not None and self._wire.over is None:
            with contextlib.suppress(BoxLostError):
                await on_boxes_thread(self._wire.order(op="kill"))

    async def remove_folder(self, path: str) -> None:
        """Delete a folder of the box, from inside: a scratch kernel's home, a checkpoint's files."""
        if path and self._wire is not None and self._wire.over is None:
            with contextlib.suppress(BoxLostError):
                await on_boxes_thread(self._wire.order(op="remove", path=path))

    async def sweep(self) -> None:
        """Kill what no kernel of the box holds: daemons that one left running."""
        if self._wire is not None and self._wire.over is None:
            with contextlib.suppress(BoxLostError):
                await on_boxes_thread(self._wire.order(op="kill", name=""))

    async def freeze(self) -> None:
        """Stop everything in the box, where it can be stopped."""
        wire = self._wire
        if wire is None:
            return
        wire.frozen = True  # an attempt that is given up is thawed, too
        attempt = asyncio.ensure_future(self._set_frozen(frozen=True))
        try:
            wire.frozen = await asyncio.shield(attempt)
        except asyncio.CancelledError:
            await asyncio.wait({attempt})
            raise

    async def thaw(self) -> None:
        """Go on after `freeze`."""
        if self._wire is not None and self._wire.frozen:
            await self._set_frozen(frozen=False)
            self._wire.heard = time.monotonic()
            self._wire.frozen = False

    async def remove_box(self) -> None:
        """Kill everything, free everything. Again is no error."""
        async with self._starting:
            await self._tear_down()

    async def _tear_down(self) -> None:
        if self._wire is not None and self._wire.frozen:
            await self.thaw()
        wire, self._wire = self._wire, None
        if wire is not None:
            await on_boxes_thread(self._end_wire(wire))
        await on_boxes_thread(self._close_box())
        folder, self.run_dir = self.run_dir, None
        if folder is not None:
            await asyncio.to_thread(self._remove_run_dir, folder)

    async def _end_wire(self, wire: Wire) -> None:
        watch, self._disk_watch = self._disk_watch, None
        if watch is not None:
            watch.cancel()
        await wire.close()

    def _remove_run_dir(self, folder: Path) -> None:
        if hasattr(self, "workspace"):
            self.workspace.remove()
            self.forks.remove()
        if reaper.remove_run_dir(folder):
            reaper.release("run_dir", str(folder))

    # --- jupyter_client's contract ---

    @property
    def has_process(self) -> bool:
        """True from launch until `wait` or `cleanup`."""
        return self._live is not None

    async def pre_launch(self, **kwargs: Any) -> dict[str, Any]:
        """Before each start and restart: new socket folder and keys on the manager."""
        await self.start_box()
        generation, info = self._new_connection()
        self._prepared = generation, info
        km: Any = self.parent
        km.cleanup_connection_file()
        km.transport, km.ip = "ipc", info["ip"]
        km.transport_encryption = "required"
        for channel in CHANNELS:
            setattr(km, f"{channel}_port", info[f"{channel}_port"])
        km.session.key = info["key"].encode()
        km.curve_publickey, km.curve_secretkey = info["curve_publickey"].encode(), info["curve_secretkey"].encode()
        assert self.run_dir is not None
        km.connection_file = str(self.run_dir / "host.json")
        km.write_connection_file()
        self.connection_info = km.get_connection_info()
        env = {**self.environment(), **dict(self.kernel_spec.env)}
        prepared: dict[str, Any] = await super().pre_launch(cmd=list(self.kernel_spec.argv), **{**kwargs, "env": env})
        return prepared

    async def launch_kernel(self, cmd: list[str], **kwargs: Any) -> KernelConnectionInfo:  # noqa: ARG002  the contract's
        """Start `live-N`; `cmd` is the manager's view, the box has its own."""
        assert self._prepared is not None
        generation, info = self._prepared
        self._live = await self._begin(self._process(f"live-{generation}", generation, info), generation)
        return self.connection_info

    async def poll(self) -> int | None:
        """None while it runs, else its exit code."""
        return 0 if self._live is None else self._live.code

    async def wait(self) -> int | None:
        """Until it is gone."""
        live = self._live
        while live is not None and live.code is None:  # noqa: ASYNC110  its future may belong to another loop of a synchronous manager
            await asyncio.sleep(0.01)
        self._live = None
        return None if live is None else live.code

    async def send_signal(self, signum: int) -> None:
        """SIGINT, SIGTERM and SIGKILL reach the kernel; others are not carried."""
        if self._live is None:
            return
        if signum == signal.SIGINT:
            await self._live.interrupt()
        elif signum == signal.SIGTERM:
            await self._live.terminate()
        elif signum == signal.SIGKILL:
            await self._live.kill()

    async def terminate(self, restart: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  the contract's
        """SIGTERM."""
        await self.send_signal(signal.SIGTERM)

    async def kill(self, restart: bool = False) -> None:  # noqa: ARG002, FBT001, FBT002  the contract's
        """SIGKILL to everything in the box."""
        await self.kill_all()

    async def cleanup(self, restart: bool = False) -> None:  # noqa: FBT001, FBT002  the contract's
        """A restart keeps box and workspace and kills what the old kernel left running."""
        self._live = None
        if restart:
            await self.kill_all()
        else:
            await self.remove_box()

    async def get_provisioner_info(self) -> dict[str, Any]:
        """As JSON; a box dies with its host process, so there is nothing to attach to again."""
        info: dict[str, Any] = await super().get_provisioner_info()
        given = info["connection_info"].items()
        connection = {key: value.decode() if isinstance(value, bytes) else value for key, value in given}
        return {**info, "connection_info": connection, "run_dir": str(self.run_dir) if self.run_dir else None}

    async def load_provisioner_info(self, provisioner_info: dict[str, Any]) -> None:
        """The inverse, as far as there is one."""
        connection = dict(provisioner_info["connection_info"])
        connection["key"] = connection["key"].encode()
        await super().load_provisioner_info({**provisioner_info, "connection_info": connection})
