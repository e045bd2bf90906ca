"""The leak lint: looks for the answers in what an agent may read, before anything is registered.

It knows the truth of the test rows, so it does not guess from names alone: it compares. What it cannot see is a leak that
needs insight (a feature that was measured after the fact); what it does see are the ones that competitions have died of.

The more columns it looks at, the likelier one of them agrees by chance; every bound grows with the number of looks.
"""

from __future__ import annotations

import itertools
import json
import math
import re
import zlib
from collections import Counter, defaultdict
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from dojo_kernel.competition import association as assoc
from dojo_kernel.competition.public_files import (
    MEDIA,
    Entry,
    Packed,
    Table,
    Text,
    as_rows,
    checksum,
    flat,
    pieces,
    read_table,
    walk,
)
from dojo_kernel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence

    from dojo_kernel.competition.association import Codes, Floats
    from dojo_kernel.competition.spec import Competition

Check = Literal[
    "answer_file", "answer_column", "answer_text", "proxy", "overlap", "related", "sample", "ids", "order", "file_facts",
    "link", "sealed",
]  # fmt: skip

_BLOCK, _WARN = 0.8, 0.65
"""AUC of something that is no feature."""
_SIZE_BLOCK = 0.97
"""The size of an image is a fact about its content, too; it has to tell nearly all."""
_FEW_CLASSES = 30
"""With fewer rows chance alone looks like a pattern."""
_OVERLAP_BLOCK, _OVERLAP_WARN = 0.1, 0.01
_SAME = 0.9
"""Share of rows on which something must agree with the truth to be the truth."""
_SURE = 0.98
"""Share on which something must tell the truth that is not the truth renamed."""
_LINE = 0.999
"""Correlation of what is the truth on another scale."""
_MOST_ROWS, _MOST_COLUMNS, _MOST_TARGETS = 10_000, 3_000, 60
_MOST_LOOKS = 20_000
"""At a column and a target together, in one table."""
_MOST_HASHED = (2_000, 10_000)
"""Media files of test and of train that are compared byte by byte."""
_MOST_RECORD_FILES = 1_000


class Finding(NamedTuple):
    """One way in which public/ tells answers."""

    check: Check
    file: str
    why: str
    blocks: bool = True

    def __str__(self) -> str:
        return f"{self.file}: {self.why} [{self.check}]"


class Target(NamedTuple):
    """One predicted column."""

    name: str
    values: list[str]
    numbers: Floats | None
    """If it is a quantity; None if it is a label or a text."""


class Truth(NamedTuple):
    """The answers, as text and by id."""

    ids: list[str]
    where: dict[str, int]
    targets: list[Target]
    sampled: bool


class Match(NamedTuple):
    """Rows of a table that have a test id, in the order of the table."""

    id_column: int
    rows: list[int]
    truth: list[int]

    def answers(self, target: Target) -> list[str]:
        """What is true of the rows."""
        return [target.values[row] for row in self.truth]

    def numbers(self, target: Target) -> Floats | None:
        """The same for a quantity."""
        return None if target.numbers is None else target.numbers[self.truth]

    def once(self) -> Match:
        """The first row of each id alone: what is said of an id again and again is said once."""
        first: dict[int, int] = {}
        for row, place in zip(self.rows, self.truth, strict=True):
            first.setdefault(place, row)
        return Match(self.id_column, list(first.values()), list(first))


def lint(competition: Competition, public: Path, private: Path) -> list[Finding]:
    """Everything suspicious about `public`, worst first. Raises ConfigError if the answers themselves cannot be read."""
    truth = _read_truth(competition, private / "answers.csv")
    entries, odd = walk(public)
    findings = [Finding("link", name, "is no regular file") for name in odd]
    copies = _Copies(private)
    test, train = (_first_table(entries, name) for name in ("test.csv", "train.csv"))
    for entry in entries:
        findings += copies.of(entry)
        for piece in pieces(entry):
            if isinstance(piece, Table):
                findings += _table(competition, piece, truth, test)
            elif isinstance(piece, Text):
                findings += _text_leaks(piece, truth)
            elif isinstance(piece, Packed):
                findings += copies.packed(piece)
            else:
                findings.append(Finding("sealed", piece.name, f"{piece.why}; nobody knows what it tells", blocks=False))
    if records := _record_files(entries, truth):
        findings += _table(competition, records, truth, test)
    if train is not None and test is not None:
        findings += _row_overlap(competition, train, test, truth)
        findings += _related(competition, train, test, truth)
    findings += _file_overlap(entries, truth)
    findings += _file_facts(entries, truth)
    return sorted(set(findings), key=lambda finding: (not finding.blocks, finding.file, finding.check, finding.why))


