"""Metrics of masks, boxes and points: one cell a row holds all that was found in an image.

A mask is run-length encoded: `start length start length ...`, 1-based, no pixel twice; an empty cell is an empty mask. Those of
images are compared run by run and never drawn, so that an image may have any size. A cell that cannot be read, or that has more
boxes than anybody needs, is a ValueError.
"""

from __future__ import annotations

import re
from typing import NamedTuple

import numpy as np

from dojo_kernel.competition.metrics.table import Array, metric

_NUMBERS = re.compile(r"[0-9 ]*\Z")
_LONGEST_NUMBER = 12
_MOST_BOXES = 2000
_MOST_OBJECTS = 1000
_LARGEST_COORDINATE = 1e9


class Runs(NamedTuple):
    """The pixels of a mask, from 0: sorted runs that do not overlap."""

    starts: Array
    ends: Array
    """Exclusive."""

    @property
    def pixels(self) -> int:
        """How many there are."""
        return int(np.sum(self.ends - self.starts))


_NOTHING = Runs(np.zeros(0, dtype=np.int64), np.zeros(0, dtype=np.int64))


def runs(cell: str, size: float | None = None) -> Runs:
    """The mask in a cell. Raises ValueError if it is none, or has a pixel beyond the image's `size` in pixels."""
    words = cell.split()
    if not words:
        return _NOTHING
    if _NUMBERS.match(cell) is None or len(words) % 2 or max(map(len, words)) > _LONGEST_NUMBER:
        raise ValueError("not pairs of a start and a length")
    numbers = np.array(list(map(int, words))).reshape(-1, 2)
    numbers = numbers[np.argsort(numbers[:, 0], kind="stable")]
    starts, ends = numbers[:, 0] - 1, numbers[:, 0] - 1 + numbers[:, 1]
    if starts[0] < 0 or np.any(ends <= starts) or np.any(starts[1:] < ends[:-1]) or (size is not None and ends[-1] > size):
        raise ValueError("runs that overlap, are empty or leave the image")
    return Runs(starts, ends)


def in_both(a: Runs, b: Runs) -> int:
    """How many pixels two masks share."""
    if not len(a.starts) or not len(b.starts):
        return 0
    return int(np.sum(_before(a, b.ends) - _before(a, b.starts)))


def _before(mask: Runs, places: Array) -> Array:
    """How many pixels of the mask lie before each place."""
    total = np.concatenate([[0], np.cumsum(mask.ends - mask.starts)])
    begun = np.searchsorted(mask.starts, places, side="right")
    left = np.where(begun > 0, np.maximum(mask.ends[np.maximum(begun - 1, 0)] - places, 0), 0)
    before: Array = total[begun] - left
    return before


def _compared(truth: Array, prediction: Array, size: float | None) -> Array:
    """For each row: pixels in both masks, in the true one, in the predicted one."""
    rows = []
    for true, predicted in zip(truth, prediction, strict=True):
        mine, theirs = runs(true, size), runs(predicted, size)
        rows.append((in_both(mine, theirs), mine.pixels, theirs.pixels))
    return np.array(rows, dtype=np.float64).T


@metric("dice", better="higher", low=0.0, high=1.0, needs="text")
def dice(truth: Array, prediction: Array, *, size: int | None = None) -> float:
    """Mean over rows of 2 |both| / (|true| + |predicted|) of two masks; 1 if both are empty.

    A mask with a pixel beyond the first `size` is refused.
    """
    both, true, predicted = _compared(truth, prediction, size)
    return float(np.mean(np.where(true + predicted > 0, 2 * both / np.maximum(true + predicted, 1), 1.0)))


