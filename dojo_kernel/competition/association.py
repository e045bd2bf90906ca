"""How much one column tells of another, by measures that chance does not pass however many columns are looked at."""

from __future__ import annotations

import math
import re
from collections import Counter
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from collections.abc import Sequence

Floats = npt.NDArray[np.float64]
Codes = npt.NDArray[np.int64]

FEWEST_ROWS = 20
"""Of fewer nothing can be said."""


def deviations(looks: int) -> float:
    """How many standard deviations the largest of so many looks stays below, but for one time in a thousand."""
    return math.sqrt(2 * math.log(1000 * max(1, looks)))


def codes(values: Sequence[str]) -> Codes:
    """Each value as a number, from 0, in the order they come in."""
    known: dict[str, int] = {}
    return np.array([known.setdefault(value, len(known)) for value in values], dtype=np.int64)


def can_be_told(answers: Codes, looks: int) -> bool:
    """Whether the classes are many and mixed enough that nothing tells them all by chance."""
    ways = math.lgamma(len(answers) + 1) - sum(math.lgamma(count + 1) for count in np.bincount(answers).tolist())
    return len(answers) >= FEWEST_ROWS and ways > math.log(1e6 * max(1, looks))


def gain(values: Codes, answers: Codes) -> float:
    """How much better than always saying the commonest answer it is to look at the value first: 0 to 1.

    A row is not told by itself, but by the others of its value: a value that occurs once tells nothing.
    """
    blind = int(np.bincount(answers).max())
    if blind == len(answers):
        return 0.0
    classes = int(answers.max()) + 1
    pairs, counts = np.unique(values * classes + answers, return_counts=True)
    order = np.lexsort((counts, pairs // classes))
    value, count = pairs[order] // classes, counts[order]
    second = np.where(np.append(False, value[1:] == value[:-1]), np.append(0, count[:-1]), 0)
    last = np.append(value[1:] != value[:-1], True)
    best, second = count[last], second[last]
    right = float(best[(best > 1) & (best > second + 1)].sum() + best[(best > 1) & (best == second + 1)].sum() / 2)
    return (right - blind) / (len(answers) - blind)


def as_numbers(values: Sequence[str]) -> Floats | None:
    """All values as finite numbers, or None."""
    try:
        numbers = np.array(values, dtype=float)
    except ValueError:
        return None
    return numbers if np.isfinite(numbers).all() else None


_DAY = re.compile(r"\d{4}-\d\d-\d\d([ T]\d\d:\d\d(:\d\d(\.\d+)?)?)?(Z|\+00:00)?\Z")


def as_quantities(values: Sequence[str]) -> Floats | None:
    """Numbers, or seconds of dates; NaN where there is none. None for words."""
    first = next((value for value in values if value), "")
    if _DAY.match(first):
        dates = [value.removesuffix("Z").removesuffix("+00:00") or "NaT" for value in values]
        try:
            times = np.array(dates, dtype="datetime64[ms]")
        except ValueError:
            return None
        return np.where(np.isnat(times), np.nan, times.astype(np.int64) / 1000)
    try:
        numbers = np.array([value or "nan" for value in values], dtype=float)
    except ValueError:
        return None
    return np.where(np.isfinite(numbers), numbers, np.nan)


def pearson(one: Floats, other: Floats) -> float:
    """The correlation coefficient; 0 where one of the two is constant or not finite."""
    with np.errstate(all="ignore"):
        spread = float(one.std() * other.std())
        if not spread > 0 or not math.isfinite(spread):
            return 0.0
        found = float(((one - one.mean()) * (other - other.mean())).mean() / spread)
    return found if math.isfinite(found) else 0.0


def spearman(one: Floats, other: Floats) -> float:
    """The correlation of their ranks."""
    return pearson(_ranks(one), _ranks(other))


def _ranks(values: Floats) -> Floats:
    """From 0; ties share their mean."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    starts = np.cumsum(counts) - counts
    shared: Floats = starts + (counts - 1) / 2
    ranks: Floats = shared[inverse]
    return ranks


def power(values: Floats, answers: Sequence[str], numbers: Floats | None, looks: int) -> float:
    """AUC of the class that the values tell best, or its like for a quantity: 0.5 to 1; 0.5 if chance gives as much."""
    if len(answers) < FEWEST_ROWS or np.ptp(values) == 0:
        return 0.5
    if numbers is not None:
        told = abs(spearman(values, numbers))
        return 0.5 + told / 2 if told > deviations(looks) / math.sqrt(len(answers)) else 0.5
    ranks, best = _ranks(values), 0.5
    array = np.array(answers)
    classes = {label: count for label, count in Counter(answers).items() if count >= FEWEST_ROWS // 2}
    for label, count in classes.items():
        other = len(answers) - count
        if not other:
            continue
        auc = (ranks[array == label].sum() - count * (count - 1) / 2) / (count * other)
        spread = math.sqrt(1 / 12 * (1 / count + 1 / other))
        if abs(auc - 0.5) > deviations(looks * len(classes)) * spread:
            best = max(best, 0.5 + abs(auc - 0.5))
    return float(best)
