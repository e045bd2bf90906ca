"""Runs cells in one kernel process, one at a time: completion, timeout ladder, late output.

A cell is done when its reply and its idle have both come. Either can be forged or lost, so a missing one is waited for a
second and then asked about: a shell that answers is idle, whatever was said before.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import os
import re
import stat
import time
from collections import OrderedDict
from typing import TYPE_CHECKING, Any, Literal

from dojo_kernel.errors import KernelStartError
from dojo_kernel.kernel.outputs import Collector
from dojo_kernel.kernel.wire import MAX_MESSAGE, Message, Wire
from dojo_kernel.records import Late

if TYPE_CHECKING:
    from dojo_kernel.kernel.box import BoxProcess
    from dojo_kernel.records import Output

Rung = Literal["message", "sigint", "kill", "box"]

GRACE_S = 1.0
QUIET_S = 5.0
"""Without output after which a kernel that answers, and whose cell has not told its end, has lost that message."""
WELCOME_S = 0.03
"""A kernel greets whoever listens to its output; one that does not is asked something. ipykernel (7.3) loses its greeting when
its output thread sends anything between the subscription and the callback for it: the send takes the socket's one event."""
CUT_OFF_S = 0.5
"""From the end of a connection to the exit of the process; a kernel that lives on was cut off for what it sent."""
MESSAGE_S = 2.0
"""Interrupts by message from the deadline on; then by signal."""
SIGINT_S = 3.0
INTERRUPT_EVERY_S = 0.5
MAX_VIOLATIONS = 100
LATE_CHARS = 100_000
"""Late output of one cell that is kept between two steps."""
CELLS_KNOWN = 1_000
UNREAD_FACTOR = 20
"""Times the host's cap after which large messages of a cell are dropped unread."""
BLACK_BOX_BYTES = 16 << 20
OUTPUTS = frozenset({"stream", "display_data", "execute_result", "update_display_data", "clear_output", "error"})
LITERAL_DEPTH = 500
"""Brackets in an answer; a deeper one would hurt the parser."""
CHANGED = "__import__('sys').modules['dojo_kernel_confine'].changed(__import__('os').environ['DOJO_WORKSPACE'])"
NAMES = "__import__('IPython').get_ipython().run_line_magic('who_ls', '')"


class Cell:
    """One request in flight and what came back."""

    def __init__(self, max_chars: int) -> None:
        self.msg_id = ""
        self.collector = Collector(max_chars)
        self.idle = False
        self.reply: dict[str, Any] | None = None
        self.one_since: float | None = None
        """When the first of idle and reply came, on the monotonic clock."""
        self.expressions: dict[str, Any] = {}
        self.cut_at_source = 0
        self.bytes = 0
        self.rung: Rung | None = None
        self.missing: Literal["reply", "idle"] | None = None
        self.timed_out = False

    @property
    def done(self) -> bool:
        """Whether the kernel has said all."""
        return self.idle and self.reply is not None


