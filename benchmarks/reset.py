"""`env.reset()` with a pool of waiting boxes and without one, on each box this machine can run.

Two environments of the same settings take turns: one cell is executed, the pool is full again, then each resets. The pool's
boxes have the usual libraries imported, the others nothing. A reset closes the episode before it; figures are medians in
milliseconds of the host's monotonic clock, with the load average (1 min) at the end, since a busy machine slows both.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import sys
import tempfile
import time
from pathlib import Path

from table import Figure, tell

CELL = {"name": "execute_code", "code": "x = 1"}
QUIET_S = 0.3
"""From the pool's last box to the reset; removing and making boxes is not what is measured."""
BAR_MS = 100.0


def _turns(kind: str, rounds: int) -> tuple[list[float], list[float]]:
    """Milliseconds of each reset: on a pool hit, and without a pool."""
    from dojo_kernel.env import DojoEnv
    from dojo_kernel.kernel.pool import WarmPool

    pool = WarmPool(1)
    pooled = DojoEnv("wine", kernel={"box": kind}, pool=pool)
    plain = DojoEnv("wine", kernel={"box": kind})
    hits, starts = [], []
    try:
        for turn in range(rounds + 2):
            for env, times in ((pooled, hits), (plain, starts)):
                deadline = time.monotonic() + 120
                while turn and not pool.ready:
                    if time.monotonic() > deadline:
                        raise TimeoutError(f"the pool has no {kind} box after two minutes")
                    time.sleep(0.01)
                time.sleep(QUIET_S)
                begin = time.perf_counter()
                env.reset(seed=turn)
                spent = 1000 * (time.perf_counter() - begin)
                env.step(CELL)
                if turn >= 2:  # before that a pool is made, and modules are imported
                    times.append(spent)
    finally:
        pooled.close()
        plain.close()
    return hits, starts


def measure(rounds: int) -> list[Figure]:
    """Four for each kind of box."""
    from dojo_kernel.competition import find, prepare
    from dojo_kernel.kernel import doctor

    prepare(find("wine"))
    figures = []
    for kind in ("docker", "sandbox", "process"):
        if not asyncio.run(doctor.available(kind))[0]:
            continue
        hits, starts = _turns(kind, rounds)
        hit, start = statistics.median(hits), statistics.median(starts)
        figures += [
            Figure(f"{kind}: env.reset() on a pool hit", hit, "ms", BAR_MS),
            Figure(f"{kind}: the slowest of {rounds}", max(hits), "ms"),
            Figure(f"{kind}: env.reset() without a pool", start, "ms"),
            Figure(f"{kind}: how many times faster the hit is", start / hit, ""),
        ]
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        os.environ.setdefault("DOJO_DATA", folder)
        found = measure(arguments.rounds)
    return tell(found, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
