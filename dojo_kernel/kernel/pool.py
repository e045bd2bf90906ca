"""Boxes that wait: an episode takes a fresh one at once, and the next is made behind it.

A box serves one episode. Between its making and its lease it holds an idle kernel with the usual libraries imported; who
takes it needs no engine, no socket and no folder, and who leaves it need not wait until it is removed.
"""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections import deque
from typing import TYPE_CHECKING, Any, Self

from dojo_kernel.errors import KernelStartError
from dojo_kernel.kernel.session import choose_box, start_session

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine
    from pathlib import Path

    from dojo_kernel.kernel.box import BoxProvisioner
    from dojo_kernel.kernel.session import KernelSession
    from dojo_kernel.settings import KernelSettings

STACK = (
    "numpy",
    "pandas",
    "scipy.stats",
    "sklearn.compose",
    "sklearn.ensemble",
    "sklearn.impute",
    "sklearn.linear_model",
    "sklearn.metrics",
    "sklearn.model_selection",
    "sklearn.pipeline",
    "sklearn.preprocessing",
    "matplotlib.pyplot",
)
"""What a waiting box has imported, where its settings name nothing else."""
IDLE_S = 3600.0
"""A box that has waited longer is replaced: its image may have been built anew since."""
STARTS = 2
"""Boxes that one pool starts at a time."""
FAILURES = 3
"""In a row, after which a pool starts no box behind the scenes before the next lease."""


def warmed(settings: KernelSettings) -> KernelSettings:
    """The settings of a waiting box: with the stack imported, unless they name other modules."""
    return settings if settings.preload else settings.model_copy(update={"preload": STACK})


class _Shelf:
    """Waiting boxes of one sort."""

    def __init__(self, settings: KernelSettings, data_dir: Path) -> None:
        self.settings, self.data_dir = settings, data_dir
        self.stamp = _stamp(data_dir)
        self.ready: deque[KernelSession] = deque()
        self.waiting: deque[asyncio.Future[KernelSession | None]] = deque()
        """Leases without a box, first come first served; None sends one away."""
        self.making = 0
        self.failures = 0
        self.problem: Exception | None = None
        """Why the last box was not made, until a lease has heard of it."""


