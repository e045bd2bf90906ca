"""The live kernel of an episode: cells, scratch validation, restarts, typed deaths, and the submission file.

What the kernel says is a claim; time, death and files are the host's own findings.
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import re
import time
from dataclasses import replace
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, Protocol

from IPython.core.inputtransformer2 import TransformerManager
from jupyter_client.kernelspec import KernelSpec

from dojo_kernel.errors import BoxLostError, BoxUnavailableError, ForkRefusedError, KernelStartError
from dojo_kernel.kernel.box import OUR_ARGV
from dojo_kernel.kernel.executor import CHANGED, Cell, Executor, reply_status
from dojo_kernel.kernel.workspace import Workspace
from dojo_kernel.records import Death, Enforcement, Error, Execution

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
    from pathlib import Path

    from dojo_kernel.kernel.box import BoxProcess, BoxProvisioner, Room
    from dojo_kernel.settings import KernelSettings

EXIT_S = 5.0
"""From a kill to the exit event; then the box is removed."""
SYNTAX_CHARS = 50_000
"""Longer cells are not parsed on the host, where the worst of this length holds the interpreter for 0.4 s: the scratch kernel
finds their mistakes."""
SYNTAX_SECONDS = 1.0
"""After which IPython's rewriting, which reads a cell once more for each `!` and `%`, is left to the scratch kernel too."""
MEMORY_WARNING = 0.85
FORK_S = 20.0
FORK_BYTES = 48 << 20
"""Memory that must be free for a fork to come up."""
VARIABLES_MB = 256
"""Of a checkpoint that memory pressure has turned into a file."""
VARIABLES_S = 60.0
ScratchState = Literal["live", "fresh"]


class Kernel(Protocol):
    """What an episode needs of a kernel."""

    box: str
    life: int
    """How often the live kernel was restarted."""
    image: str | None

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        """What holds each limit."""

    @property
    def data_path(self) -> str:
        """Of the public files, as the agent sees it."""

    @property
    def workspace_path(self) -> str:
        """As the agent sees it."""

    async def execute(self, code: str, timeout_s: float, *, cell: str = "") -> Execution:
        """Run in the live kernel. Raises BoxLostError, KernelStartError."""

    async def validate(self, code: str, timeout_s: float, *, state: ScratchState = "live") -> Execution:
        """Run in a scratch kernel with a copy of the workspace; syntax first. Raises BoxLostError, KernelStartError."""

    async def restart(self) -> None:
        """A new, empty live kernel; everything that ran in the box is killed."""

    async def checkpoint(self, label: str) -> Snapshot:
        """Keep variables and files as they are. Raises ForkRefusedError, BoxLostError, KernelStartError."""

    async def restore(self, snapshot: str, *, seed: int | None = None) -> tuple[str, ...]:
        """Go back to a checkpoint; what is missing, a line each. Raises KeyError, BoxLostError, KernelStartError."""

    async def evict_checkpoints(self) -> tuple[str, ...]:
        """While memory is short, turn the oldest checkpoints into files of their variables; returns which."""

    async def branch(self, count: int, *, seeds: Sequence[int | None] | None = None) -> Sequence[Kernel]:
        """Siblings with the same variables and files. Raises ForkRefusedError, BoxLostError, KernelStartError."""

    async def read_submission(self, name: str, max_bytes: int) -> bytes | None:
        """A safe copy of a file of the workspace; None: absent. Raises SubmissionError."""

    def submission_signature(self, name: str) -> tuple[int, ...] | None:
        """Changes when the file does; None: absent."""

    async def close(self) -> None:
        """Leave nothing behind. Again is no error."""


class Snapshot(NamedTuple):
    """A checkpoint, as its maker hears of it."""

    id: str
    label: str
    lost: tuple[str, ...]
    """What it does not hold, a line each: threads, child processes, asyncio tasks."""
    seconds: float
    evicted: tuple[str, ...] = ()
    """Older ones that became files of their variables, as there were too many."""


