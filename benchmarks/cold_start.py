"""Cold start of each box this machine can run: from `open_kernel` to the result of a first cell, and closing it again.

A plain ipykernel started by jupyter_client to its first result is the peer. They take turns; figures are medians in seconds.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import statistics
import tempfile
import time
from pathlib import Path


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


async def measure(rounds: int) -> dict[str, dict[str, float]]:
    """`{kind: {start_s, close_s}}`."""
    from dojo_kernel.kernel import doctor

    kinds = [kind for kind in ("docker", "sandbox", "process") if (await doctor.available(kind))[0]]
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in ["ipykernel", *kinds]}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(rounds):
            times["ipykernel"].append(await _plain())
            for kind in kinds:
                times[kind].append(await _boxed(kind, Path(folder)))
    return {
        kind: {
            "start_s": round(statistics.median(a for a, _ in some), 3),
            "close_s": round(statistics.median(b for _, b in some), 3),
        }
        for kind, some in times.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    found = asyncio.run(measure(arguments.rounds))
    if arguments.json:
        print(json.dumps(found))
    else:
        for kind, one in found.items():
            print(f"{kind:12} start {one['start_s']:.3f} s   close {one['close_s']:.3f} s")


if __name__ == "__main__":
    main()
