"""A small competition in a folder of its own, as the tests of grading need it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import numpy as np

from dojo_kernel.competition.spec import Competition, find

if TYPE_CHECKING:
    from pathlib import Path

SPEC = """
title = "A small one"
metric = "{metric}"
{extra}
[submission]
id = "Id"
columns = {columns}

[prepare]
recipe = "none"
"""


def make_competition(  # noqa: PLR0913 - each by its keyword
    tmp_path: Path,
    *,
    metric: str = "rmse",
    columns: str = '{ y = "float" }',
    answers: str,
    extra: str = "",
    files: dict[str, str] | None = None,
) -> Competition:
    folder = tmp_path / "specs" / "small"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "competition.toml").write_text(SPEC.format(metric=metric, columns=columns, extra=extra))
    for name, text in (files or {}).items():
        (folder / name).write_text(text)
    competition = find(str(folder))
    competition.private_dir.mkdir(parents=True, exist_ok=True)
    competition.public_dir.mkdir(parents=True, exist_ok=True)
    (competition.private_dir / "answers.csv").write_text(answers)
    competition.manifest.write_text(json.dumps({"files": {}}))
    return competition


def regression_answers(rows: int = 200, seed: int = 0) -> str:
    values = np.random.default_rng(seed).normal(10, 3, rows)
    return "Id,y\n" + "".join(f"{1000 + i},{value:.4f}\n" for i, value in enumerate(values))


def sixty(value):
    """A table of `value` for each id from 0 to 59."""
    return "Id,y\n" + "".join(f"{i},{value(i)}\n" for i in range(60))


def make_counting(root):
    """Prepared below `root`: the answer to each of sixty ids is the id itself, scored by rmse."""
    files = {"reference_board.csv": "rank,score,entry\n1,1,a\n2,2,b\n3,3,c\n4,4,d\n", "description.md": "Count to sixty."}
    made = make_competition(root, answers=sixty(lambda i: i), files=files)
    (made.public_dir / "sample_submission.csv").write_text(sixty(lambda i: 0))
    return made