class _Checkpoint:
    """A process that waits, or the file of its variables."""

    def __init__(self, snapshot: Snapshot, room: Room, executor: Executor) -> None:
        self.snapshot, self.room = snapshot, room
        self.executor: Executor | None = executor
        self.missing: tuple[str, ...] = ()
        """Variables that its file lacks, a line each."""


class _Share:
    """The sessions of one box; the last one to go removes it."""

    def __init__(self) -> None:
        self.sessions = 1
        self.homes: set[str] = set()
        """Folders of the branches that are open."""
        self.left: set[str] = set()
        """Folders of closed branches in which a branch of theirs still lives."""
        self.names = 0
        self.still = asyncio.Lock()
        """Held while everything stands still for a submission to be read."""
        self.remove: Callable[[BoxProvisioner], Awaitable[None]] = lambda box: box.remove_box()
        """What becomes of the box that the last session has left."""


class KernelSession:
    """A box with one live kernel in it, scratch kernels for a moment each, checkpoints, and siblings in the same box."""

    def __init__(self, provisioner: BoxProvisioner, settings: KernelSettings, *, parent: KernelSession | None = None) -> None:
        self._box = provisioner
        self._settings = settings
        self._share: _Share = parent._share if parent is not None else _Share()  # noqa: SLF001  the same class
        self._live: Executor | None = None
        self._room: Room | None = None
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._made = 0
        self._deaths = 0
        self._lost: str | None = None
        self._closed = False
        self._news: tuple[str, ...] = ()
        self._files_lost = False
        self._lock = asyncio.Lock()
        self._leaving: asyncio.Task[None] | None = None
        """The end of the last trial run; what comes next waits for it."""
        self.box = provisioner.kind
        self.life = 0
        self.image: str | None = parent.image if parent is not None else None

    async def open(self) -> None:
        """Start box and kernel. Raises KernelStartError."""
        try:
            await self._box.start_box()
            self._live = await self._spawn("live", None)
        except BaseException:
            await self.close()
            raise
        self._news = tuple(f"{warning}." for warning in self._box.warnings)
        image = getattr(self._box, "image_digest", None)
        self.image = image if isinstance(image, str) else None

    @property
    def alive(self) -> bool:
        """Whether the live kernel could run a cell now, as far as the host has heard."""
        live = self._live
        dead = self._closed or live is None or live.process.exited.done() or live.violation is not None
        return not dead and self._box.lost is None

    async def ended(self) -> None:
        """Wait until the live kernel, or the box, is gone."""
        if self._live is not None:
            await asyncio.wait({self._live.process.exited})

    def hand_over(self, remove: Callable[[BoxProvisioner], Awaitable[None]]) -> None:
        """From now on `remove` is called with the box that the last session has left; it need not wait."""
        self._share.remove = remove

    @property
    def enforcement(self) -> tuple[Enforcement, ...]:
        """What holds each limit."""
        return self._box.enforcement

    @property
    def data_path(self) -> str:
        """Of the public files, as code in the box names it."""
        return self._box.data_path

    @property
    def workspace_path(self) -> str:
        """Of the agent's folder, as code in the box names it."""
        return self._room.workspace if self._room is not None else self._box.workspace_path

    @property
    def _files(self) -> Workspace:
        if self._room is None:
            return self._box.workspace
        path = self._box.host_path(self._room.workspace)
        return Workspace(path, size=self._box.forks.size, uid=self._box.uid, mount=False)

    def _trial_room(self, generation: int) -> Room:
        root = self._room.home if self._room is not None else self._box.scratch_root
        return self._box.trial_room(self.workspace_path, root, generation)

    def _name(self, kind: str) -> str:
        self._share.names += 1
        return f"{kind}-{self._share.names}"

    async def _spawn(self, kind: str, room: Callable[[int], Room] | None) -> Executor:
        """An empty kernel, connected."""
        return await self._connect(await self._box.spawn(self._name(kind), room))

    async def _fork(self, parent: Executor, kind: str, room: Callable[[int], Room], seed: int | None = None) -> Executor:
        """A kernel with all that the parent knows, connected. Raises ForkRefusedError."""
        await self._refuse_without_memory()
        lost: dict[str, Any] = {}

        async def ask(content: dict[str, Any]) -> int:
            reply = await parent.ask("fork", content, FORK_S)
            if reply is None:
                raise ForkRefusedError("the kernel does not answer")
            if reply.get("status") != "ok" or not isinstance(reply.get("pid"), int):
                raise ForkRefusedError(str(reply.get("why", "the kernel did not say why"))[:300])
            lost.update(reply["lost"] if isinstance(reply.get("lost"), dict) else {})
            return int(reply["pid"])

        try:
            process = await self._box.fork(self._name(kind), room, ask, seed)
            child = await self._connect(process, probe=False)
        except ForkRefusedError:
            raise
        except KernelStartError as error:
            raise ForkRefusedError(f"the fork did not come up: {error}") from error
        child.lost = _told(lost)
        return child

    async def _refuse_without_memory(self) -> None:
        used = await self._box.memory_used()
        limit = self._settings.limits.memory_gb * 2**30
        if used is not None and used + FORK_BYTES > limit:
            raise ForkRefusedError(f"{used / 2**30:.2f} of {self._settings.limits.memory_gb:g} GB of memory are in use")

    async def _connect(self, process: BoxProcess, *, probe: bool = True) -> Executor:
        executor = Executor(process, self._settings.journal_chars)
        try:
            await executor.connect(
                self._settings.start_timeout_s if probe else min(self._settings.start_timeout_s, FORK_S), probe=probe
            )
        except BaseException:
            executor.close()
            await self._end(process)
            raise
        process.seal()
        return executor

    async def _end(self, process: BoxProcess) -> bool:
        """Kill one process and wait for its exit; False if none came."""
        await process.kill()
        await asyncio.wait({process.exited}, timeout=EXIT_S)
        return process.exited.done()

    # --- the live kernel ---

    async def execute(self, code: str, timeout_s: float, *, cell: str = "") -> Execution:
        """Run a cell; a kernel that died before is replaced first. Raises BoxLostError, KernelStartError."""
        async with self._turn():
            live = await self._ready()
            before = await self._box.oom_kills()
            started = time.monotonic()
            ran = await live.run(code, timeout_s, cell)
            death = await self._death(live, ran, before)
            seconds = time.monotonic() - started
            execution = await self._execution(live, ran, code, death, before)
            news, self._news = self._news, ()
            late = live.take_late()
            if cut := sum(one.dropped for one in late):
                news += (f"{cut} characters of late output were cut.",)
            execution = execution.model_copy(
                update={"seconds": seconds, "life": self.life, "late": late, "notes": (*news, *execution.notes)}
            )
            if death is not None:
                execution = execution.model_copy(update={"notes": (*execution.notes, *self._count(death))})
                await self._abandon()
            return execution

    async def _ready(self) -> Executor:
        if self._closed:
            raise BoxLostError("the kernel session is closed")
        if self._lost is None and self._box.lost is not None:
            self._lost = self._box.lost
        if self._lost is not None:
            raise BoxLostError(self._lost)
        if self._live is not None and (self._live.process.exited.done() or self._live.violation is not None):  # between two cells
            death = await self._death(self._live, None, None)
            assert death is not None
            self._news = (f"The kernel died between two cells ({describe(death)}); its variables are lost.", *self._count(death))
            await self._abandon()
            if self._lost is not None:
                raise BoxLostError(self._lost)
        if self._live is None:
            await self._revive()
        assert self._live is not None
        return self._live

    async def _abandon(self) -> None:
        """Let go of a dead live kernel."""
        live, self._live = self._live, None
        if live is not None:
            live.close()

    async def _revive(self) -> None:
        await self._box.sweep()  # what the old kernel left running must not outlive it
        room = None if self._room is None else replace(self._room, copy_from="")
        self._live = await self._spawn("live", None if room is None else lambda _: room)
        self.life += 1

    def _count(self, death: Death) -> tuple[str, ...]:
        self._deaths += 1
        if death.kind == "box_lost":
            self._lost = death.detail or "the box is gone"
            return ("The box is gone.",)
        if self._deaths > self._settings.max_restarts:
            self._lost = f"the live kernel died {self._deaths} times; {self._settings.max_restarts} restarts are allowed"
            return ("No restart is left.",)
        left = self._settings.max_restarts - self._deaths
        return (f"A new, empty kernel starts with the next cell; files stay. Restarts left after that: {left}.",)

    async def restart(self) -> None:
        """A new, empty live kernel; not counted as a death."""
        async with self._turn():
            if self._lost is not None or self._closed:
                raise BoxLostError(self._lost or "the kernel session is closed")
            live, self._live = self._live, None
            if live is not None:
                live.close()
                await self._end(live.process)
            await self._revive()

    # --- what became of a cell ---

    async def _death(self, executor: Executor, ran: Cell | None, oom_before: int | None) -> Death | None:
        """The typed death of the kernel, after ending it if the host has to; None: it lives."""
        process = executor.process
        if executor.violation is not None and not process.exited.done():
            await self._end_or_lose(executor)
            return Death(kind="protocol", detail=executor.violation[:500])
        if ran is not None and ran.rung == "kill" and not process.exited.done():
            if not await self._end_or_lose(executor):
                ran.rung = "box"
            return Death(kind="killed_by_host", detail="the cell ignored its time limit and both interrupts")
        if not process.exited.done():
            return None
        code = process.exited.result()
        if self._box.lost is not None:
            return Death(kind="box_lost", detail=self._box.lost)
        if process.killed_for is not None:
            return Death(kind="killed_by_host", detail=process.killed_for)
        after = await self._box.oom_kills()
        number = -code if code < 0 else code - 128 if code > 128 else None  # noqa: PLR2004  the shell's rule
        if number == 9 and oom_before is not None and after is not None and after > oom_before:  # noqa: PLR2004  SIGKILL
            return Death(kind="oom", code=9, detail=f"the box may use {self._settings.limits.memory_gb:g} GB of memory")
        if number is not None:
            return Death(kind="signal", code=number)
        return Death(kind="user_exit", code=0) if code == 0 else Death(kind="exited", code=code)

    async def _end_or_lose(self, executor: Executor) -> bool:
        """Kill; if that does not help, the box with its files: False."""
        if await self._end(executor.process):
            return True
        await self._box.remove_box()
        self._files_lost = True
        if executor is not self._live:
            await self._abandon()  # it was in the same box
        await self._box.start_box()
        return False

    async def _execution(
        self, executor: Executor, ran: Cell, code: str, death: Death | None, oom_before: int | None
    ) -> Execution:
        outputs = ran.collector.outputs()
        dropped = ran.collector.dropped + ran.cut_at_source
        survived: tuple[str, ...] | None = None
        if death is not None:
            survived = () if ran.rung in ("kill", "box") else None
        elif ran.rung is not None:
            survived = await executor.names()
        after = await self._box.oom_kills()
        oom = max(after - oom_before, 0) if after is not None and oom_before is not None else 0
        status = "timeout" if ran.timed_out else "died" if death is not None else reply_status(ran.reply, outputs)
        count = ran.reply.get("execution_count") if ran.reply is not None else None
        return Execution(
            code=code,
            outputs=outputs,
            status=status,
            death=death,
            rung=ran.rung,
            survived=survived,
            execution_count=count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 else None,
            seconds=0.0,
            dropped=dropped,
            oom_kills=oom,
            notes=await self._notes(ran, death, survived, dropped, oom),
        )

    async def _notes(
        self, ran: Cell, death: Death | None, survived: tuple[str, ...] | None, dropped: int, oom: int
    ) -> tuple[str, ...]:
        notes = []
        if ran.timed_out:
            how = {"message": "an interrupt", "sigint": "SIGINT", "kill": "killing the kernel", "box": "removing the box"}
            notes.append(f"The time limit ended the cell by {how.get(ran.rung or '', 'an interrupt')}.")
        if death is not None:
            notes.append(f"The kernel died: {describe(death)}. All variables are lost.")
        elif survived is not None:
            notes.append(f"Variables that survived: {', '.join(survived) or 'none'}.")
        if self._files_lost:
            self._files_lost = False
            notes.append("The box had to be replaced: the live kernel's variables and all files of the workspace are lost.")
        if ran.missing is not None and death is None:
            notes.append(f"The kernel lost its {ran.missing} message; the outcome is uncertain.")
        if dropped:
            notes.append(f"{dropped} characters of output were cut.")
        if oom and (death is None or death.kind != "oom"):
            notes.append(f"The memory limit killed {oom} process{'es' if oom > 1 else ''} that the kernel had started.")
        if death is None and (used := await self._box.memory_used()) is not None:
            limit = self._settings.limits.memory_gb * 2**30
            if used > MEMORY_WARNING * limit:
                notes.append(f"Memory: {used / 2**30:.1f} of {self._settings.limits.memory_gb:g} GB are in use.")
        return tuple(notes)

    # --- scratch ---

    async def validate(self, code: str, timeout_s: float, *, state: ScratchState = "live") -> Execution:
        """Syntax first, with nothing run; then the cell in a scratch kernel. Raises BoxLostError, KernelStartError.

        `state="live"` begins with the live kernel's variables; where it cannot be forked the scratch kernel is empty, and a
        note says why.
        """
        started = time.monotonic()
        error = await asyncio.to_thread(syntax_error, code)
        if error is not None:
            seconds = time.monotonic() - started
            return Execution(code=code, outputs=(error,), status="error", seconds=seconds, where="scratch", life=self.life)
        async with self._turn():
            if self._lost is not None or self._closed or self._box.lost is not None:
                raise BoxLostError(self._lost or self._box.lost or "the kernel session is closed")
            before = await self._box.oom_kills()
            scratch, notes = await self._scratch(state)
            try:
                started = time.monotonic()
                ran = await scratch.run(code, timeout_s, "", CHANGED)
                death = await self._death(scratch, ran, before)
                seconds = time.monotonic() - started
                execution = await self._execution(scratch, ran, code, death, before)
                files = await scratch.changed_files(ran) if death is None else ()
            finally:
                await scratch.process.kill()
                self._leaving = asyncio.create_task(self._discard(scratch))
            if files:
                notes = (*notes, f"Files it would have written: {', '.join(files)}.")
            told = {"seconds": seconds, "where": "scratch", "forked": scratch.lost is not None, "life": self.life}
            return execution.model_copy(update={**told, "notes": (*notes, *execution.notes)})

    async def _scratch(self, state: ScratchState) -> tuple[Executor, tuple[str, ...]]:
        live = self._live
        if state == "live" and live is not None and not live.process.exited.done():
            try:
                scratch = await self._fork(live, "scratch", self._trial_room)
            except ForkRefusedError as refused:
                return await self._spawn("scratch", self._trial_room), (f"Tried in an empty kernel: {refused}.",)
            notes = tuple(f"Not in the scratch kernel: {line}." for line in scratch.lost or ())
            return scratch, notes
        return await self._spawn("scratch", self._trial_room), ()

    @contextlib.asynccontextmanager
    async def _turn(self) -> AsyncIterator[None]:
        """One thing at a time, after the last trial run is gone."""
        async with self._lock:
            await self._left()
            yield

    async def _left(self) -> None:
        leaving, self._leaving = self._leaving, None
        if leaving is not None:
            await leaving

    async def _discard(self, executor: Executor) -> None:
        """End a kernel and delete its folder."""
        executor.close()
        await self._end(executor.process)
        if executor.process.room is not None:
            with contextlib.suppress(BoxLostError):
                await self._box.remove_folder(executor.process.room.home)

    # --- checkpoints and branches ---

    async def checkpoint(self, label: str) -> Snapshot:
        """Keep variables and files, in a process that waits. Raises ForkRefusedError, BoxLostError, KernelStartError."""
        async with self._turn():
            live = await self._ready()
            started = time.monotonic()
            root = self._room.home if self._room is not None else self._box.forks_path
            child = await self._fork(live, "checkpoint", lambda n: self._box.snapshot_room(self.workspace_path, root, n))
            self._made += 1
            seconds = time.monotonic() - started
            made = Snapshot(f"c{self._made}", label, child.lost or (), seconds)
            assert child.process.room is not None
            self._checkpoints[made.id] = _Checkpoint(made, child.process.room, child)
            waiting = [one for one in self._checkpoints.values() if one.executor is not None]
            too_many = waiting[: -self._settings.max_checkpoints]
            for oldest in too_many:
                await self._evict(oldest)
            return made._replace(evicted=tuple(one.snapshot.id for one in too_many))

    async def _evict(self, checkpoint: _Checkpoint) -> None:
        """Replace the process by a file of its variables, written inside the box."""
        executor, checkpoint.executor = checkpoint.executor, None
        if executor is None:
            return
        saved: dict[str, Any] | None = None
        if not executor.process.exited.done():
            content = {"op": "save", "path": f"{checkpoint.room.workspace}.variables", "max_mb": VARIABLES_MB}
            saved = await executor.ask("variables", content, VARIABLES_S)
        checkpoint.missing = _lines((saved or {}).get("missing")) if saved else ("all variables",)
        executor.close()
        await self._end(executor.process)

    async def evict_checkpoints(self, below: float = MEMORY_WARNING) -> tuple[str, ...]:
        """While more of the memory than that is in use, turn the oldest checkpoints into files; returns which."""
        evicted = []
        limit = self._settings.limits.memory_gb * 2**30
        async with self._turn():
            for name, checkpoint in self._checkpoints.items():
                used = await self._box.memory_used()
                if used is None or used <= below * limit:
                    break
                if checkpoint.executor is not None:
                    await self._evict(checkpoint)
                    evicted.append(name)
        return tuple(evicted)

    async def restore(self, snapshot: str, *, seed: int | None = None) -> tuple[str, ...]:
        """Go back to a checkpoint, which stays; what is missing, a line each.

        Raises:
            KeyError: there is no such checkpoint.
            BoxLostError: the box is gone.
            KernelStartError: no kernel came up.
        """
        async with self._turn():
            checkpoint = self._checkpoints[snapshot]
            await self._ready()
            before = self._live
            target = self.workspace_path

            def room(_: int) -> Room:
                forked = checkpoint.executor is not None
                return self._box.restored_room(checkpoint.room, target, self._room, forked=forked)

            waiting = checkpoint.executor
            if waiting is not None and waiting.process.exited.done():  # out of memory, or the agent's own doing
                waiting.close()
                waiting = checkpoint.executor = None
                checkpoint.missing = ("all variables: the process that held them was killed",)
            if waiting is not None:
                child = await self._fork(waiting, "live", room, seed)
                missing = checkpoint.snapshot.lost
            else:
                child = await self._spawn("live", room)
                content = {"op": "load", "path": f"{checkpoint.room.workspace}.variables", "max_mb": VARIABLES_MB}
                loaded = await child.ask("variables", content, VARIABLES_S)
                missing = (*checkpoint.missing, *_lines((loaded or {}).get("missing")))
            self._live = child
            self.life += 1
            if before is not None:
                before.close()
                await self._end(before.process)
            await self._box.sweep()
            return missing

    async def branch(self, count: int, *, seeds: Sequence[int | None] | None = None) -> list[KernelSession]:
        """Siblings with the same variables and copies of the files, in the same box; each is closed by itself.

        Args:
            count: How many.
            seeds: One each for the random generators; None: they go on as here.

        Raises:
            ForkRefusedError: the live kernel cannot be forked; none was made.
            BoxLostError: the box is gone.
            KernelStartError: a sibling did not come up; none was made.
        """
        async with self._turn():
            live = await self._ready()
            made: list[KernelSession] = []
            root = self._room.home if self._room is not None else self._box.forks_path
            try:
                for seed in seeds if seeds is not None else [None] * count:
                    child = await self._fork(live, "live", lambda n: self._box.branch_room(self.workspace_path, root, n), seed)
                    sibling = KernelSession(self._box, self._settings, parent=self)
                    self._share.sessions += 1
                    sibling._live, sibling._room = child, child.process.room
                    assert sibling._room is not None
                    self._share.homes.add(sibling._room.home)
                    sibling._news = tuple(f"Not in this branch: {line}." for line in child.lost or ())
                    made.append(sibling)
            except BaseException:
                for sibling in made:
                    await sibling.close()
                raise
            return made

    # --- files ---

    async def read_submission(self, name: str, max_bytes: int) -> bytes | None:
        """A copy made while the box stands still. Raises SubmissionError."""
        async with self._turn(), self._share.still:
            try:
                await self._box.freeze()
                return await asyncio.to_thread(self._files.read, name, max_bytes)
            finally:
                await self._box.thaw()

    def submission_signature(self, name: str) -> tuple[int, ...] | None:
        """Changes when the file does; None: absent."""
        return self._files.signature(name)

    async def close(self) -> None:
        """End the kernels of this session, and the box with the last session in it. Again is no error."""
        if self._closed:
            return
        self._closed = True
        await self._left()
        self._share.sessions -= 1
        last = self._share.sessions == 0
        kernels = [self._live, *(one.executor for one in self._checkpoints.values())]
        self._live = None
        self._checkpoints.clear()
        for kernel in kernels:
            if kernel is not None:
                kernel.close()
                if not last:
                    await self._end(kernel.process)
        if last:
            await self._share.remove(self._box)
        elif self._room is not None:
            await self._leave(self._room.home)

    async def _leave(self, home: str) -> None:
        """Delete the folder of this branch, once no branch of it lives in there."""
        share = self._share
        share.homes.discard(home)
        share.left.add(home)
        for folder in sorted(share.left):
            if not any(one.startswith(f"{folder}/") for one in share.homes):
                share.left.discard(folder)
                await self._box.remove_folder(folder)