@metric("fbeta", better="higher", low=0.0, high=1.0, needs="text")
def fbeta(truth: Array, prediction: Array, *, beta: float, size: int | None = None) -> float:
    """Mean over rows of (1 + b^2) P R / (b^2 P + R) of two masks, P and R by pixels; 1 if both are empty.

    Computed as (1 + b^2) TP / ((1 + b^2) TP + b^2 FN + FP); vesuvius-challenge-ink-detection takes b = 0.5.
    """
    both, true, predicted = _compared(truth, prediction, size)
    below = beta**2 * true + predicted
    return float(np.mean(np.where(below > 0, (1 + beta**2) * both / np.where(below > 0, below, 1.0), 1.0)))


_FROM_50 = np.arange(50, 100, 5)
"""Thresholds of the intersection over union, in percent: compared as integers, so that none is missed by a rounding."""


@metric("iou_threshold_precision", better="higher", low=0.0, high=1.0, needs="text")
def iou_threshold_precision(truth: Array, prediction: Array, *, size: int | None = None) -> float:
    """Mean over rows of the share of the thresholds 0.5, 0.55, ..., 0.95 that the intersection over union of two masks exceeds.

    1 if both are empty, 0 if one is. As on the page of tgs-salt-identification-challenge.
    """
    both, true, predicted = _compared(truth, prediction, size)
    either = true + predicted - both
    exceeded = np.mean(100 * both[:, None] > _FROM_50 * either[:, None], axis=1)
    return float(np.mean(np.where(either > 0, exceeded, 1.0)))


@metric("f2_iou_sweep", better="higher", low=0.0, high=1.0, needs="text")
def f2_iou_sweep(truth: Array, prediction: Array, *, size: int | None = None) -> float:
    """Mean over rows, then over the thresholds 0.5, 0.55, ..., 0.95, of 5 TP / (5 TP + 4 FN + FP) of the objects in an image.

    A cell holds the masks of its objects, separated by `;`; those of one image must not overlap. An object is found (TP) if
    its intersection over union with a predicted one exceeds the threshold; there can be only one such. 1 if there is no object
    in either. As on the page of airbus-ship-detection.
    """
    scores = []
    for true, predicted in zip(truth, prediction, strict=True):
        mine, theirs = (_objects(cell, size) for cell in (true, predicted))
        if not mine or not theirs:
            scores.append(float(not mine and not theirs))
            continue
        both = _shared(mine, theirs)
        sizes, other_sizes = (np.array([one.pixels for one in some]) for some in (mine, theirs))
        either = sizes[:, None] + other_sizes - both
        hits = np.array([np.sum(100 * both > threshold * either) for threshold in _FROM_50])
        scores.append(float(np.mean(5 * hits / (4 * len(mine) + len(theirs)))))
    return float(np.mean(scores))


def _objects(cell: str, size: float | None) -> list[Runs]:
    if cell.count(";") >= _MOST_OBJECTS:
        raise ValueError(f"more than {_MOST_OBJECTS} objects")
    found = [runs(part, size) for part in cell.split(";")] if cell.strip() else []
    if any(not len(one.starts) for one in found):
        raise ValueError("an object without a pixel")
    return found


def _shared(mine: list[Runs], theirs: list[Runs]) -> Array:
    """Pixels that each of my objects shares with each of theirs."""
    cuts = np.unique(np.concatenate([np.concatenate(one) for one in (*mine, *theirs)]))
    a, b = _owners(mine, cuts[:-1]), _owners(theirs, cuts[:-1])
    both = (a >= 0) & (b >= 0)
    shared = np.bincount(a[both] * len(theirs) + b[both], weights=np.diff(cuts)[both], minlength=len(mine) * len(theirs))
    return shared.reshape(len(mine), len(theirs))


def _owners(objects: list[Runs], places: Array) -> Array:
    """To which object the pixel at each place belongs; -1 if to none. Raises ValueError if two objects overlap."""
    starts, ends = (np.concatenate([one[side] for one in objects]) for side in (0, 1))
    owners = np.repeat(np.arange(len(objects)), [len(one.starts) for one in objects])
    order = np.argsort(starts, kind="stable")
    starts, ends, owners = starts[order], ends[order], owners[order]
    if np.any(starts[1:] < ends[:-1]):
        raise ValueError("two objects of an image overlap")
    last = np.searchsorted(starts, places, side="right") - 1
    inside = (last >= 0) & (places < ends[np.maximum(last, 0)])
    return np.where(inside, owners[np.maximum(last, 0)], -1)


