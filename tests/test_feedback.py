"""Feedback from models and people, in any combination, in episodes against a kernel without a box."""

import asyncio
import io
import itertools
import json
import os
import pty
import select
import sys
import threading
import time
from pathlib import Path

import pytest
from model_server import Fail, ModelServer, Say, Stall

from dojo_kernel.actions import ExecuteCode, Reset
from dojo_kernel.episode import open_episode
from dojo_kernel.errors import ConfigError, PluginError
from dojo_kernel.feedback import FEEDBACK, Review
from dojo_kernel.journal.log import read_journal
from dojo_kernel.records import Stepped, Turn, Usage
from dojo_kernel.replay import replay
from dojo_kernel.reviewers import ASK
from dojo_kernel.run import run
from dojo_kernel.settings import EpisodeSettings, Experiment, KernelSettings, read_experiment
from dojo_kernel.testing import open_memory_kernel

CELL = ExecuteCode(code="print(6 * 7)")
ASKED: list[str] = []


@pytest.fixture(autouse=True)
def _prepared(data, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Once.__module__])
    ASKED.clear()


class Once:
    """One cell, and no more."""

    name = "once"
    trusted = False

    def __init__(self) -> None:
        self.cells = [CELL]

    async def act(self, observation):
        return Turn(action=self.cells.pop() if self.cells else None, usage=Usage(input_tokens=1, output_tokens=2))


def answer_at_once(text):
    ASKED.append(text)
    return "Use folds."


async def answer_later(text):
    await asyncio.sleep(0.01)
    return "Use folds."


def answer_never(text):
    threading.Event().wait(30)


def answer_nothing(text):
    return "  "


def fail(text):
    raise KeyError("oops")


def ask(function):
    return {"ask": f"{__name__}:{function.__name__}"}


def reviewed(server, **options):
    return {"model": "vllm/judge", "base_url": server.url, "retries": 0, "retry_wait_s": 0.01, **options}


def play(names, options, folder=None, competition="wine", **more):
    settings = EpisodeSettings(feedback=tuple(names), feedback_options=options, **more)
    return open_episode(competition, settings=settings, folder=folder, start_kernel=open_memory_kernel)


PARTS = {"base": "[step 1] execute_code: ok", "llm": "[review] Scale the columns.", "human": "[human] Use folds."}
COMBINATIONS = [names for count in (1, 2, 3) for names in itertools.permutations(PARTS, count)]


@pytest.mark.parametrize("names", COMBINATIONS, ids="+".join)
async def test_every_combination_speaks_in_its_order(names):
    with ModelServer([], then=Say("Scale the columns.")) as server:
        options = {name: given for name, given in {"llm": reviewed(server), "human": ask(answer_later)}.items() if name in names}
        async with play(names, options) as episode:
            step = await episode.step(CELL)
    places = [step.observation.text.index(PARTS[name]) for name in names]
    assert places == sorted(places)
    assert all(PARTS[name] not in step.observation.text for name in PARTS if name not in names)
    assert (step.feedback_usage is not None) == ("llm" in names)


async def test_a_model_sees_the_action_and_what_the_agent_sees_and_nothing_else(tmp_path):
    with ModelServer([], then=Say("Good.")) as server:
        async with play(["base", "llm"], {"llm": reviewed(server)}, tmp_path / "episode") as episode:
            step = await episode.step(CELL)
    body = server.requests[0].body
    assert [message["role"] for message in body["messages"]] == ["system", "user"]
    base, _, review = step.observation.text.rpartition("\n")
    assert review == "[review] Good."
    assert body["messages"][1]["content"] == f'Action: {{"name": "execute_code"}}\n\nprint(6 * 7)\n\nResult:\n{base}'
    assert "tools" not in body


async def test_what_a_review_takes_is_in_the_journal(tmp_path):
    with ModelServer([], then=Say("Good.")) as server:
        async with play(["base", "llm"], {"llm": reviewed(server)}, tmp_path / "episode") as episode:
            step = await episode.step(CELL)
            await episode.step(Reset())
    usage = step.feedback_usage
    assert (usage.input_tokens, usage.output_tokens, usage.cached_tokens, usage.requests, usage.cost) == (100, 20, 40, 1, None)
    kept = [event.step.feedback_usage for event in read_journal(tmp_path / "episode") if isinstance(event, Stepped)]
    assert [one.input_tokens for one in kept] == [100, 100]


FAILURES = {
    "error": (Fail(500), {}, "scripted"),
    "refused key": (Fail(401), {}, "scripted"),
    "stall": (Stall(), {"stall_s": 0.2}, "no word for"),
    "timeout": (Stall(), {"timeout_s": 0.2}, "no answer within 0.2 s"),
    "truncated": (Say("Never.", cut=True), {}, "the stream ended"),
    "refusal": (Say(refusal="I may not."), {}, "would not say"),
    "nothing": (Say(" "), {}, "would not say"),
}


