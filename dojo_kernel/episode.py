"""The game: `Episode.step(action) -> Step`. Its state is a fold over the events it appends to the journal.

What a step does is looked up in three tables that anyone may add to: HANDLERS (action name -> what happens), INFO (kind of
information -> text) and REWARDS (name -> number).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import math
import os
import platform
import shutil
import tempfile
import time
import traceback
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable, Generator, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from dojo_kernel import __version__
from dojo_kernel.actions import (
    Checkpoint,
    ExecuteCode,
    GetHistory,
    Invalid,
    RequestInfo,
    Reset,
    Restore,
    ValidateCode,
    offered,
    parse_action,
)
from dojo_kernel.competition.grade import Grader
from dojo_kernel.competition.spec import Competition, find
from dojo_kernel.errors import (
    ActionError,
    ConfigError,
    DojoError,
    EpisodeOverError,
    ForkRefusedError,
    JournalError,
    MachineFault,
    PluginError,
    SubmissionError,
)
from dojo_kernel.feedback import Feedback, Parts, cap, clean
from dojo_kernel.journal.log import Journal
from dojo_kernel.journal.notebook import write_notebook
from dojo_kernel.kernel import open_kernel
from dojo_kernel.records import (
    SYNTHETIC,
    Acted,
    Bookmark,
    Branched,
    Closed,
    Explored,
    Grade,
    Interrupted,
    Node,
    Observation,
    Opened,
    Resumed,
    Rows,
    State,
    Step,
    Stepped,
)
from dojo_kernel.registry import Registry
from dojo_kernel.settings import EpisodeSettings, KernelSettings

if TYPE_CHECKING:
    from types import TracebackType

    from dojo_kernel.actions import Action
    from dojo_kernel.kernel import Kernel
    from dojo_kernel.records import Event, Execution, Usage

SUBMISSION = "submission.csv"
_WHERE = "Write it relative to the working directory: live and scratch kernels each start in theirs."
_INFO_ENTRIES = 10
_MAX_GIVEN = 20_000
_MB = 1_000_000

Reason = Literal["steps", "time", "agent", "closed", "error"]


@dataclass(frozen=True)
class Outcome:
    """What a handler found."""

    text: str = ""
    ok: bool = True
    execution: Execution | None = None
    grade: Grade | None = None
    bookmark: Bookmark | None = None
    ends: bool = False
    """The agent is done: the episode closes after this step."""


Handle = Callable[["Episode", Any], Awaitable[Outcome]]
Info = Callable[["Episode"], str]
Reward = Callable[[State, Grade | None], float]
StartKernel = Callable[..., Awaitable["Kernel"]]
in_a_box: StartKernel = open_kernel
"""Who starts kernels where nobody else is named."""

HANDLERS: Registry[Handle] = Registry("handler of the action")
INFO: Registry[Info] = Registry("info_type")
REWARDS: Registry[Reward] = Registry("reward")


class _SharedGrader:
    """One child process for an episode and its branches, as it is cheaper than one each; the last to leave ends it."""

    def __init__(self, competition: Competition) -> None:
        self._grader = Grader(competition)
        self._users = 1
        self.grade = self._grader.grade

    def shared(self) -> _SharedGrader:
        """For one more episode."""
        self._users += 1
        return self

    async def leave(self) -> None:
        """Once an episode."""
        self._users -= 1
        if self._users == 0:
            await self._grader.close()


class Episode:
    """One agent, one competition, one kernel, one journal. Made by `open_episode`, and by `branch` of another."""

    def __init__(self, table: _Table, journal: Journal, kernel: Kernel, grader: _SharedGrader, events: list[Event]) -> None:
        self._table = table
        self.competition = table.competition
        self.synthetic = table.competition.synthetic
        """Whether the data was made by `dojo synth`; asked once, as it is read from a file."""
        self.settings = table.settings
        self.kernel_settings = table.kernel
        self.folder = table.folder
        self.kernel = kernel
        self.events = events
        """All that happened, oldest first; what the journal holds."""
        self.state = State()
        for event in events:
            self.state = self.state.after(event)
        self._journal = journal
        self._grader = grader
        self._busy = asyncio.Lock()
        self._released = False
        self._handlers = HANDLERS
        self._feedback = Feedback(self.settings.feedback, self.settings.feedback_options)
        self._kept: dict[str, str] = {}
        """Id of a checkpoint in this episode -> its id in the kernel."""
        self._branches = ("", 0)
        """Head of the journal, and how many branches were made there."""

    # --- playing ----------------------------------------------------------------------------------------------------

    async def step(self, action: Action | dict[str, Any] | object, said: str | None = None, usage: Usage | None = None) -> Step:
        """Play one action; a bad one becomes an observation. Raises EpisodeOverError, and MachineFault after closing."""
        async with self._busy:
            if not self.state.open:
                raise EpisodeOverError("this episode has ended; open a new one")
            try:
                step, ends = await self._play(_parse(action), said, usage)
                if reason := self._over(ends=ends):
                    await self._close(reason)
            except MachineFault as fault:
                await self._close("error", "".join(traceback.format_exception(fault)))
                raise
            return step

    async def _play(self, action: Action, said: str | None, usage: Usage | None) -> tuple[Step, bool]:
        before, started, clock = self.state, _now(), time.monotonic()
        self._record(Acted(index=before.steps, action=action))  # first, so that a crash leaves the intent on disk
        outcome = await self._outcome(action)
        seconds = time.monotonic() - clock
        observation, feedback_usage = await self._observation(action, outcome, before, seconds)
        if self.state.pending is None:
            raise JournalError("the episode was released while a step was under way")
        step = Step(
            index=before.steps,
            action=action,
            said=said,
            usage=usage,
            execution=outcome.execution,
            grade=outcome.grade,
            bookmark=outcome.bookmark,
            reward=self._reward(before, outcome.grade),
            observation=observation,
            feedback_usage=feedback_usage,
            started_at=started,
            seconds=seconds,
        )
        self._record(Stepped(step=step))
        return step, outcome.ends

    async def _outcome(self, action: Action) -> Outcome:
        if action.setting and action.name not in self.actions:
            return Outcome(f"{action.name} is off in this episode. Actions: {', '.join(self.actions)}", ok=False)
        try:
            handle = self._handlers[action.name]
        except ConfigError as error:
            raise PluginError(str(error)) from error
        try:
            return await handle(self, action)
        except (ActionError, SubmissionError) as fault:
            return Outcome(str(fault), ok=False)
        except DojoError:
            raise
        except Exception as error:  # registered handlers and info providers are foreign code
            raise PluginError(f"the action {action.name!r} failed: {type(error).__name__}: {error}") from error

    def _reward(self, before: State, grade: Grade | None) -> float:
        try:
            reward = float(REWARDS[self.settings.reward](before, grade))
        except Exception as error:  # a registered reward is foreign code
            raise PluginError(f"the reward {self.settings.reward!r} failed: {type(error).__name__}: {error}") from error
        return reward if math.isfinite(reward) else 0.0

    async def _observation(
        self, action: Action, outcome: Outcome, before: State, seconds: float
    ) -> tuple[Observation, Usage | None]:
        """And what the feedback in it took."""
        parts = Parts(
            index=before.steps,
            action=action,
            text=outcome.text,
            ok=outcome.ok,
            execution=outcome.execution,
            grade=outcome.grade,
            before=before,
            metric=self.competition.metric,
            decimals=self.competition.decimals,
            steps_left=self.settings.max_steps - before.steps - 1,
            seconds_left=max(0.0, self.settings.max_seconds - before.seconds - seconds),
            observation_chars=self.kernel_settings.observation_chars,
        )
        said = await self._feedback.on(parts)
        observation = Observation(
            text=said.text,
            ok=outcome.ok,
            score=None if outcome.grade is None else outcome.grade.score,
            best_score=None if parts.best is None else parts.best.score,
            human_rank=None if parts.best is None else parts.best.human_rank,
            steps_left=parts.steps_left,
            seconds_left=parts.seconds_left,
        )
        return observation, said.usage

    def _over(self, *, ends: bool) -> Reason | None:
        if ends:
            return "agent"
        if self.state.steps >= self.settings.max_steps:
            return "steps"
        return "time" if self.seconds_left <= 0 else None

    def _record(self, event: Event) -> None:
        self._journal.append(event)
        self.events.append(event)
        self.state = self.state.after(event)

    # --- what handlers use ------------------------------------------------------------------------------------------

    @property
    def seconds_left(self) -> float:
        """Of the budget; only steps use it up."""
        return self.settings.max_seconds - self.state.seconds

    @property
    def cell_id(self) -> str:
        """Of the step under way."""
        return f"s{self.state.steps:04d}"

    @property
    def feedback_rows(self) -> Rows:
        """Which rows an agent gets scores from while it plays."""
        return "all" if self.competition.split.mode == "full" else "public"

    def timeout(self, wanted: float | None) -> float:
        """Seconds that a cell may run: what it asks for, at most the setting and what is left."""
        return max(0.05, min(wanted or math.inf, self.settings.cell_timeout_s, self.seconds_left))

    async def grade_submission(self) -> Grade | None:
        """The grade of submission.csv as it is now; None when these bytes were the last ones looked at, or are gone."""
        try:
            data = await self.kernel.read_submission(SUBMISSION, int(self.settings.max_submission_mb * _MB))
        except SubmissionError as fault:
            return Grade(rows=self.feedback_rows, sha256=hashlib.sha256(b"").hexdigest(), problem=str(fault), code=fault.code)
        if data is None:
            return None
        sha256 = hashlib.sha256(data).hexdigest()
        if sha256 == self.state.last_sha256:
            return None
        self._journal.store(data)
        return await self._grader.grade(data, self.feedback_rows)

    async def make_checkpoint(self, label: str) -> tuple[Bookmark, tuple[str, ...]]:
        """What the kernel kept, and the ids of older ones that became files. Raises ForkRefusedError."""
        made = await self.kernel.checkpoint(label)
        name = f"c{self.state.bookmarks + 1}"
        self._kept[name] = made.id
        bookmark = Bookmark(how="made", id=name, label=label, missing=_cleaned(made.lost), life=self.kernel.life)
        return bookmark, self._names(made.evicted)

    async def restore_checkpoint(self, name: str) -> Bookmark:
        """Raises ActionError for an id that is not kept here, ForkRefusedError."""
        if name not in self._kept:
            raise ActionError(self._no_such_checkpoint(name))
        missing = await self.kernel.restore(self._kept[name])
        return Bookmark(how="restored", id=name, missing=_cleaned(missing), life=self.kernel.life)

    def _no_such_checkpoint(self, name: str) -> str:
        known = f"there are: {', '.join(self._kept)}" if self._kept else "there is none now"
        made = (event.step.bookmark for event in self.events if isinstance(event, Stepped))
        if any(mark is not None and mark.how == "made" and mark.id == name for mark in made):
            return f"the checkpoint {name} went with the kernel that the episode had then; {known}"
        return f"no checkpoint is called {name!r}; {known}"

    async def evict_checkpoints(self) -> tuple[str, ...]:
        """Ids of those that became files as memory is short."""
        return self._names(await self.kernel.evict_checkpoints()) if self._kept else ()

    def _names(self, ids: Sequence[str]) -> tuple[str, ...]:
        return tuple(name for name, one in self._kept.items() if one in ids)

    # --- branches ---------------------------------------------------------------------------------------------------

    def branch(
        self,
        count: int,
        *,
        seeds: Sequence[int | None] | None = None,
        folders: Sequence[Path] | None = None,
        fresh: bool = False,
    ) -> Branches:
        """Live siblings that begin where this episode is: its variables, its files, what is left of its budget; a journal each.

        `await` it for the list, each to be closed by itself, before this episode or after; or use it in `async with`, which
        closes what is still open at its end. All grade with the one grader of this episode.

        Args:
            count: How many.
            seeds: One each for the random generators; a None goes on as here. Without: derived from this episode's seed, the
                head of its journal and the branch's number, and so the same for the same trajectory.
            folders: Of the journals; without: `branches/<k>` in this episode's folder, k the next that is free.
            fresh: In boxes of their own, with no variables and no files: what can be had where forks are refused.

        Raises:
            ForkRefusedError: the kernel cannot be forked now; nothing is left behind.
            EpisodeOverError: this episode has ended.
            ValueError: another number of seeds or folders.
        """
        return Branches(self, count, seeds, folders, fresh=fresh)

    async def _branch(
        self, count: int, seeds: Sequence[int | None] | None, folders: Sequence[Path] | None, *, fresh: bool
    ) -> list[Episode]:
        for name, given in (("seeds", seeds), ("folders", folders)):
            if given is not None and len(given) != count:
                raise ValueError(f"{len(given)} {name} for {count} branches")
        async with contextlib.AsyncExitStack() as stack:
            # before the lock, so that others can be started at the same time
            kernels: Sequence[Kernel] = await self._fresh_kernels(count, stack) if fresh else ()
            async with self._busy:
                if not self.state.open:
                    raise EpisodeOverError("this episode has ended; open a new one")
                head = self._journal.head
                first = self._branches[1] if self._branches[0] == head else 0
                if fresh:
                    seeds = [None] * count
                else:
                    seeds = seeds or [_branch_seed(self.settings.seed, head, first + i) for i in range(count)]
                    kernels = await self.kernel.branch(count, seeds=seeds)
                    for kernel in kernels:
                        stack.push_async_callback(kernel.close)
                made = []
                for number, (kernel, seed) in enumerate(zip(kernels, seeds, strict=True)):
                    branch = self._sibling(kernel, seed, first + number, None if folders is None else folders[number])
                    stack.push_async_callback(branch.discard)
                    if fresh:
                        branch._record(_resuming(kernel))  # noqa: SLF001 - the same class
                    made.append(branch)
                stack.pop_all()
                self._branches = (head, first + count)
                return made

    async def _fresh_kernels(self, count: int, stack: contextlib.AsyncExitStack) -> list[Kernel]:
        kernels: list[Kernel] = []
        for _ in range(count):
            kernels.append(await _started(self._table, _new_name(self.competition)))
            stack.push_async_callback(kernels[-1].close)
        return kernels

    def _branch_folder(self) -> Path:
        if self._table.temporary:
            return Path(tempfile.mkdtemp(prefix="dojo-"))
        base = self.folder / "branches"
        base.mkdir(exist_ok=True)
        taken = (int(path.name) for path in base.iterdir() if path.name.isdecimal())
        return base / str(max(taken, default=-1) + 1)

    def _sibling(self, kernel: Kernel, seed: int | None, index: int, folder: Path | None) -> Episode:
        event = Branched(
            episode=_new_name(self.competition),
            parent_episode=self.id,
            parent_events=len(self.events),
            parent_head_sha256=self._journal.head,
            index=index,
            seed=seed,
            workspace_path=kernel.workspace_path,
            started_at=_now(),
        )
        place = self._branch_folder() if folder is None else folder
        temporary = self._table.temporary and folder is None
        journal = self._journal.branch(place, event, durable=not temporary)
        table = replace(self._table, folder=place, temporary=temporary)
        return Episode(table, journal, kernel, self._grader.shared(), [*self.events, event])

    def explored(  # noqa: PLR0913 - what an Explored is made of
        self, node: Node, branch: Episode | None, grade: Grade | None, *, seconds: float, forked: bool, usage: Usage | None
    ) -> None:
        """Count here what a branch took for a node of a search, and its submission among this episode's."""
        if branch is not None and grade is not None and grade.score is not None:
            self._journal.store((branch.folder / "files" / grade.sha256).read_bytes())
        kept = branch is not None and self.folder in branch.folder.parents
        self._record(
            Explored(
                node=node,
                grade=grade,
                forked=forked,
                folder=branch.folder.relative_to(self.folder).as_posix() if branch is not None and kept else "",
                episode="" if branch is None else branch.id,
                head_sha256="" if branch is None else branch._journal.head,  # noqa: SLF001 - the same class
                steps=1,
                seconds=seconds,
                usage=usage,
            )
        )

    async def discard(self) -> None:
        """Release it and remove its folder: it never was."""
        await self.release()
        shutil.rmtree(self.folder, ignore_errors=True)

    # --- readings ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Name of this episode, as its folder and its box carry it."""
        return _name_of(self.events)

    @property
    def temporary(self) -> bool:
        """Its folder goes with it."""
        return self._table.temporary

    @property
    def actions(self) -> list[str]:
        """Names of what can be done here."""
        return offered(self.settings)

    @property
    def opened(self) -> Opened:
        """The first event: all that is pinned."""
        first = self.events[0]
        assert isinstance(first, Opened)
        return first

    @property
    def _began(self) -> Opened | Resumed | Branched:
        """The event since which this kernel runs."""
        return next(event for event in reversed(self.events) if isinstance(event, Opened | Resumed | Branched))

    @property
    def steps(self) -> list[Step]:
        """Every finished step."""
        return [event.step for event in self.events if isinstance(event, Stepped)]

    @property
    def closed(self) -> Closed | None:
        """The last event, once it has come."""
        last = self.events[-1]
        return last if isinstance(last, Closed) else None

    @property
    def first_observation(self) -> Observation:
        """What an agent reads before its first step, or after a resume."""
        best = self.state.best
        return Observation(
            text=_welcome(self, self._began),
            ok=True,
            best_score=None if best is None else best.score,
            human_rank=None if best is None else best.human_rank,
            steps_left=self.settings.max_steps - self.state.steps,
            seconds_left=max(0.0, self.seconds_left),
        )

    def save_notebook(self, path: Path | str | None = None) -> Path:
        """Write the episode so far as a notebook, by default beside its journal."""
        target = self.folder / "notebook.ipynb" if path is None else Path(path)
        write_notebook(self.events, target)
        return target

    # --- ending -----------------------------------------------------------------------------------------------------

    async def close(self, reason: Reason = "closed", detail: str = "", usage: Usage | None = None) -> Closed | None:
        """Grade the best submission on the hidden rows, record the end, free everything. Idempotent."""
        async with self._busy:
            return await self._close(reason, detail, usage)

    async def _close(self, reason: Reason, detail: str = "", usage: Usage | None = None) -> Closed | None:
        try:
            if self.state.open:
                final = None
                try:
                    final = await self._final_grade()
                except MachineFault as fault:
                    reason, detail = "error", detail + "".join(traceback.format_exception(fault))
                detail = _plain(detail)[-20_000:]
                self._record(Closed(reason=reason, final=final, detail=detail, usage=usage, seconds=self.state.seconds))
            return self.closed
        finally:
            await self.release()

    async def _final_grade(self) -> Grade | None:
        best = self.state.best
        if best is None:
            return None
        if best.rows == "all":
            return best
        data = (self.folder / "files" / best.sha256).read_bytes()
        if hashlib.sha256(data).hexdigest() != best.sha256:
            raise JournalError(f"{self.folder / 'files' / best.sha256} was changed after it was graded")
        return await self._grader.grade(data, "private")

    async def release(self) -> None:
        """Free kernel, grader and journal without an end: the journal can be resumed. Idempotent."""
        if self._released:
            return
        self._released = True
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._journal.close)
            branched = any(isinstance(event, Branched) for event in self.events)  # in a fresh box a branch begins by Resumed
            if self._table.temporary and branched:  # of an opened one the block takes care
                stack.callback(shutil.rmtree, self.folder, ignore_errors=True)
            stack.push_async_callback(self._grader.leave)
            stack.push_async_callback(self.kernel.close)
            stack.push_async_callback(self._feedback.close)


