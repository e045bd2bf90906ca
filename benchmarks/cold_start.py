"""Cold start of each box this machine can run: from `open_kernel` to the result of a first cell, and closing it again.

A plain ipykernel started by jupyter_client to its first result is the peer. They take turns; figures are medians in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import statistics
import sys
import tempfile
import time
from pathlib import Path

from table import Figure, tell


async def _boxed(kind: str, data: Path) -> tuple[float, float]:
    from dojo_kernel.kernel import open_kernel
    from dojo_kernel.settings import KernelSettings

    begin = time.perf_counter()
    kernel = await open_kernel(KernelSettings(box=kind), data_dir=data, episode="benchmark")
    try:
        ran = await kernel.execute("x = 1", 30)
        assert ran.status == "ok"
        ready = time.perf_counter()
    finally:
        await kernel.close()
    return ready - begin, time.perf_counter() - ready


async def _plain() -> tuple[float, float]:
    from jupyter_client.manager import start_new_async_kernel

    begin = time.perf_counter()
    manager, client = await start_new_async_kernel(kernel_name="python3")
    await client.execute_interactive("x = 1", timeout=30)
    ready = time.perf_counter()
    client.stop_channels()
    await manager.shutdown_kernel(now=True)
    return ready - begin, time.perf_counter() - ready


async def measure(rounds: int) -> list[Figure]:
    """Two for each kind."""
    from dojo_kernel.kernel import doctor

    kinds = [kind for kind in ("docker", "sandbox", "process") if (await doctor.available(kind))[0]]
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ["ipykernel", *kinds]}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            times["ipykernel"].append(await _plain())
            for kind in kinds:
                times[kind].append(await _boxed(kind, Path(folder)))
    figures = []
    for kind, some in times.items():
        figures.append(Figure(f"{kind}: start to the first cell's result", statistics.median(a for a, _ in some), "s"))
        figures.append(Figure(f"{kind}: close", statistics.median(b for _, b in some), "s"))
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.rounds))
    return tell(found, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
