"""The leak lint: looks for the answers in what an agent may read, before anything is registered.

It knows the truth of the test rows, so it does not guess from names alone: it compares. What it cannot see is a leak that
needs insight (a feature that was measured after the fact); what it does see are the ones that competitions have died of.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import re
import zipfile
from collections import Counter, defaultdict
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from dojo_kernel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from dojo_kernel.competition.spec import Competition

Check = Literal["answer_file", "answer_column", "answer_text", "overlap", "sample", "order", "file_facts", "link"]
Floats = npt.NDArray[np.float64]

_BLOCK, _WARN = 0.8, 0.6  # AUC of something that is no feature
_MOST_BYTES = 64 * 2**20
_FEW_CLASSES = 30
_FEWEST_ROWS = 20
"""With fewer rows chance alone looks like a pattern."""
_OVERLAP_BLOCK, _OVERLAP_WARN = 0.1, 0.01
_SAME = 0.9
"""Share of rows on which something must agree with the truth to be the truth."""


class Finding(NamedTuple):
    """One way in which public/ tells answers."""

    check: Check
    file: str
    why: str
    blocks: bool = True

    def __str__(self) -> str:
        return f"{self.file}: {self.why} [{self.check}]"


class Truth(NamedTuple):
    """The answers, as text and by id."""

    path: Path
    ids: list[str]
    columns: dict[str, list[str]]
    """Predicted column -> values in the order of `ids`."""

    def numbers(self, column: str) -> Floats | None:
        """The column as numbers if it is a quantity; None if it is a label."""
        values = self.columns[column]
        if len(set(values)) <= _FEW_CLASSES:
            return None
        try:
            return np.array(values, dtype=float)
        except ValueError:
            return None


class Table(NamedTuple):
    """One table in public/."""

    name: str
    header: list[str]
    rows: list[list[str]]


def lint(competition: Competition, public: Path, private: Path) -> list[Finding]:
    """Everything suspicious about `public`, worst first. Raises ConfigError if the answers themselves cannot be read."""
    truth = _read_truth(competition, private / "answers.csv")
    findings: list[Finding] = []
    tables: list[Table] = []
    hashes: dict[str, dict[str, str]] = defaultdict(dict)
    answers_sha256 = {hashlib.sha256(path.read_bytes()).hexdigest() for path in private.rglob("*") if path.is_file()}
    files = sorted(path for path in public.rglob("*") if not path.is_dir() or path.is_symlink())
    for path in files:
        name = path.relative_to(public).as_posix()
        if path.is_symlink() or not path.is_file():
            findings.append(Finding("link", name, "is no regular file"))
            continue
        for inner, data in _contents(path, name):
            digest = hashlib.sha256(data).hexdigest()
            if digest in answers_sha256:
                findings.append(Finding("answer_file", inner, "is a copy of a file in private/"))
            elif (table := _as_table(inner, data)) is not None:
                tables.append(table)
            else:
                hashes[inner.split("/")[0]][inner] = digest
                findings += _text_leaks(inner, data, truth)
    for table in tables:
        if Path(table.name).name.startswith("sample_submission"):
            findings += _sample_leaks(competition, table, truth)
        else:
            findings += _table_leaks(competition, table, truth)
        findings += _order_leaks(competition, table, truth)
    findings += _row_overlap(competition, tables, truth)
    findings += _file_overlap(hashes)
    findings += _file_facts(public, files, truth)
    return sorted(set(findings), key=lambda finding: (not finding.blocks, finding.file, finding.check))


# --- reading ------------------------------------------------------------------------------------------------------------


def _read_truth(competition: Competition, path: Path) -> Truth:
    table = _as_table(path.name, path.read_bytes())
    submission = competition.submission
    if table is None or not {submission.id, *submission.columns} <= set(table.header) or not table.rows:
        raise ConfigError(f"{path.name} must be a CSV file with rows and the columns {', '.join(submission.names)}")
    cells = {name: [row[table.header.index(name)] for row in table.rows] for name in submission.names}
    return Truth(path, cells[submission.id], {name: cells[name] for name in submission.columns})


def _contents(path: Path, name: str) -> Iterator[tuple[str, bytes]]:
    """The file's bytes and, one level deep, what is packed into it; of huge files the beginning."""
    with path.open("rb") as file:
        data = file.read(_MOST_BYTES)
    yield name, data
    if path.suffix == ".gz":
        try:
            with gzip.open(path) as unpacked:
                yield name.removesuffix(".gz"), unpacked.read(_MOST_BYTES)
        except (OSError, EOFError):
            return
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for member in archive.infolist():
                if not member.is_dir() and not member.flag_bits & 1:
                    with archive.open(member) as inner:
                        yield f"{name}/{member.filename}", inner.read(_MOST_BYTES)