class Branches:
    """What `Episode.branch` gives: awaited, a list of episodes; in `async with`, a list that is closed at the end."""

    def __init__(
        self,
        parent: Episode,
        count: int,
        seeds: Sequence[int | None] | None,
        folders: Sequence[Path] | None,
        *,
        fresh: bool,
    ) -> None:
        self._ask = (parent, count, seeds, folders, fresh)
        self._made: list[Episode] = []

    def __await__(self) -> Generator[Any, None, list[Episode]]:
        parent, count, seeds, folders, fresh = self._ask
        return parent._branch(count, seeds, folders, fresh=fresh).__await__()  # noqa: SLF001 - its other half

    async def __aenter__(self) -> list[Episode]:
        self._made = await self
        return list(self._made)

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        async with contextlib.AsyncExitStack() as stack:
            for episode in self._made:
                stack.push_async_callback(_leave, episode, error)


async def _leave(episode: Episode, error: BaseException | None) -> None:
    """Close the episode, also after a fault of the machine; anything else leaves it to be resumed."""
    if error is None:
        await episode.close()
    elif isinstance(error, MachineFault):
        with contextlib.suppress(JournalError):  # a journal that cannot be written has no end; what counts is the first fault
            await episode.close("error", "".join(traceback.format_exception(error)))
    else:
        await episode.release()


