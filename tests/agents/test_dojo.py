"""The tool-calling agent and the one of fenced code, against a model that is played over HTTP in each dialect."""

import itertools
import json
import re
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from model_server import Call, Fail, ModelServer, Say, call

from dojo_kernel.agents.agent import BUNDLED, find_agent
from dojo_kernel.agents.codeact import CodeActAgent
from dojo_kernel.agents.dojo import DojoAgent
from dojo_kernel.episode import open_episode
from dojo_kernel.errors import ConfigError, ProviderError
from dojo_kernel.journal.log import read_journal
from dojo_kernel.records import Closed, Stepped
from dojo_kernel.run import play, run
from dojo_kernel.settings import EpisodeSettings, Experiment, KernelSettings
from dojo_kernel.testing import open_memory_kernel

SAMPLE = "import shutil; shutil.copy(DATA / 'sample_submission.csv', WORKSPACE / 'submission.csv'); None"
DIALECTS = ["chat", "responses", "messages"]


@pytest.fixture(autouse=True)
def _prepared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))


class Game:
    """One episode of wine, played by an agent whose model says what the script holds."""

    def __init__(self, folder: Path, server: ModelServer) -> None:
        self.folder, self.server = folder, server

    async def play(self, kind: type = DojoAgent, dialect: str = "chat", settings: dict[str, Any] | None = None, **options: Any):
        self.agent = kind("vllm/any", base_url=self.server.address(dialect), dialect=dialect, **{"retry_wait_s": 0.01, **options})
        try:
            async with open_episode(
                "wine",
                settings=EpisodeSettings.model_validate(settings or {}),
                folder=self.folder,
                start_kernel=open_memory_kernel,
            ) as episode:
                self.closed = await play(episode, self.agent)
        finally:
            await self.agent.aclose()
        events = read_journal(self.folder)
        self.steps = [event.step for event in events if isinstance(event, Stepped)]
        return self

    @property
    def actions(self) -> list[str]:
        return [step.action.name for step in self.steps]

    def body(self, number: int) -> str:
        return json.dumps(self.server.requests[number].body)


def finish(why: str = "enough") -> Say:
    return Say(calls=[call("finish", why=why)])


def cell(code: str, text: str = "") -> Say:
    return Say(text, calls=[call("execute_code", code=code)])


a_dialect_and_the_rest = pytest.mark.parametrize(
    "dialect", ["chat", *(pytest.param(one, marks=pytest.mark.slow) for one in DIALECTS if one != "chat")]
)


