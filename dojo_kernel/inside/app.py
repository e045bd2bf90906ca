"""The kernel that runs in the box: a stock ipykernel that loses no output and floods nobody.

zygote.py loads this file and forks. All of this runs beside the agent's code and can be undone by it: every cap here spares
work, the host's caps are the rule. Imports nothing of ours but its siblings, so that the folder can be mounted into any image.
"""

from __future__ import annotations

import asyncio
import atexit
import collections
import contextlib
import contextvars
import gc
import importlib.util
import json
import os
import random
import signal
import sys
import threading
import traceback
import types
import warnings
from typing import Any, NamedTuple, cast

import comm
import zmq
from IPython.core.autocall import IPyAutocall
from tornado.ioloop import IOLoop
from zmq.eventloop.zmqstream import ZMQStream


class Later(types.ModuleType):
    """A package whose own file runs when a name that it lacks is first asked for."""

    def __getattr__(self, name: str) -> Any:
        self.__class__ = types.ModuleType  # type: ignore[assignment]  # from here on an ordinary one
        assert self.__spec__ is not None
        assert self.__spec__.loader is not None
        self.__spec__.loader.exec_module(self)
        return getattr(self, name)


def postpone(package: str) -> types.ModuleType:
    """Put a package in its place without running its own file; its modules can be imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    made = sys.modules[package] = importlib.util.module_from_spec(spec)
    made.__class__ = Later
    return made


_package: Any = postpone("jupyter_client")  # clients and managers are a tenth of a kernel's start, and nobody needs them here
from jupyter_client.connect import write_connection_file  # noqa: E402

_package.write_connection_file = write_connection_file  # all that ipykernel takes from the file
_nothing: Any = None
sys.modules["debugpy"] = _nothing  # nobody debugs here, and its import is a quarter of a kernel's start
import ipykernel.debugger  # noqa: E402, F401  finds none
from ipykernel.control import ControlThread  # noqa: E402
from ipykernel.iostream import OutStream  # noqa: E402
from ipykernel.ipkernel import IPythonKernel  # noqa: E402
from ipykernel.kernelapp import IPKernelApp  # noqa: E402
from ipykernel.kernelbase import Kernel  # noqa: E402

del sys.modules["debugpy"]  # the agent may have it

HERE = os.path.dirname(os.path.abspath(__file__))
NAME = "dojo_kernel_app"
"""Under which this file is found again when it runs as a script: traitlets resolve the stream class by name."""

CELL_CAP = 2_000_000
"""Characters of one cell and stream that go over the wire before only the tail is kept."""
TAIL = 200_000
BLACK_BOX_CAP = 16 << 20
"""Bytes of one kernel's life that the black box holds."""
CELLS_KEPT = 16
MESSAGE_CAP = 16 << 20
"""Bytes of one message's content; the host hangs up on twice that."""
TEXT_CAP = 400_000
"""Characters of each text that is left of a longer message."""


class BlackBox:
    """A file beside the connection file with everything printed; it survives SIGKILL and a segfault, which zmq does not.

    The text of one cell and stream follows a NUL, `<msg_id>:<stream>` and a NUL.
    """

    def __init__(self, path: str) -> None:
        self._written = 0
        self._last: tuple[str, str] | None = None
        try:
            self._fd = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_APPEND | os.O_CLOEXEC, 0o600)
        except OSError:
            self._fd = -1

    def write(self, cell: str, stream: str, text: str) -> None:
        """Never fails: a full disk must not break the agent's print."""
        if self._fd < 0 or self._written >= BLACK_BOX_CAP:
            return
        data = text[:BLACK_BOX_CAP].encode("utf-8", "replace")
        if self._last != (cell, stream):
            self._last = (cell, stream)
            data = f"\0{cell}:{stream}\0".encode() + data
        try:
            self._written += os.write(self._fd, data[: BLACK_BOX_CAP - self._written])
        except OSError:
            self._fd = -1


