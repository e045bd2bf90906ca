"""The sync faces of the game: `DojoEnv` is one episode for Gymnasium, `DojoVectorEnv` is several at a time.

The game is asyncio; each environment owns one background thread with a loop in it.
"""

from __future__ import annotations

import asyncio
import concurrent.futures.thread  # noqa: F401  see _shut_all
import contextlib
import os
import queue
import sys
import threading
import traceback
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space, concatenate, create_empty_array
from pydantic import ValidationError

from dojo_kernel.actions import ACTIONS, Action, offered, tool_schemas
from dojo_kernel.episode import StartKernel, in_a_box, open_episode
from dojo_kernel.errors import ActionError, ConfigError
from dojo_kernel.kernel.pool import WarmPool, warmed
from dojo_kernel.settings import EpisodeSettings, KernelSettings, in_words

if TYPE_CHECKING:
    from collections.abc import Coroutine, Mapping, Sequence

    from dojo_kernel.episode import Episode
    from dojo_kernel.records import Observation, Step

T = TypeVar("T")
S = TypeVar("S", EpisodeSettings, KernelSettings)

_TEXT_LIMIT = 10_000_000
_SCORE_LIMIT = 1e300
"""Bounds are finite, as Gymnasium wants them, and their difference is too, so that the space can be sampled."""
_HARMLESS = ("1 + 1", "print('hello')", "None", "sum(range(10))")


class UnicodeText(spaces.Space[str]):
    """Any string up to `max_length` characters; `gymnasium.spaces.Text` knows letters and digits only."""

    def __init__(self, max_length: int = _TEXT_LIMIT, *, seed: int | np.random.Generator | None = None) -> None:
        super().__init__(None, None, seed)
        self.max_length = max_length

    @property
    def is_np_flattenable(self) -> bool:
        """A string has no fixed shape."""
        return False

    def sample(self, mask: Any = None, probability: Any = None) -> str:
        """Harmless code, since checkers and wrappers execute samples."""
        del mask, probability
        return _HARMLESS[int(self.np_random.integers(len(_HARMLESS)))]

    def contains(self, x: Any) -> bool:
        """Whether `x` is a string that is not too long."""
        return isinstance(x, str) and len(x) <= self.max_length

    def __repr__(self) -> str:
        return f"UnicodeText({self.max_length})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, UnicodeText) and other.max_length == self.max_length

    __hash__ = None  # type: ignore[assignment]


class ActionSpace(spaces.Space[dict[str, Any]]):
    """Every action in its wire form, `{"name": "execute_code", "code": "..."}`; `.schemas` has the JSON schemas."""

    def __init__(
        self,
        seed: int | np.random.Generator | None = None,
        *,
        settings: EpisodeSettings = EpisodeSettings(),  # noqa: B008 - frozen
    ) -> None:
        super().__init__(None, None, seed)
        self._settings = settings

    @property
    def is_np_flattenable(self) -> bool:
        """A tool call has no fixed shape."""
        return False

    @property
    def schemas(self) -> list[dict[str, Any]]:
        """What a function-calling model needs to know."""
        return tool_schemas(self._settings)

    def sample(self, mask: Any = None, probability: Any = None) -> dict[str, Any]:
        """A harmless call of one of the built-in actions."""
        del mask, probability
        code = _HARMLESS[int(self.np_random.integers(len(_HARMLESS)))]
        calls: list[dict[str, Any]] = [
            {"name": "request_info", "info_type": "name"},
            {"name": "validate_code", "code": code},
            {"name": "execute_code", "code": code},
            {"name": "get_history", "last": 5},
        ]
        return calls[int(self.np_random.integers(len(calls)))]

    def contains(self, x: Any) -> bool:
        """Whether `x` fits the schema of the action that it names."""
        names = offered(self._settings)
        if isinstance(x, Action):
            return x.name in names
        if not isinstance(x, dict) or x.get("name") not in names:
            return False
        try:
            ACTIONS[x["name"]].model_validate({key: value for key, value in x.items() if key != "name"})
        except (ValidationError, ActionError):
            return False
        return True

    def __repr__(self) -> str:
        return f"ActionSpace({', '.join(offered(self._settings))})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ActionSpace) and offered(other._settings) == offered(self._settings)

    __hash__ = None  # type: ignore[assignment]


