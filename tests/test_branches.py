"""Checkpoints, rewinds and branches of an episode: against a kernel in memory, and in a plain process where a box matters."""

import asyncio
import contextlib
import hashlib
import re
import resource
import tempfile
from itertools import pairwise
from pathlib import Path

import pytest
from boxes import BOXES_IN_CI, ISOLATED_IN_CI
from competition_fixtures import make_counting, sixty

from dojo_kernel.actions import ACTIONS, Checkpoint, ExecuteCode, GetHistory, RequestInfo, Reset, Restore, offered, tool_schemas
from dojo_kernel.episode import in_a_box, open_episode
from dojo_kernel.errors import BoxLostError, EpisodeOverError, ForkRefusedError, JournalError
from dojo_kernel.journal import Journal, read_journal
from dojo_kernel.records import Branched, Closed, Resumed, State, Stepped
from dojo_kernel.settings import EpisodeSettings, KernelSettings
from dojo_kernel.testing import open_memory_kernel

KINDS = ["memory", "process"]
EVERYWHERE = ["memory", *BOXES_IN_CI]


def off(by):
    """A submission that is off by the same everywhere: its rmse."""
    return sixty(lambda i: i + by)


@pytest.fixture
def competition(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    return make_counting(tmp_path)


def play(competition, kind="memory", *, folder=None, resume=False, boxed=None, **settings):
    start = open_memory_kernel if kind == "memory" else in_a_box
    return open_episode(
        competition.folder,
        settings=EpisodeSettings(**{"checkpoints": True, **settings}),
        kernel=KernelSettings(box="auto" if kind == "memory" else kind, **(boxed or {})),
        start_kernel=start,
        folder=folder,
        resume=resume,
    )


async def cell(episode, code, *, ok=True):
    """Its text; `W` is the workspace, on every kind of kernel."""
    before = "from pathlib import Path\nW = globals().get('WORKSPACE', Path('.'))\n"
    step = await episode.step(ExecuteCode(code=before + code))
    assert step.observation.ok is ok, step.observation.text
    return step.observation.text


def submits(text):
    return f"(W / 'submission.csv').write_text({text!r}); None"


# --- checkpoints -------------------------------------------------------------------------------------------------------


async def test_checkpoints_are_off_unless_a_setting_turns_them_on(competition):
    hidden = {name for name in ACTIONS if ACTIONS[name].setting == "checkpoints"}
    assert hidden == {"checkpoint", "restore"}
    assert not {one["name"] for one in tool_schemas()} & hidden
    assert {one["name"] for one in tool_schemas(EpisodeSettings(checkpoints=True))} >= hidden
    assert set(offered()) == set(ACTIONS) - hidden
    async with play(competition, checkpoints=False) as episode:
        told = episode.first_observation.text + (await episode.step(RequestInfo())).observation.text
        assert not re.search(r"Actions:.*(checkpoint|restore)", told)
        for action in (Checkpoint(label="x"), Restore(id="c1")):
            step = await episode.step(action)
            assert not step.observation.ok
            assert f"{action.name} is off in this episode" in step.observation.text
        assert episode.state.steps == 3
    async with play(competition) as episode:
        assert re.search(r"Actions: .*checkpoint.*restore", episode.first_observation.text)


@pytest.mark.parametrize("kind", KINDS)
async def test_a_restore_brings_back_variables_and_files_and_no_budget(competition, kind):
    async with play(competition, kind, max_steps=20) as episode:
        await cell(episode, "x = [1]; _ = (W / 'a.txt').write_text('old')")
        made = await episode.step(Checkpoint(label="clean"))
        assert (made.bookmark.how, made.bookmark.id, made.bookmark.label) == ("made", "c1", "clean")
        assert "checkpoint c1 holds" in made.observation.text
        await cell(episode, "x.append(2); _ = (W / 'a.txt').write_text('new')\n" + submits(off(2)))
        before = episode.state
        back = await episode.step(Restore(id="c1"))
        assert back.observation.ok
        assert "steps, time and submissions stay used" in back.observation.text
        after = episode.state
        assert (after.steps, after.submissions, after.best) == (before.steps + 1, before.submissions, before.best)
        assert after.seconds >= before.seconds
        assert "[1] old False" in await cell(episode, "print(x, (W / 'a.txt').read_text(), (W / 'submission.csv').exists())")
        same = await episode.step(
            ExecuteCode(code=f"from pathlib import Path\nW = globals().get('WORKSPACE', Path('.'))\n{submits(off(2))}")
        )
        assert same.grade is None, "the same bytes are not graded twice, whatever was restored in between"
        history = (await episode.step(GetHistory())).observation.text
        assert re.search(r"2\. checkpoint: ok, \S+ s \| c1 clean", history)
    assert episode.closed.final.score == 2.0


@pytest.mark.parametrize("kind", KINDS)
async def test_a_restore_works_after_a_reset_and_after_a_death(competition, kind):
    async with play(competition, kind) as episode:
        await cell(episode, "x = 1; _ = (W / 'a').write_text('kept')")
        await episode.step(Checkpoint(label=""))
        await episode.step(Reset())
        assert (await episode.step(Restore(id="c1"))).observation.ok
        assert "\n1 kept" in await cell(episode, "print(x, (W / 'a').read_text()); x = 2")
        if kind == "process":
            died = await episode.step(ExecuteCode(code="import os; os._exit(1)"))
            assert died.execution.status == "died"
        back = await episode.step(Restore(id="c1"))
        assert (back.observation.ok, back.bookmark.life) == (True, episode.kernel.life)
        assert "\n1 kept" in await cell(episode, "print(x, (W / 'a').read_text())")


async def test_what_a_checkpoint_lacks_is_named_in_plain_text(competition):
    async with play(competition, "process") as episode:
        await cell(
            episode,
            "import threading, time\n"
            "threading.Thread(target=time.sleep, args=(60,), name='bad \\x1b[31m \\ud800 name', daemon=True).start()",
        )
        step = await episode.step(Checkpoint(label="with a thread"))
        assert step.observation.ok, step.observation.text
        assert re.search(r"not in it: thread bad .* name", step.observation.text)
        step.model_dump_json()
        back = await episode.step(Restore(id="c1"))
        assert re.search(r"missing: thread bad .* name", back.observation.text)
        assert "\x1b" not in back.observation.text + step.observation.text


async def test_a_checkpoint_that_is_refused_is_an_observation(competition):
    async with play(competition) as episode:
        await cell(episode, "numbers = (i for i in [1])")
        step = await episode.step(Checkpoint(label=""))
        assert (step.observation.ok, step.bookmark) == (False, None)
        assert "no checkpoint was made: numbers, a generator, cannot be copied" in step.observation.text
        await cell(episode, "del numbers")
        assert (await episode.step(Checkpoint(label=""))).bookmark.id == "c1"


async def test_an_unknown_checkpoint_is_told_the_known_ones(competition):
    async with play(competition) as episode:
        step = await episode.step(Restore(id="c1"))
        assert not step.observation.ok
        assert "no checkpoint is called 'c1'; there is none now" in step.observation.text
        await episode.step(Checkpoint(label="a"))
        await episode.step(Checkpoint(label="b"))
        assert "there are: c1, c2" in (await episode.step(Restore(id="c9"))).observation.text
        assert episode.state.checkpoints == ("c1", "c2")


async def test_short_memory_turns_checkpoints_into_files_and_says_so(competition):
    async with play(competition) as episode:
        await cell(episode, "x = 1\ndef double(y): return 2 * y")
        await episode.step(Checkpoint(label=""))
        assert "became a file" not in await cell(episode, "1")
        episode.kernel.memory_is_short = True
        assert "[note] Memory is short: checkpoint c1 became a file" in await cell(episode, "x = 2")
        back = await episode.step(Restore(id="c1"))
        assert "missing: double: function cannot be kept" in back.observation.text
        assert any(line.startswith("double") for line in back.bookmark.missing)
        assert "\n1 False" in await cell(episode, "print(x, 'double' in globals())")


async def test_more_checkpoints_than_are_kept_live_push_the_oldest_into_files(competition):
    async with play(competition, boxed={"max_checkpoints": 1}) as episode:
        await episode.step(Checkpoint(label=""))
        second = await episode.step(Checkpoint(label=""))
        assert "there are too many: checkpoint c1 became a file" in second.observation.text
        assert (await episode.step(Restore(id="c1"))).observation.ok


@pytest.mark.slow
@pytest.mark.parametrize("kind", ISOLATED_IN_CI)
async def test_memory_pressure_in_a_real_box_is_noticed_after_the_cell(competition, kind):
    async with play(competition, kind) as episode:
        await cell(episode, "x = 5; gen = (i for i in [1])")
        await episode.step(Checkpoint(label=""))
        if await episode.kernel._box.memory_used() is None:
            pytest.skip("nobody measures this box's memory")
        assert await episode.kernel.evict_checkpoints(below=0.0) == ("c1",)
        assert await episode.kernel.evict_checkpoints(below=0.0) == ()
        back = await episode.step(Restore(id="c1"))
        assert any(line.startswith("gen") for line in back.bookmark.missing)
        assert "\n5 False" in await cell(episode, "print(x, 'gen' in globals())")


async def test_a_resumed_episode_knows_that_its_checkpoints_are_gone(competition, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - leaving it so is the test
        async with play(competition, folder=run) as episode:
            await cell(episode, "x = 1")
            await episode.step(Checkpoint(label="old"))
            raise KeyboardInterrupt
    async with play(competition, folder=run, resume=True) as episode:
        assert "variables, files in the workspace and checkpoints are gone" in episode.first_observation.text
        assert episode.state.checkpoints == ()
        lost = await episode.step(Restore(id="c1"))
        assert not lost.observation.ok
        assert "the checkpoint c1 went with the kernel that the episode had then; there is none now" in lost.observation.text
        assert (await episode.step(Checkpoint(label="new"))).bookmark.id == "c2", "an id is used once in an episode"
        assert "there are: c2" in (await episode.step(Restore(id="c1"))).observation.text
        assert (await episode.step(Restore(id="c2"))).observation.ok


# --- branches ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", KINDS)
async def test_branches_begin_where_the_parent_is_and_go_their_own_ways(competition, kind, tmp_path):
    async with play(competition, kind, folder=tmp_path / "run", max_steps=9, max_submissions=3) as episode:
        await cell(episode, "import random; draw = random.Random(0); x = 1; _ = (W / 'f').write_text('root')")
        await cell(episode, submits(off(3)))
        async with episode.branch(3, seeds=[1, 2, 2]) as branches:
            for one in branches:
                assert (one.state.steps, one.state.submissions, one.state.best.score) == (2, 1, 3.0)
                assert one.first_observation.steps_left == 7
                assert "branch of another episode" in one.first_observation.text
                assert one.id != episode.id
            drawn = await asyncio.gather(
                *(cell(one, "x += 1; print('drew', x, draw.random(), random.random())") for one in branches)
            )
            numbers = [re.search(r"drew 2 (\S+) (\S+)", text) for text in drawn]
            assert numbers[0][1] != numbers[1][1] == numbers[2][1] or kind == "process"
            if kind == "process":
                assert numbers[0][2] != numbers[1][2] == numbers[2][2]
            better = await branches[0].step(ExecuteCode(code=f"W.joinpath('submission.csv').write_text({off(1)!r}); None"))
            assert better.grade.score == 1.0
            same = await branches[1].step(ExecuteCode(code=f"W.joinpath('submission.csv').write_text({off(3)!r}); None"))
            assert same.grade is None, "the parent's submission was looked at before"
            assert "root" in await cell(branches[2], "print((W / 'f').read_text())")
            await cell(branches[2], "_ = (W / 'f').write_text('mine')")
            await branches[2].close("agent")
            assert [one.state.open for one in branches] == [True, True, False]
        assert "\n1 root" in await cell(episode, "print(x, (W / 'f').read_text())")
        assert [one.closed.final.score for one in branches] == [1.0, 3.0, 3.0]
        assert episode.state.steps == 3
    assert episode.closed.final.score == 3.0


async def test_a_branchs_journal_holds_the_parents_byte_for_byte_and_names_its_event(competition, tmp_path):
    run = tmp_path / "run"
    async with play(competition, folder=run, seed=5) as episode:
        await cell(episode, submits(off(2)))
        head, before = episode._journal.head, (run / "journal.jsonl").read_bytes()
        async with episode.branch(2) as branches:
            await cell(branches[0], "1")
        assert (run / "journal.jsonl").read_bytes() == before
        (third,) = await episode.branch(1)
        await third.close()
        await cell(episode, "2")
        (fourth,) = await episode.branch(1)
        await fourth.close()
    assert sorted(path.name for path in (run / "branches").iterdir()) == ["0", "1", "2", "3"]
    seeds = []
    for number, index in (("0", 0), ("1", 1), ("2", 2)):
        data = (run / "branches" / number / "journal.jsonl").read_bytes()
        assert data.startswith(before)
        events = read_journal(run / "branches" / number)
        event = events[3]
        assert isinstance(event, Branched)
        assert (event.parent_episode, event.parent_events, event.parent_head_sha256) == (episode.id, 3, head)
        assert event.index == index
        assert isinstance(events[-1], Closed)
        assert events[-1].final.score == 2.0
        assert (run / "branches" / number / "files" / events[2].step.grade.sha256).read_text() == off(2)
        seeds.append(event.seed)
    assert len({*seeds}) == 3
    digest = hashlib.sha256(f"5 {head} 1".encode()).digest()
    assert seeds[1] == int.from_bytes(digest[:4])
    assert next(event for event in read_journal(run / "branches" / "3") if isinstance(event, Branched)).index == 0


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
async def test_a_refused_branch_leaves_nothing_behind(competition, kind, tmp_path):
    refused = {
        "memory": "numbers = (i for i in [1])",
        "process": (
            "import builtins, sys, threading\nbuiltins.begun, builtins.go = threading.Event(), threading.Event()\n"
            "_ = (W / 'slow_one.py').write_text('import builtins; builtins.begun.set(); builtins.go.wait(60)')\n"
            "sys.path.insert(0, '')\n"
            "t = threading.Thread(target=lambda: __import__('slow_one')); t.start(); assert builtins.begun.wait(60)"
        ),
    }
    async with play(competition, kind, folder=tmp_path / "run") as episode:
        await cell(episode, refused[kind])
        with pytest.raises(ForkRefusedError):
            await episode.branch(2)
        assert not (tmp_path / "run" / "branches").exists()
        await cell(episode, "del numbers" if kind == "memory" else "builtins.go.set(); t.join()")
        async with episode.branch(1) as branches:
            await cell(branches[0], "1")


async def test_a_branch_whose_journal_cannot_be_made_takes_its_siblings_with_it(competition, tmp_path):
    async with play(competition, folder=tmp_path / "run") as episode:
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "thing").touch()
        with pytest.raises(JournalError, match="not empty"):
            await episode.branch(2, folders=[tmp_path / "a", tmp_path / "taken"])
        assert not (tmp_path / "a").exists()
        assert [path.name for path in (tmp_path / "taken").iterdir()] == ["thing"]
        with pytest.raises(ValueError, match="1 seeds for 2 branches"):
            await episode.branch(2, seeds=[1])
        async with episode.branch(1, folders=[tmp_path / "a"]) as branches:
            assert branches[0].folder == tmp_path / "a"
            assert (await branches[0].step(Reset())).observation.ok


@pytest.mark.parametrize("kind", KINDS)
async def test_the_parent_may_be_closed_before_its_branches_and_after(competition, kind):
    async with contextlib.AsyncExitStack() as later:
        async with play(competition, kind) as episode:
            await cell(episode, "x = 40\n" + submits(off(2)))
            early, late = await episode.branch(2)
            later.push_async_callback(late.close)
            await early.close()
            await cell(episode, "x += 1")
        with pytest.raises(EpisodeOverError):
            await episode.branch(1)
        assert "\n42\n" in await cell(late, "print(x + 2)")
        assert "score 1.00000" in await cell(late, submits(off(1)))
        folder = late.folder
    assert late.closed.final.score == 1.0
    assert not folder.exists(), "a branch of a temporary episode is temporary"


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_a_branch_of_a_branch_and_its_checkpoints_are_its_own(competition, tmp_path, kind):
    async with play(competition, kind, folder=tmp_path / "run") as episode:
        await cell(episode, "x = 1")
        await episode.step(Checkpoint(label=""))
        async with episode.branch(1) as (child,):
            lost = await child.step(Restore(id="c1"))
            assert "went with the kernel that the episode had then" in lost.observation.text
            await cell(child, "x = 2")
            assert (await child.step(Checkpoint(label=""))).bookmark.id == "c2"
            await cell(child, "x = 3")
            async with child.branch(1) as (grandchild,):
                assert "\n3\n" in await cell(grandchild, "print(x)")
                assert grandchild.folder == tmp_path / "run" / "branches" / "0" / "branches" / "0"
            assert (await child.step(Restore(id="c2"))).observation.ok
            assert "\n2\n" in await cell(child, "print(x)")
        assert (await episode.step(Restore(id="c1"))).observation.ok
    points = [event for event in read_journal(grandchild.folder) if isinstance(event, Branched)]
    assert [(one.parent_episode, one.episode) for one in points] == [(episode.id, child.id), (child.id, grandchild.id)]


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_a_branchs_branch_outlives_it(competition, kind):
    async with play(competition, kind) as episode:
        await cell(episode, "x = 1; _ = (W / 'f').write_text('root')")
        (child,) = await episode.branch(1)
        (grandchild,) = await child.branch(1)
        await child.close()
        assert "\n1 root\n" in await cell(grandchild, "print(x, (W / 'f').read_text()); _ = (W / 'g').write_text('mine')")
        await episode.close()
        assert "score 1.00000" in await cell(grandchild, submits(off(1)))
        await grandchild.close()
    assert grandchild.closed.final.score == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["process", *ISOLATED_IN_CI])
