"""Agents of OpenAI's SDK in our episodes, their models played over HTTP."""

import importlib.util
import json
import sys
import types
from pathlib import Path
from typing import Any

import pytest
from model_server import Call, Fail, ModelServer, Say, call

from dojo_kernel.agents.agent import find_agent
from dojo_kernel.episode import open_episode
from dojo_kernel.errors import ConfigError, ProviderError
from dojo_kernel.run import play
from dojo_kernel.settings import EpisodeSettings, KernelSettings
from dojo_kernel.testing import open_memory_kernel

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("agents") is None, reason="the extra agents is not installed: pip install openai-agents"
)

SAMPLE = "import shutil; shutil.copy(DATA / 'sample_submission.csv', WORKSPACE / 'submission.csv'); None"


@pytest.fixture(autouse=True)
def _prepared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)


def cell(code: str, text: str = "") -> Say:
    return Say(text, calls=[call("execute_code", code=code)])


async def played(server: ModelServer, folder: Path, *, dialect: str = "chat", steps: int = 20, **options: Any):
    if "agent" not in options or "model" in options:
        options = {"model": "vllm/any", "base_url": server.address(dialect), "dialect": dialect, "retry_wait_s": 0.01, **options}
    agent = find_agent("openai-agents")(**options)
    settings = EpisodeSettings(max_steps=steps)
    try:
        async with open_episode("wine", settings=settings, folder=folder, start_kernel=open_memory_kernel) as episode:
            await play(episode, agent)
    finally:
        await agent.aclose()
    return episode, agent


@pytest.mark.slow
@pytest.mark.parametrize("dialect", ["chat", "responses", "messages"])
async def test_the_sdk_plays_with_any_model_and_signatures_come_back(dialect: str, tmp_path: Path) -> None:
    script = [
        Say("Look.", calls=[call("request_info")], thought="hm"),
        cell(SAMPLE, "The sample."),
        cell("print(6 * 7)"),
        Say("Enough."),
    ]
    with ModelServer(script) as server:
        episode, agent = await played(server, tmp_path / "e", dialect=dialect)
    assert [step.action.name for step in episode.steps] == ["request_info", "execute_code", "execute_code"]
    assert [step.said for step in episode.steps] == ["Look.", "The sample.", ""]
    assert [step.usage.input_tokens for step in episode.steps] == [100, 100, 100]
    closed = episode.closed
    assert closed is not None
    assert (closed.reason, closed.detail) == ("agent", "Enough.\n[end] the agent's run is over")
    assert closed.usage.requests == 1
    assert closed.final is not None
    assert agent.spent.output_tokens == 80
    assert "42" in json.dumps(server.requests[3].body)


async def test_bad_calls_come_back_and_calls_of_one_answer_stop_at_the_first_failure(tmp_path: Path) -> None:
    script = [
        Say(calls=[Call("execute_code", "{")]),
        Say(calls=[call("run_cell", code="1")]),
        Say(calls=[call("execute_code", code=code) for code in ("a = 1", "a / 0", "a = 3")]),
        cell("print(a)"),
        Say("Enough."),
    ]
    with ModelServer(script) as server:
        episode, _ = await played(server, tmp_path / "e")
    assert [step.action.code for step in episode.steps] == ["a = 1", "a / 0", "print(a)"]
    assert "[bad call]" in episode.steps[0].said
    assert "not valid JSON" in json.dumps(server.requests[1].body)
    assert "run_cell" in json.dumps(server.requests[2].body["messages"][-1])
    results = [one["content"] for one in server.requests[3].body["messages"] if one["role"] == "tool"]
    assert results[-1].startswith("Not played")


async def test_one_bad_call_too_many_costs_its_step(tmp_path: Path) -> None:
    bad = Say(calls=[Call("execute_code", "{")])
    with ModelServer([bad, bad, Say("Enough.")]) as server:
        episode, _ = await played(server, tmp_path / "e", repairs=1)
    assert [step.action.name for step in episode.steps] == ["invalid"]


