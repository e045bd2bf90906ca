"""Notebook and replay of episodes that rewind and branch: what they hold, and that they come out as they were."""

import subprocess

import nbformat
import pytest
from boxes import BOXES_IN_CI, NBCONVERT
from competition_fixtures import make_competition, regression_answers

from dojo_kernel.actions import Checkpoint, ExecuteCode, Reset, Restore, ValidateCode
from dojo_kernel.episode import in_a_box, open_episode
from dojo_kernel.errors import ForkRefusedError
from dojo_kernel.journal import events_from_notebook, read_journal, to_notebook, write_notebook
from dojo_kernel.records import Bookmark, Branched, Stepped
from dojo_kernel.replay import replay
from dojo_kernel.settings import EpisodeSettings, KernelSettings
from dojo_kernel.testing import MemoryKernel, open_memory_kernel

ANSWERS = regression_answers()


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    return make_competition(tmp_path, answers=ANSWERS)


def play(competition, folder, kind="memory", **settings):
    return open_episode(
        competition.folder,
        settings=EpisodeSettings(**{"checkpoints": True, "max_steps": 40, **settings}),
        kernel=KernelSettings(box="auto" if kind == "memory" else kind),
        start_kernel=open_memory_kernel if kind == "memory" else in_a_box,
        folder=folder,
    )


async def cell(episode, code):
    step = await episode.step(ExecuteCode(code=code))
    assert step.observation.ok, step.observation.text
    return step


def submits(shift):
    """Writes the answers, each a little off."""
    return (
        f"rows = {ANSWERS!r}.split()\n"
        "with open('submission.csv', 'w') as file:\n"
        "    print(rows[0], file=file)\n"
        f"    for row in rows[1:]: name, y = row.split(','); print(name, float(y) + {shift}, sep=',', file=file)\n"
    )


async def there_and_back(episode):
    """One rewind: x is 1, was 2 for a while."""
    await cell(episode, "import random, os, numpy as np\nrandom.seed(1); np.random.seed(1); g = np.random.default_rng(1); x = 1")
    await cell(episode, "open('kept.txt', 'w').write('root'); print(random.random())")
    await episode.step(Checkpoint(label="before"))
    await episode.step(ValidateCode(code="x = 7; print(random.random())"))
    await cell(episode, "x = 2; open('gone.txt', 'w').close(); print(x, random.random(), g.random())")
    await cell(episode, submits(3.0))
    assert (await episode.step(Restore(id="c1"))).observation.ok
    await cell(episode, "print(x, sorted(os.listdir('.')), random.random(), g.random())")


@pytest.mark.slow
@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_a_trajectory_with_two_branches_and_one_rewind_comes_out_as_it_was(prepared, tmp_path, box):
    run = tmp_path / "run"
    async with play(prepared, run, box) as episode:
        await there_and_back(episode)
        async with episode.branch(2) as branches:
            for number, one in enumerate(branches):
                await cell(one, f"x += 10 * {number}; print(x, random.random(), np.random.rand(), g.random(), os.getcwd())")
                await cell(one, submits(1.5 - number))
            await branches[1].step(Checkpoint(label="in a branch"))
            await cell(branches[1], "x = -1; open('kept.txt', 'w').write('branch')")
            await branches[1].step(Restore(id="c2"))
            await cell(branches[1], "print(x, open('kept.txt').read(), random.random())")
            await branches[0].step(Reset())
            await cell(branches[0], "print('x' in globals(), open('kept.txt').read())")
        await cell(episode, "print(x, random.random())")
    drawn = {one.steps[8].execution.outputs[0].text.split()[1] for one in branches}
    assert len(drawn) == 2, "each branch draws its own numbers"
    for one in (episode, *branches):
        write_notebook(one.events, tmp_path / "run.ipynb")
        for path in (one.folder, tmp_path / "run.ipynb"):
            report = await replay(path, box=box, competition=prepared, validates=True)
            assert not report.diverged, report
            assert report.episode == one.id
            assert {cell.verdict for cell in report.cells} <= {"exact", "sanitised"}, report
            assert len(report.cells) == sum(step.execution is not None for step in one.steps)
            assert all(cell.score_equal and cell.submission_equal for cell in report.cells if cell.score_then is not None)
            assert [finding for finding in report.findings if "chain" not in finding] == []
    assert report.final_equal is True