def _lines(said: object) -> tuple[str, ...]:
    """A kernel's list of lines, as far as it is one."""
    told = said if isinstance(said, list) else []
    return tuple(line[:300] for line in told[:100] if isinstance(line, str))


def _told(lost: dict[str, Any]) -> tuple[str, ...]:
    """What a fork says its child lacks, a line each."""
    kinds = {"threads": "thread", "processes": "child", "tasks": "asyncio task"}
    return tuple(f"{word} {name}" for kind, word in kinds.items() for name in _lines(lost.get(kind)))


def describe(death: Death) -> str:
    """One phrase for a person."""
    phrases = {
        "killed_by_host": "the host killed it",
        "oom": "it ran out of memory",
        "signal": f"signal {death.code}",
        "exited": f"it exited with status {death.code}",
        "user_exit": "the code ended it with status 0",
        "protocol": "it sent messages that no kernel sends",
        "box_lost": "its box is gone",
    }
    return phrases[death.kind] + (f" ({death.detail})" if death.detail else "")


def syntax_error(code: str) -> Error | None:
    """What is wrong with a cell's syntax, IPython's own included; None also when it is too large or too deep to say here."""
    if len(code) > SYNTAX_CHARS or re.search(r"[^\x00-\x7f]{500}", code):  # normalising a name of marks alone is quadratic
        return None
    deadline = time.monotonic() + SYNTAX_SECONDS
    manager = TransformerManager()  # type: ignore[no-untyped-call]
    rewrite = manager.do_one_token_transform

    def rewrite_in_time(lines: list[str]) -> tuple[bool, list[str]]:
        if time.monotonic() > deadline:
            raise TimeoutError
        changed: tuple[bool, list[str]] = rewrite(lines)  # type: ignore[no-untyped-call]
        return changed

    manager.do_one_token_transform = rewrite_in_time  # type: ignore[method-assign]
    try:
        python = manager.transform_cell(code)
        compile(python, "<cell>", "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT, dont_inherit=True)
    except SyntaxError as error:
        line = f", line {error.lineno}" if error.lineno else ""
        shown = [f"  Cell{line}"]
        if error.text:
            shown += [f"    {error.text.rstrip()[:500]}", f"    {' ' * max((error.offset or 1) - 1, 0)}^"]
        name = type(error).__name__
        message = f"{error.msg} (cell{line})"
        return Error(ename=name, evalue=message, traceback=(*shown, f"{name}: {message}"))
    except ValueError as error:  # a NUL, a lone surrogate
        return Error(ename="SyntaxError", evalue=str(error)[:500], traceback=(f"SyntaxError: {str(error)[:500]}",))
    except (RecursionError, MemoryError, TimeoutError):  # more than this process likes; the scratch kernel will say
        return None
    return None


# --- choosing a box --------------------------------------------------------------------------------------------------


async def choose_box(settings: KernelSettings, *, trusted: bool, warn: Callable[[str], None] | None) -> str:
    """The kind that `auto` stands for here. Raises BoxUnavailableError."""
    if settings.box != "auto":
        return settings.box
    from dojo_kernel.kernel import doctor  # noqa: PLC0415  imports the docker SDK

    reasons = []
    for box in ("docker", "sandbox"):
        fits, why = await doctor.available(box)
        if fits:
            return box
        reasons.append(f"{box}: {why}")
    if trusted:
        if warn is not None:
            warn("no isolated box on this machine; this trusted agent runs as a plain process")
        return "process"
    raise BoxUnavailableError(
        f"no isolated box here ({'; '.join(reasons)}); see: dojo doctor, or say --box process for trusted code"
    )


def _provisioner(box: str) -> type[BoxProvisioner]:
    if box == "docker":
        from dojo_kernel.kernel.docker import DockerProvisioner  # noqa: PLC0415  imports the docker SDK

        return DockerProvisioner
    if box == "sandbox":
        from dojo_kernel.kernel.sandbox import SandboxProvisioner  # noqa: PLC0415  only where it is used

        return SandboxProvisioner
    from dojo_kernel.kernel.process import ProcessProvisioner  # noqa: PLC0415  only where it is used

    return ProcessProvisioner


async def open_kernel(
    settings: KernelSettings,
    *,
    data_dir: Path,
    episode: str,
    trusted: bool = False,
    warn: Callable[[str], None] | None = None,
) -> Kernel:
    """A box with a live kernel, ready for its first cell.

    Raises:
        BoxUnavailableError: no box of that kind here, or `auto` and none that isolates.
        KernelStartError: the box or its kernel did not come up.
    """
    box = await choose_box(settings, trusted=trusted, warn=warn)
    return await start_session(settings, box, data_dir=data_dir, episode=episode)


async def start_session(
    settings: KernelSettings, box: str, *, data_dir: Path, episode: str, waits_s: float = 0.0
) -> KernelSession:
    """A box of one kind with a live kernel; it may wait for its episode as long as `waits_s`. Raises as `open_kernel` does."""
    provisioner = _provisioner(box)(
        kernel_id=episode,
        kernel_spec=KernelSpec(argv=list(OUR_ARGV), display_name=f"dojo ({box})", language="python", interrupt_mode="message"),
        limits=settings.limits,
        data_dir=data_dir,
        image=settings.image,
        preload=list(settings.preload),
        episode=episode,
    )
    provisioner.deadline_s += waits_s
    session = KernelSession(provisioner, settings)
    try:
        await session.open()
    except BoxLostError as error:
        raise KernelStartError(f"the {box} box was lost while starting: {error}") from error
    return session
