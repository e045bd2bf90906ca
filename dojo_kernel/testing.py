"""Public doubles: a kernel without a box, for tests of agents, rewards, feedback and faces.

`MemoryKernel` runs cells with `exec` in this process. It isolates nothing; give it only code that you wrote yourself.
"""

from __future__ import annotations

import ast
import contextlib
import copy
import io
import pickle
import random
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from types import FunctionType, ModuleType
from typing import TYPE_CHECKING, Any

from dojo_kernel.errors import BoxLostError, ForkRefusedError, SubmissionError
from dojo_kernel.kernel.session import Snapshot
from dojo_kernel.records import Enforcement, Error, Execution, Late, Output, Result, Stream

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from dojo_kernel.kernel.session import ScratchState
    from dojo_kernel.settings import KernelSettings


class MemoryKernel:
    """Satisfies the `Kernel` protocol. The names `DATA` and `WORKSPACE` (paths) are defined in every cell.

    A fork is a deep copy of the names, with a copy of the workspace; one of a name that cannot be copied (a generator, a lock,
    an open file) is refused. A seed reaches the `random.Random` that names hold: the global generators are this process's.
    """

    box = "memory"
    enforcement = (Enforcement(limit="isolation", by="nothing", detail="cells run in the host process"),)
    image = None

    def __init__(self, data_dir: Path, *, max_checkpoints: int = 8) -> None:
        self.data_path = str(data_dir)
        self._workspace = Path(tempfile.mkdtemp(prefix="dojo-memory-"))
        self.workspace_path = str(self._workspace)
        self.life = 0
        self.late: list[Late] = []
        """Output to hand over with the next cell, as a thread of an earlier cell would."""
        self.lost = False
        """Set it to make the next cell raise BoxLostError."""
        self.memory_is_short = False
        """Set it to make the next `evict_checkpoints` find a reason."""
        self._max_checkpoints = max_checkpoints
        self._checkpoints: dict[str, _Checkpoint] = {}
        self._count = 0
        self._names = self._fresh(self._workspace)

    def _fresh(self, workspace: Path) -> dict[str, Any]:
        return {"__name__": "__main__", "DATA": Path(self.data_path), "WORKSPACE": workspace}

    async def execute(self, code: str, timeout_s: float, *, cell: str = "") -> Execution:
        """Run a cell; the deadline is not enforced."""
        del timeout_s, cell
        if self.lost:
            raise BoxLostError("the box is gone")
        self._count += 1
        late, self.late = tuple(self.late), []
        outputs, status, seconds = _run(code, self._names, self._count)
        return Execution(
            code=code,
            outputs=outputs,
            status="ok" if status else "error",
            execution_count=self._count,
            seconds=seconds,
            life=self.life,
            late=late,
        )

    async def validate(self, code: str, timeout_s: float, *, state: ScratchState = "live") -> Execution:
        """Run a cell with a copy of the names, or fresh ones, and a copy of the workspace; syntax first."""
        del timeout_s
        if self.lost:
            raise BoxLostError("the box is gone")
        try:
            ast.parse(code)
        except SyntaxError as error:
            wrong = Error(ename=type(error).__name__, evalue=str(error))
            return Execution(code=code, outputs=(wrong,), status="error", seconds=0.0, where="scratch", life=self.life)
        notes: list[str] = []
        with tempfile.TemporaryDirectory(prefix="dojo-scratch-") as scratch:
            workspace = Path(scratch) / "workspace"
            shutil.copytree(self._workspace, workspace, symlinks=True)
            names = self._fresh(workspace)
            try:
                names |= _copied(self._names, workspace) if state == "live" else {}
                forked = state == "live"
            except ForkRefusedError as refused:
                notes.append(f"Tried in an empty kernel: {refused}.")
                forked = False
            before = _sizes(workspace)
            outputs, status, seconds = _run(code, names, self._count + 1 if forked else 1)
            after = _sizes(workspace)
        if written := [f"{name} ({size[0]} bytes)" for name, size in after.items() if before.get(name) != size]:
            notes.append(f"Files it would have written: {', '.join(written)}.")
        return Execution(
            code=code,
            outputs=outputs,
            status="ok" if status else "error",
            execution_count=self._count + 1 if forked else 1,
            seconds=seconds,
            where="scratch",
            forked=forked,
            life=self.life,
            notes=tuple(notes),
        )

    async def restart(self) -> None:
        """Forget every name."""
        self.life += 1
        self._names = self._fresh(self._workspace)

    async def checkpoint(self, label: str) -> Snapshot:
        """Keep a copy of names and files. Raises ForkRefusedError."""
        if self.lost:
            raise BoxLostError("the box is gone")
        started = time.monotonic()
        kept = _Checkpoint(_copied(self._names, self._workspace), Path(tempfile.mkdtemp(prefix="dojo-checkpoint-")))
        shutil.copytree(self._workspace, kept.files, symlinks=True, dirs_exist_ok=True)
        made = Snapshot(f"c{len(self._checkpoints) + 1}", label, (), time.monotonic() - started)
        self._checkpoints[made.id] = kept
        waiting = [name for name, one in self._checkpoints.items() if one.missing is None]
        too_many = waiting[: -self._max_checkpoints]
        for name in too_many:
            self._checkpoints[name].evict()
        return made._replace(evicted=tuple(too_many))

    async def restore(self, snapshot: str, *, seed: int | None = None) -> tuple[str, ...]:
        """Go back to a checkpoint. Raises KeyError."""
        kept = self._checkpoints[snapshot]
        self._names = self._fresh(self._workspace) | _copied(kept.names, self._workspace)
        shutil.rmtree(self._workspace)
        shutil.copytree(kept.files, self._workspace, symlinks=True)
        self.life += 1
        self._reseed(seed)
        return kept.missing or ()

    async def evict_checkpoints(self) -> tuple[str, ...]:
        """Turn every checkpoint into what a file of its variables holds, if `memory_is_short`."""
        evicted = tuple(name for name, one in self._checkpoints.items() if self.memory_is_short and one.missing is None)
        for name in evicted:
            self._checkpoints[name].evict()
        self.memory_is_short = False
        return evicted

    async def branch(self, count: int, *, seeds: Sequence[int | None] | None = None) -> list[MemoryKernel]:
        """Siblings with copies of names and files. Raises ForkRefusedError; none was made then."""
        if self.lost:
            raise BoxLostError("the box is gone")
        _copied(self._names, self._workspace)
        made = []
        for seed in seeds if seeds is not None else [None] * count:
            sibling = MemoryKernel(Path(self.data_path), max_checkpoints=self._max_checkpoints)
            shutil.copytree(self._workspace, sibling._workspace, symlinks=True, dirs_exist_ok=True)
            sibling._names |= _copied(self._names, sibling._workspace)
            sibling._count = self._count
            sibling._reseed(seed)
            made.append(sibling)
        return made

    def _reseed(self, seed: int | None) -> None:
        for name, value in self._names.items():
            if seed is not None and isinstance(value, random.Random):
                value.seed(f"{seed} {name}")

    async def read_submission(self, name: str, max_bytes: int) -> bytes | None:
        """The bytes of a regular file, None when there is none."""
        path = self._workspace / name
        if path.is_symlink():
            raise SubmissionError("link", f"{name} is a link; write a regular file")
        if not path.exists():
            return None
        if path.stat().st_size > max_bytes:
            raise SubmissionError("too_big", f"{name} is larger than {max_bytes} bytes")
        return path.read_bytes()

    def submission_signature(self, name: str) -> tuple[int, ...] | None:
        """Changes whenever the file does."""
        try:
            found = (self._workspace / name).lstat()
        except FileNotFoundError:
            return None
        return (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)

    async def close(self) -> None:
        """Remove the workspace and the checkpoints."""
        for folder in (self._workspace, *(one.files for one in self._checkpoints.values())):
            shutil.rmtree(folder, ignore_errors=True)
        self._checkpoints.clear()


