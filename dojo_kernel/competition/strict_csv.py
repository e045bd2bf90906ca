"""Strict reading of a submission: bytes -> columns aligned by id, or a SubmissionError.

Nothing is guessed: ids are exact strings, a number is ASCII and finite, the columns are exactly those asked for. What is
forgiven: a byte-order mark, any line ending, blank lines, any order of rows and columns, quotes, spaces around a number.

There are two readers. The quick one takes plain files (no quotes, no blank lines, as many lines as there are ids) and
gives up on anything else; the exact one then reads line by line, and only it judges. Messages name lines and columns of
the submitter's own file and never repeat its content. Run it in a process with memory and CPU limits.
"""

from __future__ import annotations

import csv
import io
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dojo_kernel.errors import SubmissionError

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from dojo_kernel.competition.spec import Column

Array = npt.NDArray[Any]

_LARGEST = 1e100
_LARGEST_INTEGER = 2.0**53
_LONGEST_NUMBER = 500
_LONGEST_FIELD = 100_000
_LONGEST_LINE = 1_000_000
_NUMBER_CHARACTERS = b"0123456789+-.eE \t"
_BOM = b"\xef\xbb\xbf"


@dataclass(frozen=True)
class Wanted:
    """What a submission must hold."""

    id: str
    columns: Mapping[str, Column]
    index: Mapping[str, int]
    """Id -> place of its row in the result."""
    low: float = -_LARGEST
    """No number may be below it."""
    high: float = _LARGEST


def read(raw: bytes, wanted: Wanted) -> dict[str, Array]:
    """Column -> float64 or object (str) array, rows in the order of `wanted.index`. Raises SubmissionError."""
    quick = _read_quickly(raw, wanted)
    return quick if quick is not None else read_exactly(raw, wanted)


# --- the quick reader ------------------------------------------------------------------------------------------------


def plain_columns(raw: bytes) -> dict[str, list[str]] | None:
    """Columns of a rectangular CSV file without quotes or blank lines; None for any other file."""
    if b"\r" in raw:
        raw = raw.replace(b"\r\n", b"\n")
    raw = raw.removeprefix(_BOM).removesuffix(b"\n")
    if b'"' in raw or b"\0" in raw or b"\r" in raw or b"\n\n" in raw or raw.startswith(b"\n"):
        return None
    separators = np.frombuffer(raw, dtype=np.uint8)
    places = np.flatnonzero((separators == ord(",")) | (separators == ord("\n")))
    width = raw.partition(b"\n")[0].count(b",") + 1
    if not len(places) or (len(places) + 1) % width or np.diff(places, prepend=-1, append=len(raw)).max() > _LONGEST_FIELD:
        return None
    kinds = np.append(separators[places], ord("\n")).reshape(-1, width)
    if np.any(kinds[:, -1] != ord("\n")) or np.any(kinds[:, :-1] != ord(",")):
        return None
    try:
        fields = raw.decode("utf-8").replace("\n", ",").split(",")
    except UnicodeDecodeError:
        return None
    header = fields[:width]
    if len(set(header)) < width:
        return None
    return {name: fields[width + place :: width] for place, name in enumerate(header)}


def _read_quickly(raw: bytes, wanted: Wanted) -> dict[str, Array] | None:
    rows = len(wanted.index)
    if not rows <= raw.count(b"\n") <= rows + 1 or raw[:_LONGEST_FIELD].partition(b"\n")[0].count(b",") != len(wanted.columns):
        return None
    columns = plain_columns(raw)
    if columns is None or set(columns) != {wanted.id, *wanted.columns}:
        return None
    found = [wanted.index.get(one, -1) for one in columns[wanted.id]]
    places = np.array(found, dtype=np.int64)
    if len(places) != rows or places.min() < 0 or np.bincount(places, minlength=rows).max() != 1:
        return None
    result = {}
    for name, kind in wanted.columns.items():
        values = _values(columns[name], kind, wanted)
        if values is None:
            return None
        aligned = np.empty_like(values)
        aligned[places] = values
        result[name] = aligned
    return result


def _values(fields: list[str], kind: Column, wanted: Wanted) -> Array | None:
    if kind in ("int", "float"):
        return numbers(fields, wanted.low, wanted.high, whole=kind == "int")
    if (isinstance(kind, tuple) and not set(fields) <= set(kind)) or "" in fields:
        return None
    return np.array(fields, dtype=object)


def numbers(fields: Sequence[str], low: float, high: float, *, whole: bool) -> Array | None:
    """All fields as float64, or None if one is not a number between `low` and `high`."""
    joined = "".join(fields)
    if not joined.isascii() or joined.encode().translate(None, _NUMBER_CHARACTERS):
        return None
    if max(map(len, fields)) > _LONGEST_NUMBER:
        return None
    try:
        values = np.fromiter(map(float, fields), dtype=np.float64, count=len(fields))
    except ValueError:
        return None
    if not (values.min() >= low and values.max() <= high):
        return None
    if whole and (np.any(values != np.floor(values)) or np.abs(values).max() > _LARGEST_INTEGER):
        return None
    return values