@pytest.mark.parametrize("what", FAILURES)
async def test_a_model_that_fails_leaves_a_note_and_a_whole_step(what):
    line, options, words = FAILURES[what]
    with ModelServer([], then=lambda body: line if "[step 1]" in str(body) else Say("Again.")) as server:
        async with play(["base", "llm"], {"llm": reviewed(server, **options)}) as episode:
            step = await episode.step(CELL)
            assert "42" in step.observation.text
            assert step.observation.text.splitlines()[-1].startswith("[review] none of this step: ")
            assert words in step.observation.text
            assert (step.feedback_usage.requests, step.observation.ok) == (1, True)
            _, judge = episode._feedback._providers[-1]  # only who stalls is cut off: on a busy machine any answer may take long
            judge._timeout_s = 60
            judge._model.options = judge._model.options.model_copy(update={"stall_s": 60})
            assert (await episode.step(CELL)).observation.text.endswith("[review] Again.")


async def test_a_spent_budget_of_reviews_leaves_notes():
    with ModelServer([], then=Say("Good.")) as server:
        async with play(["llm"], {"llm": reviewed(server, budget={"tokens": 100})}) as episode:
            texts = [(await episode.step(CELL)).observation.text for _ in range(3)]
    assert texts[0] == "[review] Good."
    assert all("budget of 100 tokens is spent" in text for text in texts[1:])
    assert len(server.requests) == 1


async def test_feedback_takes_no_time_of_the_agents():
    with ModelServer([], then=Say("Slow.", stall_s=1.0)) as server:
        async with play(["llm"], {"llm": reviewed(server)}) as episode:
            began = time.monotonic()
            step = await episode.step(CELL)
            took = time.monotonic() - began
    assert took > 1
    assert step.seconds <= took - 1


async def test_a_review_is_plain_text_of_bounded_length():
    with ModelServer([], then=Say("\x1b[31mred\x1b[0m " + "x" * 10_000)) as server:
        async with play(["llm"], {"llm": reviewed(server)}) as episode:
            text = (await episode.step(CELL)).observation.text
    assert text.startswith("[review] red xxx")
    assert len(text) < 5_000


@pytest.mark.parametrize(
    ("function", "deadline_s", "says"),
    [
        (answer_at_once, 5, "[human] Use folds."),
        (answer_later, 5, "[human] Use folds."),
        (answer_nothing, 5, ""),
        (answer_never, 0.2, "[human] no answer within 0.2 s"),
    ],
)
async def test_a_person_is_asked_until_a_deadline(function, deadline_s, says):
    async with play(["human"], {"human": {**ask(function), "deadline_s": deadline_s}}) as episode:
        assert (await episode.step(CELL)).observation.text == says


async def test_a_person_sees_the_step():
    async with play(["human"], {"human": ask(answer_at_once)}) as episode:
        await episode.step(CELL)
    assert "print(6 * 7)" in ASKED[0]
    assert "42" in ASKED[0]


async def test_a_way_to_ask_that_fails_is_a_broken_plugin():
    with pytest.raises(PluginError, match="feedback 'human' failed: KeyError: 'oops'"):
        async with play(["human"], {"human": ask(fail)}) as episode:
            await episode.step(CELL)


async def test_steps_of_several_episodes_are_asked_about_one_at_a_time():
    now = []

    async def count(text):
        now.append(+1)
        assert sum(now) == 1
        await asyncio.sleep(0.05)
        now.append(-1)
        return "Fine."

    ASK.register("count")(count)
    try:
        async with play(["human"], {"human": {"ask": "count"}}) as one, play(["human"], {"human": {"ask": "count"}}) as two:
            steps = await asyncio.gather(one.step(CELL), two.step(CELL))
    finally:
        ASK._things.pop("count")
    assert [step.observation.text for step in steps] == ["[human] Fine."] * 2


@pytest.fixture
def terminal(monkeypatch):
    """A pseudo-terminal as stdin; gives its other end."""
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "r") as stdin:
        monkeypatch.setattr(sys, "stdin", stdin)
        yield ours
    os.close(ours)


async def test_a_person_answers_in_the_terminal_once_asked(terminal, monkeypatch):
    shown = io.StringIO()
    monkeypatch.setattr(sys, "stderr", shown)
    os.write(terminal, b"typed before the question\n")
    assert select.select([sys.stdin], [], [], 10)[0]

    def sit():
        while "Your feedback in one line" not in shown.getvalue():
            time.sleep(0.01)
        os.write(terminal, "Prüfe die Spalten.\n".encode())

    person = threading.Thread(target=sit)
    person.start()
    async with play(["base", "human"], {}) as episode:
        step = await episode.step(CELL)
    person.join()
    assert step.observation.text.endswith("[human] Prüfe die Spalten.")
    assert "42" in shown.getvalue()


async def test_nobody_at_the_terminal_is_not_waited_for_longer_than_the_deadline(terminal):
    async with play(["human"], {"human": {"deadline_s": 0.2}}) as episode:
        assert (await episode.step(CELL)).observation.text == "[human] no answer within 0.2 s"