def observation_space() -> spaces.Dict:
    """`score`, `best_score` and `human_rank` are 0 where `scored` and `has_best` say that there is none."""
    number = spaces.Box(-_SCORE_LIMIT, _SCORE_LIMIT, (), np.float64)
    return spaces.Dict(
        {
            "text": UnicodeText(),
            "ok": spaces.Discrete(2),
            "scored": spaces.Discrete(2),
            "score": number,
            "has_best": spaces.Discrete(2),
            "best_score": spaces.Box(-_SCORE_LIMIT, _SCORE_LIMIT, (), np.float64),
            "human_rank": spaces.Box(0.0, 1.0, (), np.float64),
            "steps_left": spaces.Box(0, np.iinfo(np.int64).max, (), np.int64),
        }
    )


def _as_arrays(observation: Observation) -> dict[str, Any]:
    return {
        "text": observation.text[:_TEXT_LIMIT],
        "ok": np.int64(observation.ok),
        "scored": np.int64(observation.score is not None),
        "score": _number(observation.score),
        "has_best": np.int64(observation.best_score is not None),
        "best_score": _number(observation.best_score),
        "human_rank": np.array(observation.human_rank or 0.0),
        "steps_left": np.array(max(0, observation.steps_left), dtype=np.int64),
    }


def _number(score: float | None) -> np.ndarray[Any, Any]:
    return np.array(min(max(score or 0.0, -_SCORE_LIMIT), _SCORE_LIMIT))


