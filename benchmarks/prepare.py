"""Memory and speed of the recipe `table` on a large CSV file that is made up first.

`python benchmarks/prepare.py [--mb N] [--split NAME] [--json]`. Twenty columns, a third of them text with commas and quotes;
most of the rows are the test, so that they do not fit the buffer that sorts them. Each kind of split is prepared in a
process of its own, from the raw file to the four tables, and its peak memory is what the system counted. What grows with the
file is a few bytes a row, so memory is measured at two sizes and told for 20 GB as well; below a gigabyte that is noise.
Exit status 1 when that is over 4 GiB.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from table import Figure, tell

SPEC = """title = "A large one"
metric = "rmse"
[submission]
id = "id"
columns = {{ y = "float" }}
[prepare]
recipe = "table"
source = "train.csv"
{keys}
"""
SPLITS = {
    "random": 'split = { kind = "random", test_fraction = 0.8 }',
    "group, new ids": 'split = { kind = "group", column = "g", test_fraction = 0.8 }\nnew_ids = true',
    "time, kept order": 'split = { kind = "time", column = "t", test_fraction = 0.8 }\ntest_order = "keep"',
}
TARGET_MB = 20_000


def make_raw(path: Path, megabytes: int) -> int:
    """Writes the file; returns its rows."""
    random = np.random.default_rng(0)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = 0
    texts = ["plain words", 'with "quotes"', "a, b", "", "NA", "longer text " * 4]
    with path.open("w") as file:
        file.write(",".join(["id", "g", "t", *(f"x{n}" for n in range(10)), *(f"s{n}" for n in range(6)), "y"]) + "\n")
        quoted = ['"' + text.replace('"', '""') + '"' for text in texts]
        while file.tell() < megabytes * 10**6:
            numbers = random.normal(size=(20_000, 11)).round(6).astype(str)
            words = random.integers(0, len(texts), size=(20_000, 6))
            lines = []
            for row, (floats, places) in enumerate(zip(numbers.tolist(), words.tolist(), strict=True), start=rows):
                cells = ",".join(quoted[place] for place in places)
                lines.append(f"{row},g{row // 50},{row // 1000},{','.join(floats[:10])},{cells},{floats[10]}\n")
            file.write("".join(lines))
            rows += 20_000
    return rows


def prepare_one(folder: Path, keys: str) -> None:
    """In the child: prints seconds and peak MiB."""
    from dojo_kernel.competition import find
    from dojo_kernel.competition.raw_spec import table_spec
    from dojo_kernel.competition.raw_table import make_table
    from dojo_kernel.competition.recipes import Job

    spec = folder / "large"
    spec.mkdir(exist_ok=True)
    (spec / "competition.toml").write_text(SPEC.format(keys=keys))
    competition = find(spec)
    out = folder / "out"
    for part in ("public", "private"):
        (out / part).mkdir(parents=True, exist_ok=True)
    job = Job(competition, folder / "raw", out / "public", out / "private", lambda _: None)
    started = time.perf_counter()
    make_table(job, table_spec(competition))
    seconds = time.perf_counter() - started
    print(json.dumps([seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024]))


def measure(megabytes: int, splits: dict[str, str]) -> list[Figure]:
    figures = []
    peaks: dict[str, dict[int, float]] = {name: {} for name in splits}
    for size in (megabytes // 2, megabytes):
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            rows = make_raw(folder / "raw" / "train.csv", size)
            for split, keys in splits.items():
                command = [sys.executable, __file__, "--child", name, keys]
                done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True, env=dict(os.environ))
                seconds, peak = json.loads(done.stdout)
                peaks[split][size] = peak
                if size == megabytes:
                    figures += [
                        Figure(f"{split}: {size} MB, {rows} rows", size / seconds, "MB/s"),
                        Figure(f"{split}: peak memory", peak, "MiB"),
                    ]
    for split, found in peaks.items():
        small, large = found
        growth = max(0.0, (found[large] - found[small]) / (large - small))
        figures.append(
            Figure(f"{split}: peak memory, going on to 20 GB", found[large] + growth * (TARGET_MB - large), "MiB", 4096)
        )
    return figures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mb", type=int, default=1000)
    parser.add_argument("--split", choices=SPLITS, help="one kind only; all three take an hour with --mb 10000")
    parser.add_argument("--json", action="store_true")
    parser.add_argument("--child", nargs=2, metavar=("FOLDER", "KEYS"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.child:
        prepare_one(Path(arguments.child[0]), arguments.child[1])
        return 0
    splits = SPLITS if arguments.split is None else {arguments.split: SPLITS[arguments.split]}
    return tell(measure(arguments.mb, splits), as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
