"""Public doubles: a kernel without a box, for tests of agents, rewards, feedback and faces.

`MemoryKernel` runs cells with `exec` in this process. It isolates nothing; give it only code that you wrote yourself.
"""

from __future__ import annotations

import ast
import contextlib
import io
import shutil
import tempfile
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dojo_kernel.errors import BoxLostError, SubmissionError
from dojo_kernel.records import Enforcement, Error, Execution, Late, Output, Result, Stream

if TYPE_CHECKING:
    from collections.abc import Callable

    from dojo_kernel.settings import KernelSettings


class MemoryKernel:
    """Satisfies the `Kernel` protocol. The names `DATA` and `WORKSPACE` (paths) are defined in every cell."""

    box = "memory"
    enforcement = (Enforcement(limit="isolation", by="nothing", detail="cells run in the host process"),)
    image = None

    def __init__(self, data_dir: Path) -> None:
        self.data_path = str(data_dir)
        self._workspace = Path(tempfile.mkdtemp(prefix="dojo-memory-"))
        self.workspace_path = str(self._workspace)
        self.life = 0
        self.late: list[Late] = []
        """Output to hand over with the next cell, as a thread of an earlier cell would."""
        self.lost = False
        """Set it to make the next cell raise BoxLostError."""
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

    async def validate(self, code: str, timeout_s: float) -> Execution:
        """Run a cell with fresh names and a copy of the workspace."""
        del timeout_s
        with tempfile.TemporaryDirectory(prefix="dojo-scratch-") as scratch:
            copy = Path(scratch) / "workspace"
            shutil.copytree(self._workspace, copy)
            outputs, status, seconds = _run(code, self._fresh(copy), 1)
        return Execution(
            code=code, outputs=outputs, status="ok" if status else "error", seconds=seconds, where="scratch", life=self.life
        )

    async def restart(self) -> None:
        """Forget every name."""
        self.life += 1
        self._names = self._fresh(self._workspace)

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
        """Remove the workspace."""
        shutil.rmtree(self._workspace, ignore_errors=True)


async def open_memory_kernel(
    settings: KernelSettings,
    *,
    data_dir: Path,
    episode: str,
    trusted: bool = False,
    warn: Callable[[str], None] | None = None,
) -> MemoryKernel:
    """Stands where `dojo_kernel.kernel.open_kernel` does: `open_episode(..., start_kernel=open_memory_kernel)`."""
    del settings, episode, trusted, warn
    return MemoryKernel(data_dir)


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