class CellText:
    """What one cell has printed to one stream: how much went out, how much was cut, and the tail of what was cut."""

    def __init__(self) -> None:
        self.sent = 0
        self.cut = 0
        self.over = False
        self._tail: collections.deque[str] = collections.deque()
        self._tail_chars = 0

    def keep(self, text: str) -> None:
        """Count `text` as cut and remember the end of it."""
        self.cut += len(text)
        self._tail.append(text[-TAIL:])
        self._tail_chars += len(self._tail[-1])
        while self._tail_chars - len(self._tail[0]) >= TAIL:
            self._tail_chars -= len(self._tail.popleft())

    def tail(self) -> str:
        """The last `TAIL` characters that were cut; forgets them."""
        text = "".join(self._tail)[-TAIL:]
        self._tail.clear()
        self._tail_chars = 0
        return text


class TeeOutStream(OutStream):
    """Black box first, wire second, the wire capped per cell with head and tail kept."""

    black_box: BlackBox | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._cells: collections.OrderedDict[str, CellText] = collections.OrderedDict()
        self._late: collections.Counter[str] = collections.Counter()
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    def _cell(self, cell: str) -> CellText:
        found = self._cells.get(cell)
        if found is None:
            found = self._cells[cell] = CellText()
            while len(self._cells) > CELLS_KEPT:
                self._count_late(*self._cells.popitem(last=False))
        return found

    def _count_late(self, parent: str, cell: CellText) -> None:
        if cell.over and cell.cut:
            self._late[parent] += cell.cut
            cell.cut = 0
            cell.tail()

    def write(self, string: str) -> int:
        """As `OutStream.write`; returns the number of characters given."""
        if not isinstance(string, str):
            raise TypeError(f"write() argument must be str, not {type(string)}")
        parent = str((self.parent_header or {}).get("msg_id", ""))
        if self.black_box is not None:
            self.black_box.write(parent, self.name, string)
        cell = self._cell(parent)
        room = max(CELL_CAP - cell.sent, 0)
        if room:
            super().write(string[:room])
            cell.sent += min(len(string), room)
        if len(string) > room:
            if cell.over and not cell.cut:
                super().write("\n[... output after the end of the cell is cut here ...]\n")
            cell.keep(string[room:])
        return len(string)

    def end_cell(self, parent: str) -> int:
        """Send the tail of what was cut; returns how many characters the reader does not get."""
        cell = self._cell(parent)  # also of a cell that printed nothing: its threads may, later
        cell.over = True
        tail = cell.tail()
        lost = cell.cut - len(tail)
        cell.cut = 0
        if tail:
            super().write(f"\n[... {lost} characters cut ...]\n{tail}" if lost else tail)
        return lost

    def take_late(self) -> collections.Counter[str]:
        """Of cells that ended before: characters of their later output that were cut since the last call."""
        for parent, cell in self._cells.items():
            self._count_late(parent, cell)
        taken, self._late = self._late, collections.Counter()
        return taken


class Packer:
    """JSON of a message part: valid Unicode always, and never so large that the host hangs up."""

    def __init__(self, pack: Any) -> None:
        self._pack = pack
        self.cut = 0
        """Bytes cut since the last reply."""

    def __call__(self, part: Any) -> bytes:
        """The bytes of one part."""
        data = self._bytes(part)
        if len(data) <= MESSAGE_CAP or not isinstance(part, dict):
            return data
        small = self._bytes(shrink(part))
        if len(small) > MESSAGE_CAP:  # a million small things
            note = f"<an output of {len(data)} bytes, too large to send>"
            rest = {key: part[key] for key in ("execution_count", "status") if key in part}
            small = self._bytes(
                {**rest, "data": {"text/plain": note}, "metadata": {}, "ename": "", "evalue": note, "traceback": []}
            )
        self.cut += len(data) - len(small)
        return small

    def _bytes(self, part: Any) -> bytes:
        try:
            packed: bytes = self._pack(part)
        except UnicodeEncodeError:  # a lone surrogate: the escape keeps it, and the host decides
            packed = json.dumps(part, default=str).encode("ascii")
        return packed