def _cleaned(lines: Sequence[str]) -> tuple[str, ...]:
    """What a kernel says, fit for a model and a journal."""
    return tuple(clean(line) for line in lines)


def _branch_seed(seed: int, head: str, index: int) -> int:
    return int.from_bytes(hashlib.sha256(f"{seed} {head} {index}".encode("ascii")).digest()[:4])


def _name_of(events: Sequence[Event]) -> str:
    """Of the episode that these events end in: a branch's own, or the root's."""
    return next(event.episode for event in reversed(events) if isinstance(event, Opened | Branched))


def _new_name(competition: Competition) -> str:
    return f"{competition.slug}-{uuid.uuid4().hex[:8]}"


def _parse(given: object) -> Action:
    try:
        action = parse_action(given)
        if not isinstance(action, Invalid):
            return action
        problem = "no action is called 'invalid'"
    except (ActionError, ValidationError) as fault:
        problem = str(fault)
    return Invalid(given=_plain(repr(given))[:_MAX_GIVEN], problem=_plain(problem)[:4_000])


def _plain(text: str) -> str:
    return text.encode("utf-8", "backslashreplace").decode("utf-8")


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="milliseconds")


# --- opening -----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Table:
    """What is laid out before an episode starts."""

    competition: Competition
    settings: EpisodeSettings
    kernel: KernelSettings
    folder: Path
    agent: str
    trusted: bool
    start_kernel: StartKernel
    warn: Callable[[str], None] | None
    temporary: bool = False
    """The folder goes with the episode."""


