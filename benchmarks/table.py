"""What every benchmark prints: figures and the bars they are held to, as lines or as JSON for `python -m benchmarks`."""

from __future__ import annotations

import json
from typing import NamedTuple


class Figure(NamedTuple):
    """One measured number."""

    name: str
    value: float
    unit: str
    bar: float | None = None
    """What it must not exceed; None: it is only told."""
    at_least: bool = False
    """The bar is a floor."""

    @property
    def holds(self) -> bool:
        """Whether the bar is kept; always true without one."""
        return self.bar is None or (self.value >= self.bar if self.at_least else self.value <= self.bar)

    def line(self) -> str:
        """For a terminal."""
        word = "at least" if self.at_least else "at most"
        bar = "" if self.bar is None else f"{word} {self.bar:g} {self.unit}: {'holds' if self.holds else 'FALLS SHORT'}"
        return f"{self.name:66} {self.value:>9.3f} {self.unit:3} {bar}"


def tell(figures: list[Figure], *, as_json: bool) -> int:
    """Print them; 1 when one falls short, else 0."""
    if as_json:
        print(json.dumps([figure._asdict() for figure in figures]))
    else:
        print("\n".join(figure.line() for figure in figures))
    return 0 if all(figure.holds for figure in figures) else 1
