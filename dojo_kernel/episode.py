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
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib import metadata
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import ValidationError

from dojo_kernel import __version__
from dojo_kernel.actions import ACTIONS, ExecuteCode, GetHistory, Invalid, RequestInfo, Reset, ValidateCode, parse_action
from dojo_kernel.competition.grade import Grader
from dojo_kernel.competition.spec import Competition, find
from dojo_kernel.errors import (
    ActionError,
    ConfigError,
    DojoError,
    EpisodeOverError,
    JournalError,
    MachineFault,
    PluginError,
    SubmissionError,
)
from dojo_kernel.feedback import FEEDBACK, Parts, cap
from dojo_kernel.journal.log import Journal
from dojo_kernel.journal.notebook import write_notebook
from dojo_kernel.kernel import open_kernel
from dojo_kernel.records import Acted, Closed, Grade, Interrupted, Observation, Opened, Resumed, Rows, State, Step, Stepped
from dojo_kernel.registry import Registry
from dojo_kernel.settings import EpisodeSettings, KernelSettings

if TYPE_CHECKING:
    from dojo_kernel.actions import Action
    from dojo_kernel.kernel import Kernel
    from dojo_kernel.records import Event, Execution

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


class Episode:
    """One agent, one competition, one kernel, one journal. Made by `open_episode`."""

    def __init__(self, table: _Table, journal: Journal, kernel: Kernel, grader: Grader, events: list[Event]) -> None:
        self.competition = table.competition
        self.settings = table.settings
        self.kernel_settings = table.kernel
        self.folder = table.folder
        self.kernel = kernel
        self.events = events
        """All that happened, oldest first; what the journal holds."""
        self.state = State()
        for event in events:
            self.state = self.state.after(event)
        self._resumed = bool(events)
        self._journal = journal
        self._grader = grader
        self._busy = asyncio.Lock()
        self._released = False
        self._handlers = HANDLERS

    # --- playing ----------------------------------------------------------------------------------------------------

    async def step(self, action: Action | dict[str, Any] | object, said: str | None = None) -> Step:
        """Play one action; a bad one becomes an observation. Raises EpisodeOverError, and MachineFault after closing."""
        async with self._busy:
            if not self.state.open:
                raise EpisodeOverError("this episode has ended; open a new one")
            try:
                step, ends = await self._play(_parse(action), said)
                if reason := self._over(ends=ends):
                    await self._close(reason)
            except MachineFault as fault:
                await self._close("error", "".join(traceback.format_exception(fault)))
                raise
            return step

    async def _play(self, action: Action, said: str | None) -> tuple[Step, bool]:
        before, started, clock = self.state, _now(), time.monotonic()
        self._record(Acted(index=before.steps, action=action))  # first, so that a crash leaves the intent on disk
        outcome = await self._outcome(action)
        if self.state.pending is None:
            raise JournalError("the episode was released while a step was under way")
        seconds = time.monotonic() - clock
        step = Step(
            index=before.steps,
            action=action,
            said=said,
            execution=outcome.execution,
            grade=outcome.grade,
            reward=self._reward(before, outcome.grade),
            observation=self._observation(action, outcome, before, seconds),
            started_at=started,
            seconds=seconds,
        )
        self._record(Stepped(step=step))
        return step, outcome.ends

    async def _outcome(self, action: Action) -> Outcome:
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

    def _observation(self, action: Action, outcome: Outcome, before: State, seconds: float) -> Observation:
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
        texts = []
        for name in self.settings.feedback:
            try:
                texts.append(str(FEEDBACK[name](parts)))
            except Exception as error:  # a registered feedback provider is foreign code
                raise PluginError(f"the feedback {name!r} failed: {type(error).__name__}: {error}") from error
        return Observation(
            text="\n".join(text for text in texts if text),
            ok=outcome.ok,
            score=None if outcome.grade is None else outcome.grade.score,
            best_score=None if parts.best is None else parts.best.score,
            human_rank=None if parts.best is None else parts.best.human_rank,
            steps_left=parts.steps_left,
            seconds_left=parts.seconds_left,
        )

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

    # --- readings ---------------------------------------------------------------------------------------------------

    @property
    def id(self) -> str:
        """Name of this episode, as its folder and its box carry it."""
        return self.opened.episode

    @property
    def opened(self) -> Opened:
        """The first event: all that is pinned."""
        first = self.events[0]
        assert isinstance(first, Opened)
        return first

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
            text=_welcome(self, resumed=self._resumed),
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

    async def close(self, reason: Reason = "closed", detail: str = "") -> Closed | None:
        """Grade the best submission on the hidden rows, record the end, free everything. Idempotent."""
        async with self._busy:
            return await self._close(reason, detail)

    async def _close(self, reason: Reason, detail: str = "") -> Closed | None:
        try:
            if self.state.open:
                final = None
                try:
                    final = await self._final_grade()
                except MachineFault as fault:
                    reason, detail = "error", detail + "".join(traceback.format_exception(fault))
                self._record(Closed(reason=reason, final=final, detail=detail[-20_000:], seconds=self.state.seconds))
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
            stack.push_async_callback(self._grader.close)
            stack.push_async_callback(self.kernel.close)


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
    table = _Table(spec, settings, kernel, place, agent, trusted, start_kernel, warn)
    try:
        episode = await (_resume(table) if resume else _begin(table))
        try:
            yield episode
        except MachineFault as fault:
            with contextlib.suppress(JournalError):  # a journal that cannot be written has no end; what counts is the first fault
                await episode.close("error", "".join(traceback.format_exception(fault)))
            raise
        except BaseException:
            await episode.release()  # no end is recorded: the journal can be resumed
            raise
        else:
            await episode.close()
    finally:
        if folder is None:
            shutil.rmtree(place, ignore_errors=True)