class _Checkpoint:
    """Names and files of a moment; `missing` is None until memory was short."""

    def __init__(self, names: dict[str, Any], files: Path) -> None:
        self.names, self.files = names, files
        self.missing: tuple[str, ...] | None = None

    def evict(self) -> None:
        """Keep what can be pickled."""
        kept, missing = {}, []
        for name, value in self.names.items():
            try:
                kept[name] = value if isinstance(value, ModuleType) else pickle.loads(pickle.dumps(value))  # noqa: S301 - ours
            except Exception as error:  # noqa: BLE001 - what a name holds is foreign code
                missing.append(f"{name}: {type(value).__name__} cannot be kept ({type(error).__name__})")
        self.names, self.missing = kept, tuple(missing)


def _copied(names: dict[str, Any], workspace: Path) -> dict[str, Any]:
    """A copy of what cells have defined, objects shared between names still shared. Raises ForkRefusedError."""
    copied: dict[str, Any] = {"__name__": "__main__", "DATA": names.get("DATA"), "WORKSPACE": workspace}
    memo: dict[int, Any] = {}
    for name, value in names.items():
        if name in copied or name == "__builtins__":
            continue
        if isinstance(value, ModuleType):
            copied[name] = value
        elif isinstance(value, FunctionType) and value.__module__ == "__main__":
            copied[name] = FunctionType(value.__code__, copied, value.__name__, value.__defaults__, value.__closure__)
            copied[name].__kwdefaults__ = value.__kwdefaults__
        else:
            try:
                copied[name] = copy.deepcopy(value, memo)
            except Exception as error:
                raise ForkRefusedError(f"{name}, a {type(value).__name__}, cannot be copied") from error
    return copied