class _Loop:
    """One asyncio loop in one daemon thread, for environments that share a pool or a box; it ends with the last of them."""

    def __init__(self, pool: WarmPool | None) -> None:
        self._pool = pool
        self._users = 0
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="dojo-env", daemon=True)
        self._thread.start()

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`; an interrupt of the caller cancels it."""
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # an interrupt of the caller, or the work's own: nothing goes on unseen
            future.cancel()
            raise

    def entered(self) -> _Loop:
        """By one more environment."""
        with _loops_lock:
            self._users += 1
        return self

    def leave(self) -> None:
        """Once an environment; the last one empties the pool and ends the thread."""
        with _loops_lock:
            self._users -= 1
            if self._users:
                return
            if self._pool is not None:
                _loops.pop(self._pool, None)
        try:
            if self._pool is not None:
                self.run(self._pool.close())
        finally:
            self.run(self._loop.shutdown_asyncgens())  # in its own thread: the caller's may have a loop, as in a notebook
            self._loop.call_soon_threadsafe(self._loop.stop)
            self._thread.join(timeout=10)
            if not self._thread.is_alive():
                self._loop.close()


_loops: weakref.WeakKeyDictionary[WarmPool, _Loop] = weakref.WeakKeyDictionary()
_loops_lock = threading.Lock()


def _loop_of(pool: WarmPool | None) -> _Loop:
    with _loops_lock:
        loop = None if pool is None else _loops.get(pool)
        if loop is None:
            loop = _Loop(pool)
            if pool is not None:
                _loops[pool] = loop
    return loop.entered()


class _Seat:
    """Where one episode after the other is played."""

    def __init__(self, competition: str, settings: EpisodeSettings, kernel: KernelSettings, start_kernel: StartKernel) -> None:
        self._competition = competition
        self._settings = settings
        self._kernel = kernel
        self._start_kernel = start_kernel
        self._stack = contextlib.AsyncExitStack()
        self.folder: Path | None = None
        self.episode: Episode | None = None

    async def reset(self, seed: int | None) -> Observation:
        await self.leave()
        settings = self._settings
        if seed is not None:
            settings = EpisodeSettings.model_validate({**settings.model_dump(), "seed": seed})
        self.episode = await self._stack.enter_async_context(
            open_episode(
                self._competition,
                settings=settings,
                kernel=self._kernel,
                folder=_next_folder(self.folder),
                agent="gymnasium",
                start_kernel=self._start_kernel,
            )
        )
        return self.episode.first_observation

    async def branch(self, count: int, seeds: Sequence[int | None] | None) -> list[_Seat]:
        """Seats at which branches of the episode under way are played."""
        seats = []
        for episode in await self.present().branch(count, seeds=seeds):
            seat = _Seat(self._competition, self._settings, self._kernel, self._start_kernel)
            seat.folder, seat.episode = self.folder, episode
            seat._stack.push_async_callback(episode.close)
            seats.append(seat)
        return seats

    async def step(self, action: object) -> Step:
        return await self.present().step(action)

    def present(self) -> Episode:
        """Raises gymnasium's ResetNeeded before the first reset."""
        if self.episode is None:
            raise gym.error.ResetNeeded("call reset() before step()")
        return self.episode

    def info(self, step: Step | None) -> dict[str, Any]:
        """New objects each call; nothing in it depends on the clock."""
        episode = self.present()
        info: dict[str, Any] = {"competition": episode.competition.slug, "synthetic": episode.synthetic}
        info |= {"done_reason": "", "grade": {}, "final": {}}
        if step is not None and step.grade is not None:
            info["grade"] = step.grade.model_dump(mode="json")
        if episode.closed is not None:
            info["done_reason"] = episode.closed.reason
            if episode.closed.final is not None:
                info["final"] = episode.closed.final.model_dump(mode="json")
        return info

    def ending(self) -> tuple[bool, bool]:
        """Terminated and truncated."""
        closed = self.present().closed
        reason = "" if closed is None else closed.reason
        return reason == "agent", reason in {"steps", "time", "error", "closed"}

    async def leave(self) -> None:
        """Close the episode, if there is one. Idempotent."""
        stack, self._stack = self._stack, contextlib.AsyncExitStack()
        await stack.aclose()


def _next_folder(base: Path | None) -> Path | None:
    if base is None:
        return None
    number = sum(1 for _ in base.glob("episode-*")) if base.is_dir() else 0
    return base / f"episode-{number:04d}"


def _settings(kind: type[S], given: S | Mapping[str, Any] | None) -> S:
    if isinstance(given, kind):
        return given
    try:
        return kind.model_validate(dict(given or {}))
    except ValidationError as error:
        raise ConfigError(f"{kind.__name__}: {in_words(error, kind)}") from error


def _pooled(
    pool: int | WarmPool, kernel: KernelSettings, start_kernel: StartKernel
) -> tuple[WarmPool | None, KernelSettings, StartKernel]:
    """The pool, if there is to be one, and who starts which kernels then. Raises ValueError."""
    if pool == 0:
        return None, kernel, start_kernel
    if start_kernel is not in_a_box:
        raise ValueError("a pool starts the kernels itself: give pool or start_kernel, not both")
    shared = pool if isinstance(pool, WarmPool) else WarmPool(pool)
    return shared, warmed(kernel), shared.lease


class DojoEnv(gym.Env[dict[str, Any], dict[str, Any]]):
    """One competition, one boxed IPython kernel, one agent.

    ## Action space
    The wire form of an action: `{"name": "execute_code", "code": "..."}`; `env.action_space.schemas` lists them all with
    their arguments. A bad action is an observation that costs a step.

    ## Observation space
    A Dict: `text` (what the agent reads), `ok`, `scored` and `score` (of this step's submission), `has_best` and
    `best_score`, `human_rank` (of the best), `steps_left`.

    ## Rewards
    By `settings.reward`: human_rank (default), improvement, score, medal, or `package.module:name`. A failure pays 0.

    ## Episode end
    `terminated`: the agent ended it. `truncated`: steps or time are used up; `info["final"]` is the grade of the best
    submission on the hidden rows.

    ## Arguments
    `competition`: slug or folder. `settings`, `kernel`: `EpisodeSettings` and `KernelSettings`, or dicts of their fields.
    `folder`: keeps a journal and submissions an episode, each step synced to the disk before it returns; without it they go
    when the next episode starts, and nothing waits for the disk.
    `pool`: how many boxes wait for the next resets, with the usual libraries imported; or a `WarmPool` that several
    environments share, which is emptied when the last of them is closed.
    """

    metadata: dict[str, Any] = {"render_modes": ["ansi", "human"], "render_fps": 1}

    def __init__(  # noqa: PLR0913 - keywords of gym.make
        self,
        competition: str = "digits",
        *,
        settings: EpisodeSettings | Mapping[str, Any] | None = None,
        kernel: KernelSettings | Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        render_mode: str | None = None,
        pool: int | WarmPool = 0,
        start_kernel: StartKernel = in_a_box,
    ) -> None:
        if render_mode not in (None, *self.metadata["render_modes"]):
            raise ValueError(f"render_mode {render_mode!r} is none of {', '.join(self.metadata['render_modes'])}")
        rules, box = _settings(EpisodeSettings, settings), _settings(KernelSettings, kernel)
        shared, box, start_kernel = _pooled(pool, box, start_kernel)
        seat = _Seat(competition, rules, box, start_kernel)
        seat.folder = None if folder is None else Path(folder)
        self._sit_down(seat, _loop_of(shared), ActionSpace(settings=rules), render_mode)

    def _sit_down(self, seat: _Seat, loop: _Loop, actions: ActionSpace, render_mode: str | None) -> None:
        self.render_mode = render_mode
        self.action_space = actions
        self.observation_space = observation_space()
        self._seat = seat
        self._shown = ""
        self._loop = loop
        self._finalizer = _when_collected(self, self._loop, [self._seat])
        _open.add(self)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[dict[str, Any], dict[str, Any]]:
        """Close the episode under way, if any, and open a new one in a fresh box."""
        del options
        super().reset(seed=seed)
        observation = self._run(self._seat.reset(seed))
        self._show(observation.text)
        return _as_arrays(observation), self._seat.info(None)

    def step(self, action: Any) -> tuple[dict[str, Any], float, bool, bool, dict[str, Any]]:
        """Observation, reward, terminated, truncated, info."""
        step = self._run(self._seat.step(action))
        terminated, truncated = self._seat.ending()
        self._show(step.observation.text)
        return _as_arrays(step.observation), step.reward, terminated, truncated, self._seat.info(step)

    def branch(self, count: int, *, seeds: Sequence[int | None] | None = None) -> list[DojoEnv]:
        """Environments that begin where this one is; each is stepped and closed by itself, and needs no reset.

        Arguments and faults as for `Episode.branch`.
        """
        branches = []
        for seat in self._run(self._seat.branch(count, seeds)):
            twin = type(self).__new__(type(self))
            actions = ActionSpace(settings=seat.present().settings)
            twin._sit_down(seat, self._loop.entered(), actions, self.render_mode)  # noqa: SLF001 - the same class
            branches.append(twin)
        return branches

    def render(self) -> str | None:
        """The last observation's text; with render_mode "human" it has been printed already."""
        return self._shown if self.render_mode == "ansi" else None

    def save_notebook(self, path: str | Path) -> Path:
        """Write the latest episode as a notebook."""
        return self._seat.present().save_notebook(Path(path))

    @property
    def episode(self) -> Episode:
        """The episode under way, or the last one."""
        return self._seat.present()

    def close(self) -> None:
        """Close the episode and free its box. Idempotent."""
        _close(self._finalizer)

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._finalizer.alive:
            work.close()
            raise gym.error.ClosedEnvironmentError("this environment is closed")
        return self._loop.run(work)

    def _show(self, text: str) -> None:
        self._shown = text
        if self.render_mode == "human":
            sys.stdout.write(text + "\n")


def _shut(loop: _Loop, seats: list[_Seat]) -> None:
    try:
        loop.run(_leave_all(seats))
    finally:
        loop.leave()


def _close(finalizer: weakref.finalize[Any, Any]) -> None:
    found = finalizer.detach()
    if found is not None:
        _, _, (loop, seats), _ = found
        _shut(loop, seats)


_collected: queue.SimpleQueue[tuple[_Loop, list[_Seat]] | None] = queue.SimpleQueue()
"""What the collector of garbage found open. It may come by in any thread and under any lock: it only puts it here."""
_shutters: dict[int, threading.Thread] = {}  # by pid: a forked child has none of its parent's threads


def _when_collected(env: DojoEnv | DojoVectorEnv, loop: _Loop, seats: list[_Seat]) -> weakref.finalize[Any, Any]:
    with _loops_lock:
        if os.getpid() not in _shutters:
            shutter = _shutters[os.getpid()] = threading.Thread(target=_shut_collected, name="dojo-shut", daemon=True)
            shutter.start()
    return weakref.finalize(env, lambda *found: _collected.put(found), loop, seats)


def _shut_collected() -> None:
    while (found := _collected.get()) is not None:
        try:
            _shut(*found)
        except Exception:  # noqa: BLE001  nobody is left to tell, and the next one waits
            traceback.print_exc()


_open: weakref.WeakSet[DojoEnv | DojoVectorEnv] = weakref.WeakSet()


def _shut_all() -> None:
    """When the program ends: close what it has left open."""
    for env in list(_open):
        env.close()
    shutter = _shutters.pop(os.getpid(), None)
    if shutter is not None:
        _collected.put(None)
        shutter.join()


# `atexit` is too late: by then no work of ours gets a thread. The last to register is the first called, so after its import
threading._register_atexit(_shut_all)  # type: ignore[attr-defined]  # noqa: SLF001  as concurrent.futures does it


async def _leave_all(seats: list[_Seat]) -> None:
    results = await asyncio.gather(*(seat.leave() for seat in seats), return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result


class DojoVectorEnv(VectorEnv[dict[str, Any], "Sequence[dict[str, Any]]", np.ndarray[Any, Any]]):
    """Several episodes of one competition, each in its own box, stepped at the same time.

    A reset costs a box, so none happens by itself: `reset(options={"reset_mask": mask})` opens the ones that ended.
    Arguments as for `DojoEnv`.
    """

    metadata: dict[str, Any] = {
        "render_modes": ["ansi"],
        "render_fps": 1,
        "autoreset_mode": AutoresetMode.DISABLED,
    }

    def __init__(  # noqa: PLR0913 - keywords of gym.make_vec
        self,
        num_envs: int = 1,
        competition: str = "digits",
        *,
        settings: EpisodeSettings | Mapping[str, Any] | None = None,
        kernel: KernelSettings | Mapping[str, Any] | None = None,
        folder: str | Path | None = None,
        render_mode: str | None = None,
        pool: int | WarmPool = 0,
        start_kernel: StartKernel = in_a_box,
    ) -> None:
        self.num_envs = num_envs
        self.render_mode = render_mode
        rules, box = _settings(EpisodeSettings, settings), _settings(KernelSettings, kernel)
        shared, box, start_kernel = _pooled(pool, box, start_kernel)
        self.single_action_space = ActionSpace(settings=rules)
        self.action_space = batch_space(self.single_action_space, num_envs)
        self.single_observation_space = observation_space()
        self.observation_space = batch_space(self.single_observation_space, num_envs)
        self._seats = [_Seat(competition, rules, box, start_kernel) for _ in range(num_envs)]
        for number, seat in enumerate(self._seats):
            seat.folder = None if folder is None else Path(folder) / f"seat-{number}"
        self._latest: list[dict[str, Any]] = []
        self._loop = _loop_of(shared)
        self._finalizer = _when_collected(self, self._loop, self._seats)
        _open.add(self)

    def reset(
        self, *, seed: int | list[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[dict[str, Any], dict[str, Any]]:
        """Open new episodes at all seats, or at those of `options["reset_mask"]`."""
        super().reset(seed=seed if isinstance(seed, int) else None)
        seeds = seed if isinstance(seed, list) else [None if seed is None else seed + i for i in range(self.num_envs)]
        mask = np.asarray((options or {}).get("reset_mask", np.ones(self.num_envs)), dtype=bool)
        if not self._latest and not mask.all():
            raise gym.error.ResetNeeded("the first reset opens every seat")
        chosen = [i for i in range(self.num_envs) if mask[i]]
        observations = self._run(_gather([self._seats[i].reset(seeds[i]) for i in chosen]))
        self._latest = self._latest or [{} for _ in self._seats]
        infos: dict[str, Any] = {}
        for i, observation in zip(chosen, observations, strict=True):
            self._latest[i] = _as_arrays(observation)
            infos = self._add_info(infos, self._seats[i].info(None), i)
        return self._batch(), infos

    def step(
        self, actions: Sequence[dict[str, Any]]
    ) -> tuple[dict[str, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], np.ndarray[Any, Any], dict[str, Any]]:
        """One action a seat, all at the same time."""
        if len(actions) != self.num_envs:
            raise ValueError(f"{len(actions)} actions for {self.num_envs} episodes")
        steps = self._run(_gather([seat.step(action) for seat, action in zip(self._seats, actions, strict=True)]))
        self._latest = [_as_arrays(step.observation) for step in steps]
        infos: dict[str, Any] = {}
        for i, step in enumerate(steps):
            infos = self._add_info(infos, self._seats[i].info(step), i)
        endings = np.array([seat.ending() for seat in self._seats], dtype=bool)
        return self._batch(), np.array([step.reward for step in steps]), endings[:, 0], endings[:, 1], infos

    def render(self) -> tuple[str, ...] | None:
        """The last observation's text of every seat."""
        return tuple(one["text"] for one in self._latest) if self.render_mode == "ansi" else None

    @property
    def episodes(self) -> list[Episode]:
        """The episode at each seat."""
        return [seat.present() for seat in self._seats]

    def close_extras(self, **kwargs: Any) -> None:
        """Close all episodes."""
        del kwargs
        _close(self._finalizer)

    def _batch(self) -> dict[str, Any]:
        space = self.single_observation_space
        out: Any = create_empty_array(space, self.num_envs, fn=np.zeros)
        batched: Any = concatenate(space, self._latest, out)
        return {**batched}

    def _run(self, work: Coroutine[Any, Any, T]) -> T:
        if not self._finalizer.alive:
            work.close()
            raise gym.error.ClosedEnvironmentError("this environment is closed")
        return self._loop.run(work)


async def _gather(works: list[Coroutine[Any, Any, T]]) -> list[T]:
    """All results; every work ends before the first fault is raised."""
    results = await asyncio.gather(*works, return_exceptions=True)
    for result in results:
        if isinstance(result, BaseException):
            raise result
    return [result for result in results if not isinstance(result, BaseException)]
