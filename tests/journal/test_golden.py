"""The golden runs of notebooks/golden, played again: outputs and scores must be what they were, up to RELATIVE."""

from pathlib import Path

import nbformat
import pytest
from boxes import BOXES_IN_CI

from dojo_kernel.competition import find
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.journal import events_from_notebook
from dojo_kernel.records import Closed, Stepped
from dojo_kernel.replay import RELATIVE, replay

GOLDEN = sorted((Path(__file__).parents[2] / "notebooks" / "golden").glob("*.ipynb"))

AGREE = {"exact", "sanitised", "close"}
ENDS = {("diabetes", "s0001"), ("diabetes", "s0003")}
"""Cells that run into their limit or end their kernel, on purpose."""


@pytest.fixture(autouse=True)
def data(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))


def test_there_are_golden_runs_and_they_are_small():
    assert [path.stem for path in GOLDEN] == ["breast-cancer", "diabetes", "wine"]
    assert all(path.stat().st_size < 100_000 for path in GOLDEN)
    assert RELATIVE == 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("box", BOXES_IN_CI)
@pytest.mark.parametrize("path", GOLDEN, ids=lambda path: path.stem)
async def test_a_golden_run_comes_out_as_it_was(path, box):
    prepare(find(path.stem))
    report = await replay(path, box=box, validates=True)
    for cell in report.cells:
        ends = (path.stem, cell.cell) in ENDS
        assert (cell.verdict == "not_replayable") if ends else (cell.verdict in AGREE), cell
        assert cell.score_equal is not False, cell
    ran = [one.step for one in events_from_notebook(path) if isinstance(one, Stepped) and one.step.execution is not None]
    assert [cell.cell for cell in report.cells] == [step.cell_id for step in ran]
    assert sum(cell.score_equal is True for cell in report.cells) == sum(step.grade is not None for step in ran) > 0
    assert report.final_equal is True
    assert not report.diverged


@pytest.mark.slow
async def test_a_golden_run_with_another_score_or_output_diverges(tmp_path):
    prepare(find("wine"))
    notebook = nbformat.read(next(path for path in GOLDEN if path.stem == "wine"), as_version=4)
    cells = {cell["id"]: cell for cell in notebook.cells}
    cells["s0001"]["metadata"]["dojo"]["record"]["grade"]["score"] += 1e-4
    cells["s0000"]["outputs"][0]["text"] = cells["s0000"]["outputs"][0]["text"].replace("39", "38")
    notebook["metadata"]["dojo"]["closed"]["final"]["score"] += 1e-4
    nbformat.write(notebook, tmp_path / "forged.ipynb")
    assert isinstance(events_from_notebook(tmp_path / "forged.ipynb")[-1], Closed)
    report = await replay(tmp_path / "forged.ipynb", box="process")
    by_id = {cell.cell: cell for cell in report.cells}
    assert report.diverged
    assert by_id["s0000"].verdict == "differs"
    assert by_id["s0001"].score_equal is False
    assert by_id["s0004"].score_equal is True
    assert report.final_equal is False