def shrink(value: Any) -> Any:
    """The same with long texts cut in the middle, and without pictures."""
    if isinstance(value, str) and len(value) > TEXT_CAP:
        half = TEXT_CAP // 2
        return f"{value[:half]}\n[... {len(value) - TEXT_CAP} characters cut ...]\n{value[-half:]}"
    if isinstance(value, dict):
        return {
            key: f"<{key} of {len(str(item))} characters, too large to send>" if str(key).startswith("image/") else shrink(item)
            for key, item in value.items()
        }
    return [shrink(item) for item in value] if isinstance(value, list) else value


class Hint(IPyAutocall):
    """What `exit` and `quit` are here: the kernel belongs to the episode, not to the cell."""

    rewrite = False

    def __call__(self, *_: object) -> None:
        """Raise, and say what to do instead."""
        raise RuntimeError("exit() and quit() do not end this kernel; a cell ends by itself, `reset` starts an empty kernel")


class ForkRequest(NamedTuple):
    """One `fork_request` that waits for the event loop to stop."""

    socket: Any
    ident: Any
    message: dict[str, Any]
    context: contextvars.Context
    """Of the cells: numpy's error state and the like live in it."""
    tasks: list[str]

    @property
    def order(self) -> dict[str, Any]:
        """The request's content."""
        content: dict[str, Any] = self.message["content"]
        return content


class NoSubshells:
    """In the place of ipykernel's thread for subshells, which asks it which thread runs a top-level await."""

    def __bool__(self) -> bool:
        return False

    @property
    def parent_thread(self) -> threading.Thread:
        """The one that runs cells."""
        return threading.main_thread()