# --- the exact reader ------------------------------------------------------------------------------------------------


def read_exactly(raw: bytes, wanted: Wanted) -> dict[str, Array]:
    """The same as `read`, line by line; it alone decides what is wrong with a file."""
    if not raw.removeprefix(_BOM).strip():
        raise SubmissionError("empty", "the file is empty")
    lines = csv.reader(_lines(raw), strict=True)
    before = csv.field_size_limit(_LONGEST_FIELD)
    try:
        return _read_rows(lines, wanted)
    except csv.Error as error:
        raise SubmissionError("csv", f"line {lines.line_num}: {_harmless(error)}") from None
    except UnicodeDecodeError:
        raise SubmissionError("encoding", f"after line {lines.line_num}: not UTF-8") from None
    finally:
        csv.field_size_limit(before)


def _harmless(error: csv.Error) -> str:
    text = str(error)
    if "field larger" in text:
        return f"a field of more than {_LONGEST_FIELD} bytes"
    return "the quotes do not match" if "expected after" in text or "end of data" in text else "not a CSV file"


def _lines(raw: bytes) -> Iterator[str]:
    text = io.TextIOWrapper(io.BytesIO(raw.removeprefix(_BOM)), encoding="utf-8", newline="")
    number = 0
    while line := text.readline(_LONGEST_LINE + 1):
        number += 1
        if len(line) > _LONGEST_LINE:
            raise SubmissionError("too_long", f"line {number}: more than {_LONGEST_LINE} characters")
        if "\0" in line:
            raise SubmissionError("nul", f"line {number}: a NUL byte")
        yield line


def _read_rows(lines: Any, wanted: Wanted) -> dict[str, Array]:
    names = [wanted.id, *wanted.columns]
    header: list[str] = next((row for row in lines if row), [])
    if sorted(header) != sorted(names):
        raise SubmissionError("header", f"the columns must be {','.join(names)}; {_difference(header, names)}")
    at = {name: header.index(name) for name in names}
    rows = len(wanted.index)
    result: dict[str, Array] = {
        name: np.empty(rows, dtype=np.float64 if kind in ("int", "float") else object) for name, kind in wanted.columns.items()
    }
    seen = bytearray(rows)
    most_lines = 4 * rows + 1000
    for row in lines:
        line = lines.line_num
        if line > most_lines:
            raise SubmissionError("too_long", f"more than {most_lines} lines")
        if not row:
            continue
        if len(row) != len(header):
            raise SubmissionError("ragged", f"line {line}: {len(row)} fields instead of {len(header)}")
        place = wanted.index.get(row[at[wanted.id]])
        if place is None:
            raise SubmissionError("unknown_id", f"line {line}: the id is not one of the rows to predict")
        if seen[place]:
            raise SubmissionError("duplicate_id", f"line {line}: the id has come before")
        seen[place] = 1
        for name, kind in wanted.columns.items():
            result[name][place] = _value(row[at[name]], kind, wanted, f"line {line}, column {name}")
    missing = rows - sum(seen)
    if missing:
        raise SubmissionError("missing_ids", f"{missing} of {rows} rows to predict are missing")
    return result


def _difference(header: list[str], names: list[str]) -> str:
    missing = [name for name in names if name not in header]
    if missing:
        return f"missing: {','.join(missing[:5])}"
    return f"there are {len(header)} columns instead of {len(names)}"


def _value(field: str, kind: Column, wanted: Wanted, where: str) -> float | str:
    if kind in ("int", "float"):
        return _number(field, wanted, where, whole=kind == "int")
    if not field:
        raise SubmissionError("blank", f"{where}: blank")
    if isinstance(kind, tuple) and field not in kind:
        raise SubmissionError("unknown_label", f"{where}: not one of the labels that are allowed")
    return field


def _number(field: str, wanted: Wanted, where: str, *, whole: bool) -> float:
    if not field.strip(" \t"):
        raise SubmissionError("blank", f"{where}: blank")
    if len(field) > _LONGEST_NUMBER or not field.isascii() or field.encode().translate(None, _NUMBER_CHARACTERS):
        known = field.strip(" \t").lower().lstrip("+-") in ("nan", "inf", "infinity")
        raise SubmissionError("not_finite" if known else "not_a_number", f"{where}: not a finite number")
    try:
        value = float(field)
    except ValueError:
        raise SubmissionError("not_a_number", f"{where}: not a number") from None
    if not math.isfinite(value) or abs(value) > _LARGEST:
        raise SubmissionError("not_finite", f"{where}: larger than {_LARGEST:g}")
    if not wanted.low <= value <= wanted.high:
        raise SubmissionError("out_of_range", f"{where}: not between {wanted.low:g} and {wanted.high:g}")
    if whole and (value != math.floor(value) or abs(value) > _LARGEST_INTEGER):
        raise SubmissionError("not_an_integer", f"{where}: not a whole number")
    return value