def _known(settings: EpisodeSettings) -> None:
    """Raises ConfigError for names that no table has, before anything is started."""
    REWARDS[settings.reward]
    for name in settings.feedback:
        FEEDBACK[name]


async def _begin(table: _Table) -> Episode:
    name = f"{table.competition.slug}-{uuid.uuid4().hex[:8]}"
    async with contextlib.AsyncExitStack() as stack:
        journal = Journal.create(table.folder)
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
        episode = await _sit_down(table, journal, opened.episode, events, stack)
        if episode.state.pending is not None:
            episode._record(Interrupted(index=episode.state.pending))  # noqa: SLF001 - its own maker
        episode._record(_resuming(episode.kernel))  # noqa: SLF001 - its own maker
        stack.pop_all()
    return episode


def _pinned(table: _Table, opened: Opened) -> _Table:
    kernel = KernelSettings.model_validate(opened.settings["kernel"])
    return _Table(
        table.competition,
        EpisodeSettings.model_validate(opened.settings["episode"]),
        kernel if opened.box == "memory" else KernelSettings.model_validate({**kernel.model_dump(), "box": opened.box}),
        table.folder,
        table.agent,
        table.trusted,
        table.start_kernel,
        table.warn,
    )


async def _sit_down(table: _Table, journal: Journal, name: str, events: list[Event], stack: contextlib.AsyncExitStack) -> Episode:
    grader = Grader(table.competition)
    stack.push_async_callback(grader.close)
    kernel = await table.start_kernel(
        table.kernel, data_dir=table.competition.public_dir, episode=name, trusted=table.trusted, warn=table.warn
    )
    stack.push_async_callback(kernel.close)
    return Episode(table, journal, kernel, grader, events)


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
    execution = await episode.kernel.validate(action.code, episode.timeout(action.timeout_s))
    return Outcome(ok=execution.status == "ok", execution=execution)


@HANDLERS.register(ExecuteCode.name)
async def _execute_code(episode: Episode, action: ExecuteCode) -> Outcome:
    before = episode.kernel.submission_signature(SUBMISSION)
    execution = await episode.kernel.execute(action.code, episode.timeout(action.timeout_s), cell=episode.cell_id)
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
    first = next((line.strip() for line in str(code).splitlines() if line.strip()), "")
    outcome = "ok" if step.observation.ok else "failed"
    if step.execution is not None and not step.observation.ok:
        outcome = step.execution.status if step.execution.status != "ok" else "submission refused"
    score = "" if step.observation.score is None else f", score {step.observation.score:.{decimals}f}"
    return f"{step.index + 1}. {step.action.name}: {outcome}, {step.seconds:.1f} s{score} | {first[:100]}".rstrip(" |")


@HANDLERS.register(Reset.name)
async def _reset(episode: Episode, action: Reset) -> Outcome:
    del action
    await episode.kernel.restart()
    return Outcome("the kernel was restarted: its memory is empty; files, best score and history are as they were")


@HANDLERS.register(Invalid.name)
async def _invalid(episode: Episode, action: Invalid) -> Outcome:
    del episode
    raise ActionError(f"{action.problem}. Actions: {', '.join(ACTIONS)}")


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
            "id_column": spec.submission.id,
            "prediction_columns": spec.submission.columns,
            "feedback_rows": episode.feedback_rows,
            "max_submissions": episode.settings.max_submissions,
        }
    )


@INFO.register("all")
def _all(episode: Episode) -> str:
    return "\n\n".join(f"## {name}\n{INFO[name](episode)}" for name in INFO if name != "all")


def _welcome(episode: Episode, *, resumed: bool) -> str:
    spec, settings = episode.competition, episode.settings
    hidden = "" if episode.feedback_rows == "all" else "; your best submission is graded on the hidden rows when the episode ends"
    steps, submissions = settings.max_steps - episode.state.steps, settings.max_submissions - episode.state.submissions
    left = f"{steps} steps, {max(0.0, episode.seconds_left):.0f} s, {submissions} submissions"
    lines = [
        f"Competition: {spec.title} ({spec.slug}). Metric: {spec.metric}, {spec.better} is better.",
        f"Data: {episode.kernel.data_path}. Your predictions: {SUBMISSION} with the columns {', '.join(spec.submission.names)}.",
        f"{_WHERE} The file is graded when a cell of execute_code has changed it.",
        f"Feedback scores are computed on the {episode.feedback_rows} rows{hidden}.",
        f"Left: {left}; one cell runs at most {settings.cell_timeout_s:.0f} s.",
        f"Actions: {', '.join(ACTIONS)}. Start with request_info.",
    ]
    if resumed:
        lines.append(
            "This episode was interrupted and goes on in a fresh kernel: variables and files in the workspace are gone; "
            "your best submission, its score and the history are kept."
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