class DojoKernel(IPythonKernel):
    """Says with each reply how many characters were cut at the source: of the cell's output, and of earlier cells' late one.

    The shell request `fork_request` makes another kernel out of this one, with all that it knows. Content: `name`; `connection`,
    and as `connection_file` a name in the folder it may use; `room` (see confine.py); `seed` (None: random numbers go on as
    here). Reply: `status` ok with `pid` and `lost` (what the child lacks, by kind), or refused with `why`.
    """

    _execute_sleep = 0
    _supports_kernel_subshells = False

    def __init__(self, *, inherited: Any = None, **kwargs: Any) -> None:
        if inherited is None:
            super().__init__(**kwargs)  # type: ignore[no-untyped-call]
        else:  # IPythonKernel would make a shell and look at every module
            Kernel.__init__(self, **kwargs)  # type: ignore[no-untyped-call]
            self._inherit(inherited)
        self.shell_handlers["fork_request"] = self.fork_request
        self.shell_handlers["variables_request"] = self.variables_request
        self.fork_requests: list[ForkRequest] = []

    def _inherit(self, shell: Any) -> None:
        """Connect the shell of the parent to this kernel's sockets."""
        for publisher in (shell.displayhook, shell.display_pub):
            publisher.session, publisher.pub_socket = self.session, self.iopub_socket
        shell.displayhook.topic = self._topic("execute_result")  # type: ignore[no-untyped-call]
        shell.kernel = shell.parent = self
        self.shell = shell
        self.comm_manager: Any = comm.get_comm_manager()
        for kind in ("comm_open", "comm_msg", "comm_close"):
            self.shell_handlers[kind] = getattr(self.comm_manager, kind)

    def start(self) -> None:
        """Without the debugger's part."""
        cast("Any", self.shell).exit_now = False
        Kernel.start(self)  # type: ignore[no-untyped-call]

    async def fork_request(self, socket: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Stop the loop; `serve` forks outside of it, so that forks of forks do not grow the stack."""
        self.fork_requests.append(ForkRequest(socket, ident, parent, contextvars.copy_context(), fork.tasks()))
        asyncio.get_running_loop().stop()

    async def variables_request(self, socket: Any, ident: Any, parent: dict[str, Any]) -> None:
        """Write the variables to a file, or read them back: `op` (save, load), `path`, `max_mb`. Reply: `status`, `missing`."""
        content, shell = parent["content"], cast("Any", self.shell)
        reply: dict[str, Any] = {"status": "ok"}
        try:
            if content["op"] == "save":
                reply["missing"] = variables.save(shell.user_ns, shell.user_ns_hidden, content["path"], content["max_mb"])
            else:
                reply["missing"] = variables.load(shell.user_ns, content["path"])
        except Exception as error:  # noqa: BLE001  pickles run the agent's code
            reply = {"status": "error", "missing": [f"all variables: {type(error).__name__}: {error}"[:300]]}
        cast("Any", self.session).send(socket, "variables_reply", reply, parent, ident=ident)

    def finish_metadata(self, parent: Any, metadata: Any, reply_content: Any) -> Any:
        """Called after each cell, before its reply."""
        fork.reap()
        cell = str(parent.get("header", {}).get("msg_id", ""))
        streams = [stream for stream in (sys.stdout, sys.stderr) if isinstance(stream, TeeOutStream)]
        late = sum((stream.take_late() for stream in streams), collections.Counter())
        if late:
            metadata["dojo_late_cut"] = dict(late)
        cut = sum(stream.end_cell(cell) for stream in streams)
        packer = getattr(self.session, "pack", None)
        if isinstance(packer, Packer):
            cut += packer.cut
            packer.cut = 0
        if cut:
            metadata["dojo_cut"] = cut
        return super().finish_metadata(parent, metadata, reply_content)  # type: ignore[no-untyped-call]


class DojoKernelApp(IPKernelApp):
    """IPKernelApp with lossless iopub and a quiet, colourless shell that never waits for a person."""

    streams: tuple[Any, Any]
    """What stdout and stderr were at the start; a cell may have put something else in their place."""
    descriptors: dict[int, str]
    """Opened for this kernel before its first cell."""

    def _bind_socket(self, s: Any, port: int) -> int:
        if s.type == zmq.XPUB:
            s.setsockopt(zmq.XPUB_NODROP, 1)  # before bind; back-pressure instead of silent loss at the high-water mark
        bound: int = super()._bind_socket(s, port)  # type: ignore[no-untyped-call]
        return bound

    def init_control(self, context: Any) -> None:
        """The socket and its thread; no sockets of a debugger, and no thread for subshells, two hops less for each cell."""
        self.control_socket = context.socket(zmq.ROUTER)
        self.control_socket.linger = 1000
        self.control_socket.router_handover = 1
        self._apply_curve_server_options(self.control_socket)
        self.control_port = self._bind_socket(self.control_socket, self.control_port)
        self.control_thread = ControlThread(daemon=True)  # type: ignore[no-untyped-call]
        self.shell_channel_thread = None

    def init_kernel(self, inherited: Any = None) -> None:
        """The kernel on these sockets; with an inherited shell, what a fork goes on with."""
        self.control_thread.start()
        self.kernel = DojoKernel.instance(
            parent=self,
            session=self.session,
            control_stream=ZMQStream(self.control_socket, self.control_thread.io_loop),
            shell_stream=ZMQStream(self.shell_socket),
            control_thread=self.control_thread,
            shell_channel_thread=NoSubshells(),
            iopub_thread=self.iopub_thread,
            iopub_socket=self.iopub_socket,
            stdin_socket=self.stdin_socket,
            log=self.log,
            profile_dir=self.profile_dir,
            inherited=inherited,
            **({} if inherited is not None else {"user_ns": self.user_ns}),
        )
        self.kernel.record_ports({f"{name}_port": port for name, port in self._ports.items()})  # type: ignore[no-untyped-call]

    def _open_black_box(self) -> None:
        TeeOutStream.black_box = BlackBox(os.path.join(os.path.dirname(self.abs_connection_file) or ".", "output.log"))

    def init_io(self) -> None:
        """Open the black box before the streams exist."""
        self._open_black_box()
        super().init_io()  # type: ignore[no-untyped-call]
        self.streams = sys.stdout, sys.stderr

    def initialize(self, argv: Any = None) -> None:
        """Settings that have no trait."""
        super().initialize(argv)  # type: ignore[no-untyped-call]
        for name in ("FORCE_COLOR", "CLICOLOR", "CLICOLOR_FORCE"):
            os.environ.pop(name, None)
        self.session.pack = Packer(self.session.pack)
        shell: Any = self.shell
        shell.system = shell.system_raw  # `!cat` through a pty would wait for a person for ever
        shell.user_ns["exit"] = shell.user_ns["quit"] = hint = Hint(shell)  # type: ignore[no-untyped-call]
        shell.user_ns_hidden.update(exit=hint, quit=hint)

    def continue_from(self, parent: DojoKernelApp, connection: Any, context: contextvars.Context) -> None:
        """Come up in a forked child with the parent's shell: its names, history, count, formatters, figures and settings."""
        self.profile_dir = parent.profile_dir
        self.load_connection_info(connection)
        self.init_sockets()  # type: ignore[no-untyped-call]
        session: Any = self.session
        session.pack = Packer(session.pack)
        self._continue_io(parent)
        self._ports = {name: getattr(self, f"{name}_port") for name in ("shell", "iopub", "stdin", "hb", "control")}
        self.init_kernel(parent.shell)
        self.shell: Any = parent.shell
        context.run(self.kernel.start)

    def _continue_io(self, parent: DojoKernelApp) -> None:
        """The same stream objects on new sockets, since handlers and cells hold them."""
        self._open_black_box()
        self.streams = parent.streams
        now = sys.stdout, sys.stderr
        sys.stdout, sys.stderr = sys.__stdout__, sys.__stderr__
        for stream, name in zip(self.streams, ("stdout", "stderr"), strict=True):
            stream.__init__(self.session, self.iopub_thread, name)
        sys.stdout, sys.stderr = now
        hook = parent.displayhook
        self.displayhook = hook
        if hook is not None:
            hook.session, hook.pub_socket = self.session, self.iopub_socket


def environment() -> None:
    """What is the same in every kernel."""
    os.environ.update(NO_COLOR="1", TERM="dumb", PYDEVD_DISABLE_FILE_VALIDATION="1", JPY_PARENT_PID="1")
    if os.environ.get("MPLBACKEND", "agg").lower() == "agg":
        os.environ["MPLBACKEND"] = "module://matplotlib_inline.backend_inline"  # shows figures as image/png
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")


def start(argv: list[str]) -> None:
    """A kernel that knows nothing yet; returns when it ends."""
    sys.path.insert(0, "")
    app = DojoKernelApp.instance(kernel_class=DojoKernel, outstream_class=f"{NAME}.TeeOutStream")
    app.config.HistoryManager.enabled = False
    app.config.InteractiveShell.cache_size = 0
    app.config.InteractiveShell.colors = "nocolor"
    app.config.InteractiveShell.banner1 = ""
    app.config.InteractiveShell.enable_tip = False  # draws one of the agent's random numbers at each kernel_info
    before = fork.targets()
    app.initialize(argv)
    if app.poller is not None:
        app.poller.start()
    app.kernel.start()
    wake_for_signals()
    app.descriptors = fork.opened_since(before)
    serve(app)


def run(order: dict[str, Any]) -> None:
    """The same in a child of the zygote, in its own room."""
    alone(order)
    confine.enter(order["room"])
    confine.restrict(order["room"])
    start(["-f", order["connection_file"]])


def wake_for_signals() -> None:
    """A signal ends the loop's wait at once: an interrupt cancels a top-level await from within the loop."""
    reading, writing = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)
    asyncio.get_event_loop().add_reader(reading, os.read, reading, 4096)
    signal.set_wakeup_fd(writing, warn_on_full_buffer=False)


