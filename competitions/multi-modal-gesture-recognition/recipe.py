"""Gestures: the recordings of the fourth archive are the test; the .mat files in them, which name the gestures, are left out."""

from __future__ import annotations

import csv
import gzip
import io
import re
import tarfile
import zipfile
from pathlib import Path
from typing import IO, Any

from dojo_kernel.competition.raw_files import raw_file
from dojo_kernel.competition.raw_media import place_file
from dojo_kernel.competition.recipes import Job, write_answers, write_csv
from dojo_kernel.competition.synth_media import MEDIA, Look

_BLOCK = 2**20


def _without_labels(source: IO[bytes], target: Path) -> None:
    """The same archive, stored and without times, less its .mat files."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(source) as given, zipfile.ZipFile(target, "w") as kept:
        for member in given.infolist():
            if member.is_dir() or member.filename.lower().endswith(".mat"):
                continue
            with given.open(member) as packed, kept.open(zipfile.ZipInfo(member.filename), "w", force_zip64=True) as out:
                while block := packed.read(_BLOCK):
                    out.write(block)


def prepare(job: Job, *, test: str) -> None:
    """`training1..3.tar.gz` as they are, with the labels of their recordings in `training.csv`; `test/Sample<Id>.zip`."""
    with raw_file(job, "training.csv").open(encoding="utf-8", newline="") as file:
        sequences = {row["Id"].zfill(4): row["Sequence"] for row in csv.DictReader(file)}
    hidden = set()
    with tarfile.open(raw_file(job, test)) as archive:
        for member in archive:
            named = re.search(r"Sample0*(\d+)\.zip$", member.name)
            packed = archive.extractfile(member) if named and member.isfile() else None
            if named is None or packed is None or named[1].zfill(4) not in sequences:
                continue
            hidden.add(named[1].zfill(4))
            _without_labels(packed, job.public / "test" / f"Sample{named[1].zfill(4)}.zip")
    for path in sorted(job.raw.glob("training*.tar.gz")):
        if path.name != test:
            place_file(job, path, path.name)
    rows = [{"Id": name, "Sequence": sequence} for name, sequence in sequences.items()]
    write_csv(job.public / "training.csv", [row for row in rows if row["Id"] not in hidden], ["Id", "Sequence"])
    answers = [row for row in rows if row["Id"] in hidden]
    write_answers(job, answers, {"Sequence": " ".join(map(str, range(20, 0, -1)))})


def synth(folder: Path, rows: int, rng: Any) -> None:
    """Four archives of recordings, each a zip with a sound and a .mat file."""
    folder.mkdir(parents=True, exist_ok=True)
    table = []
    for part in range(4):
        place = folder / f"training{part + 1}.tar.gz"
        # tarfile would write the time of day into the head of the archive
        with gzip.GzipFile(place, "wb", 1, mtime=0) as packer, tarfile.open(fileobj=packer, mode="w") as archive:
            for number in range(part * rows // 4, (part + 1) * rows // 4):
                name = f"Sample{number + 1:05d}"
                order = rng.permutation(20)[: int(rng.integers(8, 21))] + 1
                table.append({"Id": f"{number + 1:04d}", "Sequence": " ".join(map(str, order.tolist()))})
                packed = io.BytesIO()
                with zipfile.ZipFile(packed, "w") as zipped:
                    for kind in ("wav", "mat"):
                        zipped.writestr(zipfile.ZipInfo(f"{name}_data.{kind}"), MEDIA[kind](Look(), rng))
                member = tarfile.TarInfo(f"{name}.zip")
                member.size = len(packed.getvalue())
                archive.addfile(member, io.BytesIO(packed.getvalue()))
    write_csv(folder / "training.csv", table, ["Id", "Sequence"])
