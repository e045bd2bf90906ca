"""Takes a folder that MLE-Dojo or mle-bench has prepared: public/ as it is, answers in our form, the same manifest and lint.

The lint warns here instead of refusing: the split is somebody else's, and its faults are known and wanted for comparison.
"""

from __future__ import annotations

import csv
import re
import shutil
from typing import TYPE_CHECKING, NamedTuple

from dojo_kernel.competition.lint import lint
from dojo_kernel.competition.prepare import locked, move_into_place, normalise, remove, write_manifest
from dojo_kernel.competition.recipes import Job
from dojo_kernel.errors import ConfigError
from dojo_kernel.settings import data_root

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from dojo_kernel.competition.spec import Competition

    Say = Callable[[str], None]

ANSWERS = ("test_answer.csv", "answers.csv", "answer.csv", "test.csv", "solution.csv", "test_labels.csv")
"""Where the two projects and their imitators keep the truth, the likeliest first; then any other table in private/."""
_WITHIN = (".", "prepared", "data")
_LARGEST_FIELD = 2**31 - 1


class _Table(NamedTuple):
    header: list[str]
    rows: list[list[str]]


def find_prepared(competition: Competition, folder: Path) -> Path | None:
    """The folder in or below `folder` that has public/ and private/ of this competition, as the two projects lay it out.

    MLE-Dojo: `DIR/<slug>/data/{public,private}`; mle-bench: `DIR/<slug>/prepared/{public,private}`.
    """
    names = dict.fromkeys((".", competition.slug, competition.kaggle or competition.slug))
    for name in names:
        for within in _WITHIN:
            place = folder / name / within
            if (place / "public").is_dir() and (place / "private").is_dir():
                return place.resolve()
    return None


def adopt(competition: Competition, folder: Path, *, say: Say) -> Path:
    """Makes `public/` and `private/` out of those in `folder`, which stays as it is; returns the folder they lie in.

    Raises:
        ConfigError: No table in private/ has the submission's columns, a name is taken twice, or the disk cannot be written.
    """
    new = data_root() / f".{competition.slug}.preparing"
    try:
        data_root().mkdir(parents=True, exist_ok=True)
        with locked(data_root() / f".{competition.slug}.lock"):
            remove(new)
            try:
                _build(competition, folder, new, say)
                move_into_place(new, competition.data_dir)
            finally:
                remove(new)
    except OSError as error:
        raise ConfigError(
            f"cannot take {folder}: {error.filename or competition.data_dir}: {error.strerror}; "
            f"to keep data elsewhere: DOJO_DATA=FOLDER dojo prepare {competition.slug} --from {folder}"
        ) from error
    return competition.data_dir


def _build(competition: Competition, folder: Path, new: Path, say: Say) -> None:
    public, private = new / "public", new / "private"
    new.mkdir(parents=True)
    say(f"{competition.slug}: copying {folder / 'public'}")
    _refuse_links(folder / "public")
    shutil.copytree(folder / "public", public)
    private.mkdir()
    (public / "description.md").write_text(competition.description, encoding="utf-8")
    sample = _sample(competition, public)
    names = _predicted(competition, sample)
    _write(public / "sample_submission.csv", _in_our_form(competition, sample, names, {}))
    answers, file = _answers(competition, folder / "private", names)
    _write(private / "answers.csv", answers)
    say(f"{competition.slug}: answers are those of private/{file}")
    normalise(new)
    for finding in lint(competition, public, private):
        say(f"{competition.slug}: warning: {finding}")
    job = Job(competition, raw=folder, public=public, private=private, say=say)
    write_manifest(job, new, prepared_by={"folder": str(folder), "answers": file})


def _refuse_links(folder: Path) -> None:
    """A link could lead a box, or a checksum, to any file of this machine."""
    for path in folder.rglob("*"):
        if path.is_symlink() and not path.resolve().is_relative_to(folder.resolve()):
            raise ConfigError(f"{path} is a link that leads out of {folder}; replace it by what it stands for")


