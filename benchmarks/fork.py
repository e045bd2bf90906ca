"""Kernels that fork, each figure beside its peer: forks, trial runs on the live state, checkpoints, branches, memory, cells.

The peer is what people have without forks: a stock ipykernel that jupyter_client starts and that imports the stack, or nbclient
driving one. Times are of the host's monotonic clock; memory is PSS, which counts a shared page once among its sharers.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from table import Figure, tell

if TYPE_CHECKING:
    from dojo_kernel.kernel import KernelSession

STACK = "import numpy as np, pandas as pd, sklearn.ensemble, sklearn.linear_model"
WORK = f"""{STACK}
frame = pd.DataFrame({{'a': np.arange(1000)}})
model = sklearn.linear_model.LinearRegression().fit(frame, frame.a)
"""


def pss(pid: int) -> int:
    """Bytes."""
    lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith("Pss:"))


def percentile(times: list[float], part: float) -> float:
    """Nearest rank."""
    return sorted(times)[min(len(times) - 1, int(part * len(times)))]


async def opened(box: str, **settings: Any) -> KernelSession:
    """A live kernel; `data` is an empty folder."""
    from dojo_kernel.kernel import open_kernel
    from dojo_kernel.records import Limits
    from dojo_kernel.settings import KernelSettings

    data = Path(tempfile.mkdtemp(prefix="bench-"))
    os.chmod(data, 0o755)  # noqa: PTH101  the box may have another uid
    limits = Limits(memory_gb=12, pids=4096, disk_gb=4)
    return await open_kernel(KernelSettings(box=box, limits=limits, **settings), data_dir=data, episode="benchmark")  # type: ignore[return-value]


async def run(kernel: KernelSession, code: str) -> None:
    """A cell that has to go well."""
    ran = await kernel.execute(code, 120)
    assert ran.status == "ok", ran


async def cold() -> tuple[float, int]:
    """Seconds of a stock ipykernel from its start to the end of a first cell with the stack imported; its PSS then."""
    from jupyter_client.manager import start_new_async_kernel

    begin = time.perf_counter()
    manager, client = await start_new_async_kernel(kernel_name="python3")
    await client.execute_interactive(STACK, timeout=60)
    seconds = time.perf_counter() - begin
    held = pss(manager.provisioner.pid)
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return seconds, held


async def forks(box: str, count: int, peers: int) -> list[Figure]:
    """A fork to its first executed cell against a cold kernel, in turns."""
    kernel = await opened(box)
    ours: list[float] = []
    theirs: list[float] = []
    held: list[int] = []
    try:
        await run(kernel, WORK)
        for turn in range(count + 3):
            if turn % max(1, count // peers) == 0 and box == "process":
                seconds, memory = await cold()
                theirs.append(seconds)
                held.append(memory)
            begin = time.perf_counter()
            child = await kernel._fork(kernel._live, "scratch", kernel._trial_room)  # noqa: SLF001  without the end of it
            done = await child.run("x = 1", 30, "")
            seconds = time.perf_counter() - begin
            assert done.done
            if turn >= 3:
                ours.append(seconds)
            await kernel._discard(child)  # noqa: SLF001
        figures = [
            Figure(f"{box}: fork of a live kernel with the stack to its first cell", 1000 * statistics.median(ours), "ms", 60),
            Figure(f"{box}: the same, p99 of {count}", 1000 * percentile(ours, 0.99), "ms", 150),
        ]
        if theirs:
            ratio = statistics.median(theirs) / statistics.median(ours)
            figures += [
                Figure("a cold ipykernel that imports the stack", 1000 * statistics.median(theirs), "ms"),
                Figure("how many times faster the fork is", ratio, "", 25, at_least=True),
                await _memory(kernel, statistics.median(held)),
            ]
        return figures
    finally:
        await kernel.close()


async def _memory(kernel: KernelSession, cold_bytes: float) -> Figure:
    """What one more idle fork adds to the sum of all PSS, in percent of a cold kernel."""
    pids = [kernel._live.process.pid]  # noqa: SLF001  in a plain process the box's numbers are the host's
    before = sum(map(pss, pids))
    for number in range(8):
        made = await kernel.checkpoint(str(number))
        pids.append(kernel._checkpoints[made.id].executor.process.pid)  # noqa: SLF001
    await asyncio.sleep(0.5)
    more = (sum(map(pss, pids)) - before) / 8
    return Figure("memory of one more idle fork, of a cold kernel's", 100 * more / cold_bytes, "%", 30)


def validate(box: str, count: int) -> list[Figure]:
    """`validate_code` of `x=1` on the live state through `env.step`."""
    import gymnasium as gym

    import dojo_kernel  # noqa: F401  registers the environment
    from dojo_kernel.competition import find, prepare

    prepare(find("wine"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env: Any = gym.make(
            "dojo_kernel/Dojo-v0", competition="wine", settings={"max_steps": 10 * count + 100}, kernel={"box": box}
        ).unwrapped
    env.reset(seed=0)
    times = []
    try:
        env.step({"name": "execute_code", "code": WORK})
        for turn in range(count + 3):
            begin = time.perf_counter()
            env.step({"name": "validate_code", "code": "x=1", "state": "live"})
            if turn >= 3:
                times.append(1000 * (time.perf_counter() - begin))
            assert env.episode.steps[-1].execution.forked
    finally:
        env.close()
    return [Figure(f"{box}: validate_code of x=1 on the live state through env.step", statistics.median(times), "ms", 80)]


async def checkpoints(box: str, rounds: int) -> list[Figure]:
    """With 1 GiB of live arrays."""
    kernel = await opened(box, max_checkpoints=100)
    making, restoring = [], []
    more = 0.0
    try:
        await run(kernel, f"{STACK}\narrays = [np.ones(1 << 24) for _ in range(8)]")
        for turn in range(rounds):
            used = await _held(kernel)
            begin = time.perf_counter()
            made = await kernel.checkpoint(str(turn))
            making.append(1000 * (time.perf_counter() - begin))
            await asyncio.sleep(0.2)
            more = max(more, 100 * (await _held(kernel) - used) / 2**30)
            begin = time.perf_counter()
            await kernel.restore(made.id)
            restoring.append(1000 * (time.perf_counter() - begin))
    finally:
        await kernel.close()
    return [
        Figure(f"{box}: checkpoint with 1 GiB of live arrays", statistics.median(making), "ms", 150),
        Figure(f"{box}: restore of it", statistics.median(restoring), "ms", 250),
        *([Figure(f"{box}: extra memory until written to, of 1 GiB", more, "%", 5)] if box == "process" else []),
    ]


async def _held(kernel: KernelSession) -> float:
    if kernel.box != "process":
        return 0.0
    kernels = [kernel._live, *(one.executor for one in kernel._checkpoints.values())]  # noqa: SLF001
    return float(sum(pss(one.process.pid) for one in kernels if one is not None))


async def branches(box: str, count: int) -> list[Figure]:
    """Live siblings of one state: made, one cell each, removed."""
    kernel = await opened(box)
    try:
        await run(kernel, WORK)
        begin = time.perf_counter()
        made = await kernel.branch(count)
        gate = asyncio.Semaphore(8)

        async def play(one: KernelSession, number: int) -> None:
            async with gate:
                await run(one, f"x = {number}")
                await one.close()

        await asyncio.gather(*(play(one, number) for number, one in enumerate(made)))
        seconds = time.perf_counter() - begin
    finally:
        await kernel.close()
    return [Figure(f"{box}: {count} live branches of one state, a cell in each, removed", seconds, "s", 15)]


async def cells(count: int) -> list[Figure]:
    """A trivial cell: ours through the session, stock ipykernel through nbclient, in turns."""
    import nbformat
    from jupyter_client.manager import AsyncKernelManager
    from nbclient import NotebookClient

    kernel = await opened("process")
    cell = nbformat.v4.new_code_cell("x = 1")
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), km=AsyncKernelManager(kernel_name="python3"))
    ours, theirs = [], []
    try:
        async with client.async_setup_kernel():
            for turn in range(count + 10):
                begin = time.perf_counter()
                await run(kernel, "x = 1")
                middle = time.perf_counter()
                await client.async_execute_cell(cell, 0)
                if turn >= 10:
                    ours.append(1000 * (middle - begin))
                    theirs.append(1000 * (time.perf_counter() - middle))
    finally:
        await kernel.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    return [
        Figure("a trivial cell, our kernel", mine, "ms"),
        Figure("a trivial cell, stock ipykernel driven by nbclient", other, "ms"),
        Figure("how many times faster ours is", other / mine, "", 1.3, at_least=True),
    ]


async def kinds() -> list[str]:
    """Boxes that this machine can run."""
    from dojo_kernel.kernel import doctor

    return [kind for kind in ("process", "sandbox", "docker") if (await doctor.available(kind))[0]]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--forks", type=int, default=100)
    parser.add_argument("--branches", type=int, default=100)
    parser.add_argument("--box", action="append", help="process, sandbox or docker; by default all that run here")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    os.environ.setdefault("DOJO_DATA", tempfile.mkdtemp(prefix="bench-data-"))
    figures = asyncio.run(cells(300))
    for box in arguments.box or asyncio.run(kinds()):
        figures += asyncio.run(forks(box, arguments.forks, 5))
        figures += validate(box, 40)
        figures += asyncio.run(checkpoints(box, 7))
        figures += asyncio.run(branches(box, arguments.branches))
    return tell(figures, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