@contextlib.asynccontextmanager
async def open_episode(  # noqa: PLR0913 - keywords of the front door
    competition: str | Path,
    *,
    settings: EpisodeSettings = EpisodeSettings(),  # noqa: B008 - frozen
    kernel: KernelSettings = KernelSettings(),  # noqa: B008 - frozen
    folder: Path | None = None,
    agent: str = "",
    trusted: bool = False,
    resume: bool = False,
    start_kernel: StartKernel = in_a_box,
    warn: Callable[[str], None] | None = None,
) -> AsyncIterator[Episode]:
    """An episode, open; leaving the block closes it, an exception other than MachineFault leaves it to be resumed.

    Args:
        competition: Slug of a bundled one, or the folder of one.
        settings: Budget and rules; a resumed episode keeps the ones it was opened with.
        kernel: Box and limits; a resumed episode keeps the ones it was opened with.
        folder: Holds journal, submissions and notebook; None: a temporary one that goes with the episode.
        agent: Name for the journal.
        trusted: The agent's code is the user's own: `box="auto"` may fall through to a plain process.
        resume: Go on with the journal in `folder`.
        start_kernel: Who makes the kernel; `dojo_kernel.testing.open_memory_kernel` needs no box.
        warn: Called with a line that the user should see.

    Raises:
        ConfigError: a setting, a spec or a journal that does not fit.
        NotPreparedError: the data is not there.
        BoxUnavailableError: this machine cannot run such a box.
        MachineFault: kernel, grader or journal did not start.
    """
    spec = find(str(competition))
    spec.require_prepared()
    _known(settings)
    if resume and folder is None:
        raise ConfigError("resume needs the folder of an episode")
    place = Path(tempfile.mkdtemp(prefix="dojo-")) if folder is None else folder
    table = _Table(spec, settings, kernel, place, agent, trusted, start_kernel, warn, temporary=folder is None)
    try:
        episode = await (_resume(table) if resume else _begin(table))
        try:
            yield episode
        except BaseException as error:  # a cancellation, too: the journal says how the episode ended, and the error goes on
            await _leave(episode, error)
            raise
        else:
            await _leave(episode, None)
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def _known(settings: EpisodeSettings) -> None:
    """Raises ConfigError for names that no table has, before anything is started."""
    REWARDS[settings.reward]
    Feedback(settings.feedback, settings.feedback_options)