@pytest.mark.slow
async def test_a_restore_after_a_death_and_before_a_restart_comes_out_as_it_was(prepared, tmp_path):
    async with play(prepared, tmp_path / "run", "process") as episode:
        await cell(episode, "x = 1")
        await episode.step(Checkpoint(label=""))
        await episode.step(ExecuteCode(code="import os; os._exit(1)"))
        await episode.step(Restore(id="c1"))
        await cell(episode, "x += 1; print(x)")
        await episode.step(ExecuteCode(code="import os; os._exit(1)"))
        await cell(episode, "print('x' in globals())")
        async with episode.branch(1) as (branch,):
            await cell(branch, "print('x' in globals())")
            await branch.step(Reset())
            await cell(branch, "y = 1")
    report = await replay(branch.folder, box="process", competition=prepared)
    verdicts = [one.verdict for one in report.cells]
    assert verdicts == ["exact", "not_replayable", "exact", "not_replayable", "exact", "exact", "exact"]
    assert (report.diverged, report.findings) == (False, ())
    notebook = to_notebook(branch.events)
    assert way(notebook) == [
        "dojo-setup", "s0000", "s0004", "s0006-empty", "s0006", "branched-1-seed", "s0007", "s0008-empty", "s0009",
    ]  # fmt: skip


@pytest.mark.slow
async def test_another_number_after_a_rewind_diverges(prepared, tmp_path):
    async with play(prepared, tmp_path / "run", "process") as episode:
        await there_and_back(episode)
        (branch,) = await episode.branch(1, seeds=[1])
        await cell(branch, "print(random.random())")
        await branch.close()
    events = [one.model_copy(update={"seed": 2}) if isinstance(one, Branched) else one for one in branch.events]
    write_notebook(events, tmp_path / "forged.ipynb")
    report = await replay(tmp_path / "forged.ipynb", box="process", competition=prepared)
    assert [cell.verdict for cell in report.cells][-1] == "differs"
    assert report.diverged


class Unforkable(MemoryKernel):
    """Takes no checkpoint."""

    async def checkpoint(self, label):
        raise ForkRefusedError("not today")


async def test_a_replay_that_cannot_fork_says_what_may_differ(prepared, tmp_path):
    async with play(prepared, tmp_path / "run") as episode:
        await cell(episode, "x = 1")
        await episode.step(Checkpoint(label=""))
        await cell(episode, "x = 2")
        await episode.step(Restore(id="c1"))
        await cell(episode, "x")
        async with episode.branch(1) as (branch,):
            await cell(branch, "x")

    async def unforkable(settings, **about):
        return Unforkable(about["data_dir"])

    report = await replay(branch.folder, competition=prepared, open_kernel=unforkable)
    assert [cell.verdict for cell in report.cells] == ["exact", "exact", "differs", "differs"]
    assert [finding.partition(":")[0] for finding in report.findings] == [
        "step 2",
        "step 4",
        "the branch goes on in the kernel of its parent",
    ]
    assert "not today" in report.findings[0]


async def test_what_a_restore_lacked_then_and_not_now_is_a_finding(prepared, tmp_path):
    async with play(prepared, tmp_path / "run") as episode:
        await cell(episode, "x = 1\ndef f(): pass")
        await episode.step(Checkpoint(label=""))
        episode.kernel.memory_is_short = True
        await cell(episode, "x = 2")
        await episode.step(Restore(id="c1"))
    report = await replay(tmp_path / "run", competition=prepared, open_kernel=open_memory_kernel)
    assert report.findings == (
        "step 4: checkpoint c1 lacks nothing now and lacked f: function cannot be kept (PicklingError) then",
    )


# --- the notebook ------------------------------------------------------------------------------------------------------


def tags(notebook, name):
    return next(one for one in notebook.cells if one.id == name).metadata.get("tags", [])


def way(notebook):
    """Cells of a plain run."""
    return [one.id for one in notebook.cells if one.cell_type == "code" and "skip-execution" not in one.metadata.get("tags", [])]


