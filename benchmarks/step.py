"""A trivial cell through `env.step`, journal included, against nbclient executing the same cell on the same kind of kernel.

Both kernels run side by side in plain-process boxes with the same kernelspec; the two take turns, one cell each, so that a
busy machine slows both. Each round has fresh kernels, as two kernels of one kind differ by some 5 % all their life. Figures are
medians over the rounds of medians over the cells, in milliseconds of the host's monotonic clock.
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
WARM_UP = 10


def measure(rounds: int, cells: int) -> list[Figure]:
    """Medians of both and of their ratio."""
    import gymnasium as gym

    import dojo_kernel  # noqa: F401  registers the environment
    from dojo_kernel.competition import find, prepare

    prepare(find("wine"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = {"max_steps": cells + WARM_UP}
        env = gym.make("dojo_kernel/Dojo-v0", competition="wine", settings=settings, kernel={"box": "process"}).unwrapped
    try:
        pairs = [one_round(env, cells) for _ in range(rounds)]
    finally:
        env.close()
    return [
        Figure("trivial cell through env.step, journal included", statistics.median(ours for ours, _ in pairs), "ms"),
        Figure("the same cell on the same kernel by nbclient", statistics.median(theirs for _, theirs in pairs), "ms"),
        Figure(f"ratio, median of {rounds} pairs of kernels", statistics.median(ours / theirs for ours, theirs in pairs), "", 1.25),
    ]


def one_round(env, cells: int) -> tuple[float, float]:
    """Median of a cell on a fresh kernel of the environment, and of one on a fresh kernel of nbclient's."""
    import nbformat
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    env.reset(seed=0)
    cell = nbformat.v4.new_code_cell(CELL)
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), km=KernelManager(kernel_name="dojo-process"))
    ours, theirs = [], []
    with client.setup_kernel():
        for _ in range(WARM_UP + cells):
            begin = time.perf_counter()
            env.step({"name": "execute_code", "code": CELL})
            middle = time.perf_counter()
            client.execute_cell(cell, 0)
            ours.append(1000 * (middle - begin))
            theirs.append(1000 * (time.perf_counter() - middle))
    return statistics.median(ours[WARM_UP:]), statistics.median(theirs[WARM_UP:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DOJO_DATA", str(Path(folder)))
        found = measure(arguments.rounds, arguments.cells)
    return tell(found, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