async def _begin(table: _Table) -> Episode:
    name = _new_name(table.competition)
    async with contextlib.AsyncExitStack() as stack:
        journal = Journal.create(table.folder, durable=not table.temporary)
        stack.callback(journal.close)
        episode = await _sit_down(table, journal, name, [], stack)
        episode._record(_opening(table, name, episode.kernel))  # noqa: SLF001 - its own maker
        stack.pop_all()
    return episode


async def _resume(table: _Table) -> Episode:
    async with contextlib.AsyncExitStack() as stack:
        journal = Journal.resume(table.folder)
        stack.callback(journal.close)
        events: list[Event] = list(journal.events)
        if not events or not isinstance(events[0], Opened):
            raise ConfigError(f"{table.folder}: the journal holds no episode; remove the folder and start again")
        opened = events[0]
        if isinstance(events[-1], Closed):
            raise ConfigError(f"{table.folder}: this episode has ended; read it with: dojo notebook {table.folder}")
        if opened.competition_sha256 != table.competition.manifest_sha256():
            raise ConfigError(f"{table.folder}: {table.competition.slug} was prepared anew since; start another episode")
        table = _pinned(table, opened)
        episode = await _sit_down(table, journal, _name_of(events), events, stack)
        if episode.state.pending is not None:
            episode._record(Interrupted(index=episode.state.pending))  # noqa: SLF001 - its own maker
        episode._record(_resuming(episode.kernel))  # noqa: SLF001 - its own maker
        stack.pop_all()
    return episode