def _as_table(name: str, data: bytes) -> Table | None:
    suffix = Path(name).suffix.lower()
    if suffix not in {".csv", ".tsv"}:
        return None
    text = data.decode("utf-8-sig", errors="replace")
    try:
        lines = list(csv.reader(io.StringIO(text, newline=""), delimiter="\t" if suffix == ".tsv" else ","))
    except csv.Error:
        return None
    if not lines or not lines[0]:
        return None
    width = len(lines[0])
    return Table(name, lines[0], [line for line in lines[1:] if len(line) == width])


# --- answers beside their ids -------------------------------------------------------------------------------------------


def _test_rows(table: Table, truth: Truth) -> tuple[int, list[int], list[int]] | None:
    """(column that holds test ids, rows of the table, the same rows in the truth)."""
    where = {row_id: number for number, row_id in enumerate(truth.ids)}
    best: tuple[int, list[int], list[int]] | None = None
    for column in range(len(table.header)):
        rows = [number for number, row in enumerate(table.rows) if row[column] in where]
        if len(rows) >= min(_FEWEST_ROWS, len(truth.ids)) and (best is None or len(rows) > len(best[1])):
            best = (column, rows, [where[table.rows[number][column]] for number in rows])
    return best


def _table_leaks(competition: Competition, table: Table, truth: Truth) -> Iterator[Finding]:
    found = _test_rows(table, truth)
    if found is None:
        return
    id_column, rows, matching = found
    for number, name in enumerate(table.header):
        if number == id_column:
            continue
        values = [table.rows[row][number] for row in rows]
        if name in truth.columns and any(values):
            yield Finding("answer_column", table.name, f"has the column {name!r} for test ids")
        for target, all_answers in truth.columns.items():
            answers = [all_answers[row] for row in matching]
            if name != target and _tells(values, answers, truth.numbers(target) is not None):
                yield Finding("answer_column", table.name, f"column {name!r} tells {target!r} of test rows")
    del competition


def _tells(values: Sequence[str], answers: Sequence[str], quantity: bool) -> bool:  # noqa: FBT001
    """Whether a column is the truth: equal, renamed one to one, or a straight line through it."""
    if len(answers) < _FEWEST_ROWS or len(set(answers)) < 2:  # noqa: PLR2004 - a constant tells nothing
        return False
    if quantity:
        pair = _numbers(values)
        return pair is not None and abs(_correlation(pair, np.array(answers, dtype=float))) > 0.999  # noqa: PLR2004
    if len(set(values)) > 2 * len(set(answers)):
        return False
    return _gain(values, answers) > _SAME and _gain(answers, values) > _SAME


def _gain(values: Sequence[str], answers: Sequence[str]) -> float:
    """How much better than always saying the commonest answer it is to look at the value first: 0 to 1."""
    groups: dict[str, Counter[str]] = defaultdict(Counter)
    for value, answer in zip(values, answers, strict=True):
        groups[value][answer] += 1
    right = sum(counter.most_common(1)[0][1] for counter in groups.values())
    blind = Counter(answers).most_common(1)[0][1]
    return (right - blind) / (len(answers) - blind) if len(answers) > blind else 0.0


def _numbers(values: Sequence[str]) -> Floats | None:
    try:
        numbers = np.array(values, dtype=float)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


def _correlation(one: Floats, other: Floats) -> float:
    if one.std() == 0 or other.std() == 0:
        return 0.0
    return float(np.corrcoef(one, other)[0, 1])


_TOKEN = re.compile(rb"[A-Za-z0-9_.+\-]+")


def _text_leaks(name: str, data: bytes, truth: Truth) -> Iterator[Finding]:
    """Ids followed by their answers in JSON, XML, text, comments of archives, metadata, pickles."""
    ids = {row_id.encode(): number for number, row_id in enumerate(truth.ids) if len(row_id) >= _LONG_ID}
    if not ids:
        return
    tokens = [match.group() for match in _TOKEN.finditer(data)]
    after = [(ids[token], tokens[place + 1 : place + 7]) for place, token in enumerate(tokens) if token in ids]
    if len({row for row, _ in after}) < min(_FEWEST_ROWS, len(truth.ids)):
        return
    for target, answers in truth.columns.items():
        blind = Counter(answers).most_common(1)[0][1] / len(answers)
        by_place = [
            sum(1 for row, window in after if len(window) > place and window[place] == answers[row].encode()) / len(after)
            for place in range(6)
        ]
        if max(by_place) > max(_SAME, blind + 0.05):
            yield Finding("answer_text", name, f"names test ids together with {target!r}")


