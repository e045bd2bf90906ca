"""The game, played against a kernel without a box and a real grader and journal."""

import asyncio
import contextlib
import json
import re

import pytest
from pydantic import Field

from dojo_kernel.actions import ACTIONS, Action, ExecuteCode, GetHistory, RequestInfo, Reset, ValidateCode, offered
from dojo_kernel.competition.spec import find
from dojo_kernel.episode import HANDLERS, INFO, REWARDS, Outcome, open_episode
from dojo_kernel.errors import BoxLostError, ConfigError, EpisodeOverError, NotPreparedError, PluginError
from dojo_kernel.feedback import FEEDBACK, Parts, cap, clean
from dojo_kernel.journal import read_journal
from dojo_kernel.records import (
    SYNTHETIC,
    Acted,
    Closed,
    Death,
    Display,
    Error,
    Execution,
    Grade,
    Interrupted,
    Late,
    Opened,
    Result,
    Standing,
    State,
    Stepped,
    Stream,
)
from dojo_kernel.settings import EpisodeSettings
from dojo_kernel.testing import open_memory_kernel

SPEC = """
title = "Count"
metric = "rmse"
[submission]
id = "Id"
columns = { y = "float" }
[prepare]
recipe = "none"
"""
ROWS = 60


@pytest.fixture
def competition(tmp_path, monkeypatch):
    """Sixty rows whose answer is their number; a board of the scores 1, 2, 3 and 4, lower is better."""
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    folder = tmp_path / "count"
    folder.mkdir()
    (folder / "competition.toml").write_text(SPEC)
    (folder / "description.md").write_text("Count to sixty.\n")
    (folder / "reference_board.csv").write_text("rank,score,entry\n1,1,a\n2,2,b\n3,3,c\n4,4,d\n")
    found = find(str(folder))
    for place in (found.public_dir, found.private_dir):
        place.mkdir(parents=True)
    (found.private_dir / "answers.csv").write_text(csv(lambda i: i))
    (found.public_dir / "sample_submission.csv").write_text(csv(lambda i: 0))
    (found.public_dir / "images").mkdir()
    for number in range(12):
        (found.public_dir / "images" / f"{number:02d}.png").write_bytes(b"12345")
    found.manifest.write_text(json.dumps({"files": {}}))
    return found


def csv(value):
    return "Id,y\n" + "".join(f"{i},{value(i)}\n" for i in range(ROWS))


def off(by):
    """A submission that is off by the same everywhere: its rmse."""
    return csv(lambda i: i + by)


def writes(text, then=""):
    return ExecuteCode(code=f"(WORKSPACE / 'submission.csv').write_text({text!r}); None\n{then}")


def play(competition, **settings):
    about = {name: settings.pop(name) for name in ("folder", "resume", "agent") if name in settings}
    return open_episode(competition.folder, settings=EpisodeSettings(**settings), start_kernel=open_memory_kernel, **about)


@contextlib.contextmanager
def registered(table, name, thing):
    table.register(name)(thing)
    try:
        yield
    finally:
        del table._things[name]


# --- information -------------------------------------------------------------------------------------------------------


async def test_synthetic_data_is_named_before_any_score(competition):
    manifest = json.loads(competition.manifest.read_text())
    competition.manifest.write_text(json.dumps({**manifest, "synthetic": True}, indent=1, sort_keys=True))
    async with play(competition) as episode:
        assert SYNTHETIC in episode.first_observation.text
        told = (await episode.step(RequestInfo(info_type="metadata"))).observation.text
        assert '"synthetic": true' in told
        await episode.step(writes(off(1.5)))
        assert "(synthetic data)" in (await episode.step(GetHistory())).observation.text


async def test_the_first_observation_says_what_an_agent_must_know(competition):
    async with play(competition, max_steps=7) as episode:
        text = episode.first_observation.text
    for part in (
        "rmse, lower is better",
        "submission.csv with the columns Id, y",
        "relative to the working directory",
        "7 steps",
        "hidden rows",
        *offered(),
    ):
        assert part in text