# --- volumes ---------------------------------------------------------------------------------------------------------

_MUCH_TOO_LARGE = 10


@metric("dice_hausdorff", better="higher", low=0.0, high=1.0, needs="text")
def dice_hausdorff(  # noqa: PLR0913 - where a slice lies is four columns
    truth: Array, prediction: Array, *, volume: Array, depth: Array, width: Array, height: Array
) -> float:
    """0.4 Dice + 0.6 (1 - Hausdorff distance / sqrt(3)) of masks that are slices of volumes.

    Dice is the mean over rows; the Hausdorff distance, the largest distance from a pixel of one to the other, the mean over
    volumes of its coordinates divided by the volume's depth, height and width. Pairs of empty masks are left out of both means
    (1 if there are no others); the distance counts as sqrt(3) if one of the two is empty, or if ten times as much is predicted as
    is true. Masks run along rows; those of one volume and depth are joined. As mle-bench grades
    uw-madison-gi-tract-image-segmentation.
    """
    pairs = [
        (runs(true, columns * lines), runs(predicted, columns * lines))
        for true, predicted, columns, lines in zip(truth, prediction, width, height, strict=True)
    ]
    sizes = [(mine.pixels, theirs.pixels) for mine, theirs in pairs]
    overlaps = [2 * in_both(*pair) / sum(both) for pair, both in zip(pairs, sizes, strict=True) if sum(both)]
    if not overlaps:
        return 1.0
    distances = []
    for one in np.unique(volume):
        rows = np.flatnonzero(volume == one)
        shape = (len(np.unique(depth[rows])), int(height[rows].max()), int(width[rows].max()))
        levels = np.searchsorted(np.unique(depth[rows]), depth[rows])
        mine, theirs = (
            np.unique(
                np.concatenate(
                    [_voxels(pairs[row][side], level, int(width[row]), shape) for row, level in zip(rows, levels, strict=True)]
                )
            )
            for side in (0, 1)
        )
        if len(mine) or len(theirs):
            distances.append(_hausdorff(mine, theirs, shape))
    return 0.4 * float(np.mean(overlaps)) + 0.6 * (1 - float(np.mean(distances)))