class Executor:
    """The host's hold on one kernel process."""

    def __init__(self, process: BoxProcess, max_chars: int) -> None:
        self.process = process
        self.violation: str | None = None
        """Why the host has given up on the kernel's messages."""
        self.lost: tuple[str, ...] | None = None
        """Of a fork: what it lacks of its parent, a line each; None for a kernel that began empty."""
        self._max_chars = max_chars
        self._wire = Wire(process.connection_info, self._on_message, self._on_violation)
        self._wire.skip = self._skip
        self._wire.on_cut_off = self._on_cut_off
        self._cut_off: asyncio.Task[None] | None = None
        self._violations = 0
        self._wake = asyncio.Event()
        self._cell: Cell | None = None
        self._probes: dict[str, bool] = {}
        self._asked: dict[str, Message | None] = {}
        self._caught_up: set[str] = set()
        """Probes whose own idle has come: whatever was published before them is here."""
        self._iopub_at = 0.0
        self._heard_iopub = False
        self._known: OrderedDict[str, str] = OrderedDict()
        self._late: dict[str, Collector] = {}
        """By the name of the cell."""
        self._late_bytes = 0
        """Of large messages since the last cell was over."""
        self._black_box = -1
        process.exited.add_done_callback(lambda _: self._wake.set())

    # --- life ---

    async def connect(self, timeout_s: float, *, probe: bool = True) -> None:
        """Until output is heard and, with a probe, requests are answered. Raises KernelStartError."""
        deadline = asyncio.get_running_loop().time() + timeout_s
        await self._race(self._wire.connect(deadline), timeout_s)
        asked = self._probe("shell") if probe else None
        while not (self._heard_iopub and (asked is None or self._probes[asked])):
            left = deadline - asyncio.get_running_loop().time()
            if self.process.exited.done() or left <= 0:
                raise KernelStartError(f"the kernel did not answer within {timeout_s:g} s{self._exit_note()}")
            if not await self._wait(left if asked else min(left, WELCOME_S)):
                asked = asked or self._probe("shell")  # what it says of this is as good as a welcome
        self._probes.clear()
        self._open_black_box()

    async def _race(self, work: Any, timeout_s: float) -> None:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, self.process.exited}, timeout=timeout_s, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise KernelStartError(f"the kernel did not come up within {timeout_s:g} s{self._exit_note()}")
            task.result()
        finally:
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, KernelStartError):
                await task

    def _exit_note(self) -> str:
        if not self.process.exited.done():
            return ""
        return f"; it exited with {self.process.exited.result()}" + (f": {self.process.failure}" if self.process.failure else "")

    def _open_black_box(self) -> None:
        # before the agent's code runs, so that no link or pipe can lie there yet
        with contextlib.suppress(OSError):
            path = self.process.sockets / "output.log"
            fd = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            if stat.S_ISREG(os.fstat(fd).st_mode):
                self._black_box = fd
            else:
                os.close(fd)

    def close(self) -> None:
        """Let go of sockets and files; the process is the caller's to kill."""
        self._wire.close()
        if self._cut_off is not None:
            self._cut_off.cancel()
        if self._black_box >= 0:
            os.close(self._black_box)
            self._black_box = -1

    # --- what the kernel says ---

    def _on_violation(self, why: str) -> None:
        self._violations += 1
        if self._violations >= MAX_VIOLATIONS and self.violation is None:
            self.violation = f"{self._violations} messages that no kernel sends; the last: {why}"
            self._wake.set()

    def _on_cut_off(self, channel: str) -> None:
        if self._cut_off is None:
            self._cut_off = asyncio.create_task(self._is_cut_off(channel))

    async def _is_cut_off(self, channel: str) -> None:
        await asyncio.sleep(CUT_OFF_S)
        await self.process.settle()
        if not self.process.exited.done() and self.violation is None:
            self.violation = f"the {channel} connection broke, as it does on a message of more than {MAX_MESSAGE >> 20} MB"
            self._wake.set()

    def _skip(self, size: int) -> bool:
        cell = self._cell
        if cell is None:
            self._late_bytes += size
            if self._late_bytes <= UNREAD_FACTOR * LATE_CHARS:
                return False
            self._late_of("").dropped += size
            return True
        cell.bytes += size
        self._iopub_at = time.monotonic()
        if cell.bytes <= UNREAD_FACTOR * self._max_chars:
            return False
        cell.collector.dropped += size
        return True

    def _on_message(self, message: Message) -> None:
        if message.channel == "iopub":
            if not self._heard_iopub:
                self._heard_iopub = True
                self._wake.set()
            self._on_iopub(message)
        elif message.parent in self._probes:
            self._probes[message.parent] = True
            self._wake.set()
        elif message.parent in self._asked and message.channel == "shell":
            self._asked[message.parent] = message
            self._wake.set()
        elif self._cell is not None and message.channel == "shell" and message.parent == self._cell.msg_id:
            if message.kind != "execute_reply":
                self._on_violation(f"{message.kind} as reply")
            elif self._cell.reply is None:
                self._on_reply(self._cell, message)

    def _on_reply(self, cell: Cell, message: Message) -> None:
        cell.reply = message.content
        expressions = message.content.get("user_expressions")
        cell.expressions = expressions if isinstance(expressions, dict) else {}
        cell.cut_at_source = _count(message.metadata.get("dojo_cut"))
        late = message.metadata.get("dojo_late_cut")
        for msg_id, cut in late.items() if isinstance(late, dict) else ():
            if msg_id in self._known:
                self._late_of(self._known[msg_id]).dropped += _count(cut)
        self._came(cell)

    def _late_of(self, name: str) -> Collector:
        return self._late.setdefault(name, Collector(LATE_CHARS))

    def _on_iopub(self, message: Message) -> None:
        cell = self._cell
        self._iopub_at = time.monotonic()
        if message.parent in self._probes:
            if message.kind == "status" and message.content.get("execution_state") == "idle":
                self._caught_up.add(message.parent)
                self._wake.set()
        elif cell is not None and message.parent == cell.msg_id:
            if message.kind == "status":
                self._on_status(cell, message.content.get("execution_state"))
            elif message.kind in OUTPUTS and not cell.collector.add(message.kind, message.content):
                self._on_violation(f"{message.kind} with content of another type")
        elif message.kind in OUTPUTS and message.parent in self._known:
            self._late_of(self._known[message.parent]).add(message.kind, message.content)

    def _on_status(self, cell: Cell, state: object) -> None:
        if state == "idle":
            cell.idle = True
            self._came(cell)

    def _came(self, cell: Cell) -> None:
        """Idle or reply. The first of them wakes nobody, since the other mostly follows at once, and is due after GRACE_S."""
        if cell.one_since is None:
            cell.one_since = time.monotonic()
            asyncio.get_running_loop().call_later(GRACE_S, self._wake.set)
        if cell.done:
            self._wake.set()

    def take_late(self) -> tuple[Late, ...]:
        """Output that came after its cell was over, since the last call."""
        taken, self._late = self._late, {}
        late = (Late(cell=name, outputs=found.outputs(), dropped=found.dropped) for name, found in taken.items())
        return tuple(one for one in late if one.outputs or one.dropped)

    # --- running ---

    async def run(self, code: str, timeout_s: float, name: str, expression: str = "None") -> Cell:
        """Until the cell is done, the ladder is at its end, or the kernel is dead; the caller looks which.

        `expression` is evaluated after a cell that went well; `literal` gives its value.
        """
        cell = self._start(code, name, expressions={} if expression == "None" else {"value": expression})
        await self._until_over(cell, timeout_s)
        if not self._over(cell):
            cell.timed_out = True
            await self._interrupt(cell)
        if self.process.exited.done():
            await self._drain_rest()
            self._add_black_box(cell)
        self._finish(cell)
        return cell

    def _start(self, code: str, name: str, *, silent: bool = False, expressions: dict[str, str] | None = None) -> Cell:
        cell = self._cell = Cell(self._max_chars)
        self._probes.clear()
        self._caught_up.clear()
        self._late_bytes = 0
        content = {
            "code": code,
            "silent": silent,
            "store_history": not silent,
            "user_expressions": expressions or {},
            "allow_stdin": False,
            "stop_on_error": False,
        }
        cell.msg_id = self._wire.send("shell", "execute_request", content)
        self._known[cell.msg_id] = name
        while len(self._known) > CELLS_KNOWN:
            self._known.popitem(last=False)
        return cell

    def _finish(self, cell: Cell) -> None:
        if self._cell is cell:
            self._cell = None

    def _over(self, cell: Cell) -> bool:
        return cell.done or cell.missing is not None or self.process.exited.done() or self.violation is not None

    async def _wait(self, seconds: float) -> bool:
        """Until something happens; False at the end of the time."""
        if seconds <= 0:
            return False
        self._wake.clear()
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return False
        return True

    async def _until_over(self, cell: Cell, seconds: float) -> None:
        """Returns when the cell is over or the time is."""
        deadline = time.monotonic() + seconds
        probe: str | None = None
        while not self._over(cell):
            now = time.monotonic()
            if now >= deadline:
                return
            until = deadline
            if cell.one_since is not None and self._cut_off is None:
                due = cell.one_since + GRACE_S
                if probe is None and now >= due:
                    probe = self._probe("shell")
                if (
                    probe is not None
                    and self._probes.get(probe)
                    and (probe in self._caught_up or now - self._iopub_at >= QUIET_S)
                ):
                    cell.missing = "reply" if cell.reply is None else "idle"
                    return
                until = min(deadline, now + GRACE_S / 5 if probe else due)
            await self._wait(until - now)

    def _probe(self, channel: str) -> str:
        msg_id = self._wire.send(channel, "kernel_info_request", {})
        self._probes[msg_id] = False
        return msg_id

    async def _interrupt(self, cell: Cell) -> None:
        """Rungs one to three; the caller sees by `process.exited` whether the third was needed."""
        for rung, seconds in (("message", MESSAGE_S), ("sigint", SIGINT_S)):
            end = time.monotonic() + seconds
            while not self._over(cell) and (left := end - time.monotonic()) > 0:
                if rung == "sigint":
                    await self.process.interrupt()
                else:
                    self._wire.send("control", "interrupt_request", {})
                    self._probe("shell")  # a cell in a top-level await notices the interrupt only when something arrives
                await self._until_over(cell, min(INTERRUPT_EVERY_S, left))
            if self._over(cell):
                cell.rung = "message" if rung == "message" else "sigint"
                return
        cell.rung = "kill"

    async def ask(self, kind: str, content: dict[str, Any], timeout_s: float) -> dict[str, Any] | None:
        """Send a shell request between two cells; the content of its reply, None if none came in time."""
        msg_id = self._wire.send("shell", f"{kind}_request", content)
        self._asked[msg_id] = None
        deadline = time.monotonic() + timeout_s
        try:
            while (reply := self._asked[msg_id]) is None:
                if self.process.exited.done() or self.violation is not None or not await self._wait(deadline - time.monotonic()):
                    return None
        finally:
            del self._asked[msg_id]
        return reply.content if reply.kind == f"{kind}_reply" else None

    async def value(self, expression: str) -> object:
        """A Python literal that the kernel claims an expression to be; None when it does not say."""
        cell = self._start("", "", silent=True, expressions={"value": expression})
        await self._until_over(cell, 2 * GRACE_S)
        self._finish(cell)
        return literal(cell)

    async def names(self) -> tuple[str, ...] | None:
        """The user's variables; None when the kernel does not say."""
        names = await self.value(NAMES)
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            return None
        return tuple(sorted(name for name in names if name.isidentifier()))

    async def changed_files(self, cell: Cell) -> tuple[str, ...]:
        """What a trial run with the expression `CHANGED` has written, as it tells; one line each."""
        rows = literal(cell) if cell.expressions else await self.value(CHANGED)
        told = rows if isinstance(rows, list) else []
        found = [row for row in told if isinstance(row, tuple) and len(row) == 2 and isinstance(row[0], str)]  # noqa: PLR2004
        return tuple(
            f"{name[:200]} ({'deleted' if size == -1 else f'{size} bytes'})" for name, size in found if isinstance(size, int)
        )

    # --- the last words of a dead kernel ---

    async def _drain_rest(self) -> None:
        """What was sent before the end may still be in the sockets."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(0.1):
                while await self._wait(0.03):
                    pass

    def _add_black_box(self, cell: Cell) -> None:
        """Text that was printed but not sent: a killed kernel loses its last 200 ms on the wire, not in the file."""
        if self._black_box < 0:
            return
        with contextlib.suppress(OSError):
            data = os.pread(self._black_box, BLACK_BOX_BYTES, 0)
            found: dict[str, str] = {"stdout": "", "stderr": ""}
            for part in re.split(rb"\0(?=[0-9a-f]{32}:std(?:out|err)\0)", data):
                label, _, text = part.partition(b"\0")
                msg_id, _, stream = label.decode("ascii", "replace").partition(":")
                if msg_id == cell.msg_id and stream in found:
                    found[stream] += text.decode("utf-8", "replace")
            for stream, text in found.items():
                rest = text[cell.collector.raw_chars[stream] :]
                if rest:
                    cell.collector.add("stream", {"name": stream, "text": rest})


def _count(claimed: object) -> int:
    """A number of characters that the kernel claims; 0 for anything else."""
    return claimed if isinstance(claimed, int) and not isinstance(claimed, bool) and 0 < claimed < 2**53 else 0


def literal(cell: Cell) -> object:
    """The value of a cell's expression, as far as it is a literal of bounded size."""
    said = cell.expressions.get("value")
    data = said.get("data") if isinstance(said, dict) else None
    text = data.get("text/plain") if isinstance(data, dict) else None
    if not isinstance(text, str) or len(text) > LATE_CHARS or text.count("(") + text.count("[") > LITERAL_DEPTH:
        return None
    try:
        return ast.literal_eval(text)
    except (ValueError, SyntaxError, MemoryError, RecursionError):
        return None


def reply_status(reply: dict[str, Any] | None, outputs: tuple[Output, ...]) -> Literal["ok", "error"]:
    """What the kernel claims; an error output speaks for itself when the reply is missing."""
    if reply is None:
        return "error" if any(output.output_type == "error" for output in outputs) else "ok"
    return "ok" if reply.get("status") == "ok" else "error"