async def test_every_kind_of_information_is_answered_and_all_holds_them_all(competition):
    async with play(competition) as episode:
        told = {name: (await episode.step(RequestInfo(info_type=name))).observation for name in INFO}
        data_path = episode.kernel.data_path
    assert all(one.ok for one in told.values())
    assert set(INFO) == {"all", "data_path", "data_structure", "metadata", "name", "output_path", "overview", "sample_submission"}
    assert "Count to sixty." in told["overview"].text
    assert "Id,y\n0,0\n1,0\n2,0\n[left]" in told["sample_submission"].text
    assert "images/\n    00.png (5 bytes)" in told["data_structure"].text
    assert "... and 2 more" in told["data_structure"].text
    assert data_path in told["data_path"].text
    assert "\nsubmission.csv\n" in told["output_path"].text
    assert "relative to the working directory" in told["output_path"].text
    assert "\ncount\n" in told["name"].text
    assert json.loads(re.search(r"^{.*}$", told["metadata"].text, re.MULTILINE)[0])["prediction_columns"] == {"y": "float"}
    for name in set(INFO) - {"all"}:
        assert f"## {name}\n" in told["all"].text


async def test_no_answer_and_no_private_path_is_in_any_information(competition):
    async with play(competition) as episode:
        text = (await episode.step(RequestInfo())).observation.text
    assert "answers" not in text
    assert str(competition.private_dir) not in text


# --- actions -----------------------------------------------------------------------------------------------------------


async def test_variables_stay_from_cell_to_cell_and_go_with_a_reset(competition):
    async with play(competition) as episode:
        await episode.step(ExecuteCode(code="kept = 41"))
        assert "42" in (await episode.step(ExecuteCode(code="kept + 1"))).observation.text
        reset = await episode.step(Reset())
        assert reset.observation.ok
        assert "NameError" in (await episode.step(ExecuteCode(code="kept"))).observation.text
        assert episode.state.steps == 4


async def test_a_reset_keeps_best_score_files_and_history(competition):
    async with play(competition) as episode:
        await episode.step(writes(off(2)))
        after = (await episode.step(Reset())).observation
        assert after.best_score == 2.0
        assert "Id,y" in (await episode.step(ExecuteCode(code="(WORKSPACE / 'submission.csv').read_text()"))).observation.text
        assert "1. execute_code: ok" in (await episode.step(GetHistory())).observation.text


async def test_a_trial_leaves_variables_files_and_the_score_as_they_were(competition):
    async with play(competition) as episode:
        await episode.step(ExecuteCode(code="x = 1"))
        trial = await episode.step(ValidateCode(code="x = 2\n(WORKSPACE / 'submission.csv').write_text('junk')"))
        assert trial.observation.ok
        assert trial.execution.where == "scratch"
        assert trial.grade is None
        seen = await episode.step(ExecuteCode(code="print(x, (WORKSPACE / 'submission.csv').exists())"))
        assert "1 False" in seen.observation.text


async def test_a_trial_begins_with_the_live_variables_or_empty_and_says_which(competition):
    async with play(competition) as episode:
        await episode.step(ExecuteCode(code="x = [1]"))
        code = "x.append(2); (WORKSPACE / 'new.txt').write_text('abc'); print(x)"
        live = await episode.step(ValidateCode(code=code))
        assert live.execution.forked
        assert "scratch kernel with the live variables, nothing kept" in live.observation.text
        assert "[1, 2]\n" in live.observation.text
        assert "would have written: new.txt (3 bytes)" in live.observation.text
        fresh = await episode.step(ValidateCode(code="x", state="fresh"))
        assert not fresh.execution.forked
        assert "(empty scratch kernel, nothing kept)" in fresh.observation.text
        assert "NameError" in fresh.observation.text
        assert "(read, not run: its syntax is wrong)" in (await episode.step(ValidateCode(code="("))).observation.text
        await episode.step(ExecuteCode(code="numbers = (i for i in [1])"))
        refused = await episode.step(ValidateCode(code="print('ran')"))
        assert (refused.execution.forked, refused.observation.ok) == (False, True)
        assert "Tried in an empty kernel: numbers, a generator, cannot be copied" in refused.observation.text


async def test_a_failing_cell_is_an_observation_and_the_episode_goes_on(competition):
    async with play(competition) as episode:
        step = await episode.step(ExecuteCode(code="1 / 0"))
        assert not step.observation.ok
        assert "ZeroDivisionError" in step.observation.text
        assert episode.state.open


