"""A trivial cell through `env.step`, journal included, against nbclient executing the same cell on the same kind of kernel.

Both kernels run side by side in plain-process boxes with the same kernelspec; the two take turns, one cell each, so that a
busy machine slows both. Figures are medians in milliseconds of the host's monotonic clock.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import tempfile
import time
import warnings
from pathlib import Path

from table import Figure, tell

CELL = "x = 1"


def measure(cells: int) -> list[Figure]:
    """Medians of both and their ratio."""
    import gymnasium as gym
    import nbformat
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    import dojo_kernel  # noqa: F401  registers the environment
    from dojo_kernel.competition import find, prepare

    prepare(find("wine"))
    settings = {"max_steps": 10 * cells + 100}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        env = gym.make("dojo_kernel/Dojo-v0", competition="wine", settings=settings, kernel={"box": "process"}).unwrapped
    env.reset(seed=0)
    cell = nbformat.v4.new_code_cell(CELL)
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), km=KernelManager(kernel_name="dojo-process"))
    ours, theirs = [], []
    try:
        with client.setup_kernel():
            for turn in range(cells + 10):
                begin = time.perf_counter()
                env.step({"name": "execute_code", "code": CELL})
                middle = time.perf_counter()
                client.execute_cell(cell, 0)
                end = time.perf_counter()
                if turn >= 10:
                    ours.append(1000 * (middle - begin))
                    theirs.append(1000 * (end - middle))
    finally:
        env.close()
    mine, other = statistics.median(ours), statistics.median(theirs)
    return [
        Figure("trivial cell through env.step, journal included", mine, "ms"),
        Figure("the same cell on the same kernel by nbclient", other, "ms"),
        Figure("ratio", mine / other, "", 1.25),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=300)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DOJO_DATA", str(Path(folder)))
        found = measure(arguments.cells)
    return tell(found, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