def _voxels(mask: Runs, level: int, width: int, shape: tuple[int, int, int]) -> Array:
    """Places in the flat volume."""
    lengths = mask.ends - mask.starts
    pixels = np.arange(int(lengths.sum())) + np.repeat(mask.ends - np.cumsum(lengths), lengths)
    places: Array = (level * shape[1] + pixels // width) * shape[2] + pixels % width
    return places


def _hausdorff(mine: Array, theirs: Array, shape: tuple[int, int, int]) -> float:
    """0 to 1; by a distance transform of the smallest block that holds both."""
    from scipy.ndimage import distance_transform_edt  # noqa: PLC0415 - only here

    if not len(mine) or not len(theirs) or len(theirs) > _MUCH_TOO_LARGE * len(mine):
        return 1.0
    places = [np.stack(np.unravel_index(voxels, shape)) for voxels in (mine, theirs)]
    corner = np.min([one.min(axis=1) for one in places], axis=0)
    drawn = np.zeros((2, *(np.max([one.max(axis=1) for one in places], axis=0) - corner + 1)), dtype=bool)
    for block, one in zip(drawn, places, strict=True):
        block[tuple(one - corner[:, None])] = True
    farthest = 0.0
    for some, others in (drawn, drawn[::-1]):
        outside = some & ~others
        if outside.any():
            farthest = max(farthest, float(distance_transform_edt(~others, sampling=1 / np.array(shape))[outside].max()))
    return farthest / 3**0.5


# --- boxes and points ------------------------------------------------------------------------------------------------


def _records(cell: str, texts: int, numbers: int, most: int = _MOST_BOXES) -> tuple[Array, Array]:
    """A cell of records, each some words and some numbers: the words, and the numbers as float64, a row a record."""
    words = cell.split()
    width = texts + numbers
    if len(words) % width or len(words) > most * width:
        raise ValueError(f"not records of {width} fields, or more than {most}")
    table = np.array(words, dtype=object).reshape(-1, width)
    values = np.array([[float(one) for one in line] for line in table[:, texts:]], dtype=np.float64).reshape(-1, numbers)
    if not np.all(np.abs(values) <= _LARGEST_COORDINATE):
        raise ValueError("a number that is none, or too large")
    return table[:, :texts], values


def _corners(x: Array, y: Array, width: Array, height: Array) -> Array:
    return np.stack([x, y, x + width, y + height], axis=1)


def _iou(a: Array, b: Array) -> Array:
    """Intersection over union of each box of `a` with each of `b`, given by corners; 0 for two boxes without an area."""
    if np.any(a[:, 2:] < a[:, :2]) or np.any(b[:, 2:] < b[:, :2]):
        raise ValueError("a box whose end is before its start")
    width, height = (
        np.maximum(np.minimum(a[:, None, side + 2], b[:, side + 2]) - np.maximum(a[:, None, side], b[:, side]), 0)
        for side in (0, 1)
    )
    both = width * height
    either = np.prod(a[:, 2:] - a[:, :2], axis=1)[:, None] + np.prod(b[:, 2:] - b[:, :2], axis=1) - both
    shares: Array = both / np.where(either > 0, either, 1.0)
    return shares


@metric("ap_iou", better="higher", low=0.0, high=1.0, needs="text")
def ap_iou(truth: Array, prediction: Array) -> float:
    """Mean over rows, then over the thresholds 0.5, 0.55, ..., 0.75, of TP / (TP + FP + FN) of the boxes in an image.

    A cell holds `confidence x y width height` a box. Predicted boxes, the most confident first and equal ones as they stand, take
    the true box that is not yet taken and with which their intersection over union is largest and exceeds the threshold. 1 if
    there is no box in either, 0 if only in one. As on the page of global-wheat-detection.
    """
    scores = []
    for true, predicted in zip(truth, prediction, strict=True):
        mine, theirs = (_records(cell, 0, 5)[1] for cell in (true, predicted))
        theirs = theirs[np.argsort(-theirs[:, 0], kind="stable")]
        shares = _iou(_corners(*theirs.T[1:]), _corners(*mine.T[1:]))
        if not shares.size:
            scores.append(float(len(mine) == len(theirs)))
            continue
        hits = np.array([_taken(shares, threshold / 100) for threshold in range(50, 80, 5)])
        scores.append(float(np.mean(hits / (len(mine) + len(theirs) - hits))))
    return float(np.mean(scores))


def _taken(shares: Array, threshold: float) -> int:
    """How many predicted boxes, in their order, get a true one of their own."""
    free = np.ones(shares.shape[1], dtype=bool)
    wanted = np.any(shares > threshold, axis=0)
    for line in shares[shares.max(axis=1) > threshold]:
        if not np.any(free & wanted):
            break
        best = int(np.argmax(np.where(free, line, -1.0)))
        if free[best] and line[best] > threshold:
            free[best] = False
    return int(np.sum(~free))


@metric("iou_map", better="higher", low=0.0, high=1.0, needs="text")
def iou_map(truth: Array, prediction: Array, *, iou: float) -> float:
    """Mean average precision of boxes as in PASCAL VOC 2010, over the classes that have a true box.

    A cell holds `class confidence xmin ymin xmax ymax` a box; the truth's confidence is not looked at. A predicted box, the most
    confident first, is right if its intersection over union with the true box of its class that it overlaps most exceeds `iou`,
    and no box before it was right on that one. A class's average precision is the area under its curve of precision by
    recall, at each recall the largest precision from there on; boxes of equal confidence enter together, from whatever image.
    Classes that are true nowhere do not count. As on the pages of siim-covid19-detection (iou = 0.5) and of
    vinbigdata-chest-xray-abnormalities-detection (0.4).
    """
    trues: dict[str, int] = {}
    found: dict[str, list[tuple[float, bool]]] = {}
    for true, predicted in zip(truth, prediction, strict=True):
        (names, mine), (other_names, theirs) = _records(true, 1, 5), _records(predicted, 1, 5)
        shares = _iou(theirs[:, 1:], mine[:, 1:])
        for name in names[:, 0]:
            trues[name] = trues.get(name, 0) + 1
        of_class: dict[str, list[int]] = {}
        for place in np.argsort(-theirs[:, 0], kind="stable").tolist():
            of_class.setdefault(other_names[place, 0], []).append(place)
        for name, boxes in of_class.items():
            same = np.flatnonzero(names[:, 0] == name)
            right = _right(shares[boxes][:, same], iou) if len(same) else [False] * len(boxes)
            found.setdefault(name, []).extend(zip(theirs[boxes, 0].tolist(), right, strict=True))
    if not trues:
        raise ValueError("no true box")
    return float(np.mean([_average_precision(found.get(name, []), count) for name, count in trues.items()]))


def _right(shares: Array, threshold: float) -> list[bool]:
    taken: set[int] = set()
    right = []
    for line, best in zip(shares, np.argmax(shares, axis=1).tolist(), strict=True):
        right.append(bool(line[best] > threshold) and best not in taken)
        if right[-1]:
            taken.add(best)
    return right


def _average_precision(found: list[tuple[float, bool]], count: int) -> float:
    if not found:
        return 0.0
    confidence, right = np.array([one for one, _ in found]), np.array([one for _, one in found])
    _, places, sizes = np.unique(-confidence, return_inverse=True, return_counts=True)
    hits = np.cumsum(np.bincount(places, weights=right))
    precision = np.maximum.accumulate((hits / np.cumsum(sizes))[::-1])[::-1]
    return float(np.sum(np.diff(hits, prepend=0.0) * precision) / count)


@metric("f1_point_in_box", better="higher", low=0.0, high=1.0, needs="text")
def f1_point_in_box(truth: Array, prediction: Array, *, boxes: Array, most: int = 1200) -> float:  # noqa: ARG001 - see below
    """F1 score of labelled points, pooled over images: a point is right if it lies inside a true box of its label.

    A cell holds `label x y` a point, at most `most`; the column `boxes` `label x y width height` a box. A box counts one
    point, a point one box, and as many are matched as can be. The truth itself is not looked at: it holds the boxes' centres,
    which is the best submission. 1 if there is neither box nor point. As on the page of kuzushiji-recognition, where each box
    takes the first of its points.
    """
    hits = total = 0
    for cell, predicted in zip(boxes, prediction, strict=True):
        labels, frames = _records(cell, 1, 4)
        names, points = _records(predicted, 1, 2, most)
        total += len(frames) + len(points)
        if len(frames) and len(points):
            starts, ends = frames[:, :2], frames[:, :2] + frames[:, 2:]
            inside = (labels == names.T).astype(bool)
            for side in (0, 1):
                inside &= (starts[:, None, side] < points[:, side]) & (points[:, side] < ends[:, None, side])
            hits += _matched(inside)
    return 2 * hits / total if total else 1.0


def _matched(pairs: Array) -> int:
    """The largest number of pairs without a common row or column."""
    from scipy.sparse import csr_matrix  # noqa: PLC0415 - only here
    from scipy.sparse.csgraph import maximum_bipartite_matching  # noqa: PLC0415 - only here

    return int(np.sum(maximum_bipartite_matching(csr_matrix(pairs), perm_type="column") >= 0))
