"""A trivial cell: KernelSession against nbclient, turn by turn on the same kernel. `python benchmarks/cell.py [cells]`."""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from jupyter_client.asynchronous.client import AsyncKernelClient
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient

from dojo_kernel.kernel import KernelSession, open_kernel
from dojo_kernel.settings import KernelSettings

CODE = "x = 1"


class Alive(AsyncKernelManager):
    """nbclient asks a manager whether the kernel lives; the session owns it."""

    async def is_alive(self) -> bool:
        """Yes: the session would say otherwise."""
        return True


async def compare(cells: int) -> dict[str, float]:
    """Medians in milliseconds."""
    ours, theirs = [], []
    with tempfile.TemporaryDirectory() as folder:
        kernel = await open_kernel(KernelSettings(box="process"), data_dir=Path(folder), episode="benchmark")
        assert isinstance(kernel, KernelSession)
        assert kernel._live is not None  # noqa: SLF001  the same kernel is the point
        client = AsyncKernelClient()
        client.load_connection_info(kernel._live.process.connection_info)  # noqa: SLF001
        client.start_channels(stdin=False, hb=False)
        try:
            await client.wait_for_ready(timeout=30)
            cell = nbformat.v4.new_code_cell(CODE)
            judge = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), km=Alive())
            judge.kc = client
            judge.reset_execution_trackers()
            for _ in range(cells):
                started = time.perf_counter()
                await kernel.execute(CODE, 10)
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                await judge.async_execute_cell(cell, 0)
                theirs.append(time.perf_counter() - started)
        finally:
            client.stop_channels()
            await kernel.close()
    session, nbclient = (1e3 * statistics.median(times) for times in (ours, theirs))
    return {"session_ms": round(session, 2), "nbclient_ms": round(nbclient, 2), "ratio": round(session / nbclient, 2)}


if __name__ == "__main__":
    print(json.dumps(asyncio.run(compare(int(sys.argv[1]) if len(sys.argv) > 1 else 300))))