_LONG_ID = 3
"""Shorter ids appear in any text."""


# --- the sample, order, files -------------------------------------------------------------------------------------------


def _sample_leaks(competition: Competition, table: Table, truth: Truth) -> Iterator[Finding]:
    found = _test_rows(table, truth)
    if found is None:
        yield Finding("sample", table.name, "has other ids than the answers")
        return
    _, rows, matching = found
    for target in competition.submission.columns:
        if target not in table.header:
            yield Finding("sample", table.name, f"lacks the column {target!r}")
            continue
        values = [table.rows[row][table.header.index(target)] for row in rows]
        answers = [truth.columns[target][row] for row in matching]
        if len(set(values)) == 1 or len(values) < _FEWEST_ROWS:
            continue
        predicted, actual = _numbers(values), _numbers(answers)
        linked = abs(_correlation(predicted, actual)) if predicted is not None and actual is not None else 0.0
        if truth.numbers(target) is None and len(set(values)) <= 2 * len(set(answers)):
            linked = max(linked, _gain(values, answers))
        if linked > 0.3 + 3 / len(values) ** 0.5:
            yield Finding("sample", table.name, f"column {target!r} goes with the truth ({linked:.2f})")


def _order_leaks(competition: Competition, table: Table, truth: Truth) -> Iterator[Finding]:
    found = _test_rows(table, truth)
    if found is None:
        return
    id_column, rows, matching = found
    by_id = sorted(range(len(rows)), key=lambda place: _as_number(table.rows[rows[place]][id_column]))
    ranks = np.empty(len(rows))
    ranks[by_id] = np.arange(len(rows))
    for target, all_answers in truth.columns.items():
        answers = [all_answers[row] for row in matching]
        quantity = truth.numbers(target) is not None
        facts = {"the order of rows": np.arange(len(rows), dtype=float), "the order of ids": ranks}
        neighbours = {"the order of rows": answers, "the order of ids": [answers[place] for place in by_id]}
        for fact, values in facts.items():
            power = max(_power(values, answers, quantity=quantity), 0.0 if quantity else _runs(neighbours[fact]))
            yield from _verdict("order", table.name, f"{fact} predicts {target!r}", power, len(rows))
    del competition


def _as_number(row_id: str) -> tuple[int, int, str]:
    for text, base in ((row_id, 10), (row_id, 16), (row_id[1:], 16)):
        try:
            return (0, int(text, base), "")
        except ValueError:
            continue
    digits = re.search(r"\d+", row_id)
    return (1, int(digits.group()), row_id) if digits else (2, 0, row_id)


def _power(values: Floats, answers: Sequence[str], *, quantity: bool) -> float:
    """AUC of the class that the values tell best, or its like for a quantity: 0.5 is chance, 1 is certainty."""
    if len(answers) < _FEWEST_ROWS or np.ptp(values) == 0:
        return 0.5
    ranks = _ranks(values)
    if quantity:
        return 0.5 + abs(_correlation(ranks, _ranks(np.array(answers, dtype=float)))) / 2
    best = 0.5
    array = np.array(answers)
    for label, count in Counter(answers).items():
        other = len(answers) - count
        if count < _FEWEST_ROWS // 2 or not other:
            continue
        auc = (ranks[array == label].sum() - count * (count - 1) / 2) / (count * other)
        spread = (1 / 12 * (1 / count + 1 / other)) ** 0.5
        best = max(best, min(1.0, 0.5 + max(0.0, abs(auc - 0.5) - 2 * spread)))
    return float(best)