@pytest.mark.parametrize(
    "given",
    [
        None, 7, "execute_code", [], {}, {"name": None}, {"name": ["x"]}, {"name": "fly"}, {"name": "invalid", "given": "", "problem": ""},
        {"name": "execute_code"}, {"name": "execute_code", "code": 1}, {"name": "execute_code", "code": "1", "more": 1}, {1: 2},
        {"name": "execute_code", "code": "1", "timeout_s": float("nan")}, {"name": "request_info", "info_type": "answers"},
        {"name": "get_history", "last": 0}, {"name": "\ud800"}, {"name": "execute_code", "code": "x" * 1_000_001},
    ],
)  # fmt: skip
async def test_a_bad_action_is_an_observation_that_costs_a_step(competition, given):
    async with play(competition, max_steps=2) as episode:
        step = await episode.step(given)
        assert not step.observation.ok
        assert step.reward == 0.0
        assert step.observation.steps_left == 1
        assert "refused" in step.observation.text
        assert step.observation.text.isprintable() or "\n" in step.observation.text
        step.model_dump_json()


async def test_an_unknown_action_is_told_the_known_ones(competition):
    async with play(competition) as episode:
        text = (await episode.step({"name": "fly"})).observation.text
    assert all(name in text for name in offered())


async def test_the_wire_form_of_an_action_is_as_good_as_the_action(competition):
    async with play(competition) as episode:
        step = await episode.step({"name": "execute_code", "code": "print('grüße 🎈')"}, said="I greet")
    assert "grüße 🎈" in step.observation.text
    assert step.said == "I greet"


async def test_history_is_bounded_and_names_action_outcome_and_score(competition):
    async with play(competition, max_steps=300) as episode:
        assert "nothing happened yet" in (await episode.step(GetHistory())).observation.text
        await episode.step(ExecuteCode(code="\n  \n# a long line " + "x" * 5_000))
        await episode.step(writes(off(3)))
        await episode.step(ExecuteCode(code="1 / 0"))
        await episode.step(writes("junk"))
        last_two = (await episode.step(GetHistory(last=2))).observation.text
        assert "4. execute_code: error" in last_two
        assert "5. execute_code: submission refused" in last_two
        assert "3. execute_code" not in last_two
        whole = (await episode.step(GetHistory(last=100))).observation.text
        assert "3. execute_code: ok" in whole
        assert "score 3.00000" in whole
        assert len(whole) < 2_000


# --- submissions -------------------------------------------------------------------------------------------------------


async def test_a_changed_submission_is_graded_on_the_feedback_rows(competition):
    async with play(competition) as episode:
        step = await episode.step(writes(off(2)))
    assert (step.grade.score, step.grade.rows, step.grade.human_rank, step.reward) == (2.0, "public", 0.75, 0.75)
    assert step.observation.score == step.observation.best_score == 2.0
    assert "this is your best so far" in step.observation.text


@pytest.mark.parametrize(
    "reward", ["improvement", *(pytest.param(one, marks=pytest.mark.slow) for one in ("human_rank", "score", "medal"))]
)
async def test_an_untouched_a_rewritten_and_a_removed_file_pay_nothing(competition, reward):
    async with play(competition, reward=reward) as episode:
        await episode.step(writes(off(2)))
        untouched = await episode.step(ExecuteCode(code="1"))
        same = await episode.step(writes(off(2)))
        removed = await episode.step(ExecuteCode(code="(WORKSPACE / 'submission.csv').unlink()"))
        assert [(step.grade, step.reward) for step in (untouched, same, removed)] == [(None, 0.0)] * 3
        assert "not graded again" in same.observation.text
        assert (episode.state.submissions, episode.state.best.score) == (1, 2.0)


async def test_the_file_of_a_failed_cell_is_not_graded_until_a_cell_that_ends_well_writes_it(competition):
    async with play(competition) as episode:
        failed = await episode.step(writes(off(2), "1 / 0"))
        assert failed.grade is None
        assert "did not end well: not graded" in failed.observation.text
        assert (await episode.step(ExecuteCode(code="1"))).grade is None
        assert (await episode.step(writes(off(2)))).grade.score == 2.0


async def test_a_refused_submission_pays_nothing_and_keeps_the_best(competition):
    async with play(competition) as episode:
        await episode.step(writes(off(2)))
        for text in ("", "Id,z\n1,2\n", off(1).replace("\n5,6\n", "\n5,nan\n"), off(1).replace("\n5,6\n", "\n4,6\n")):
            step = await episode.step(writes(text))
            assert (step.grade.score, step.reward, step.observation.ok) == (None, 0.0, False)
            assert "[submission] not scored" in step.observation.text
        assert episode.state.best.score == 2.0
        assert episode.state.submissions == 1


