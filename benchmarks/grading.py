"""Grading of a 1,000,000-row submission against pandas and scikit-learn doing the bare arithmetic, in one run.

`python benchmarks/grading.py [--rows N] [--repeats N] [--json]`. Ours: a request to
a child process that has the answers loaded, as one serves a whole episode: from bytes to `Grade`, hash and standing included.
Theirs: `read_csv` of submission and answers from disk each time, a merge by id, the metric. Rounds alternate; the ratio is
of medians, and the first grading, which starts the child and loads the answers, is told apart. Exit status 1 when ours
takes more than 3 times as long.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

import numpy as np
import pandas as pd
from sklearn.metrics import root_mean_squared_error
from table import Figure, tell

from dojo_kernel.competition import Competition, Grader, find

SPEC = """title = "A large one"
metric = "rmse"
decimals = 10
[submission]
id = "Id"
columns = { y = "float" }
[prepare]
recipe = "none"
"""


def make_files(folder: Path, rows: int) -> tuple[Competition, bytes]:
    os.environ["DOJO_DATA"] = str(folder / "data")
    spec = folder / "large"
    spec.mkdir()
    (spec / "competition.toml").write_text(SPEC)
    competition = find(spec)
    competition.private_dir.mkdir(parents=True)
    competition.public_dir.mkdir()
    competition.manifest.write_text("{}")
    random = np.random.default_rng(0)
    truth = pd.DataFrame({"Id": np.arange(rows), "y": random.normal(size=rows).round(6)})
    truth.to_csv(competition.private_dir / "answers.csv", index=False)
    guess = truth.assign(y=(truth.y + random.normal(size=rows)).round(6)).sample(frac=1, random_state=0)
    return competition, guess.to_csv(index=False).encode()


def bare(answers: Path, submission: Path) -> float:
    both = pd.read_csv(answers).merge(pd.read_csv(submission), on="Id")
    return float(root_mean_squared_error(both.y_x, both.y_y))


async def measure(rows: int, repeats: int) -> list[Figure]:
    with tempfile.TemporaryDirectory() as name:
        competition, submission = make_files(Path(name), rows)
        file = Path(name) / "submission.csv"
        file.write_bytes(submission)
        async with Grader(competition) as grader:
            started = time.perf_counter()
            grade = await grader.grade(submission, "all")
            first = time.perf_counter() - started
            ours, theirs = [], []
            for _ in range(repeats):
                started = time.perf_counter()
                grade = await grader.grade(submission, "all")
                ours.append(time.perf_counter() - started)
                started = time.perf_counter()
                expected = bare(competition.private_dir / "answers.csv", file)
                theirs.append(time.perf_counter() - started)
        assert grade.score is not None
        assert abs(grade.score - expected) < 1e-9
    return [
        Figure(f"grading {rows:,} rows, the first time: child's start and answers", first, "s"),
        Figure(f"grading {rows:,} rows", median(ours), "s"),
        Figure("pandas and scikit-learn doing the bare arithmetic", median(theirs), "s"),
        Figure("ratio", median(ours) / median(theirs), "", 3.0),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = asyncio.run(measure(options.rows, options.repeats))
    return tell(found, as_json=options.json)


if __name__ == "__main__":
    sys.exit(main())
