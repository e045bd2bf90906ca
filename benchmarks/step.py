"""A trivial cell through `env.step`, journal included, against nbclient executing the same cell on the same kind of kernel.

Twice: by an environment as `gym.make` makes it, whose journal goes with the episode, and by one with a `folder`, whose journal is
synced to the disk before a step returns. All kernels run side by side in plain-process boxes with the same kernelspec and take
turns, one cell each, so that a busy machine slows all. Each round has fresh kernels. Figures are medians over the rounds of
medians over the cells, in milliseconds of the host's monotonic clock.
"""

from __future__ import annotations

import argparse
import contextlib
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


def measure(rounds: int, cells: int, folder: str) -> list[Figure]:
    """Medians of all three, and of the ratios."""
    from dojo_kernel.competition import find, prepare

    prepare(find("wine"))
    settings = {"max_steps": cells + WARM_UP}
    with contextlib.closing(made(settings)) as passing, contextlib.closing(made(settings, folder)) as kept:
        found = [one_round([passing, kept], cells) for _ in range(rounds)]
    passing_ms, kept_ms, theirs = zip(*found, strict=True)
    figures = [Figure("the cell on the same kernel by nbclient", statistics.median(theirs), "ms")]
    for name, ours in (("gone with the episode", passing_ms), ("kept and synced", kept_ms)):
        ratio = statistics.median(mine / other for mine, other in zip(ours, theirs, strict=True))
        figures += [
            Figure(f"trivial cell through env.step, journal {name}", statistics.median(ours), "ms"),
            Figure(f"ratio, journal {name}, median of {rounds} kernels", ratio, "", 1.25),
        ]
    return figures


def made(settings: dict[str, int], folder: str | None = None):
    import gymnasium as gym

    import dojo_kernel  # noqa: F401  registers the environment

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        kernel = {"box": "process"}
        return gym.make("dojo_kernel/Dojo-v0", competition="wine", settings=settings, kernel=kernel, folder=folder).unwrapped


def one_round(envs, cells: int) -> list[float]:
    """Median of a cell on a fresh kernel of each environment, and of one on a fresh kernel of nbclient's."""
    import nbformat
    from jupyter_client.manager import KernelManager
    from nbclient import NotebookClient

    cell = nbformat.v4.new_code_cell(CELL)
    client = NotebookClient(nbformat.v4.new_notebook(cells=[cell]), km=KernelManager(kernel_name="dojo-process"))
    action = {"name": "execute_code", "code": CELL}
    players = [*((lambda env=env: env.step(action)) for env in envs), lambda: client.execute_cell(cell, 0)]
    for env in envs:
        env.reset(seed=0)
    took = [[] for _ in players]
    with client.setup_kernel():
        for _ in range(WARM_UP + cells):
            for play, times in zip(players, took, strict=True):
                begin = time.perf_counter()
                play()
                times.append(1000 * (time.perf_counter() - begin))
    return [statistics.median(times[WARM_UP:]) for times in took]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--cells", type=int, default=200)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DOJO_DATA", str(Path(folder)))
        found = measure(arguments.rounds, arguments.cells, f"{folder}/kept")
    return tell(found, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