@pytest.mark.slow
@pytest.mark.parametrize("dialect", DIALECTS)
async def test_a_model_plays_by_tool_calls_in_every_dialect(dialect: str, tmp_path: Path) -> None:
    script = [
        Say("First the task.", calls=[call("request_info", info_type="overview")], thought="hm"),
        cell(SAMPLE, "The sample."),
        cell("print(6 * 7)"),
        Say("Done.", calls=[call("finish", why="nothing to gain")]),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play(dialect=dialect)
    assert game.actions == ["request_info", "execute_code", "execute_code"]
    assert [step.said for step in game.steps] == ["First the task.", "The sample.", ""]
    assert (game.closed.reason, game.closed.detail) == ("agent", "Done.\n[end] nothing to gain")
    assert game.closed.final is not None
    assert game.closed.final.rows == "private"
    assert "42" in game.body(3)
    assert "score" in game.body(2)
    for name in ("validate_code", "get_history", "reset", "finish"):
        assert f'"name": "{name}"' in game.body(0)
    assert "checkpoint" not in game.body(0)


async def test_tokens_of_each_step_and_of_the_end_are_in_the_journal(tmp_path: Path) -> None:
    with ModelServer([Fail(500), cell("1"), Say("..."), cell("2"), finish()]) as server:
        game = await Game(tmp_path / "e", server).play()
    first, second = (step.usage for step in game.steps)
    assert (first.input_tokens, first.output_tokens, first.cached_tokens, first.requests) == (100, 20, 40, 2)
    assert (second.input_tokens, second.output_tokens, second.requests) == (200, 40, 2)
    last = game.closed.usage
    assert (last.input_tokens, last.requests, last.cost) == (100, 1, None)
    assert first.plus(second).plus(last).model_dump(exclude={"seconds"}) == game.agent.spent.model_dump(exclude={"seconds"})


@a_dialect_and_the_rest
async def test_bad_calls_are_handed_back_and_cost_no_step(dialect: str, tmp_path: Path) -> None:
    script = [
        Say(calls=[Call("execute_code", '{"code": "print(1)"')] if dialect != "messages" else [Call("execute_code", "[1]")]),
        Say(calls=[call("run_cell", code="1")]),
        Say(calls=[call("execute_code", cell="1")]),
        cell("print('at last')"),
        finish(),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play(dialect=dialect)
    assert game.actions == ["execute_code"]
    assert "JSON" in game.body(1)
    assert "no action is called 'run_cell'" in game.body(2)
    assert "code: Field required" in game.body(3)
    assert game.steps[0].said is not None
    assert game.steps[0].said.count("[bad call]") == 3
    assert game.steps[0].usage.requests == 4


async def test_what_everyone_can_read_is_no_bad_call(tmp_path: Path) -> None:
    script = [
        Say(calls=[Call("execute_code", '{"code": "print(1)\nprint(2)"}')]),
        Say(calls=[Call("execute_code", json.dumps('{"code": "3"}'))]),
        Say(calls=[Call("get_history", "")]),
        finish(),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play()
    assert game.actions == ["execute_code", "execute_code", "get_history"]
    assert len(server.requests) == 4


async def test_one_bad_call_too_many_costs_its_step_and_the_game_goes_on(tmp_path: Path) -> None:
    bad = Say(calls=[Call("execute_code", "{")])
    with ModelServer([bad, bad, bad, cell("1"), finish()]) as server:
        game = await Game(tmp_path / "e", server).play(repairs=2)
    assert game.actions == ["invalid", "execute_code"]
    assert not game.steps[0].observation.ok


async def test_several_calls_of_one_answer_are_played_in_order_until_one_fails(tmp_path: Path) -> None:
    script = [
        Say("All at once.", calls=[call("execute_code", code=code) for code in ("a = 1", "a / 0", "a = 3")]),
        Say(calls=[call("execute_code", code="print(a)"), call("finish", why="")]),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play()
    assert [step.action.code for step in game.steps] == ["a = 1", "a / 0", "print(a)"]
    assert "1" in game.steps[-1].observation.text
    assert [step.usage.requests for step in game.steps] == [1, 0, 1]
    results = [one["content"] for one in server.requests[1].body["messages"] if one["role"] == "tool"]
    assert len(results) == 3
    assert "ZeroDivisionError" in results[1]
    assert results[2].startswith("Not played")


@pytest.mark.parametrize(
    ("say", "why"),
    [
        (Say("I am done thinking."), "does nothing"),
        (Say(refusal="I cannot help with that."), "refuses"),
        (Say("so long", length=True), "length limit"),
    ],
    ids=["no call", "refusal", "length"],
)
@a_dialect_and_the_rest
async def test_a_model_that_makes_no_call_is_reminded_and_then_ends_its_episode(
    say: Say, why: str, dialect: str, tmp_path: Path
) -> None:
    with ModelServer([cell("1"), say, say, say]) as server:
        game = await Game(tmp_path / "e", server).play(dialect=dialect, repairs=2)
    assert game.actions == ["execute_code"]
    assert game.closed.reason == "agent"
    assert why in game.closed.detail.splitlines()[-1]
    assert "finish" in game.body(3)
    assert game.closed.usage.requests == 3


async def test_a_call_that_was_cut_is_told_to_be_shorter(tmp_path: Path) -> None:
    with ModelServer([Say(calls=[Call("execute_code", '{"code": "print(')], length=True), cell("1"), finish()]) as server:
        game = await Game(tmp_path / "e", server).play()
    assert "shorter cell" in game.body(1)
    assert game.actions == ["execute_code"]


async def test_a_spent_budget_ends_the_episode_with_its_reason(tmp_path: Path) -> None:
    with ModelServer([cell(SAMPLE), cell("1")]) as server:
        game = await Game(tmp_path / "e", server).play(budget={"tokens": 200})
    assert game.actions == ["execute_code", "execute_code"]
    assert game.closed.reason == "agent"
    assert "budget of 200 tokens is spent" in game.closed.detail
    assert game.closed.final is not None
    assert game.closed.usage.requests == 0


async def test_costs_are_summed_where_the_price_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_CONFIG", str(tmp_path / "config"))
    (tmp_path / "config").mkdir()
    with ModelServer([cell("1"), cell("2"), cell("3"), cell("4")]) as server:
        (tmp_path / "config" / "providers.toml").write_text(f'[lab]\ndialect = "chat"\nbase_url = "{server.url}"\n')
        (tmp_path / "config" / "prices.toml").write_text(
            '[lab]\ndate = "2026-11-21"\nsource = "a test"\n[lab.models.small]\ninput = 1000\noutput = 10000\ncached = 0\n'
        )
        agent = DojoAgent("lab/small", budget={"dollars": 0.5})
        async with open_episode("wine", folder=tmp_path / "e", start_kernel=open_memory_kernel) as episode:
            closed = await play(episode, agent)
            costs = [step.usage.cost for step in episode.steps if step.usage is not None]
        await agent.aclose()
    assert costs == pytest.approx([0.26, 0.26])
    assert agent.spent.cost == pytest.approx(0.52)
    assert "budget of $0.5 is spent" in closed.detail


async def test_a_model_without_an_end_plays_to_the_last_step(tmp_path: Path) -> None:
    with ModelServer([], then=lambda body: cell("1")) as server:
        game = await Game(tmp_path / "e", server).play(may_finish=False, settings={"max_steps": 3})
    assert (game.closed.reason, len(game.steps)) == ("steps", 3)
    assert "finish" not in game.body(0)


async def test_the_oldest_turns_leave_a_full_window_whole_and_many_at_once(tmp_path: Path) -> None:
    with ModelServer([], then=lambda body: cell(f"print('{'x' * 1500}')")) as server:
        await Game(tmp_path / "e", server).play(history_tokens=2000, settings={"max_steps": 20})
    sizes, starts = [], []
    for request in server.requests:
        messages = request.body["messages"]
        assert [one["role"] for one in messages[:2]] == ["system", "user"]
        made = [one["tool_calls"][0]["id"] for one in messages if one["role"] == "assistant"]
        answered = [one["tool_call_id"] for one in messages if one["role"] == "tool"]
        assert made == answered
        sizes.append(sum(len(str(one)) for one in messages))
        starts.append(made[0] if made else None)
    assert max(sizes) < 20_000
    assert "earlier turns are not shown" in server.requests[-1].body["messages"][1]["content"]
    kept = sum(one == two for one, two in itertools.pairwise(starts))
    assert kept >= len(starts) // 2, "a cached prefix changes at most every other step"


async def test_a_window_of_turns_holds_that_many(tmp_path: Path) -> None:
    with ModelServer([], then=lambda body: cell("1")) as server:
        await Game(tmp_path / "e", server).play(history_turns=2, settings={"max_steps": 6})
    assert [sum(one["role"] == "assistant" for one in request.body["messages"]) for request in server.requests] == [
        0,
        1,
        2,
        2,
        2,
        2,
    ]


async def test_a_prompt_that_the_server_finds_too_long_is_cut_and_sent_again(tmp_path: Path) -> None:
    long = Fail(400, "This model's maximum context length is 4096 tokens", code="context_length_exceeded")
    with ModelServer([cell("1"), cell("2"), cell("3"), long, cell("4"), finish()]) as server:
        game = await Game(tmp_path / "e", server).play()
    assert len(game.steps) == 4
    before, after = (len(server.requests[number].body["messages"]) for number in (3, 4))
    assert after < before


async def test_a_hot_start_plays_actions_before_the_model_is_asked(tmp_path: Path) -> None:
    with ModelServer([cell("a = 6"), cell("b = 7"), finish()]) as server:
        await Game(tmp_path / "first", server).play()
    with ModelServer([cell("print(a * b)"), finish()]) as server:
        game = await Game(tmp_path / "second", server).play(start=str(tmp_path / "first"))
    assert [step.action.code for step in game.steps] == ["a = 6", "b = 7", "print(a * b)"]
    assert [step.usage.requests for step in game.steps] == [0, 0, 1]
    assert "42" in game.steps[-1].observation.text
    assert "b = 7" in server.requests[0].body["messages"][1]["content"]
    with ModelServer([finish()]) as server:
        game = await Game(tmp_path / "third", server).play(start=[{"name": "request_info"}, {"name": "reset"}], start_steps=1)
    assert game.actions == ["request_info"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"start": "/nowhere"}, "cannot read /nowhere"),
        ({"start": [{"name": "jump"}]}, "no action is called 'jump'"),
        ({"history_tokens": 1}, "history_tokens"),
        ({"temprature": 0}, "temprature"),
        ({"base_url": None, "model": "openai/gpt-5", "key": "NO_SUCH_KEY"}, "export NO_SUCH_KEY"),
        ({"model": "gpt-5"}, "provider/model"),
        ({"model": None}, "agent dojo wants a model"),
    ],
    ids=["start", "action", "window", "misspelt", "no key", "no provider", "no model"],
)
def test_options_that_make_no_sense_are_said_before_anything_is_played(options: dict[str, Any], words: str) -> None:
    given = {"model": "vllm/any", **options}
    with pytest.raises(ConfigError, match=re.escape(words)):
        DojoAgent(**given)


async def test_an_action_that_the_episode_lacks_is_the_users_mistake(tmp_path: Path) -> None:
    with ModelServer([]) as server, pytest.raises(ConfigError, match="no action 'checkpoint'"):
        await Game(tmp_path / "e", server).play(actions=["checkpoint"])
    with ModelServer([finish()]) as server:
        await Game(tmp_path / "f", server).play(actions=["execute_code"], instructions="Win.")
    assert [one["function"]["name"] for one in server.requests[0].body["tools"]] == ["execute_code", "finish"]
    assert server.requests[0].body["messages"][0]["content"].startswith("Win.\n")


async def test_a_provider_that_fails_is_a_fault_of_the_machine_and_never_shows_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("LAB_KEY", "sk-verysecret-0123456789")
    caplog.set_level(0)

    with ModelServer([cell("import os; print(len(os.environ))"), Fail(401, "wrong key: sk-verysecret-0123456789")]) as server:
        experiment = Experiment.model_validate(
            {
                "competitions": ["wine"],
                "agents": [
                    {
                        "kind": "dojo",
                        "options": {"model": "vllm/any", "base_url": server.url, "key": "LAB_KEY", "retry_wait_s": 0.01},
                    }
                ],
            }
        )
        (played,) = await run(experiment, out=tmp_path, start_kernel=open_memory_kernel)
    assert server.requests[0].headers["authorization"] == "Bearer sk-verysecret-0123456789"
    assert (played.status, played.steps) == ("failed", 1)
    assert "ProviderError" in played.problem
    closed = read_journal(Path(played.folder))[-1]
    assert isinstance(closed, Closed)
    assert (closed.reason, "ProviderError" in closed.detail) == ("error", True)
    written = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {"journal.jsonl", "notebook.ipynb", "error.txt"} <= {path.name for path in written}
    for path in written:
        assert b"verysecret" not in path.read_bytes(), path
    assert "verysecret" not in caplog.text + "".join(capsys.readouterr())


# --- fenced code --------------------------------------------------------------------------------------------------------


async def test_fenced_blocks_are_cells_trials_and_actions(tmp_path: Path) -> None:
    script = [
        Say('First the task.\n```action\n{"name": "request_info", "info_type": "name"}\n```'),
        Say(f"<think>```python\nnever run\n```</think>A trial.\n```validate\nprint(1)\n```\nthen\n```python\n{SAMPLE}\n```"),
        Say("Some SQL:\n```sql\nselect 1\n```\nNow the cell:\n````python\ntext = '''\n```\n'''; print(len(text))\n````\nGood."),
        Say("```python\nprint('no end')"),
        Say("Enough.\n```finish\nnothing to gain\n```"),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play(CodeActAgent)
    assert game.actions == ["request_info", "validate_code", "execute_code", "execute_code", "execute_code"]
    assert all(step.observation.ok for step in game.steps)
    assert "5" in game.steps[3].observation.text
    assert game.closed.detail == "Enough.\n```finish\nnothing to gain\n```\n[end] nothing to gain"
    assert game.closed.final is not None
    assert "tools" not in server.requests[0].body
    roles = [one["role"] for one in server.requests[4].body["messages"]]
    assert roles == ["system", "user", *["assistant", "user"] * 4]
    assert "get_history(last: integer, optional)" in server.requests[0].body["messages"][0]["content"]


async def test_blocks_that_cannot_be_played_are_handed_back(tmp_path: Path) -> None:
    script = [
        Say("```action\n{'name': 'reset'}\n```"),
        Say('```action\n{"name": "jump"}\n```'),
        Say("```python\nprint(1)\n", length=True),
        Say("```python\n1 / 0\n```\n```python\nprint('never')\n```"),
        Say("I have nothing to say."),
        Say("```finish\n```"),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play(CodeActAgent, repairs=5)
    assert game.actions == ["execute_code"]
    for number, words in (
        (1, "not valid JSON"),
        (2, "no action is called 'jump'"),
        (3, "length limit"),
        (4, "Not played"),
        (5, "did nothing"),
    ):
        assert words in server.requests[number].body["messages"][-1]["content"]


@a_dialect_and_the_rest
async def test_any_chat_model_can_write_fenced_code(dialect: str, tmp_path: Path) -> None:
    with ModelServer([Say(f"```python\n{SAMPLE}\n```", thought="hm"), Say("```python\n1\n```"), Say("```finish\n```")]) as server:
        game = await Game(tmp_path / "e", server).play(CodeActAgent, dialect)
    assert (len(game.steps), game.closed.reason) == (2, "agent")


# --- both ---------------------------------------------------------------------------------------------------------------

REAL = "import shutil; shutil.copy(DATA + '/sample_submission.csv', 'submission.csv')"


@pytest.mark.parametrize(
    ("kind", "write"),
    [("dojo", cell), ("codeact", lambda code: Say(f"```python\n{code}\n```"))],
    ids=["dojo", "codeact"],
)
async def test_it_plays_in_a_real_box(kind: str, write: Any, tmp_path: Path) -> None:
    def sample(body: dict[str, Any]) -> Say:
        found = re.search(r"Data: (\S+)\. Your", body["messages"][1]["content"])
        assert found is not None
        return write(f"DATA = {found[1]!r}\n{REAL}")

    end = finish() if kind == "dojo" else Say("```finish\n```")
    with ModelServer([sample, write("import os; print(sorted(os.environ))"), end]) as server:
        agent = find_agent(kind)(model="vllm/any", base_url=server.url)
        kernel = KernelSettings(box="process")
        async with open_episode("wine", kernel=kernel, folder=tmp_path / "e", trusted=True) as episode:
            closed = await play(episode, agent)
        await agent.aclose()
    assert closed.final is not None
    assert closed.final.score is not None
    assert closed.reason == "agent"


@pytest.mark.parametrize("kind", sorted(BUNDLED))
def test_every_bundled_agent_is_found_by_its_name(kind: str) -> None:
    assert find_agent(kind).name == kind


def test_an_agent_that_does_not_exist_is_told_from_those_that_do() -> None:
    with pytest.raises(ConfigError, match="did you mean codeact"):
        find_agent("codeat")


async def test_halves_of_characters_do_no_harm(tmp_path: Path) -> None:
    half = "\ud83d"
    script = [
        Say(f"I say {half}.", calls=[call("execute_code", code=f"print({half!r})"), call("execute_code", wrong=half)]),
        Say(calls=[Call("execute_code", json.dumps({half: half}))]),
        Say(calls=[call("finish", why=half)]),
    ]
    with ModelServer(script) as server:
        game = await Game(tmp_path / "e", server).play(repairs=0)
    assert game.closed.reason == "agent"
    with ModelServer(
        [Say(f"```python\nprint('{half}')\n```"), Say(f'```action\n{{"name": "{half}"}}\n```'), Say("```finish\n```")]
    ) as server:
        game = await Game(tmp_path / "f", server).play(CodeActAgent, repairs=0)
    assert game.closed.reason == "agent"


@pytest.mark.slow
def test_agents_are_found_without_loading_what_they_may_need() -> None:
    code = (
        "import sys, dojo_kernel.run; from dojo_kernel.agents.agent import find_agent, BUNDLED; loaded = {*sys.modules}; "
        "[find_agent(one) for one in BUNDLED]; "
        "print(*sorted({'openai', 'anthropic', 'agents', 'prompt_toolkit'} & {*sys.modules}), "
        "*sorted(one for one in loaded if one.startswith('dojo_kernel.agents.')))"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["dojo_kernel.agents.agent"]


async def test_a_server_that_is_gone_fails_the_episode(tmp_path: Path) -> None:
    with socket.socket() as held:  # its own port for as long as it is asked, and nobody listens there
        held.bind(("127.0.0.1", 0))
        server = ModelServer([])
        server.url = f"http://127.0.0.1:{held.getsockname()[1]}/v1"
        with pytest.raises(ProviderError):
            await Game(tmp_path / "e", server).play(retries=1)