def serve(app: DojoKernelApp) -> None:
    """Run the loop, and fork between two runs of it. In a child this goes on with the child's kernel."""
    while True:
        app.io_loop = IOLoop.current()
        stopped = True
        try:
            app.io_loop.start()
        except KeyboardInterrupt:  # one that found no cell to interrupt ends nothing
            stopped = False
        if app.kernel.fork_requests:
            app = answer(app, app.kernel.fork_requests.pop(0))
        elif stopped:
            return


def answer(app: DojoKernelApp, request: ForkRequest) -> DojoKernelApp:
    """Fork and reply; returns the kernel to serve, in parent and child."""
    session: Any = app.session
    try:
        ready = fork.prepare()
        for stream in app.streams:
            stream.flush()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # Python >= 3.12 warns of threads at each fork
            pid = fork.once(ready.files)
        if pid == 0:
            return _child(app, request, ready)
        reply = {"status": "ok", "pid": pid, "lost": {**ready.lost, "tasks": request.tasks}}
    except (fork.Refused, OSError) as error:
        reply = {"status": "refused", "why": str(error)}
    session.send(app.kernel.shell_stream, "fork_reply", reply, request.message, ident=request.ident)
    return app


def _child(app: DojoKernelApp, request: ForkRequest, ready: Any) -> DojoKernelApp:
    try:
        return become(app, request, ready)
    except BaseException:  # noqa: BLE001  nothing may get back into the parent's loop
        where = os.path.dirname(request.order["connection_file"])
        with contextlib.suppress(OSError), open(os.path.join(where, "failure.txt"), "w") as file:
            traceback.print_exc(file=file)
        os._exit(70)