async def test_a_link_is_refused(competition):
    async with play(competition) as episode:
        step = await episode.step(ExecuteCode(code="(WORKSPACE / 'submission.csv').symlink_to('/etc/passwd')"))
    assert step.grade.code == "link"
    assert step.reward == 0.0


async def test_too_large_a_submission_is_refused(competition):
    async with play(competition, max_submission_mb=0.0001) as episode:
        assert (await episode.step(writes(off(1)))).grade.code == "too_big"


async def test_no_more_than_max_submissions_are_graded(competition):
    async with play(competition, max_submissions=2) as episode:
        steps = [await episode.step(writes(off(by))) for by in (4, 3, 2)]
        assert [step.grade is not None for step in steps] == [True, True, False]
        assert "all 2 submissions are used up" in steps[2].observation.text
        assert episode.state.best.score == 3.0


async def test_improvements_sum_to_the_rank_of_the_best(competition):
    async with play(competition, reward="improvement") as episode:
        for by in (4, 2, 3, 2, 1, 5):
            await episode.step(writes(off(by)))
        assert episode.state.reward == pytest.approx(episode.state.best.human_rank) == 1.0


async def test_the_final_grade_is_of_the_best_submission_on_the_hidden_rows(competition):
    mixed = csv(lambda i: i + (1 if competition.split.is_public(str(i)) else 4))
    async with play(competition) as episode:
        await episode.step(writes(mixed))
        await episode.step(writes(off(2)))
        assert episode.state.best.score == 1.0
    assert (episode.closed.final.rows, episode.closed.final.score) == ("private", 4.0)
    assert episode.state.final == episode.closed.final


# --- budgets and ends ----------------------------------------------------------------------------------------------------


async def test_the_episode_ends_with_its_last_step(competition):
    async with play(competition, max_steps=2) as episode:
        assert (await episode.step(writes(off(2)))).observation.steps_left == 1
        assert (await episode.step(Reset())).observation.steps_left == 0
        assert episode.closed.reason == "steps"
        assert episode.closed.final.score == 2.0
        with pytest.raises(EpisodeOverError):
            await episode.step(Reset())


async def test_the_episode_ends_when_its_time_is_used_up(competition):
    async with play(competition, max_seconds=0.3) as episode:
        step = await episode.step(ExecuteCode(code="import time; time.sleep(0.35)"))
        assert step.observation.seconds_left == 0.0
        assert episode.closed.reason == "time"


async def test_thinking_time_is_not_counted(competition):
    async with play(competition, max_seconds=5) as episode:
        await asyncio.sleep(0.3)
        step = await episode.step(Reset())
        assert step.observation.seconds_left == pytest.approx(5 - step.seconds)


async def test_a_cell_may_ask_for_less_time_and_never_for_more(competition):
    async with play(competition, cell_timeout_s=10, max_seconds=100) as episode:
        assert (episode.timeout(3), episode.timeout(50), episode.timeout(None)) == (3, 10, 10)


async def test_closing_twice_is_closing_once(competition, tmp_path):
    async with play(competition, folder=tmp_path / "run") as episode:
        first = await episode.close("agent")
        assert await episode.close("closed") == first
    assert [type(event) for event in read_journal(tmp_path / "run")] == [Opened, Closed]


async def test_without_a_submission_there_is_no_final_grade(competition):
    async with play(competition) as episode:
        await episode.step(Reset())
    assert (episode.closed.reason, episode.closed.final) == ("closed", None)


async def test_two_steps_at_once_happen_one_after_the_other(competition):
    async with play(competition) as episode:
        steps = await asyncio.gather(*(episode.step(ExecuteCode(code="1")) for _ in range(5)))
    assert sorted(step.index for step in steps) == [0, 1, 2, 3, 4]


async def test_a_temporary_episode_leaves_no_folder_and_no_workspace(competition):
    async with play(competition) as episode:
        folder, workspace = episode.folder, episode.kernel._workspace
    assert not folder.exists()
    assert not workspace.exists()