async def test_a_branch_goes_back_as_often_as_it_likes(competition, kind):
    async with play(competition, kind, max_steps=200) as episode:
        await cell(episode, "x = 0")
        async with episode.branch(1) as (branch,):
            for number in range(20):
                made = await branch.step(Checkpoint(label=""))
                assert made.observation.ok, made.observation.text
                back = await branch.step(Restore(id=made.bookmark.id))
                assert back.observation.ok, back.observation.text
                await cell(branch, f"x += 1; assert x == {number + 1}; _ = (W / 'f').write_text(str(x))")


@pytest.mark.parametrize("kind", EVERYWHERE)
async def test_a_fresh_branch_has_the_history_and_the_budget_and_an_empty_kernel(competition, tmp_path, kind):
    async with play(competition, kind, folder=tmp_path / "run", max_steps=9) as episode:
        await cell(episode, "x = 1; _ = (W / 'f').write_text('root')\n" + submits(off(3)))
        async with episode.branch(1, fresh=True) as (branch,):
            assert (branch.state.steps, branch.state.best.score, branch.first_observation.steps_left) == (1, 3.0, 8)
            assert "\nFalse False" in await cell(branch, "print('x' in globals(), (W / 'f').exists())")
            assert "score 1.00000" in await cell(branch, submits(off(1)))
        assert "\n1" in await cell(episode, "print(x)")
    assert [type(one) for one in read_journal(branch.folder)][3:5] == [Branched, Resumed]
    assert branch.closed.final.score == 1.0