async def test_abandoned_cells_stay_visible_and_are_left_out_of_a_plain_run(prepared, tmp_path):
    async with play(prepared, tmp_path / "run") as episode:
        await cell(episode, "a = 1")  # s0000
        await episode.step(Checkpoint(label=""))
        await cell(episode, "b = 1")  # s0002
        await episode.step(Checkpoint(label=""))
        await cell(episode, "c = 1")  # s0004
        await episode.step(ValidateCode(code="d = 1"))
        await episode.step(Restore(id="c1"))
        await cell(episode, "e = 1")  # s0007
        assert way(to_notebook(episode.events)) == ["dojo-setup", "s0000", "s0007"]
        await episode.step(Reset())
        await episode.step(Restore(id="c2"))
        await cell(episode, "f = a + b")  # s0010
    notebook = to_notebook(episode.events)
    assert way(notebook) == ["dojo-setup", "s0000", "s0002", "s0010"], "the way from the root to the leaf"
    for name in ("s0004", "s0007", "s0008-empty"):
        assert tags(notebook, name)[-2:] == ["skip-execution", "dojo-rewound"]
    assert tags(notebook, "s0005") == ["dojo-validate", "skip-execution"]
    assert "checkpoint c1" in next(one.source for one in notebook.cells if one.id == "s0006-rewind")
    assert [one.id for one in notebook.cells if one.id.endswith("-restart")] == ["s0008-restart"], "a rewind is no restart"
    write_notebook(episode.events, tmp_path / "a.ipynb")
    again = [one.step.bookmark for one in events_from_notebook(tmp_path / "a.ipynb") if isinstance(one, Stepped)]
    assert [one for one in again if one] == [one.bookmark for one in episode.steps if one.bookmark]
    assert isinstance(again[1], Bookmark)


async def test_a_branchs_notebook_is_the_path_from_the_root_and_names_parent_and_seed(prepared, tmp_path):
    async with play(prepared, tmp_path / "run") as episode:
        await cell(episode, "x = 1")
        await episode.step(Reset())
        await cell(episode, "x = 2")
        async with episode.branch(2, seeds=[11, None]) as branches:
            await cell(branches[0], "x + 1")
        await cell(episode, "y = 1")
    notebook = to_notebook(branches[0].events)
    assert way(notebook) == ["dojo-setup", "s0000", "s0001-empty", "s0002", "branched-1-seed", "s0003"]
    note = next(one.source for one in notebook.cells if one.id == "branched-1")
    assert note.startswith("---\n**Branch 0** of ")
    assert "seeded with 11" in note
    assert "branched-1-seed" not in way(to_notebook(branches[1].events))
    assert "go on as in the parent" in next(one.source for one in to_notebook(branches[1].events).cells if one.id == "branched-1")
    write_notebook(branches[0].events, tmp_path / "b.ipynb")
    read = events_from_notebook(tmp_path / "b.ipynb")
    assert [one for one in read if isinstance(one, Branched)] == [branches[0].events[7]]
    assert [one.type for one in read] == [one.type for one in read_journal(branches[0].folder)]


@pytest.mark.slow
async def test_plain_nbconvert_runs_a_branch_with_a_rewind_from_root_to_leaf(prepared, tmp_path):
    async with play(prepared, tmp_path / "run", "process") as episode:
        await there_and_back(episode)
        async with episode.branch(1) as (branch,):
            await cell(branch, "assert x == 1 and not os.path.exists('gone.txt')\nx = 5")
            await branch.step(Checkpoint(label=""))
            await cell(branch, "x = 'wrong'; raise_later = 1")
            await branch.step(Restore(id="c2"))
            ran = await cell(
                branch,
                "assert 'raise_later' not in globals()\nprint(x, open('kept.txt').read(), random.random(), np.random.rand())",
            )
    place = tmp_path / "plain"
    (place / "data").mkdir(parents=True)
    branch.save_notebook(place / "run.ipynb")
    done = subprocess.run(NBCONVERT, cwd=place, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    last = [one for one in nbformat.read(place / "done.ipynb", as_version=4).cells if one.cell_type == "code"][-1]
    assert last.outputs[0].text.startswith("5 root 0.")
    assert last.outputs[0].text == ran.execution.outputs[0].text, "the same random numbers, too"