async def test_budgets_faults_and_steps_end_the_run(tmp_path: Path) -> None:
    with ModelServer([], then=lambda body: cell("1")) as server:
        episode, _ = await played(server, tmp_path / "tokens", budget={"tokens": 200})
        assert episode.closed.reason == "agent"
        assert "budget of 200 tokens is spent" in episode.closed.detail
        episode, _ = await played(server, tmp_path / "steps", steps=3)
        assert (episode.closed.reason, len(episode.steps)) == ("steps", 3)
    with ModelServer([cell("1"), Fail(403, "no")]) as server, pytest.raises(ProviderError):
        await played(server, tmp_path / "fault")


async def test_a_run_that_must_not_end_goes_on(tmp_path: Path) -> None:
    with ModelServer([cell("1"), Say("Enough."), cell("2"), *[Say("Really.")] * 4]) as server:
        episode, _ = await played(server, tmp_path / "e", may_finish=False)
    assert len(episode.steps) == 2
    assert len(server.requests) == 7


async def test_windows_and_hot_starts_are_those_of_dojo(tmp_path: Path) -> None:
    with ModelServer([], then=lambda body: cell("1")) as server:
        await played(server, tmp_path / "e", steps=6, history_turns=2, start=[{"name": "execute_code", "code": "start = 1"}])
    assert "start = 1" in server.requests[0].body["messages"][1]["content"]
    assert [sum(one["role"] == "assistant" for one in each.body["messages"]) for each in server.requests] == [0, 1, 2, 2, 2]


async def test_a_team_of_the_users_own_plays_with_its_own_tools(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import agents  # noqa: PLC0415  it takes seconds
    import openai  # noqa: PLC0415

    @agents.function_tool
    def double(number: int) -> str:
        """Twice the number."""
        return f"twice is {2 * number}"

    team = types.ModuleType("a_team")
    team.lead = agents.Agent(name="lead", instructions="Lead.", tools=[double])
    monkeypatch.setitem(sys.modules, "a_team", team)
    with ModelServer([Say(calls=[call("double", number=21)]), cell("1"), Say("Enough.")]) as server:
        episode, _ = await played(server, tmp_path / "ours", agent="a_team:lead", model="vllm/any")
        assert len(episode.steps) == 1
        assert episode.steps[0].usage.requests == 2
        assert "twice is 42" in json.dumps(server.requests[1].body)
        assert server.requests[0].body["messages"][0]["content"] == "Lead."
    with ModelServer([cell("1"), Say("Enough.")]) as server:
        async with openai.AsyncOpenAI(base_url=server.url, api_key="none", max_retries=0) as client:
            team.lead = team.lead.clone(model=agents.OpenAIResponsesModel("theirs", client))
            episode, agent = await played(server, tmp_path / "theirs", agent="a_team:lead")
    assert episode.steps[0].usage.input_tokens == 100
    assert agent.spent.cost is None


@pytest.mark.parametrize(
    ("options", "words"),
    [({}, "wants model"), ({"agent": "no_such:thing"}, "cannot load"), ({"agent": "json:dumps"}, "is no Agent")],
    ids=["nothing", "nowhere", "no agent"],
)
def test_options_that_make_no_sense_are_said(options: dict[str, str], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        find_agent("openai-agents")(**options)


async def test_it_plays_in_a_real_box(tmp_path: Path) -> None:
    def sample(body: dict[str, Any]) -> Say:
        data = body["messages"][1]["content"].partition("Data: ")[2].partition(". Your")[0]
        return cell(f"import shutil; shutil.copy({data!r} + '/sample_submission.csv', 'submission.csv')")

    with ModelServer([sample, Say("Enough.")]) as server:
        agent = find_agent("openai-agents")(model="vllm/any", base_url=server.url)
        async with open_episode("wine", kernel=KernelSettings(box="process"), folder=tmp_path / "e", trusted=True) as episode:
            closed = await play(episode, agent)
        await agent.aclose()
    assert closed.final is not None
    assert closed.final.score is not None