async def test_the_journal_is_what_was_played_and_pins_how(competition, tmp_path):
    async with play(competition, folder=tmp_path / "run", agent="me", seed=5) as episode:
        step = await episode.step(writes(off(2)))
        kernel = episode.kernel
    events = read_journal(tmp_path / "run")
    assert events == episode.events
    assert [type(event) for event in events] == [Opened, Acted, Stepped, Closed]
    opened = events[0]
    assert (opened.agent, opened.seed, opened.box, opened.better) == ("me", 5, "memory", "lower")
    assert (opened.data_path, opened.workspace_path) == (kernel.data_path, kernel.workspace_path)
    assert (tmp_path / "run" / "files" / step.grade.sha256).read_text() == off(2)


# --- faults ----------------------------------------------------------------------------------------------------------------


async def test_a_lost_box_closes_the_episode_with_its_traceback_and_the_final_grade(competition, tmp_path):
    with pytest.raises(BoxLostError):  # noqa: PT012 - the block is what is tested
        async with play(competition, folder=tmp_path / "run") as episode:
            await episode.step(writes(off(2)))
            episode.kernel.lost = True
            await episode.step(ExecuteCode(code="1"))
    closed = read_journal(tmp_path / "run")[-1]
    assert closed == episode.closed
    assert closed.reason == "error"
    assert "BoxLostError: the box is gone" in closed.detail
    assert closed.final.score == 2.0


async def test_an_unprepared_competition_is_the_users_mistake(competition):
    competition.manifest.unlink()
    with pytest.raises(NotPreparedError, match="dojo prepare count"):
        async with play(competition):
            pass


@pytest.mark.parametrize("settings", [{"reward": "fame"}, {"feedback": ("praise",)}, {"reward": "no.such:thing"}])
async def test_an_unknown_name_is_refused_before_anything_starts(competition, tmp_path, settings):
    with pytest.raises(ConfigError):
        async with play(competition, folder=tmp_path / "run", **settings):
            pass
    assert not (tmp_path / "run").exists()


# --- resume ----------------------------------------------------------------------------------------------------------------


async def test_an_interrupted_episode_goes_on_where_it_stopped(competition, tmp_path):
    run = tmp_path / "run"
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - the block is what is tested
        async with play(competition, folder=run, max_steps=4, max_submissions=2) as episode:
            await episode.step(writes(off(3)))
            raise KeyboardInterrupt
    assert isinstance(read_journal(run)[-1], Stepped)
    async with play(competition, folder=run, resume=True, max_steps=99) as episode:
        assert episode.state.best.score == 3.0
        assert episode.settings.max_steps == 4  # the budget it was opened with
        assert "was interrupted" in episode.first_observation.text
        assert episode.first_observation.steps_left == 3
        same = await episode.step(writes(off(3)))
        assert same.grade is None
        assert (await episode.step(writes(off(2)))).grade.score == 2.0
        assert "1. execute_code: ok" in (await episode.step(GetHistory())).observation.text
    assert (episode.closed.reason, episode.closed.final.score) == ("steps", 2.0)
    assert [step.index for step in episode.steps] == [0, 1, 2, 3]


class Wait(Action):
    """Never done."""

    name = "wait"


async def test_an_interrupted_step_is_marked_costs_its_step_and_is_not_run_again(competition, tmp_path):
    run, tries = tmp_path / "run", []

    async def wait(episode, action):
        tries.append(episode.state.pending)
        await asyncio.Event().wait()

    with registered(ACTIONS, "wait", Wait), registered(HANDLERS, "wait", wait):
        with pytest.raises(TimeoutError):
            async with play(competition, folder=run, max_steps=3) as episode:
                await asyncio.wait_for(episode.step(Wait()), 0.2)
        assert isinstance(read_journal(run)[-1], Acted)
        async with play(competition, folder=run, resume=True) as episode:
            assert tries == [0]
            assert episode.state.steps == 1
            assert episode.state.pending is None
            assert (await episode.step(Reset())).index == 1
        assert [event.index for event in read_journal(run) if isinstance(event, Interrupted)] == [0]


async def test_a_finished_episode_is_not_resumed(competition, tmp_path):
    async with play(competition, folder=tmp_path / "run"):
        pass
    with pytest.raises(ConfigError, match="has ended"):
        async with play(competition, folder=tmp_path / "run", resume=True):
            pass