async def test_an_interrupted_branch_can_be_resumed_and_its_parent_too(competition, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - leaving it so is the test
        async with play(competition, folder=run) as episode:
            await cell(episode, submits(off(3)))
            async with episode.branch(2) as branches:
                await cell(branches[1], submits(off(2)))
                raise KeyboardInterrupt
    assert isinstance(read_journal(run / "branches" / "1")[-1], Stepped)
    async with play(competition, folder=run / "branches" / "1", resume=True) as branch:
        assert branch.id == branches[1].id
        assert "was interrupted" in branch.first_observation.text
        assert (branch.state.steps, branch.state.best.score) == (2, 2.0)
        await cell(branch, "1")
    assert branch.closed.final.score == 2.0
    async with play(competition, folder=run, resume=True) as again:
        assert again.state.best.score == 3.0
        async with again.branch(1) as (third,):
            assert third.folder.name == "2", "the branches of before keep their folders"
    assert [type(one) for one in read_journal(run / "branches" / "2")][-3:] == [Resumed, Branched, Closed]


async def test_a_fault_in_the_block_closes_what_is_open_with_its_reason(competition, tmp_path):
    with pytest.raises(BoxLostError):  # noqa: PT012 - leaving it so is the test
        async with play(competition, folder=tmp_path / "run") as episode, episode.branch(2) as branches:
            branches[0].kernel.lost = True
            await cell(branches[0], "1")
    assert [one.closed.reason for one in (episode, *branches)] == ["error"] * 3


async def test_the_state_of_a_branch_is_the_fold_over_its_journal(competition, tmp_path):
    async with play(competition, folder=tmp_path / "run") as episode:
        await cell(episode, submits(off(3)))
        await episode.step(Checkpoint(label=""))
        async with episode.branch(1) as (branch,):
            await cell(branch, submits(off(2)))
    state = State()
    for event in read_journal(branch.folder):
        state = state.after(event)
    assert state == branch.state
    assert (state.bookmarks, state.checkpoints, state.submissions) == (1, (), 2)


# --- the journal -------------------------------------------------------------------------------------------------------


def point(**change):
    about = {"episode": "b", "parent_episode": "a", "parent_events": 0, "parent_head_sha256": "0" * 64, "index": 0, "seed": None}
    return Branched(**about, workspace_path=change.pop("workspace_path", "/w"), started_at="")


def test_a_journal_that_branches_is_read_resumed_and_verified_like_any_other(tmp_path):
    event = point()
    with Journal.create(tmp_path / "a") as parent:
        kept = parent.store(b"bytes")
        with parent.branch(tmp_path / "b", event) as child:
            child.append(Closed(reason="agent", seconds=1.0))
            with pytest.raises(JournalError, match="another process writes"):
                Journal.resume(tmp_path / "b")
        parent.append(Closed(reason="steps", seconds=2.0))
    assert [one.type for one in read_journal(tmp_path / "b")] == ["branched", "closed"]
    assert [one.type for one in read_journal(tmp_path / "a")] == ["closed"]
    assert (tmp_path / "b" / "files" / kept).read_bytes() == b"bytes"
    with pytest.raises(JournalError, match="closed"):
        parent.branch(tmp_path / "c", event)
    assert not (tmp_path / "c").exists()
    lines = (tmp_path / "b" / "journal.jsonl").read_bytes().splitlines()
    assert all(b'"prev":"' in line for line in lines)
    assert len({*pairwise(lines)}) == 1


def test_a_branch_that_the_disk_has_no_room_for_leaves_nothing(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    with Journal.create(tmp_path / "a") as parent:
        parent.store(b"bytes")
        try:
            resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, before[1]))
            with pytest.raises(JournalError, match="cannot make a branch"):
                parent.branch(tmp_path / "b", point(workspace_path="x" * 20_000))
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)
        assert not (tmp_path / "b").exists()
        parent.branch(tmp_path / "b", point()).close()
        parent.append(Closed(reason="agent", seconds=1.0))
    assert len(read_journal(tmp_path / "a")) == len(read_journal(tmp_path / "b")) == 1


def test_kept_files_come_along_to_another_file_system(tmp_path):
    with tempfile.TemporaryDirectory(dir="/dev/shm", prefix="dojo-test-") as other, Journal.create(tmp_path / "a") as parent:
        if Path(other).stat().st_dev == tmp_path.stat().st_dev:
            pytest.skip("one file system here")
        kept = parent.store(b"bytes")
        parent.branch(Path(other) / "b", point()).close()
        assert (Path(other) / "b" / "files" / kept).read_bytes() == b"bytes"


@pytest.mark.parametrize("fresh", [False, True], ids=["forked", "fresh"])
async def test_a_branch_of_an_episode_without_a_folder_leaves_no_folder(competition, fresh):
    async with play(competition) as episode:
        (branch,) = await episode.branch(1, fresh=fresh)
        place = branch.folder
        assert place.is_dir()
        await branch.close()
        assert not place.exists()