def _pinned(table: _Table, opened: Opened) -> _Table:
    kernel = KernelSettings.model_validate(opened.settings["kernel"])
    return replace(
        table,
        settings=EpisodeSettings.model_validate(opened.settings["episode"]),
        kernel=kernel if opened.box == "memory" else KernelSettings.model_validate({**kernel.model_dump(), "box": opened.box}),
    )


async def _sit_down(table: _Table, journal: Journal, name: str, events: list[Event], stack: contextlib.AsyncExitStack) -> Episode:
    grader = _SharedGrader(table.competition)
    stack.push_async_callback(grader.leave)
    kernel = await _started(table, name)
    stack.push_async_callback(kernel.close)
    return Episode(table, journal, kernel, grader, events)


async def _started(table: _Table, name: str) -> Kernel:
    """A kernel in a new box."""
    return await table.start_kernel(
        table.kernel, data_dir=table.competition.public_dir, episode=name, trusted=table.trusted, warn=table.warn
    )


def _opening(table: _Table, name: str, kernel: Kernel) -> Opened:
    return Opened(
        episode=name,
        competition=table.competition.slug,
        competition_sha256=table.competition.manifest_sha256(),
        better=table.competition.better,
        seed=table.settings.seed,
        agent=table.agent,
        settings={"episode": table.settings.model_dump(mode="json"), "kernel": table.kernel.model_dump(mode="json")},
        box=kernel.box,
        enforcement=kernel.enforcement,
        versions=_versions(),
        image=kernel.image,
        synthetic=table.competition.synthetic,
        data_path=kernel.data_path,
        workspace_path=kernel.workspace_path,
        started_at=_now(),
    )


@functools.cache
def _versions() -> dict[str, str]:
    """Of this process, looked up once: each takes milliseconds."""
    packages = ("gymnasium", "ipykernel", "jupyter_client", "numpy", "pandas", "scikit-learn")
    found = {package: metadata.version(package) for package in packages}
    return {"dojo_kernel": __version__, "python": platform.python_version(), **found}


def _resuming(kernel: Kernel) -> Resumed:
    return Resumed(
        box=kernel.box,
        image=kernel.image,
        data_path=kernel.data_path,
        workspace_path=kernel.workspace_path,
        started_at=_now(),
    )


# --- the actions -------------------------------------------------------------------------------------------------------


@HANDLERS.register(RequestInfo.name)
async def _request_info(episode: Episode, action: RequestInfo) -> Outcome:
    if action.info_type not in INFO:
        raise ActionError(f"no info_type is called {action.info_type[:80]!r}; there are: {', '.join(INFO)}")
    return Outcome(INFO[action.info_type](episode))


@HANDLERS.register(ValidateCode.name)
async def _validate_code(episode: Episode, action: ValidateCode) -> Outcome:
    execution = await episode.kernel.validate(action.code, episode.timeout(action.timeout_s), state=action.state)
    return Outcome(ok=execution.status == "ok", execution=execution)