class WarmPool:
    """Keeps `size` boxes ready for each sort that was asked for: kind, image, limits and data are the same.

    Use it on one event loop, as an `async with` or with `close` at the end; `lease` stands where `open_kernel` does:
    `open_episode(..., start_kernel=pool.lease)`. After `close` it may be used again.
    """

    def __init__(self, size: int = 1) -> None:
        if size < 1:
            raise ValueError(f"a pool keeps at least one box, not {size}")
        self.size = size
        self.name = f"pool-{uuid.uuid4().hex[:8]}"
        """Stands where the episode's name would in labels of its boxes: they are made before there is one."""
        self._loop: asyncio.AbstractEventLoop | None = None
        self._shelves: dict[tuple[KernelSettings, Path], _Shelf] = {}
        self._starts = asyncio.Semaphore(STARTS)
        self._changed = asyncio.Event()
        self._makers: set[asyncio.Task[None]] = set()
        self._watchers: dict[KernelSession, asyncio.Task[None]] = {}
        self._leaving: set[asyncio.Task[None]] = set()
        self._closing = False
        self._fault: BaseException | None = None

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        """Itself, as `gymnasium.make` copies what it was given."""
        return self

    async def __aenter__(self) -> Self:
        self._open()
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    @property
    def ready(self) -> int:
        """How many boxes wait, of all sorts."""
        return sum(len(shelf.ready) for shelf in list(self._shelves.values()))

    async def lease(
        self,
        settings: KernelSettings,
        *,
        data_dir: Path,
        episode: str,
        trusted: bool = False,
        warn: Callable[[str], None] | None = None,
    ) -> KernelSession:
        """A fresh box with a live kernel: one that waited, the next that is made, or where that fails one started now.

        Raises:
            BoxUnavailableError: no box of that kind here, or `auto` and none that isolates.
            KernelStartError: the box or its kernel did not come up.
        """
        shelf = await self._shelf(settings, data_dir, trusted=trusted, warn=warn)
        while shelf.ready and not self._closing:
            session = shelf.ready.popleft()
            self._watchers.pop(session).cancel()
            if session.alive:
                self._refill(shelf)
                return session
            self._discard(session)
        waited = None if self._closing or shelf.problem is not None else await self._wait(shelf)
        if waited is not None:
            return waited
        problem, shelf.problem, shelf.failures = shelf.problem, None, 0
        if warn is not None and problem is not None:
            warn(f"the pool could not keep a box ready ({problem}); starting one now")
        session = await start_session(shelf.settings, shelf.settings.box, data_dir=data_dir, episode=episode)
        session.hand_over(self._retire)
        self._refill(shelf)
        return session

    async def start(self, settings: KernelSettings, *, data_dir: Path, trusted: bool = False) -> None:
        """Begin to keep boxes of this sort, before the first lease. Raises BoxUnavailableError."""
        self._refill(await self._shelf(settings, data_dir, trusted=trusted, warn=None))

    async def fill(self) -> None:
        """Wait until every sort that was asked for is complete, or no box of it can be made."""
        while any(shelf.making or shelf.waiting for shelf in self._shelves.values()):
            self._changed.clear()
            await self._changed.wait()

    async def close(self) -> None:
        """Remove every box that waits or was left; again is no error. Leased ones are their episodes' own."""
        if self._loop is None:
            return
        self._closing = True
        try:
            for shelf in self._shelves.values():
                for waiting in shelf.waiting:
                    if not waiting.done():
                        waiting.set_result(None)
                for session in shelf.ready:
                    self._watchers.pop(session).cancel()
                    self._discard(session)
                shelf.ready.clear()
            while pending := {*self._makers, *self._leaving}:  # not cancelled: half a start is a box that nobody knows of
                await asyncio.wait(pending)
        finally:
            self._shelves.clear()
            self._closing, self._loop = False, None
        fault, self._fault = self._fault, None
        if fault is not None:
            raise fault

    # --- shelves ---

    def _open(self) -> None:
        loop = asyncio.get_running_loop()
        if self._loop is loop:
            return
        if self._loop is not None and not self._loop.is_closed():
            raise RuntimeError("this pool is in use on another event loop")
        self._loop = loop
        self._shelves.clear()
        self._watchers.clear()
        self._starts, self._changed = asyncio.Semaphore(STARTS), asyncio.Event()

    async def _shelf(
        self, settings: KernelSettings, data_dir: Path, *, trusted: bool, warn: Callable[[str], None] | None
    ) -> _Shelf:
        self._open()
        box = await choose_box(settings, trusted=trusted, warn=warn)
        key = warmed(settings).model_copy(update={"box": box}), data_dir
        shelf = self._shelves.get(key)
        if shelf is None:
            shelf = self._shelves[key] = _Shelf(*key)
        stamp = _stamp(shelf.data_dir)
        if stamp != shelf.stamp:  # made anew: boxes hold what was there before
            shelf.stamp = stamp
            while shelf.ready:
                session = shelf.ready.popleft()
                self._watchers.pop(session).cancel()
                self._discard(session)
        return shelf

    async def _wait(self, shelf: _Shelf) -> KernelSession | None:
        """For the next box; None where it failed or the pool closes."""
        waiting: asyncio.Future[KernelSession | None] = asyncio.get_running_loop().create_future()
        shelf.waiting.append(waiting)
        self._refill(shelf)
        try:
            return await waiting
        except asyncio.CancelledError:
            if waiting.done() and not waiting.cancelled() and (session := waiting.result()) is not None:
                self._offer(shelf, session)  # nobody has used it
            raise
        finally:
            with contextlib.suppress(ValueError):
                shelf.waiting.remove(waiting)

    def _offer(self, shelf: _Shelf, session: KernelSession) -> None:
        """To who waits longest, or onto the shelf."""
        while shelf.waiting:
            waiting = shelf.waiting.popleft()
            if not waiting.done():
                waiting.set_result(session)
                return
        if self._closing:
            self._discard(session)
            return
        shelf.ready.append(session)
        self._watchers[session] = asyncio.create_task(self._watch(shelf, session))

    async def _watch(self, shelf: _Shelf, session: KernelSession) -> None:
        """While it waits: a kernel that dies, and one that waits too long, is replaced."""
        died = True
        try:
            await asyncio.wait_for(session.ended(), IDLE_S)
        except TimeoutError:
            died = False
        if session not in shelf.ready:  # leased in this very moment, and `wait_for` kept the cancellation to itself
            return
        shelf.ready.remove(session)
        del self._watchers[session]
        self._discard(session)
        if died:
            self._failed(shelf, KernelStartError("a kernel died while it waited for its episode"))
        self._refill(shelf)

    # --- making and removing ---

    def _refill(self, shelf: _Shelf) -> None:
        """Start what is missing; a lease that finds the shelf empty waits for what is under way."""
        missing = max(len(shelf.waiting), self.size - len(shelf.ready)) - shelf.making
        if self._loop is not None and not self._closing and (shelf.failures < FAILURES or shelf.waiting):
            for _ in range(missing):
                shelf.making += 1
                self._task(self._make(shelf), self._makers)
        self._changed.set()

    async def _make(self, shelf: _Shelf) -> None:
        try:
            async with self._starts:
                while len(self._leaving) > self.size:  # the machine is behind with removing
                    await asyncio.wait(set(self._leaving), return_when=asyncio.FIRST_COMPLETED)
                stamp = _stamp(shelf.data_dir)
                session = await start_session(
                    shelf.settings, shelf.settings.box, data_dir=shelf.data_dir, episode=self.name, waits_s=IDLE_S
                )
            session.hand_over(self._retire)
            if stamp == shelf.stamp == _stamp(shelf.data_dir):
                shelf.failures, shelf.problem = 0, None
                self._offer(shelf, session)
            else:  # the data changed meanwhile
                self._discard(session)
        except asyncio.CancelledError:  # the loop ends, and nobody closed the pool
            shelf.failures = FAILURES
            raise
        except Exception as error:  # noqa: BLE001  whatever it is, those who wait hear of it: they start a box themselves
            self._failed(shelf, error)
        finally:
            shelf.making -= 1
            self._refill(shelf)

    def _failed(self, shelf: _Shelf, error: Exception) -> None:
        shelf.failures += 1
        shelf.problem = error
        while shelf.waiting:
            waiting = shelf.waiting.popleft()
            if not waiting.done():
                waiting.set_result(None)
                return

    def _discard(self, session: KernelSession) -> None:
        self._task(session.close(), self._leaving)

    async def _retire(self, box: BoxProvisioner) -> None:
        """Of a box that its episode has left: removed while the next one begins."""
        if self._loop is asyncio.get_running_loop():
            self._task(box.remove_box(), self._leaving)
        else:
            await box.remove_box()

    def _task(self, work: Coroutine[Any, Any, None], among: set[asyncio.Task[None]]) -> None:
        task = asyncio.get_running_loop().create_task(work)
        among.add(task)

        def over(task: asyncio.Task[None]) -> None:
            among.discard(task)
            if not task.cancelled() and task.exception() is not None:
                self._fault = self._fault or task.exception()

        task.add_done_callback(over)


def _stamp(data_dir: Path) -> tuple[int, ...]:
    """Changes when a competition is prepared anew: then folder and manifest are other files. Raises OSError."""
    folder = data_dir.stat()
    try:
        manifest = (data_dir.parent / "manifest.json").stat()
    except OSError:  # data of no competition
        return (folder.st_dev, folder.st_ino, folder.st_mtime_ns)
    return (folder.st_dev, folder.st_ino, folder.st_mtime_ns, manifest.st_ino, manifest.st_mtime_ns)
