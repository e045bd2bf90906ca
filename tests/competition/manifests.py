"""One hash for the files that each competition is prepared into from 200 rows of noise: the same on every machine.

After a change of recipes or of `dojo synth`:

    .venv/bin/python tests/competition/manifests.py > tests/competition/manifests.csv
    scripts/second-machine '.venv/bin/python tests/competition/manifests.py | diff tests/competition/manifests.csv -'
"""

from __future__ import annotations

import csv
import hashlib
import json
import os
import sys
import tempfile
from pathlib import Path

from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import bundled_folder, bundled_slugs, find
from dojo_kernel.competition.synth import RAW_FILE, synth

ROWS = 200
WITH_RAW = [slug for slug in bundled_slugs() if (bundled_folder() / slug / RAW_FILE).is_file()]
TABLE = Path(__file__).with_name("manifests.csv")


def expected() -> dict[str, str]:
    """Slug -> hash, as committed."""
    with TABLE.open(encoding="ascii", newline="") as file:
        return {row["slug"]: row["sha256"] for row in csv.DictReader(file)}


def digest(manifest: Path) -> str:
    """Of the names and hashes of all prepared files, answers included; not of their times."""
    files = json.loads(manifest.read_text(encoding="utf-8"))["files"]
    lines = "".join(f"{about['sha256']}  {name}\n" for name, about in sorted(files.items()))
    return hashlib.sha256(lines.encode()).hexdigest()


def main() -> None:
    """Print the table."""
    print("slug,sha256")
    for slug in sys.argv[1:] or WITH_RAW:
        with tempfile.TemporaryDirectory() as folder:
            os.environ["DOJO_DATA"] = f"{folder}/data"
            competition = find(slug)
            synth(competition, ROWS, Path(folder, "raw"))
            prepare(competition, raw=Path(folder, "raw"))
            print(f"{slug},{digest(competition.manifest)}", flush=True)


if __name__ == "__main__":
    main()