@HANDLERS.register(ExecuteCode.name)
async def _execute_code(episode: Episode, action: ExecuteCode) -> Outcome:
    before = episode.kernel.submission_signature(SUBMISSION)
    execution = await episode.kernel.execute(action.code, episode.timeout(action.timeout_s), cell=episode.cell_id)
    if execution.death is None and (filed := await episode.evict_checkpoints()):
        execution = execution.model_copy(update={"notes": (*execution.notes, f"Memory is short: {_filed(filed)}.")})
    ok = execution.status == "ok"
    if episode.kernel.submission_signature(SUBMISSION) == before:
        return Outcome(ok=ok, execution=execution)
    if not ok:
        return Outcome(f"{SUBMISSION} changed, but its cell did not end well: not graded", ok=False, execution=execution)
    if episode.state.submissions >= episode.settings.max_submissions:
        return Outcome(f"all {episode.settings.max_submissions} submissions are used up: not graded", execution=execution)
    grade = await episode.grade_submission()
    text = f"{SUBMISSION} is the same as before, or gone: not graded again" if grade is None else ""
    return Outcome(text, ok=grade is None or grade.problem is None, execution=execution, grade=grade)


@HANDLERS.register(GetHistory.name)
async def _get_history(episode: Episode, action: GetHistory) -> Outcome:
    steps = [event.step for event in islice(reversed(episode.events), 2 * action.last + 1) if isinstance(event, Stepped)]
    lines = [_history_line(step, episode.competition.decimals) for step in reversed(steps[: action.last])]
    return Outcome("\n".join(lines) or "nothing happened yet")


def _history_line(step: Step, decimals: int) -> str:
    code = getattr(step.action, "code", None) or getattr(step.action, "info_type", "")
    if step.bookmark is not None:
        code = f"{step.bookmark.id} {step.bookmark.label}"
    first = next((line.strip() for line in str(code).splitlines() if line.strip()), "")
    outcome = "ok" if step.observation.ok else "failed"
    if step.execution is not None and not step.observation.ok:
        outcome = step.execution.status if step.execution.status != "ok" else "submission refused"
    score = "" if step.observation.score is None else f", score {step.observation.score:.{decimals}f}"
    score += " (synthetic data)" if step.grade is not None and step.grade.synthetic else ""
    return f"{step.index + 1}. {step.action.name}: {outcome}, {step.seconds:.1f} s{score} | {first[:100]}".rstrip(" |")


@HANDLERS.register(Reset.name)
async def _reset(episode: Episode, action: Reset) -> Outcome:
    del action
    await episode.kernel.restart()
    return Outcome("the kernel was restarted: its memory is empty; files, best score and history are as they were")


@HANDLERS.register(Checkpoint.name)
async def _checkpoint(episode: Episode, action: Checkpoint) -> Outcome:
    try:
        made, filed = await episode.make_checkpoint(action.label)
    except ForkRefusedError as refused:
        return Outcome(f"no checkpoint was made: {clean(str(refused))}", ok=False)
    lines = [f"checkpoint {made.id} holds the variables and files of now", *(f"not in it: {line}" for line in made.missing)]
    return Outcome("\n".join([*lines, *([f"there are too many: {_filed(filed)}"] if filed else [])]), bookmark=made)


@HANDLERS.register(Restore.name)
async def _restore(episode: Episode, action: Restore) -> Outcome:
    try:
        restored = await episode.restore_checkpoint(action.id)
    except ForkRefusedError as refused:
        return Outcome(f"not restored: {clean(str(refused))}", ok=False)
    lines = [f"variables and files are those of checkpoint {restored.id}, which stays; steps, time and submissions stay used"]
    return Outcome("\n".join([*lines, *(f"missing: {line}" for line in restored.missing)]), bookmark=restored)


def _filed(names: Sequence[str]) -> str:
    what = "checkpoint" if len(names) == 1 else "checkpoints"
    return f"{what} {', '.join(names)} became a file of what can be kept of the variables"


@HANDLERS.register(Invalid.name)
async def _invalid(episode: Episode, action: Invalid) -> Outcome:
    raise ActionError(f"{action.problem}. Actions: {', '.join(episode.actions)}")


# --- the information ---------------------------------------------------------------------------------------------------


@INFO.register("overview")
def _overview(episode: Episode) -> str:
    return episode.competition.description.strip()


@INFO.register("sample_submission")
def _sample_submission(episode: Episode) -> str:
    path = episode.competition.public_dir / "sample_submission.csv"
    with path.open(encoding="utf-8-sig", newline=None) as lines:
        return "".join(islice(lines, 4)).rstrip("\n")


@INFO.register("data_structure")
def _data_structure(episode: Episode) -> str:
    root = episode.competition.public_dir
    return "\n".join([f"{episode.kernel.data_path}/", *_tree(root, "  ")])


