"""What the journal adds to a step: after a thousand steps against after ten, with 50 KB of output each.

Run it: `python benchmarks/journal.py [--json] [--folder DIR]`. One run measures both, on the disk that holds the folder. A step
is an intent and a result, each written and synced. Two journals take turns, one that holds 1,000 steps and one that holds 10,
for 100 steps each, so that a disk that others use slows both; the medians are compared.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from statistics import median

from table import Figure, tell

from dojo_kernel.actions import ExecuteCode
from dojo_kernel.journal import Journal
from dojo_kernel.records import Acted, Execution, Observation, Opened, Step, Stepped, Stream

WINDOW = 100


def step_of(index: int) -> tuple[Acted, Stepped]:
    action = ExecuteCode(code=f"print({index})")
    run = Execution(code=action.code, outputs=(Stream(name="stdout", text="0123456789abcde\n" * 3200),), status="ok", seconds=0.1)
    step = Step(
        index=index,
        action=action,
        execution=run,
        reward=0.0,
        observation=Observation(text="shown", ok=True, steps_left=1, seconds_left=1.0),
        started_at="2026-01-01T00:00:00+00:00",
        seconds=0.1,
    )
    return Acted(index=index, action=action), Stepped(step=step)


def open_journal(folder: Path, steps: int) -> Journal:
    opened = Opened(
        episode="bench",
        competition="none",
        competition_sha256="0" * 64,
        better="higher",
        seed=0,
        agent="none",
        settings={},
        box="none",
        enforcement=(),
        versions={},
        started_at="2026-01-01T00:00:00+00:00",
    )
    journal = Journal.create(folder)
    journal.append(opened)
    for index in range(steps):
        take_step(journal, index)
    return journal


def take_step(journal: Journal, index: int) -> float:
    acted, stepped = step_of(index)
    begun = time.perf_counter()
    journal.append(acted)
    journal.append(stepped)
    return time.perf_counter() - begun


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--folder", type=Path, default=None, help="on the disk to measure; default: a temporary one")
    given = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(dir=given.folder) as folder,
        open_journal(Path(folder) / "short", 10) as short,
        open_journal(Path(folder) / "long", 1000) as long,
    ):
        turns = [(take_step(short, 10 + turn), take_step(long, 1000 + turn)) for turn in range(WINDOW)]
    early, late = (median(times) * 1000 for times in zip(*turns, strict=True))
    figures = [
        Figure("journal of one step with 50 KB of output, at step 10", early, "ms"),
        Figure("the same at step 1,000", late, "ms"),
        Figure("ratio", late / early, "", 1.2),
    ]
    return tell(figures, as_json=given.json)


if __name__ == "__main__":
    raise SystemExit(main())