def _sizes(folder: Path) -> dict[str, tuple[int, int]]:
    found = ((path, path.lstat()) for path in sorted(folder.rglob("*")) if path.is_symlink() or path.is_file())
    return {str(path.relative_to(folder)): (about.st_size, about.st_mtime_ns) for path, about in found}


async def open_memory_kernel(
    settings: KernelSettings,
    *,
    data_dir: Path,
    episode: str,
    trusted: bool = False,
    warn: Callable[[str], None] | None = None,
) -> MemoryKernel:
    """Stands where `dojo_kernel.kernel.open_kernel` does: `open_episode(..., start_kernel=open_memory_kernel)`."""
    del episode, trusted, warn
    return MemoryKernel(data_dir, max_checkpoints=settings.max_checkpoints)


def _run(code: str, names: dict[str, Any], count: int) -> tuple[tuple[Output, ...], bool, float]:
    printed, started = io.StringIO(), time.monotonic()
    outputs: list[Output] = []
    try:
        with contextlib.redirect_stdout(printed):
            value = _evaluate(code, names)
        if value is not None:
            outputs.append(Result(execution_count=count, data={"text/plain": repr(value)}))
        ok = True
    except Exception as error:  # noqa: BLE001 - the cell is foreign code
        outputs.append(
            Error(ename=type(error).__name__, evalue=str(error), traceback=tuple(traceback.format_exc(limit=0).splitlines()))
        )
        ok = False
    if printed.getvalue():
        outputs.insert(0, Stream(name="stdout", text=printed.getvalue()))
    return tuple(outputs), ok, time.monotonic() - started


def _evaluate(code: str, names: dict[str, Any]) -> Any:
    tree = ast.parse(code)
    last = tree.body.pop() if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    exec(compile(tree, "<cell>", "exec"), names)  # noqa: S102 - it is what this double is for
    if isinstance(last, ast.Expr):
        return eval(compile(ast.Expression(last.value), "<cell>", "eval"), names)  # noqa: S307 - as above
    return None