def _tree(folder: Path, indent: str) -> list[str]:
    entries = sorted(os.scandir(folder), key=lambda entry: (entry.is_dir(follow_symlinks=False), entry.name))
    lines = []
    for entry in entries[:_INFO_ENTRIES]:
        if entry.is_dir(follow_symlinks=False):
            lines += [f"{indent}{entry.name}/", *_tree(Path(entry.path), indent + "  ")]
        else:
            lines.append(f"{indent}{entry.name} ({entry.stat(follow_symlinks=False).st_size:,} bytes)")
    if len(entries) > _INFO_ENTRIES:
        lines.append(f"{indent}... and {len(entries) - _INFO_ENTRIES:,} more")
    return lines


@INFO.register("data_path")
def _data_path(episode: Episode) -> str:
    return episode.kernel.data_path


@INFO.register("output_path")
def _output_path(episode: Episode) -> str:
    del episode
    return f"{SUBMISSION}\n{_WHERE}"


@INFO.register("name")
def _name(episode: Episode) -> str:
    return episode.competition.slug


@INFO.register("metadata")
def _metadata(episode: Episode) -> str:
    spec = episode.competition
    return json.dumps(
        {
            "name": spec.slug,
            "title": spec.title,
            "domain": spec.domain,
            "tags": spec.tags,
            "metric": spec.metric,
            "better": spec.better,
            "synthetic": episode.synthetic,
            "id_column": spec.submission.id,
            "prediction_columns": spec.predicted,
            "feedback_rows": episode.feedback_rows,
            "max_submissions": episode.settings.max_submissions,
        }
    )


@INFO.register("all")
def _all(episode: Episode) -> str:
    return "\n\n".join(f"## {name}\n{INFO[name](episode)}" for name in INFO if name != "all")


_MANY = 20
"""More columns than that are not listed one by one."""


def _welcome(episode: Episode, began: Opened | Resumed | Branched) -> str:
    spec, settings = episode.competition, episode.settings
    hidden = "" if episode.feedback_rows == "all" else "; your best submission is graded on the hidden rows when the episode ends"
    steps, submissions = settings.max_steps - episode.state.steps, settings.max_submissions - episode.state.submissions
    columns = [spec.submission.id, *spec.predicted]
    shown = columns if len(columns) <= _MANY else [*columns[:_MANY], f"... ({len(columns)} in all, as in sample_submission.csv)"]
    left = f"{steps} steps, {max(0.0, episode.seconds_left):.0f} s, {submissions} submissions"
    lines = [
        f"Competition: {spec.title} ({spec.slug}). Metric: {spec.metric}, {spec.better} is better.",
        f"Data: {episode.kernel.data_path}. Your predictions: {SUBMISSION} with the columns {', '.join(shown)}.",
        f"{_WHERE} The file is graded when a cell of execute_code has changed it.",
        f"Feedback scores are computed on the {episode.feedback_rows} rows{hidden}.",
        f"Left: {left}; one cell runs at most {settings.cell_timeout_s:.0f} s.",
        f"Actions: {', '.join(episode.actions)}. Start with request_info.",
    ]
    if episode.synthetic:
        lines.insert(1, f"This is {SYNTHETIC}. Nothing can be learnt from it.")
    if isinstance(began, Branched):
        lines.append(
            "This is a branch of another episode: variables, files, best score, history and budget are as they were there; "
            "its checkpoints are not here."
        )
    if isinstance(began, Resumed):
        lines.append(
            "This episode was interrupted and goes on in a fresh kernel: variables, files in the workspace and checkpoints "
            "are gone; your best submission, its score and the history are kept."
        )
    return cap("\n".join(lines), episode.kernel_settings.observation_chars)


# --- the rewards -------------------------------------------------------------------------------------------------------


@REWARDS.register("human_rank")
def human_rank(before: State, grade: Grade | None) -> float:
    """Share of the board that this submission beats or ties; nothing for a failure."""
    del before
    return grade.human_rank if grade is not None and grade.score is not None and grade.human_rank is not None else 0.0


@REWARDS.register("improvement")
def improvement(before: State, grade: Grade | None) -> float:
    """What this submission adds to the best human rank so far; the sum over an episode is the final best."""
    if grade is None or not before.better_than_best(grade):
        return 0.0
    best = before.best.human_rank if before.best is not None else None
    return max(0.0, human_rank(before, grade) - (best or 0.0))


@REWARDS.register("score")
def score(before: State, grade: Grade | None) -> float:
    """The metric, its sign turned where lower is better, so that more is always better; nothing for a failure."""
    if grade is None or grade.score is None:
        return 0.0
    return grade.score if before.better == "higher" else -grade.score


@REWARDS.register("medal")
def medal(before: State, grade: Grade | None) -> float:
    """1 for gold, 2/3 for silver, 1/3 for bronze."""
    del before
    return {"gold": 1.0, "silver": 2 / 3, "bronze": 1 / 3}.get(grade.medal or "", 0.0) if grade is not None else 0.0