def _table(competition: Competition, table: Table, truth: Truth, test: Table | None) -> Iterator[Finding]:
    match = _test_rows(table, truth, competition.submission.id)
    note = f" (seen in {len(table.rows)} rows of more)" if table.sampled or truth.sampled else ""
    found: Iterable[Finding]
    if PurePosixPath(table.name).name.startswith("sample_submission"):
        found = itertools.chain(
            _sample_leaks(table, match, truth),
            () if match is None or _same_ids(competition, table, test) else _order_leaks(table, match, truth),
        )
    elif match is not None:
        found = itertools.chain(
            _column_leaks(table.name, _columns(table, match), match, truth),
            _order_leaks(table, match, truth),
            _id_leaks(table, match, truth),
        )
    else:
        found = _side_table_leaks(competition, table, test, truth)
    for one in found:
        yield one._replace(why=one.why + note)


def _same_ids(competition: Competition, table: Table, test: Table | None) -> bool:
    """Whether the rows come in the order of test.csv, where that order is looked at beside the features."""
    name = competition.submission.id
    if test is None or name not in test.header or name not in table.header:
        return False
    return test.column(test.header.index(name)) == table.column(table.header.index(name))


# --- reading ------------------------------------------------------------------------------------------------------------


def _read_truth(competition: Competition, path: Path) -> Truth:
    submission = competition.submission
    try:
        table = read_table(path, path.name)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    kept = {submission.id, competition.split.by, *competition.metric_columns.values()}
    names = [name for name in table.header if name not in kept] if table and "*" in submission.columns else [*submission.columns]
    if table is None or not names or not {submission.id, *names} <= set(table.header) or not table.rows:
        raise ConfigError(f"{path.name} must be a CSV file with rows and the columns {', '.join(submission.names)}")
    if len(names) > _MOST_TARGETS:
        names = names[:: len(names) // _MOST_TARGETS + 1]
    ids = table.column(table.header.index(submission.id))
    targets = [_target(name, table.column(table.header.index(name))) for name in names]
    return Truth(ids, {row_id: number for number, row_id in enumerate(ids)}, targets, table.sampled)


def _target(name: str, values: list[str]) -> Target:
    distinct = len(set(values))
    numbers = assoc.as_numbers(values) if distinct > max(2, min(_FEW_CLASSES, len(values) // 4)) else None
    return Target(name, values, numbers)


def _first_table(entries: Sequence[Entry], name: str) -> Table | None:
    found = sorted((entry for entry in entries if PurePosixPath(entry.name).name in {name, f"{name}.gz", f"{name}.zip"}), key=len)
    tables = (piece for entry in found[:1] for piece in pieces(entry) if isinstance(piece, Table))
    return next(tables, None)


class _Copies:
    """Files of private/ by size and checksum."""

    def __init__(self, private: Path) -> None:
        self._known = {(entry.size, checksum(entry.path)) for entry in walk(private)[0] if entry.size}
        self._sizes = {size for size, _ in self._known}

    def of(self, entry: Entry) -> Iterator[Finding]:
        if entry.size in self._sizes:
            yield from self.packed(Packed(entry.name, entry.size, checksum(entry.path)))

    def packed(self, piece: Packed) -> Iterator[Finding]:
        if (piece.size, piece.crc32) in self._known:
            yield Finding("answer_file", piece.name, "is a copy of a file in private/")


def _record_files(entries: Sequence[Entry], truth: Truth) -> Table | None:
    """One row for each JSON file that is named after a test id."""
    named = (entry for entry in entries if entry.path.suffix == ".json" and entry.path.stem in truth.where)
    rows = [
        {"": entry.path.stem, **_flat_text(piece.data)}
        for entry in itertools.islice(named, _MOST_RECORD_FILES)
        for piece in pieces(entry)
        if isinstance(piece, Text)
    ]
    return as_rows("test/*.json", rows) if len(rows) >= assoc.FEWEST_ROWS else None


def _flat_text(data: bytes) -> dict[str, str]:
    try:
        return flat(json.loads(data))
    except (ValueError, RecursionError):
        return {}


def _verdict(check: Check, file: str, why: str, power: float, block: float = _BLOCK) -> Iterator[Finding]:
    if power > _WARN:
        yield Finding(check, file, f"{why} (AUC {power:.2f})", blocks=power > block)


# --- answers beside their ids -------------------------------------------------------------------------------------------


def _test_rows(table: Table, truth: Truth, id_name: str) -> Match | None:
    """The rows that have a test id: in the column of that name, or where most are found."""
    best: Match | None = None
    for column, name in enumerate(table.header):
        rows = [number for number, row in enumerate(table.rows) if row[column] in truth.where]
        if len({table.rows[row][column] for row in rows}) < min(assoc.FEWEST_ROWS, len(truth.ids)):
            continue
        if name == id_name or best is None or len(rows) > len(best.rows):
            best = Match(column, rows, [truth.where[table.rows[row][column]] for row in rows])
        if name == id_name:
            break
    return best


def _columns(table: Table, match: Match) -> dict[str, list[str]]:
    """Column -> values in the rows of the match, without the id."""
    numbers = [number for number in range(len(table.header)) if number != match.id_column]
    return {table.header[number]: [table.rows[row][number] for row in match.rows] for number in numbers[:_MOST_COLUMNS]}


def _column_leaks(file: str, columns: Mapping[str, list[str]], match: Match, truth: Truth) -> Iterator[Finding]:
    """Columns that are the truth, renamed or on another scale, or that tell it as nothing measured before could."""
    every = max(1, len(columns) * len(truth.targets) // _MOST_LOOKS)
    targets = [one for number, one in enumerate(truth.targets) if number % every == 0 or one.name in columns]
    looks = max(1, len(columns) * len(targets))
    most = int(max(1_000, min(_MOST_ROWS, 4e7 / looks)))
    places = np.random.default_rng(0).permutation(len(match.rows))[:most]
    part = Match(match.id_column, [match.rows[place] for place in places], [match.truth[place] for place in places])
    read = {name: _Column.of([cells[place] for place in places]) for name, cells in columns.items()}
    for target in targets:
        answers = _Answers.of(part.answers(target), part.numbers(target), looks)
        for name, column in read.items():
            why = _tells(column, answers, looks)
            if why is not None:
                check, words, blocks = why
                what = (
                    f"has the column {name!r} for test ids" if name == target.name else f"column {name!r} {words} {target.name!r}"
                )
                yield Finding(check, file, what, blocks=blocks)
            elif name == target.name and len(column.distinct) > 1:
                yield Finding("answer_column", file, f"has a column {name!r} with other values than the answers", blocks=False)
        if answers.numbers is not None:
            yield from _sums(file, {name: column.quantity for name, column in read.items()}, answers.numbers, target.name)


class _Column(NamedTuple):
    """One column in the three readings that are compared with each target."""

    values: list[str]
    distinct: set[str]
    codes: Codes
    quantity: Floats | None

    @classmethod
    def of(cls, values: list[str]) -> _Column:
        return cls(values, set(values), assoc.codes(values), assoc.as_quantities(values))


class _Answers(NamedTuple):
    """What a target holds in the rows that are compared."""

    values: list[str]
    distinct: set[str]
    codes: Codes
    numbers: Floats | None
    telling: bool
    """Whether to agree with them all is more than chance."""

    @classmethod
    def of(cls, values: list[str], numbers: Floats | None, looks: int) -> _Answers:
        codes = assoc.codes(values)
        return cls(values, set(values), codes, numbers, assoc.can_be_told(codes, looks))


Tells = tuple[Check, str, bool]


def _tells(column: _Column, answers: _Answers, looks: int) -> Tells | None:
    """How a column gives the truth away, if it does."""
    if not answers.telling or len(column.distinct) == 1:
        return None
    if not column.distinct.isdisjoint(answers.distinct) and _equal(column.values, answers.values) > _SAME:
        return ("answer_column", "is", True)
    if answers.numbers is not None:
        return _tells_quantity(column.codes, column.quantity, answers.numbers)
    codes, truth = column.codes, answers.codes
    gain = assoc.gain(codes, truth) if len(column.distinct) < len(codes) else 0.0
    if gain > _SAME and len(column.distinct) <= 2 * len(answers.distinct) and assoc.gain(truth, codes) > _SAME:
        return ("answer_column", "tells", True)
    if gain > _SURE:
        return ("proxy", "alone decides", True)
    if (only := _filled_for(codes, truth, answers.values, looks)) is not None:
        return ("proxy", f"is filled or differs from its usual value just where the answer is {only}: it tells", True)
    quantity = column.quantity
    if quantity is not None and len(answers.distinct) == 2 and np.isfinite(quantity).all() and _separates(quantity, truth):  # noqa: PLR2004
        return ("proxy", "in order decides", True)
    return None


def _separates(quantity: Floats, truth: Codes) -> bool:
    """Whether one threshold tells two classes apart, but for one row in two hundred."""
    order = np.argsort(quantity, kind="stable")
    ordered = truth[order]
    ones = np.append(0, np.cumsum(ordered))
    below = np.arange(len(ordered) + 1)
    wrong = ones + (len(ordered) - ones[-1]) - (below - ones)
    wrong = wrong[1:-1][np.diff(quantity[order]) > 0]
    fewer = min(int(ones[-1]), len(ordered) - int(ones[-1]))
    return len(wrong) > 0 and min(int(wrong.min()), len(ordered) - int(wrong.max())) <= 0.02 * fewer


def _equal(values: Sequence[str], answers: Sequence[str]) -> float:
    """Share of rows in which a cell is the answer, beyond what equal frequencies give: 0 to 1."""
    same = sum(one == other for one, other in zip(values, answers, strict=True)) / len(answers)
    first, second = Counter(values), Counter(answers)
    chance = sum(count * second[value] for value, count in first.items()) / len(answers) ** 2
    return (same - chance) / (1 - chance) if chance < 1 else 0.0


def _tells_quantity(codes: Codes, quantity: Floats | None, numbers: Floats) -> Tells | None:
    if quantity is not None:
        known = np.isfinite(quantity)
        if known.sum() >= assoc.FEWEST_ROWS:
            one, other = quantity[known], numbers[known]
            if abs(assoc.pearson(one, other)) > _LINE and abs(assoc.spearman(one, other)) > _SAME:
                return ("answer_column", "tells", True)
            if len(set(one)) > _FEW_CLASSES and abs(assoc.spearman(one, other)) > _LINE:
                return ("proxy", "goes up and down with", True)
    groups = np.bincount(codes)
    if len(groups) <= len(codes) // 3 and numbers.std() > 0:
        means = np.bincount(codes, weights=numbers) / groups
        freedom = 1 - len(groups) / len(codes)
        left = float(((numbers - means[codes]) ** 2).mean()) / freedom / float(numbers.var())
        if left < 1 - _LINE and len(groups) > 1:
            return ("proxy", "alone decides", True)
    return None


def _filled_for(codes: Codes, truth: Codes, answers: Sequence[str], looks: int) -> str | None:
    """The class whose rows are just the ones in which the column has its commonest value, or has not."""
    usual = codes == int(np.bincount(codes).argmax())
    fewer = min(int(usual.sum()), int((~usual).sum()))
    if fewer < assoc.FEWEST_ROWS // 2 or not assoc.can_be_told(usual.astype(np.int64), looks):
        return None
    for label in np.flatnonzero(np.bincount(truth) >= assoc.FEWEST_ROWS // 2):
        same = (usual == (truth == label)).sum()
        if max(same, len(truth) - same) >= len(truth) - 0.02 * fewer:
            return repr(answers[int(np.flatnonzero(truth == label)[0])])
    return None


def _sums(file: str, quantities: Mapping[str, Floats | None], numbers: Floats, target: str) -> Iterator[Finding]:
    """Columns whose weighted sum is the target: arrival less departure, the casual and the registered ones."""
    usable = {name: one for name, one in quantities.items() if one is not None and np.isfinite(one).all() and np.ptp(one) > 0}
    names = list(usable)[: max(0, min(60, (len(numbers) - assoc.FEWEST_ROWS) // 3))]
    if len(names) < 2 or numbers.std() == 0:  # noqa: PLR2004 - one alone was looked at before
        return
    scaled = np.stack([usable[name] - usable[name].mean() for name in names], axis=1)
    scaled /= np.abs(scaled).max(axis=0)
    centred = (numbers - numbers.mean()) / numbers.std()
    weights, *_ = np.linalg.lstsq(scaled, centred, rcond=1e-13)
    left = float(((centred - scaled @ weights) ** 2).mean()) * len(numbers) / (len(numbers) - len(names))
    if left < 1e-6:  # noqa: PLR2004 - rounding
        heavy = sorted(zip(np.abs(weights), names, strict=True), reverse=True)[:2]
        yield Finding("proxy", file, f"{target!r} is a sum of other columns, such as {heavy[0][1]!r} and {heavy[1][1]!r}")


def _side_table_leaks(competition: Competition, table: Table, test: Table | None, truth: Truth) -> Iterator[Finding]:
    """A table keyed by something else than the id, that test.csv has too."""
    match = None if test is None else _test_rows(test, truth, competition.submission.id)
    if test is None or match is None or PurePosixPath(table.name).name in {"train.csv", "test.csv"}:
        return
    for place, name in enumerate(table.header):
        if name not in test.header:
            continue
        rows = {row[place]: row for row in table.rows}
        keys = [test.rows[row][test.header.index(name)] for row in match.rows]
        if len(rows) < max(assoc.FEWEST_ROWS, 0.9 * len(table.rows)) or sum(key in rows for key in keys) < assoc.FEWEST_ROWS:
            continue
        some = [number for number, key in enumerate(keys) if key in rows]
        part = Match(match.id_column, [match.rows[number] for number in some], [match.truth[number] for number in some])
        others = [number for number in range(len(table.header)) if number != place]
        joined = {table.header[number]: [rows[keys[one]][number] for one in some] for number in others[:_MOST_COLUMNS]}
        yield from _column_leaks(table.name, joined, part, truth)


_TOKEN = re.compile(rb"[A-Za-z0-9_.+\-]+")


def _text_leaks(text: Text, truth: Truth) -> Iterator[Finding]:
    """Ids followed by their answers in JSON, XML, text, comments of archives, metadata, pickles."""
    ids = {row_id.encode(): number for number, row_id in enumerate(truth.ids) if len(row_id) >= _LONG_ID}
    if not ids:
        return
    tokens = [match.group() for match in _TOKEN.finditer(text.data)]
    after = [(ids[token], tokens[place + 1 : place + 7]) for place, token in enumerate(tokens) if token in ids]
    if len({row for row, _ in after}) < min(assoc.FEWEST_ROWS, len(truth.ids)):
        return
    for target in truth.targets:
        blind = Counter(target.values).most_common(1)[0][1] / len(target.values)
        by_place = [
            sum(1 for row, window in after if len(window) > place and window[place] == target.values[row].encode()) / len(after)
            for place in range(6)
        ]
        if max(by_place) > max(_SAME, blind + 0.05):
            yield Finding("answer_text", text.name, f"names test ids together with {target.name!r}")


_LONG_ID = 3
"""Shorter ids appear in any text."""


# --- the sample, ids, order ---------------------------------------------------------------------------------------------


def _sample_leaks(table: Table, match: Match | None, truth: Truth) -> Iterator[Finding]:
    if match is None:
        if not (table.sampled or truth.sampled):
            yield Finding("sample", table.name, "has other ids than the answers")
        return
    for target in truth.targets:
        if target.name not in table.header:
            yield Finding("sample", table.name, f"lacks the column {target.name!r}")
            continue
        values = [table.rows[row][table.header.index(target.name)] for row in match.rows]
        answers, numbers = match.answers(target), match.numbers(target)
        if len(set(values)) == 1 or len(values) < assoc.FEWEST_ROWS:
            continue
        linked = _equal(values, answers)
        predicted, actual = assoc.as_numbers(values), numbers if numbers is not None else assoc.as_numbers(answers)
        if predicted is not None and actual is not None:
            linked = max(linked, abs(assoc.pearson(predicted, actual)), abs(assoc.spearman(predicted, actual)))
        codes, true = assoc.codes(values), assoc.codes(answers)
        if numbers is None and assoc.can_be_told(true, len(truth.targets)) and codes.max() <= 2 * true.max() + 1:
            linked = max(linked, assoc.gain(codes, true))
        if linked > 0.3 + assoc.deviations(len(truth.targets)) / math.sqrt(len(values)) or linked > _LINE:
            yield Finding("sample", table.name, f"column {target.name!r} goes with the truth ({linked:.2f})")


def _id_leaks(table: Table, match: Match, truth: Truth) -> Iterator[Finding]:
    """Parts of ids that tell the answer and stand in no other column: a label at the end, a letter in front."""
    match = match.once()
    ids = [table.rows[row][match.id_column] for row in match.rows]
    yield from _told_by_names(table.name, "ids", ids, match, truth, known=list(_columns(table, match).values()))


def _told_by_names(  # noqa: PLR0913, PLR0917 - what to say and what to look at
    file: str, check: Check, names: Sequence[str], match: Match, truth: Truth, known: Sequence[list[str]] = ()
) -> Iterator[Finding]:
    parts = _parts(names)
    looks = max(1, len(parts) * len(truth.targets))
    for target in truth.targets:
        answers, numbers = match.answers(target), match.numbers(target)
        true = assoc.codes(answers)
        telling = assoc.can_be_told(true, looks)
        for what, values in parts.items():
            codes = assoc.codes(values)
            if not telling or not codes.max() > 0:
                continue
            if numbers is None:
                told = assoc.gain(codes, true) if codes.max() < len(codes) // 3 else 0.0
                if told > 0.3 + assoc.deviations(looks) / math.sqrt(len(codes)) and not _explained(codes, known):
                    yield Finding(check, file, f"{what} of the id tells {target.name!r} ({told:.2f})")
                    break
            elif (one := assoc.as_numbers(values)) is not None:
                power = assoc.power(one, answers, numbers, looks)
                if power > _WARN and not _explained(codes, known) and not _in_order(known, np.argsort(one, kind="stable")):
                    yield from _verdict(check, file, f"{what} of the id predicts {target.name!r}", power)


def _explained(part: Codes, columns: Sequence[list[str]]) -> bool:
    """Whether a public column says the same, so that the id adds nothing."""
    return any(assoc.gain(codes, part) > _SAME for codes in map(assoc.codes, columns) if 0 < codes.max() < len(codes) // 2)


def _parts(names: Sequence[str]) -> dict[str, list[str]]:
    """What may be hidden in a name: its pieces from either end, its ends, its length."""
    split = [re.findall(r"[A-Za-z]+|\d+", name) for name in names]
    found = {"the length": [str(len(name)) for name in names]}
    for width in (1, 2):
        found[f"the first {width} letters"] = [name[:width] for name in names]
        found[f"the last {width} letters"] = [name[-width:] for name in names]
    if min(map(len, split)) > 1 and max(map(len, split)) <= 8:  # noqa: PLR2004 - no hash
        for place in range(min(map(len, split))):
            found[f"piece {place + 1}"] = [pieces[place] for pieces in split]
            found[f"piece {place + 1} from the end"] = [pieces[-1 - place] for pieces in split]
    return found


def _order_leaks(table: Table, match: Match, truth: Truth) -> Iterator[Finding]:
    match = match.once()
    ids = [table.rows[row][match.id_column] for row in match.rows]
    by_id = np.array(sorted(range(len(ids)), key=lambda place: _as_number(ids[place])))
    ranks = np.empty(len(ids))
    ranks[by_id] = np.arange(len(ids))
    facts = {"the order of rows": (np.arange(len(ids)), np.arange(len(ids), dtype=float)), "the order of ids": (by_id, ranks)}
    looks = 2 * len(truth.targets)
    explained: dict[str, bool] = {}
    for target in truth.targets:
        answers, numbers = match.answers(target), match.numbers(target)
        for fact, (order, values) in facts.items():
            runs = 0.0 if numbers is not None else _runs(assoc.codes(answers)[order], looks)
            power = max(assoc.power(values, answers, numbers, looks), runs)
            if power > _WARN and not explained.setdefault(fact, _in_order(list(_columns(table, match).values()), order)):
                yield from _verdict("order", table.name, f"{fact} predicts {target.name!r}", power)


def _in_order(columns: Iterable[list[str]], order: Codes) -> bool:
    """Whether rows come in the order of a date, or shop by shop: then they tell no more than that column does."""
    for values in columns:
        codes = assoc.codes(values)[order]
        different = int(codes.max()) + 1
        if 1 < different <= len(codes) // 2 and np.count_nonzero(np.diff(codes)) <= different - 1 + 0.02 * len(codes):
            return True
        quantity = assoc.as_quantities(values)
        if quantity is None or different <= len(codes) // 2 or not np.isfinite(quantity).all():
            continue
        if abs(assoc.spearman(quantity[order], np.arange(len(order), dtype=float))) > _LINE:
            return True
    return False


def _as_number(row_id: str) -> tuple[int, int, str]:
    for text, base in ((row_id, 10), (row_id, 16), (row_id[1:], 16)):
        try:
            return (0, int(text, base), "")
        except ValueError:
            continue
    digits = re.search(r"\d+", row_id)
    return (1, int(digits.group()), row_id) if digits else (2, 0, row_id)


def _runs(answers: Codes, looks: int) -> float:
    """0.5 when neighbours are as like as strangers, 1 when rows come class by class."""
    if len(answers) < assoc.FEWEST_ROWS:
        return 0.5
    chance = float(((np.bincount(answers) / len(answers)) ** 2).sum())
    same = float((answers[1:] == answers[:-1]).mean())
    spread = math.sqrt(chance * (1 - chance) / (len(answers) - 1))
    return 0.5 + (same - chance) / (1 - chance) / 2 if chance < 1 and same - chance > assoc.deviations(looks) * spread else 0.5


# --- files --------------------------------------------------------------------------------------------------------------


def _ids_of_files(entries: Sequence[Entry], truth: Truth) -> list[tuple[Entry, str]]:
    """Files that are named after one test id."""
    found = []
    for entry in entries:
        stem = entry.path.stem
        named = {part for part in (stem, *re.split(r"[^A-Za-z0-9]+", stem)) if part in truth.where}
        if len(named) == 1:
            found.append((entry, named.pop()))
    return found


def _file_facts(entries: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """Files that are named after test ids: do name, size or time tell the answer?"""
    named = _ids_of_files(entries, truth)
    if len(named) < assoc.FEWEST_ROWS:
        return
    match = Match(0, [], [truth.where[row_id] for _, row_id in named])
    rests = [entry.name.replace(row_id, "*") for entry, row_id in named]
    codes = assoc.codes(rests)
    looks = 3 * len(truth.targets)
    for target in truth.targets:
        answers, numbers = match.answers(target), match.numbers(target)
        for fact, block, values in (
            ("size", _SIZE_BLOCK, [entry.size for entry, _ in named]),
            ("time", _BLOCK, [entry.mtime for entry, _ in named]),
        ):
            power = assoc.power(np.array(values, dtype=float), answers, numbers, looks)
            yield from _verdict("file_facts", "test files", f"their {fact} predicts {target.name!r}", power, block)
        true = assoc.codes(answers)
        if (
            0 < codes.max() < len(codes) // 3
            and numbers is None
            and assoc.can_be_told(true, looks)
            and assoc.gain(codes, true) > 0.5  # noqa: PLR2004  half of what there is to tell
        ):
            yield Finding("file_facts", "test files", f"their names tell {target.name!r}")
    if all(entry.path.stem == row_id for entry, row_id in named):
        yield from _told_by_names("test files", "file_facts", [row_id for _, row_id in named], match, truth)


def _file_overlap(entries: Sequence[Entry], truth: Truth) -> Iterator[Finding]:
    """The same image, sound or text among the files of both sides: by size and both ends; of many files only some are read."""
    ids = {entry.name for entry, _ in _ids_of_files(entries, truth)}
    sides: dict[str, list[Entry]] = {"train": [], "test": []}
    for entry in entries:
        folders = set(re.split(r"[^a-z]+", str(PurePosixPath(entry.name).parent).lower()))
        side = "test" if "test" in folders else "train" if "train" in folders else None
        side = side or ("test" if entry.name in ids else "train" if ids and entry.path.suffix.lower() in MEDIA else None)
        if side and "/" in entry.name and entry.size:
            sides[side].append(entry)
    common = {entry.size for entry in sides["train"]} & {entry.size for entry in sides["test"]}
    if not common:
        return
    looked = {side: _some(found, most) for (side, found), most in zip(sides.items(), reversed(_MOST_HASHED), strict=True)}
    train = Counter(_digest(entry) for entry in looked["train"] if entry.size in common)
    twins = sum(_digest(entry) in train for entry in looked["test"] if entry.size in common)
    coverage = len(looked["train"]) / len(sides["train"])
    share = min(1.0, twins / len(looked["test"]) / coverage)
    chance = sum(count for count in train.values() if count > 1) / len(looked["train"]) / coverage
    part = "" if len(looked["test"]) == len(sides["test"]) and coverage == 1 else f" (estimated from {len(looked['test'])} files)"
    if share - min(1.0, chance) > _OVERLAP_WARN + _spread(chance, len(looked["test"]), len(looked["train"])):
        folder = f"{sides['test'][0].name.split('/')[0]}/"
        yield Finding("overlap", folder, f"{share:.0%} of its files are in train too{part}", blocks=share > _OVERLAP_BLOCK)


def _some(entries: Sequence[Entry], most: int) -> list[Entry]:
    return (
        list(entries) if len(entries) <= most else [entries[i] for i in np.random.default_rng(0).permutation(len(entries))[:most]]
    )


def _digest(entry: Entry) -> tuple[int, int]:
    with entry.path.open("rb") as file:
        ends = zlib.crc32(file.read(2**15))
        if entry.size > 2**15:
            file.seek(max(2**15, entry.size - 2**15))
            ends = zlib.crc32(file.read(2**15), ends)
    return entry.size, ends


# --- the same thing on both sides ---------------------------------------------------------------------------------------


def _spread(chance: float, tests: int, trains: int) -> float:
    """Four standard deviations of a share that is guessed from few rows."""
    careful = (min(1.0, chance) * tests + 2) / (tests + 4)
    return 4 * math.sqrt(careful * (1 - careful) * (1 / tests + 1 / max(1, trains)))


def _row_overlap(competition: Competition, train: Table, test: Table, truth: Truth) -> Iterator[Finding]:
    """Rows of test.csv that stand in train.csv: more of them than coarse features make by themselves, or with the answer."""
    targets = {competition.submission.id, *(target.name for target in truth.targets)}
    shared = [name for name in test.header if name in train.header and name not in targets]
    shared = [name for name in shared if not _another_id(name, train, test)]
    if not shared or not test.rows or not train.rows:
        return
    known: dict[tuple[str, ...], list[int]] = defaultdict(list)
    for number, key in enumerate(_features(train, shared)):
        known[key].append(number)
    twins = [known.get(key, []) for key in _features(test, shared)]
    share = sum(map(bool, twins)) / len(test.rows)
    chance = sum(len(same) for same in known.values() if len(same) > 1) / len(train.rows)
    if share - chance > _OVERLAP_WARN + _spread(chance, len(test.rows), len(train.rows)):
        part = f" (of {len(test.rows)} rows that were compared)" if test.sampled or train.sampled else ""
        yield Finding("overlap", "test.csv", f"{share:.0%} of its rows are in train too{part}", blocks=share > _OVERLAP_BLOCK)
        return
    for name in train.header:
        if share > _OVERLAP_WARN and name not in test.header and _read_off(competition, train, name, test, twins, truth):
            why = f"{share:.0%} of its rows are in train too, and {name!r} there tells their answers"
            yield Finding("overlap", "test.csv", why, blocks=share > _OVERLAP_BLOCK)


def _another_id(name: str, train: Table, test: Table) -> bool:
    """A name, a path or a number of each row, by which no two rows are ever equal."""
    one, other = (table.column(table.header.index(name)) for table in (train, test))
    values = {*one, *other}
    return len(values) == len(one) + len(other) and not all("." in value for value in one[:20])


def _features(table: Table, names: Sequence[str]) -> list[tuple[str, ...]]:
    places = [table.header.index(name) for name in names]
    return [tuple(row[place] for place in places) for row in table.rows]


def _read_off(  # noqa: PLR0913, PLR0917 - two tables, and what is known of both
    competition: Competition, train: Table, name: str, test: Table, twins: Sequence[Sequence[int]], truth: Truth
) -> bool:
    """Whether what `name` says in the equal rows of train is the answer of nearly every row of test that has some."""
    return _told_by_twins(competition, train, name, test, twins, truth) > _SAME


def _told_by_twins(  # noqa: PLR0913, PLR0917 - as above
    competition: Competition, train: Table, name: str, test: Table, twins: Sequence[Sequence[int]], truth: Truth
) -> float:
    """How far the answers of test rows are what `name` says in their rows of train: 0 to 1, at its best over the targets."""
    match = _test_rows(test, truth, competition.submission.id)
    if match is None:
        return 0.0
    place = train.header.index(name)
    pairs = [(twins[row], answer) for row, answer in zip(match.rows, match.truth, strict=True) if twins[row]]
    if len(pairs) < assoc.FEWEST_ROWS:
        return 0.0
    said = [[train.rows[row][place] for row in same[:100]] for same, _ in pairs]
    best = 0.0
    for target in [one for one in truth.targets if one.name == name] or truth.targets:
        if target.numbers is None:
            answers = assoc.codes([target.values[row] for _, row in pairs])
            modes = assoc.codes([Counter(values).most_common(1)[0][0] for values in said])
            if assoc.can_be_told(answers, len(truth.targets)):
                best = max(best, min(assoc.gain(modes, answers), assoc.gain(answers, modes)))
        elif all(assoc.as_numbers(values) is not None for values in said):
            # noisy twins of a strong feature tell much, but not the answer itself
            means = np.array([np.array(values, dtype=float).mean() for values in said])
            linked = abs(assoc.pearson(means, target.numbers[[row for _, row in pairs]]))
            best = max(best, 1.0 if linked > _LINE else 0.5 * linked)
    return best


_NAMED_GROUP = re.compile(
    r"(?i:(^|[_\s])(id|group|patient|user|session|subject|person|author|slide|scene|clip|frame|breath)s?$)|[a-z]Id$"
)


def _related(competition: Competition, train: Table, test: Table, truth: Truth) -> Iterator[Finding]:
    """Rows of one match, patient or session on both sides, whose labels in train tell those in test."""
    only_train = [name for name in train.header if name not in test.header][:20]
    for name in test.header[:_MOST_COLUMNS]:
        if name not in train.header or name == competition.submission.id:
            continue
        rows: dict[str, list[int]] = defaultdict(list)
        for number, value in enumerate(train.column(train.header.index(name))):
            rows[value].append(number)
        if not assoc.FEWEST_ROWS <= len(rows) <= len(train.rows) / 1.5:
            continue
        keys = test.column(test.header.index(name))
        twins = [rows.get(key, []) for key in keys]
        share = sum(map(bool, twins)) / len(keys)
        if share < _OVERLAP_BLOCK:
            continue
        told = max((_told_by_twins(competition, train, other, test, twins, truth) for other in only_train), default=0.0)
        size = len(train.rows) / len(rows)
        if told > _SAME:
            why = f"{share:.0%} of its rows have relatives of the same {name!r} in train, whose labels tell theirs"
            yield Finding("related", "test.csv", why)
        elif share > _SAME and size < 100 and _NAMED_GROUP.search(name):  # noqa: PLR2004 - no category
            why = f"{share:.0%} of its rows have relatives of the same {name!r} in train ({size:.0f} rows each)"
            yield Finding("related", "test.csv", why, blocks=False)


__all__ = ["Finding", "lint"]