def alone(order: dict[str, Any]) -> None:
    """In a child: a session of its own, the right victim when memory runs out."""
    os.setsid()
    confine.inherit(oom_score=int(order["room"]["oom_score"]))
    os.environ["DOJO_PROCESS"] = order["name"]


def become(parent: DojoKernelApp, request: ForkRequest, ready: Any) -> DojoKernelApp:
    """In the child: let go of everything of the parent's, then come up on the new connection."""
    order = request.order
    signal.alarm(30)  # rather die than hang half-made
    alone(order)
    signal.set_wakeup_fd(-1)
    null = os.open(os.devnull, os.O_RDWR | os.O_CLOEXEC)
    for number in (1, 2):
        os.dup2(null, number)
    os.close(null)
    moved = confine.enter(order["room"])
    fork.make_private(ready.shared)
    fork.let_go(parent.descriptors, os.path.dirname(parent.abs_connection_file), moved)
    before = fork.targets()
    fork.forget_pools()
    asyncio.set_event_loop(asyncio.new_event_loop())
    zmq.Context._instance = None  # noqa: SLF001  the parent's threads serve that one
    atexit.unregister(parent.close)
    _ancestors.append(parent)
    DojoKernelApp.clear_instance()
    DojoKernel.clear_instance()
    app = DojoKernelApp.instance(
        kernel_class=DojoKernel,
        outstream_class=f"{NAME}.TeeOutStream",
        connection_file=order["connection_file"],
        log=parent.log,
    )
    app.continue_from(parent, order["connection"], request.context)
    wake_for_signals()
    app.descriptors = fork.opened_since(before)
    if order["seed"] is None:  # last: what comes up here draws numbers, too
        random.setstate(ready.randomness)
    else:
        fork.reseed(int(order["seed"]), cast("Any", parent.shell).user_ns)
    confine.restrict(order["room"])
    if order["room"]["passing"]:  # what is there now stays, uncollected and shared
        gc.freeze()
    gc.enable()
    signal.alarm(0)
    return app


_ancestors: list[DojoKernelApp] = []
"""Kept, because the sockets of a parent must not be closed by a child's garbage collector."""


def sibling(name: str) -> Any:
    """A file of this folder as a module, under a name that no module of the agent's has."""
    full = f"dojo_kernel_{name}"
    spec = importlib.util.spec_from_file_location(full, os.path.join(HERE, f"{name}.py"))
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules[full] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


confine, fork, variables = sibling("confine"), sibling("fork"), sibling("variables")