@pytest.mark.parametrize(
    ("names", "options", "says"),
    [
        (["llm"], {}, "feedback_options.llm: missing .*'model'"),
        (["llm"], {"llm": {"model": "judge"}}, "write provider/model"),
        (["llm"], {"llm": {"model": "gemini/judge"}}, "export GEMINI_API_KEY"),
        (["llm"], {"llm": {"model": "vllm/judge", "temprature": 1}}, "did you mean temperature"),
        (["human"], {}, "needs a terminal"),
        (["human"], {"human": {"ask": "phone"}}, "no way to ask a person is called 'phone'"),
        (["human"], {"human": {"wait": 3}}, "unexpected keyword argument 'wait'"),
        (["base"], {"base": {"loud": True}}, "this feedback has no options"),
        (["base"], {"llm": {"model": "vllm/judge"}}, "it is not among the feedback"),
        (["praise"], {}, "no feedback is called 'praise'"),
    ],
)
async def test_settings_that_make_no_sense_stop_before_anything_starts(names, options, says, tmp_path, monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    monkeypatch.setattr(sys, "stdin", io.StringIO())
    with pytest.raises(ConfigError, match=says):
        async with play(names, options, tmp_path / "episode"):
            pass
    experiment = {"competitions": ["wine"], "episode": {"feedback": names, "feedback_options": options}}
    with pytest.raises(ConfigError, match=says):
        await run(Experiment.model_validate(experiment), out=tmp_path / "runs", start_kernel=open_memory_kernel)
    assert list(tmp_path.iterdir()) == []


async def test_feedback_of_ones_own_may_be_async_a_class_and_cost(tmp_path):
    class Coach:
        closed = 0

        def __init__(self, *, tone="kind"):
            self.tone = tone

        async def __call__(self, parts):
            return Review(f"{self.tone} words", Usage(cost=0.5, requests=1))

        async def aclose(self):
            Coach.closed += 1

    FEEDBACK.register("coach")(Coach)
    try:
        async with play(["coach"], {"coach": {"tone": "harsh"}}) as episode:
            step = await episode.step(CELL)
    finally:
        FEEDBACK._things.pop("coach")
    assert (step.observation.text, step.feedback_usage.cost, Coach.closed) == ("harsh words", 0.5, 1)


async def test_a_run_file_names_feedback_and_its_options(tmp_path):
    with ModelServer([], then=Say("Good.")) as server:
        text = f"""
            name = "judged"
            competitions = ["wine", "diabetes"]
            parallel = 2
            [[agents]]
            kind = "{__name__}:Once"
            [episode]
            feedback = ["base", "llm", "human"]
            [episode.feedback_options.llm]
            model = "vllm/judge"
            base_url = "{server.url}"
            [episode.feedback_options.human]
            ask = "{__name__}:answer_later"
        """
        (tmp_path / "run.toml").write_text(text)
        results = await run(read_experiment(tmp_path / "run.toml"), out=tmp_path, start_kernel=open_memory_kernel)
    assert [one.status for one in results] == ["finished", "finished"]
    for one in results:
        (step,) = (event.step for event in read_journal(Path(one.folder)) if isinstance(event, Stepped))
        assert step.observation.text.endswith("[review] Good.\n[human] Use folds.")
        assert (step.usage.input_tokens, step.feedback_usage.input_tokens) == (1, 100)


LOOK = ExecuteCode(
    code="import os; print('\\n'.join(os.environ)); print(*os.environ.values()); open('env.txt', 'w').write(repr(os.environ))"
)


@pytest.mark.slow
async def test_a_key_is_in_no_box_journal_or_notebook_and_a_replay_asks_no_model(tmp_path, monkeypatch):
    monkeypatch.setenv("LAB_API_KEY", "lab-secret-123456")
    monkeypatch.setenv("DOJO_CONFIG", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    folder = tmp_path / "episode"
    echo = "Incorrect API key provided: lab-secret-123456"
    with ModelServer([Say("Good."), Fail(401, echo)]) as server:
        table = f'[lab]\ndialect = "chat"\nbase_url = "{server.url}"\nkey = "LAB_API_KEY"\n'
        (tmp_path / "config" / "providers.toml").write_text(table)
        settings = EpisodeSettings(feedback=("base", "llm"), feedback_options={"llm": {"model": "lab/judge"}})
        kernel = KernelSettings(box="process")
        async with open_episode("wine", settings=settings, kernel=kernel, folder=folder, trusted=True) as episode:
            steps = [await episode.step(LOOK), await episode.step(LOOK)]
            home = await episode.step(ExecuteCode(code="print(open('env.txt').read())"))
            episode.save_notebook()
        asked = len(server.requests)
        assert server.requests[0].headers["authorization"] == "Bearer lab-secret-123456"
        assert "[key]" in steps[1].observation.text
        await replay(folder, box="process")
        assert len(server.requests) == asked == 3
    assert "DOJO_WORKSPACE" in steps[0].observation.text
    assert "environ(" in home.observation.text
    written = [path.read_bytes() for path in folder.rglob("*") if path.is_file()]
    assert {path.name for path in folder.iterdir()} >= {"journal.jsonl", "notebook.ipynb"}
    assert not [text for text in (*written, json.dumps(server.requests[0].body).encode()) if b"lab-secret" in text]