def _ranks(values: Floats) -> Floats:
    """From 0; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    shared: Floats = starts + (counts - 1) / 2
    ranks: Floats = shared[inverse]
    return ranks


def _runs(answers: Sequence[str]) -> float:
    """0.5 when neighbours are as like as strangers, 1 when rows come class by class."""
    if len(answers) < _FEWEST_ROWS:
        return 0.5
    chance = sum((count / len(answers)) ** 2 for count in Counter(answers).values())
    same = sum(one == other for one, other in pairwise(answers)) / (len(answers) - 1)
    return 0.5 + max(0.0, (same - chance) / (1 - chance)) / 2 if chance < 1 else 0.5


def _verdict(check: Check, file: str, why: str, power: float, rows: int) -> Iterator[Finding]:
    if power > _BLOCK:
        yield Finding(check, file, f"{why} (AUC {power:.2f})")
    elif power > max(_WARN, 0.5 + 2 / rows**0.5):
        yield Finding(check, file, f"{why} (AUC {power:.2f})", blocks=False)


def _file_facts(public: Path, files: Sequence[Path], truth: Truth) -> Iterator[Finding]:
    """Files that are named after test ids: do name, size or time tell the answer?"""
    where = {row_id: number for number, row_id in enumerate(truth.ids)}
    rows: list[int] = []
    sizes: list[float] = []
    times: list[float] = []
    rests: list[str] = []
    for path in files:
        parts = {path.stem, *re.split(r"[^A-Za-z0-9]+", path.stem)}
        named = [part for part in parts if part in where]
        if path.is_symlink() or len(named) != 1:
            continue
        facts = path.stat()
        rows.append(where[named[0]])
        sizes.append(facts.st_size)
        times.append(facts.st_mtime)
        rests.append(path.relative_to(public).as_posix().replace(named[0], "*"))
    if len(rows) < _FEWEST_ROWS:
        return
    for target, all_answers in truth.columns.items():
        answers = [all_answers[row] for row in rows]
        quantity = truth.numbers(target) is not None
        for fact, values in (("size", sizes), ("time", times)):
            power = _power(np.array(values), answers, quantity=quantity)
            yield from _verdict("file_facts", "test files", f"their {fact} predicts {target!r}", power, len(rows))
        if 1 < len(set(rests)) <= max(_FEW_CLASSES, 2 * len(set(answers))) and _gain(rests, answers) > 0.5:  # noqa: PLR2004
            yield Finding("file_facts", "test files", f"their names tell {target!r}")


# --- the same thing on both sides ---------------------------------------------------------------------------------------


def _row_overlap(competition: Competition, tables: Sequence[Table], truth: Truth) -> Iterator[Finding]:
    """Rows of test.csv that stand in train.csv: more of them than coarse features make by themselves, or with the answer."""
    by_name = {Path(table.name).name: table for table in tables}
    train, test = by_name.get("train.csv"), by_name.get("test.csv")
    if train is None or test is None or not test.rows:
        return
    shared = [name for name in test.header if name in train.header and name not in competition.submission.names]
    if not shared:
        return
    known: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, key in enumerate(_features(train, shared)):
        known[key].append(number)
    twins = [known.get(key, []) for key in _features(test, shared)]
    share = sum(map(bool, twins)) / len(test.rows)
    chance = sum(len(same) for same in known.values() if len(same) > 1) / max(1, len(train.rows))
    spread = (chance * (1 - chance) / len(test.rows)) ** 0.5
    if share - chance - 2 * spread > _OVERLAP_WARN:
        yield from _overlap("test.csv", share, "rows")
        return
    for name in train.header:
        if share > _OVERLAP_WARN and name not in test.header and _read_off(train, name, test, twins, truth):
            why = f"{share:.0%} of its rows are in train too, and {name!r} there tells their answers"
            yield Finding("overlap", "test.csv", why, blocks=share > _OVERLAP_BLOCK)


def _features(table: Table, names: Sequence[str]) -> list[tuple[str, ...]]:
    places = [table.header.index(name) for name in names]
    return [tuple(row[place] for place in places) for row in table.rows]


def _read_off(train: Table, name: str, test: Table, twins: Sequence[Sequence[int]], truth: Truth) -> bool:
    """Whether what `name` says in the equal rows of train is the answer of nearly every row of test that has some."""
    found = _test_rows(test, truth)
    if found is None:
        return False
    place = train.header.index(name)
    pairs = [(twins[row], answer) for row, answer in zip(found[1], found[2], strict=True) if twins[row]]
    if len(pairs) < _FEWEST_ROWS:
        return False
    said = [[train.rows[row][place] for row in same] for same, _ in pairs]
    for target, all_answers in truth.columns.items():
        answers = [all_answers[row] for _, row in pairs]
        if truth.numbers(target) is None:
            if _tells([Counter(values).most_common(1)[0][0] for values in said], answers, quantity=False):
                return True
        elif all(_numbers(values) is not None for values in said):
            means = [str(np.array(values, dtype=float).mean()) for values in said]
            if _tells(means, answers, quantity=True):  # noisy twins of a strong feature tell much, but not the answer itself
                return True
    return False


def _file_overlap(hashes: dict[str, dict[str, str]]) -> Iterator[Finding]:
    known = set(hashes.get("train", {}).values())
    test = hashes.get("test", {})
    if known and test:
        yield from _overlap("test/", sum(digest in known for digest in test.values()) / len(test), "files")


def _overlap(file: str, share: float, what: str) -> Iterator[Finding]:
    if share > _OVERLAP_WARN:
        yield Finding("overlap", file, f"{share:.0%} of its {what} are in train too", blocks=share > _OVERLAP_BLOCK)


__all__ = ["Finding", "lint"]