def _sample(competition: Competition, public: Path) -> _Table:
    """The sample submission, whatever its name. Raises ConfigError."""
    exact = public / "sample_submission.csv"
    likely = sorted(path for path in public.glob("*.csv") if re.search(r"sample|submission|benchmark", path.name, re.IGNORECASE))
    for path in (*([exact] if exact.is_file() else []), *likely):
        table = _read(path)
        if "*" in competition.submission.columns or set(competition.submission.columns) <= set(table.header):
            return table
    raise ConfigError(
        f"{competition.slug}: no sample submission in {public.name}/ has the columns {', '.join(competition.submission.names)}"
    )


def _predicted(competition: Competition, sample: _Table) -> list[str]:
    names = competition.submission.columns
    return [name for name in sample.header if name != competition.submission.id] if "*" in names else list(names)


def _answers(competition: Competition, private: Path, names: list[str]) -> tuple[_Table, str]:
    """The truth in our form, and the name of its file. Raises ConfigError."""
    needed = {*competition.metric_columns.values(), *([competition.split.by] if competition.split.by else [])}
    files = [private / name for name in ANSWERS if (private / name).is_file()]
    seen = []
    for path in dict.fromkeys((*files, *sorted(private.rglob("*.csv")))):
        table = _one_hot(competition, _read(path), names)
        ids = _ids(competition, table)
        if ids is not None and {*names, *needed} <= set(table.header):
            found = _in_our_form(competition, table, names, {"keep": [name for name in table.header if name not in names]})
            if len({row[0] for row in found.rows}) < len(found.rows):
                raise ConfigError(f"{path}: an id stands in it twice; see: dojo prepare {competition.slug} (the files of Kaggle)")
            return found, path.relative_to(private).as_posix()
        seen.append(f"{path.name} ({', '.join(table.header[:8])})")
    wanted = ", ".join((competition.submission.id, *names[:8], *sorted(needed)))
    raise ConfigError(
        f"{competition.slug}: no table in {private} has the columns {wanted}; there is: {'; '.join(seen[:4]) or 'none'}; "
        f"prepare it from Kaggle's files: dojo prepare {competition.slug}"
    )


def _one_hot(competition: Competition, table: _Table, names: list[str]) -> _Table:
    """A table of labels as the table of classes that the submission is, if that is what it is."""
    if set(names) <= set(table.header):
        return table
    for at, name in enumerate(table.header):
        labels = {row[at] for row in table.rows}
        if name != competition.submission.id and labels and labels <= set(names):
            rows = [[*row, *("1" if label == row[at] else "0" for label in names)] for row in table.rows]
            return _Table([*table.header, *names], rows)
    return table


def _ids(competition: Competition, table: _Table) -> list[str] | None:
    """The id of each row: our column, or its parts joined as the spec says; None if they are not there."""
    if competition.submission.id in table.header:
        at = table.header.index(competition.submission.id)
        return [row[at] for row in table.rows]
    template = competition.prepare.parameters.get("id_from")
    parts = re.findall(r"{([^{}]+)}", template) if isinstance(template, str) else []
    if not isinstance(template, str) or not parts or not set(parts) <= set(table.header):
        return None
    return [template.format(**dict(zip(table.header, row, strict=True))) for row in table.rows]


def _in_our_form(competition: Competition, table: _Table, names: list[str], more: dict[str, list[str]]) -> _Table:
    ids = _ids(competition, table)
    if ids is None:
        raise ConfigError(
            f"{competition.slug}: no column {competition.submission.id!r} in the sample submission: {', '.join(table.header[:8])}"
        )
    kept = [*names, *(name for name in more.get("keep", []) if name != competition.submission.id)]
    places = [table.header.index(name) for name in kept]
    rows = [[one, *(row[place] for place in places)] for one, row in zip(ids, table.rows, strict=True)]
    return _Table([competition.submission.id, *kept], rows)


def _read(path: Path) -> _Table:
    csv.field_size_limit(_LARGEST_FIELD)
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            lines = csv.reader(file, strict=True)
            header = next(lines, [])
            rows = [line for line in lines if line]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ConfigError(f"{path}: {error}") from None
    if any(len(row) != len(header) for row in rows):
        raise ConfigError(f"{path}: a line has more or fewer fields than the header")
    return _Table(header, rows)


def _write(path: Path, table: _Table) -> None:
    with path.open("w", encoding="utf-8", newline="") as file:
        lines = csv.writer(file, lineterminator="\n")
        lines.writerow(table.header)
        lines.writerows(table.rows)