async def test_an_episode_on_other_data_is_not_resumed(competition, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        async with play(competition, folder=tmp_path / "run"):
            raise KeyboardInterrupt
    competition.manifest.write_text(json.dumps({"files": {"public/train.csv": "1"}}))
    with pytest.raises(ConfigError, match="prepared anew"):
        async with play(competition, folder=tmp_path / "run", resume=True):
            pass


# --- what others add ---------------------------------------------------------------------------------------------------------


class Shout(Action):
    """Say it louder."""

    name = "shout"
    word: str = Field(description="What to shout.")
    stop: bool = False


async def shout(episode, action):
    return Outcome(action.word.upper(), ends=action.stop)


async def test_a_registered_action_is_played_and_may_end_the_episode(competition, tmp_path):
    with registered(ACTIONS, "shout", Shout), registered(HANDLERS, "shout", shout):
        async with play(competition, folder=tmp_path / "run") as episode:
            assert "HEY" in (await episode.step({"name": "shout", "word": "hey"})).observation.text
            await episode.step(Shout(word="bye", stop=True))
            assert episode.closed.reason == "agent"
        assert read_journal(tmp_path / "run")[1].action == Shout(word="hey")
    async with play(competition) as episode:
        assert not (await episode.step({"name": "shout", "word": "hey"})).observation.ok


async def test_a_registered_info_type_is_told_alone_and_among_all(competition):
    with registered(INFO, "weather", lambda episode: f"sunny in {episode.competition.slug}"):
        async with play(competition) as episode:
            assert "sunny in count" in (await episode.step(RequestInfo(info_type="weather"))).observation.text
            assert "## weather\nsunny in count" in (await episode.step(RequestInfo())).observation.text


async def test_a_registered_reward_pays_and_a_sum_is_never_poisoned(competition):
    with registered(REWARDS, "nan", lambda before, grade: float("nan") if grade is None else 7):
        async with play(competition, reward="nan") as episode:
            await episode.step(Reset())
            await episode.step(writes(off(2)))
            assert episode.state.reward == 7.0


async def test_registered_feedback_is_joined_in_the_order_of_the_settings(competition):
    with registered(FEEDBACK, "coach", lambda parts: f"well done in step {parts.index}"):
        async with play(competition, feedback=("coach", "base")) as episode:
            text = (await episode.step(Reset())).observation.text
    assert text.startswith("well done in step 0\n[step 1] reset: ok")


async def test_reward_and_feedback_are_found_by_address(competition, tmp_path, monkeypatch):
    (tmp_path / "my_dojo_plugin.py").write_text("def pay(before, grade): return 0.25\ndef say(parts): return 'by address'\n")
    monkeypatch.syspath_prepend(tmp_path)
    async with play(competition, reward="my_dojo_plugin:pay", feedback=("my_dojo_plugin:say",)) as episode:
        step = await episode.step(Reset())
    assert (step.reward, step.observation.text) == (0.25, "by address")


def broken(*args):
    raise KeyError("oops")


@pytest.mark.parametrize(
    ("table", "settings", "action"),
    [
        (INFO, {}, RequestInfo(info_type="broken")),
        (REWARDS, {"reward": "broken"}, Reset()),
        (FEEDBACK, {"feedback": ("base", "broken")}, Reset()),
    ],
)
async def test_a_broken_plugin_closes_the_episode_and_is_named(competition, table, settings, action):
    with registered(table, "broken", broken), pytest.raises(PluginError, match="KeyError: 'oops'"):
        async with play(competition, **settings) as episode:
            await episode.step(action)
    assert episode.closed.reason == "error"


async def test_an_action_without_a_handler_is_a_broken_plugin(competition):
    with registered(ACTIONS, "shout", Shout), pytest.raises(PluginError, match="no handler of the action is called 'shout'"):
        async with play(competition) as episode:
            await episode.step(Shout(word="x"))
    assert episode.closed.reason == "error"


async def test_a_broken_handler_is_a_broken_plugin(competition):
    async def fail(episode, action):
        raise KeyError("oops")

    with (
        registered(ACTIONS, "shout", Shout),
        registered(HANDLERS, "shout", fail),
        pytest.raises(PluginError, match="KeyError: 'oops'"),
    ):
        async with play(competition) as episode:
            await episode.step(Shout(word="x"))
    assert episode.closed.reason == "error"


# --- what an agent reads -------------------------------------------------------------------------------------------------------


def told(execution=None, grade=None, **change):
    about = {
        "index": 2, "action": ExecuteCode(code=""), "text": "", "ok": True, "execution": execution, "grade": grade,
        "before": State(open=True, better="lower"), "metric": "rmse", "decimals": 3, "steps_left": 4, "seconds_left": 61.4, "observation_chars": 400,
    }  # fmt: skip
    return FEEDBACK["base"](Parts(**{**about, **change}))


def ran(status="ok", **change):
    return Execution(code="", status=status, seconds=1.24, **change)


@pytest.mark.parametrize(
    ("status", "words"),
    [("ok", "ok"), ("error", "failed"), ("timeout", "timed out"), ("died", "the kernel died")],
)
def test_the_first_line_says_how_the_cell_ended(status, words):
    assert told(ran(status)).splitlines()[0] == f"[step 3] execute_code: {words} after 1.2 s (cell s0002)"


def test_a_trial_says_that_nothing_is_kept():
    for forked in (False, True):
        assert "nothing kept)" in told(ran(where="scratch", forked=forked), action=ValidateCode(code=""))


def test_the_last_line_says_what_is_left():
    assert told(ran()).splitlines()[-1] == "[left] 4 steps, 61 s; no score yet"
    best = State(open=True, better="lower", best=Grade(rows="public", sha256="", score=1.5))
    assert told(ran(), before=best).splitlines()[-1] == "[left] 4 steps, 61 s; best score 1.500"


def test_outputs_are_plain_text_and_pictures_are_stubs():
    text = told(
        ran(
            outputs=(
                Stream(name="stdout", text="\x1b[31mred\x1b[0m\x07\n"),
                Display(data={"image/png": "AAAA", "text/plain": "<Figure size 640x480 with 1 Axes>"}),
                Display(data={"application/x-unknown": 1}),
                Result(data={"text/plain": ["4", "2"], "text/html": "<b>42</b>"}),
                Error(ename="E", evalue="v", traceback=()),
            )
        )
    )
    assert "red\N{REPLACEMENT CHARACTER}\n[image/png 640x480]\n[application/x-unknown]\n42\nE: v\n" in text
    assert "\x1b" not in text


def test_late_output_names_its_cell():
    late = (
        Late(cell="s0001", outputs=(Stream(name="stdout", text="thread"),)),
        Late(cell="", outputs=(Stream(name="stderr", text="who"),)),
    )
    text = told(ran(late=late))
    assert "[late output of cell s0001]\nthread" in text
    assert "[late output of an earlier cell]\nwho" in text


def test_a_death_says_its_cause_and_a_timeout_what_survived():
    text = told(ran("died", death=Death(kind="oom", detail="4 GB"), notes=("the kernel was restarted",)))
    assert "[note] the kernel was restarted\n[note] cause of death: oom 4 GB" in text
    assert "[note] variables still alive: a, b" in told(ran("timeout", rung="sigint", survived=("a", "b")))
    assert "[note] variables still alive: nothing" in told(ran("timeout", rung="kill", survived=()))


def test_a_long_output_keeps_head_and_tail():
    text = told(ran(outputs=(Stream(name="stdout", text="A" * 1_000 + "B" * 1_000),)))
    assert "AAA\n[... 1600 characters cut ...]\nBBB" in text
    assert cap("short", 10) == "short"


def test_a_grade_says_score_place_and_best():
    grade = Grade(
        rows="public",
        sha256="",
        score=2.0,
        human_rank=0.75,
        standings=(Standing(board="reference", position=2, teams=4, human_rank=0.75),),
    )
    text = told(ran(), grade)
    assert "[submission] score 2.000 (rmse, lower is better; public rows)" in text
    assert "[submission] place: 2 of 4 on the reference board (programs, not people); human rank 0.750" in text
    assert "[submission] this is your best so far" in text
    worse = told(ran(), grade, before=State(open=True, better="lower", best=Grade(rows="public", sha256="", score=1.0)))
    assert "best so far" not in worse


def test_a_problem_is_told_as_it_is():
    assert "[submission] not scored: 3 ids are missing" in told(
        ran(), Grade(rows="public", sha256="", problem="3 ids are missing")
    )


def test_no_lone_surrogate_and_no_escape_reaches_a_model():
    assert clean("a\ud800b\x1b]0;title\x07c\x9bd\te") == "a\N{REPLACEMENT CHARACTER}bc\te"
