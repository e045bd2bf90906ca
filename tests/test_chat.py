"""The chat layer over real HTTP: every dialect, streamed and whole, against a server that plays a script."""

import asyncio
import contextlib
import json
import logging
import random
import sys
import time
import traceback
from email.utils import formatdate

import pytest
from model_server import Call, Fail, Hangup, ModelServer, Raw, Say, Stall, call

from dojo_kernel.chat import Budget, Message, Model, Tool, find_provider, price_of
from dojo_kernel.chat.dialects import DIALECTS as DIALECT_TABLE
from dojo_kernel.errors import BudgetError, ConfigError, ProviderError

DIALECTS = ("responses", "messages", "chat")
RUN = Tool(
    name="run",
    description="Run code.",
    parameters={"type": "object", "properties": {"code": {"type": "string"}}, "required": ["code"]},
)
ASK = [Message(role="system", text="Be brief."), Message(role="user", text="Hello?")]
each_dialect = pytest.mark.parametrize("dialect", DIALECTS)
a_dialect_and_the_rest = pytest.mark.parametrize(
    "dialect", ["chat", *(pytest.param(one, marks=pytest.mark.slow) for one in DIALECTS if one != "chat")]
)
"""For what is long, or has many cases."""
each_way = pytest.mark.parametrize("stream", [True, False], ids=["streamed", "whole"])


@contextlib.asynccontextmanager
async def asking(script, dialect, address="vllm/some-model", **options):
    """A server and a model that asks it."""
    with ModelServer(script) as server:
        given = {"base_url": server.address(dialect), "dialect": dialect, "retry_wait_s": 0.01, **options}
        async with Model(address, **given) as model:
            yield server, model


@each_way
@a_dialect_and_the_rest
async def test_a_text_comes_with_its_usage(dialect, stream):
    async with asking([Say("Good day.")], dialect, stream=stream) as (_, model):
        reply = await model.complete(ASK)
    assert (reply.message.text, reply.stop, reply.model) == ("Good day.", "end", "some-model-served")
    usage = reply.usage
    assert (usage.input_tokens, usage.cached_tokens, usage.output_tokens, usage.requests) == (100, 40, 20, 1)
    assert usage.reasoning_tokens == (None if dialect == "messages" else 5)
    assert usage.cost is None
    assert model.spent == usage


@each_way
@each_dialect
async def test_calls_their_results_and_signatures_make_the_round(dialect, stream):
    script = [
        Say("I look.", [call("run", code="1"), call("run", code="2")], thought="hm"),
        Say("And again.", [call("run", code="3")], thought="so"),
        Say("Done.", thought="at last"),
        Say("Bye."),
    ]
    async with asking(script, dialect, stream=stream) as (server, model):
        talk = list(ASK)
        while (reply := await model.complete(talk, [RUN])).stop == "tools":
            talk.append(reply.message)
            talk += [Message(role="tool", call_id=one.id, text=f"ran {one.arguments}") for one in reply.message.calls]
        assert reply.message.text == "Done."
        talk += [reply.message, Message(role="user", text="Thanks.")]
        assert (await model.complete(talk)).message.text == "Bye."
    assert len(server.signatures) == 3
    assert 'ran {\\"code\\": \\"2\\"}' in json.dumps(server.requests[1].body)


@each_dialect
async def test_bad_json_is_given_as_written_and_goes_back_as_something_servers_take(dialect):
    async with asking([Say(calls=[Call("run", '{"code": 1')]), Say("Sorry.")], dialect) as (server, model):
        reply = await model.complete(ASK, [RUN])
        (made,) = reply.message.calls
        assert (made.name, made.arguments, reply.stop) == ("run", '{"code": 1', "tools")
        await model.complete([*ASK, reply.message, Message(role="tool", call_id=made.id, text="no JSON")], [RUN])
    body = server.requests[1].body
    if dialect == "chat":
        assert json.loads(body["messages"][2]["tool_calls"][0]["function"]["arguments"]) == {"INVALID_JSON": '{"code": 1'}
    if dialect == "messages":
        assert body["messages"][1]["content"][0]["input"] == {"INVALID_JSON": '{"code": 1'}


@each_way
@each_dialect
async def test_a_refusal_is_an_answer_and_is_not_asked_again(dialect, stream):
    async with asking([Say(refusal="I may not.")], dialect, stream=stream) as (server, model):
        reply = await model.complete(ASK)
    assert (reply.stop, reply.message.text, len(server.requests)) == ("refusal", "I may not.", 1)


@each_way
@each_dialect
async def test_an_answer_cut_at_its_limit_says_so(dialect, stream):
    async with asking([Say("And then", length=True)], dialect, stream=stream, max_tokens=7) as (server, model):
        assert (await model.complete(ASK)).stop == "length"
        assert 7 in server.requests[0].body.values()


PASSING = {
    "408": Fail(408),
    "409": Fail(409),
    "429": Fail(429),
    "500": Fail(500),
    "503": Fail(503),
    "529": Fail(529),
    "overload within the stream": Fail(0, "busy", code="overloaded_error", late=True),
    "truncated stream": Say("Never whole.", cut=True),
    "stall before the answer": Stall(),
    "stall within the answer": Say("Slow.", stall_s=30),
    "connection": Hangup(),
}


@pytest.mark.parametrize("what", PASSING)
@a_dialect_and_the_rest
async def test_what_may_pass_is_asked_again(dialect, what):
    def first(_body):
        model.options = model.options.model_copy(update={"stall_s": 30})  # only who stalls is cut off, not who is slow
        return PASSING[what]

    async with asking([first, Say("At last.")], dialect, stall_s=1 if "stall" in what else 30) as (server, model):
        reply = await model.complete(ASK)
    assert (reply.message.text, len(server.requests)) == ("At last.", 2)
    assert reply.usage.requests == 2 or "stall" in what, "one that was too slow to reach the server counts"


@pytest.mark.parametrize(
    "content",
    [
        "<html>Gateway</html>",
        "{}",
        '{"choices": [{"message": 3}], "output": [3], "content": [3]}',
        "[1]",
        '{"error": {"message": "busy"}}',
    ],
)
@each_way
@a_dialect_and_the_rest
async def test_an_answer_that_is_none_is_asked_for_again_and_then_a_provider_error(dialect, stream, content):
    async with asking([Raw(content), Say("At last."), Raw(content)], dialect, stream=stream, retries=1) as (server, model):
        assert (await model.complete(ASK)).message.text == "At last."
        model.options = model.options.model_copy(update={"retries": 0})
        with pytest.raises(ProviderError):
            await model.complete(ASK)
    assert len(server.requests) == 3


LASTING = {
    "400": Fail(400, code="context_length_exceeded"),
    "401": Fail(401),
    "403": Fail(403),
    "404": Fail(404),
    "422": Fail(422),
    "a spent quota": Fail(429, code="insufficient_quota"),
    "within the stream": Fail(0, "no", code="invalid_request_error", late=True),
}


@pytest.mark.parametrize("what", LASTING)
@a_dialect_and_the_rest
async def test_what_will_not_pass_is_asked_once(dialect, what):
    async with asking([LASTING[what], Say("Never.")], dialect) as (server, model):
        with pytest.raises(ProviderError) as caught:
            await model.complete(ASK)
    assert len(server.requests) == 1
    assert caught.value.code == LASTING[what].code or not LASTING[what].code
    if not LASTING[what].late:
        assert caught.value.status == LASTING[what].status


@a_dialect_and_the_rest
async def test_a_server_that_asks_to_wait_is_waited_for(dialect):
    async with asking([Fail(429, retry_after=1), Say("Now.")], dialect) as (server, model):
        reply = await model.complete(ASK)
    assert server.requests[1].at - server.requests[0].at >= 1
    assert reply.usage.seconds >= 1
    assert model.spent.seconds == reply.usage.seconds


@pytest.mark.slow
async def test_retry_after_may_be_a_date():
    def busy(body):
        return Fail(503, retry_after=formatdate(time.time() + 3, usegmt=True))

    async with asking([busy, Say("Now.")], "chat") as (server, model):
        await model.complete(ASK)
    assert server.requests[1].at - server.requests[0].at >= 1.5


async def test_a_wait_that_is_too_long_gives_up():
    async with asking([Fail(429, retry_after=3600), Say("Never.")], "chat") as (server, model):
        with pytest.raises(ProviderError, match="asks to wait 3600 s"):
            await model.complete(ASK)
    assert len(server.requests) == 1


async def test_retries_end():
    with ModelServer([], then=Fail(500)) as server:
        async with Model("vllm/m", base_url=server.url, retries=2, retry_wait_s=0.01) as model:
            with pytest.raises(ProviderError, match=r"\(3 attempts\)"):
                await model.complete(ASK)
        assert (len(server.requests), model.spent.requests) == (3, 3)


async def test_a_server_that_is_not_there_is_a_provider_error():
    async with Model("vllm/m", base_url="http://127.0.0.1:9/v1", retries=1, retry_wait_s=0.01) as model:
        with pytest.raises(ProviderError, match=r"Connection error.*\(2 attempts\)"):
            await model.complete(ASK)


async def test_waits_are_spread(monkeypatch):
    monkeypatch.setattr(random, "uniform", random.Random(1).uniform)
    gaps = []
    for _ in range(4):
        async with asking([Fail(500), Say("Now.")], "chat", retry_wait_s=0.2) as (server, model):
            await model.complete(ASK)
        gaps.append(server.requests[1].at - server.requests[0].at)
    assert min(gaps) >= 0.1
    assert max(gaps) - min(gaps) > 0.002


# --- budgets and prices -------------------------------------------------------------------------------------------------


@pytest.fixture
def own_tables(tmp_path, monkeypatch):
    """A provider and prices of the user's own; gives the folder."""
    monkeypatch.setenv("DOJO_CONFIG", str(tmp_path))
    monkeypatch.setenv("LAB_API_KEY", "lab-secret-123456")
    tables = '[lab]\ndialect = "chat"\nbase_url = "http://127.0.0.1:9/v1"\nkey = "LAB_API_KEY"\n'
    (tmp_path / "providers.toml").write_text(tables)
    prices = '[lab]\ndate = "2026-11-01"\nsource = "us"\n[lab.models]\nbig = { input = 10, cached = 1, written = 12.5, output = 50, up_to = 1000 }\n'
    (tmp_path / "prices.toml").write_text(prices)
    return tmp_path


def serve_lab(folder, server, dialect="chat"):
    path = folder / "providers.toml"
    path.write_text(path.read_text().replace("http://127.0.0.1:9/v1", server.address(dialect)).replace('"chat"', f'"{dialect}"'))


@each_dialect
async def test_cost_counts_what_the_cache_saved(dialect, own_tables):
    usage = {"input": 100, "cached": 40, "output": 20, "reasoning": 5, "written": 10 if dialect == "messages" else 0}
    with ModelServer([Say("a", usage=usage), Say("b", usage={**usage, "input": 2000})]) as server:
        serve_lab(own_tables, server, dialect)
        async with Model("lab/big") as model:
            reply = await model.complete(ASK)
            expected = (
                (60 * 10 + 40 * 1 + 20 * 50) / 1e6 if dialect != "messages" else (50 * 10 + 40 * 1 + 10 * 12.5 + 20 * 50) / 1e6
            )
            assert reply.usage.cost == pytest.approx(expected)
            assert (await model.complete(ASK)).usage.cost is None, "a prompt longer than the price is for"
            assert model.spent.cost is None, "a sum with an unknown"
            assert model.spent.input_tokens == 2100


async def test_a_budget_in_dollars_ends_before_the_next_request(own_tables):
    with ModelServer([Say("a"), Say("b")]) as server:
        serve_lab(own_tables, server)
        async with Model("lab/big", budget={"dollars": 0.001}) as model:
            await model.complete(ASK)
            with pytest.raises(BudgetError, match=r"\$0.001 is spent"):
                await model.complete(ASK)
        assert len(server.requests) == 1


async def test_a_budget_in_tokens_ends_before_the_next_request():
    async with asking([Say("a"), Say("b"), Say("c")], "chat", budget=Budget(tokens=200)) as (server, model):
        await model.complete(ASK)
        await model.complete(ASK)
        with pytest.raises(BudgetError, match="200 tokens"):
            await model.complete(ASK)
    assert len(server.requests) == 2


async def test_a_budget_of_tokens_needs_a_server_that_counts_them():
    async with asking([Say("a", usage=None), Say("b")], "chat", budget={"tokens": 200}) as (_, model):
        assert (await model.complete(ASK)).usage.input_tokens is None
        with pytest.raises(BudgetError, match="does not count"):
            await model.complete(ASK)


async def test_a_budget_in_seconds_ends_waits_too():
    async with asking([Stall(), Say("b")], "chat", budget={"seconds": 0.5}) as (server, model):
        began = time.monotonic()
        with pytest.raises(BudgetError, match=r"0\.5 s"):
            await model.complete(ASK)
        assert time.monotonic() - began < 30, "and does not wait for the one that stalls"
    assert len(server.requests) <= 1


def test_a_budget_in_dollars_needs_a_price():
    with pytest.raises(ConfigError, match=r"price of ollama/qwen3 is not known.*prices\.toml"):
        Model("ollama/qwen3", budget={"dollars": 1})


def test_prices_are_dated_and_unknown_is_none():
    assert price_of("openai", "gpt-5").output == 10
    assert price_of("openai", "gpt-5-2025-08-07") == price_of("openai", "gpt-5")
    assert price_of("anthropic", "claude-haiku-4-5-20251001").cached == 0.1
    assert price_of("openai", "gpt-99") is None
    assert price_of("vllm", "gpt-5") is None


# --- providers and keys -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["openai", "azure", "anthropic", "gemini", "deepseek", "xai", "openrouter", "vllm", "sglang", "ollama"]
)
def test_the_usual_providers_are_known(name):
    assert find_provider(name).base_url.startswith(("http://localhost", "https://")) or name == "azure"


def test_old_models_are_not_asked_for_encrypted_reasoning():
    assert "include" in find_provider("openai").for_model("gpt-4o").drop
    assert "include" not in find_provider("openai").for_model("gpt-5").drop


async def test_a_provider_of_ones_own_is_one_table(own_tables):
    with ModelServer([Say("Hi.")]) as server:
        serve_lab(own_tables, server)
        async with Model("lab/small") as model:
            assert (await model.complete(ASK)).message.text == "Hi."
        assert server.requests[0].headers["authorization"] == "Bearer lab-secret-123456"


@pytest.mark.parametrize(
    ("address", "options", "says"),
    [
        ("gpt-5", {}, "write provider/model"),
        ("opnai/gpt-5", {}, "did you mean openai"),
        ("azure/mine", {}, "base_url"),
        ("openai/gpt-5", {"temprature": 1}, "did you mean temperature"),
        ("openai/gpt-5", {"key": "sk-abc123"}, "key: String should match"),
        ("openai/gpt-5", {"base_url": "https://me:word@host/v1"}, "base_url: String should match"),
    ],
)
def test_what_cannot_be_a_model_is_refused_in_words(address, options, says):
    with pytest.raises(ConfigError, match=says) as caught:
        Model(address, **options)
    assert "abc123" not in str(caught.value)
    assert "me:word" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "says"),
    [("[lab", "is not TOML"), ('[lab]\nbase = "x"', "providers.toml: lab"), ('[lab]\ndialect = "latin"', "dialect")],
)
def test_a_broken_table_is_named(tmp_path, monkeypatch, text, says):
    monkeypatch.setenv("DOJO_CONFIG", str(tmp_path))
    (tmp_path / "providers.toml").write_text(text)
    with pytest.raises(ConfigError, match=says):
        find_provider("openai")


async def test_a_missing_key_says_how_to_give_it(monkeypatch):
    monkeypatch.delenv("GEMINI_API_KEY", raising=False)
    with pytest.raises(ConfigError, match="export GEMINI_API_KEY="):
        Model("gemini/flash").require()


async def test_a_key_may_lie_in_the_keyring(own_tables, monkeypatch):
    keyring = pytest.importorskip("keyring")

    class Drawer(keyring.backend.KeyringBackend):
        priority = 1

        def get_password(self, service, username):
            return {("dojo_kernel", "LAB_API_KEY"): "from-the-drawer"}.get((service, username))

        def set_password(self, service, username, password):
            raise NotImplementedError

    monkeypatch.delenv("LAB_API_KEY")
    before = keyring.get_keyring()
    keyring.set_keyring(Drawer())
    try:
        with ModelServer([Say("Hi.")]) as server:
            serve_lab(own_tables, server)
            async with Model("lab/small") as model:
                await model.complete(ASK)
        with pytest.raises(ConfigError, match="keyring set dojo_kernel GEMINI_API_KEY"):
            Model("gemini/flash").require()
    finally:
        keyring.set_keyring(before)
    assert server.requests[0].headers["authorization"] == "Bearer from-the-drawer"


async def test_a_missing_sdk_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "openai", None)
    with pytest.raises(ConfigError, match=r"pip install 'dojo_kernel\[llm\]'"):
        Model("ollama/any").require()
    with pytest.raises(ConfigError, match=r"pip install 'dojo_kernel\[llm\]'"):
        await Model("ollama/any").complete(ASK)


@each_dialect
async def test_a_key_goes_to_its_provider_only(dialect, monkeypatch, own_tables):
    async with asking([Say("a"), Say("b")], dialect, address="lab/big") as (server, model):
        await model.complete(ASK)
        async with Model("lab/big", base_url=server.address(dialect), dialect=dialect, key="LAB_API_KEY") as named:
            await named.complete(ASK)
    first, second = (json.dumps(request.headers) for request in server.requests)
    assert "lab-secret" not in first
    assert "lab-secret-123456" in second


@pytest.mark.parametrize(
    "failure", [Fail(401, "Incorrect API key provided: lab-secret-123456."), Fail(500, "lab-secret-123456"), Stall()]
)
@a_dialect_and_the_rest
async def test_a_key_is_in_no_error_log_or_repr(dialect, failure, own_tables, caplog):
    caplog.set_level(logging.DEBUG)
    with ModelServer([], then=failure) as server:
        serve_lab(own_tables, server, dialect)
        silence = 0.3 if isinstance(failure, Stall) else 30
        async with Model("lab/big", retries=1, retry_wait_s=0.01, stall_s=silence) as model:
            with pytest.raises(ProviderError) as caught:
                await model.complete(ASK)
            seen = f"{model!r} {model.options!r} {model.provider!r} {vars(model.options)}"
    trace = "".join(traceback.format_exception(caught.value))
    assert server.requests
    for text in (seen, trace, caplog.text):
        assert "lab-secret" not in text
    assert "Stall" in repr(failure) or "[key]" in str(caught.value)


# --- what is sent -------------------------------------------------------------------------------------------------------


async def test_the_cache_of_anthropic_is_marked_where_it_grows():
    talk = [*ASK, Message(role="assistant", text="Yes?"), Message(role="user", text="Go."), Message(role="user", text="On.")]
    async with asking([Say("Ok.")], "messages") as (server, model):
        await model.complete(talk, [RUN])
    body = server.requests[0].body
    assert body["system"][-1]["cache_control"] == {"type": "ephemeral"}
    assert [len(turn["content"]) for turn in body["messages"]] == [1, 1, 2]
    assert body["messages"][-1]["content"][-1]["cache_control"] == {"type": "ephemeral"}
    assert json.dumps(body).count("cache_control") == 2


async def test_reasoning_is_asked_for_encrypted_and_nothing_is_stored():
    async with asking([Say("Ok.")], "responses") as (server, model):
        await model.complete(ASK)
    body = server.requests[0].body
    assert (body["store"], body["include"]) == (False, ["reasoning.encrypted_content"])


@each_way
async def test_unknown_fields_of_a_message_come_back_verbatim(stream):
    extra = {"reasoning_details": [{"type": "reasoning.text", "text": "hm", "index": 0}], "mood": {"warm": [1, 2]}}
    async with asking([Say("One.", extra=extra), Say("Two.")], "chat", stream=stream) as (server, model):
        reply = await model.complete(ASK)
        await model.complete([*ASK, reply.message, Message(role="user", text="More.")])
    back = server.requests[1].body["messages"][2]
    assert {name: back[name] for name in extra} == extra
    assert back["content"] == "One."


@a_dialect_and_the_rest
async def test_what_another_provider_said_goes_on_as_text_and_calls(dialect):
    async with asking([Say("I look.", [call("run", code="1")], thought="mine")], "chat", address="sglang/other") as (_, model):
        reply = await model.complete(ASK, [RUN])
    result = Message(role="tool", call_id=reply.message.calls[0].id, text="1")
    async with asking([Say("Ok.")], dialect) as (server, model):
        await model.complete([*ASK, reply.message, result], [RUN])
    sent = json.dumps(server.requests[0].body)
    assert "signed:mine" not in sent
    assert "I look." in sent
    assert reply.message.calls[0].id in sent


@each_way
async def test_token_ids_and_logprobs_are_kept_where_they_are_given(stream):
    script = [Say("abc", token_ids=[7, 8, 9], logprobs=[-0.1, -0.2, -0.3]), Say("abc")]
    async with asking(script, "chat", stream=stream, tokens=True) as (server, model):
        reply = await model.complete(ASK)
        assert (reply.token_ids, reply.prompt_token_ids, reply.logprobs) == ((7, 8, 9), (1, 2, 3), (-0.1, -0.2, -0.3))
        plain = await model.complete(ASK)
        assert (plain.token_ids, plain.logprobs) == (None, None)
    assert server.requests[0].body["return_token_ids"] is True


@each_dialect
async def test_the_users_fields_win_and_refused_ones_are_dropped(dialect):
    options = {"body": {"model": "another", "seed": 3}, "drop": ["temperature"], "temperature": 1.0}
    async with asking([Say("Ok.")], dialect, **options) as (server, model):
        await model.complete(ASK)
    body = server.requests[0].body
    assert (body["model"], body["seed"], "temperature" in body) == ("another", 3, False)


@pytest.mark.parametrize(("choice", "dialect", "sent"), [
    ("required", "chat", "required"),
    ("required", "responses", "required"),
    ("required", "messages", {"type": "any"}),
    ("run", "chat", {"type": "function", "function": {"name": "run"}}),
    ("run", "responses", {"type": "function", "name": "run"}),
    ("run", "messages", {"type": "tool", "name": "run"}),
])  # fmt: skip
async def test_a_tool_can_be_demanded(choice, dialect, sent):
    async with asking([Say("Ok.")], dialect) as (server, model):
        await model.complete(ASK, [RUN], tool_choice=choice)
    assert server.requests[0].body["tool_choice"] == sent


def test_several_calls_with_one_index_stay_apart():
    chunks = [
        {
            "choices": [
                {
                    "index": 0,
                    "delta": {
                        "role": "assistant",
                        "tool_calls": [{"index": 0, "id": name, "function": {"name": "run", "arguments": "{}"}}],
                    },
                }
            ]
        }
        for name in ("a", "b")
    ]
    chunks.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    answer = DIALECT_TABLE["chat"].read(DIALECT_TABLE["chat"].fold(chunks))
    assert [(one.id, one.arguments) for one in answer.calls] == [("a", "{}"), ("b", "{}")]
    assert answer.stop == "tools"


async def test_requests_may_be_made_at_the_same_time():
    async with asking([Say(str(number)) for number in range(8)], "chat") as (_, model):
        replies = await asyncio.gather(*(model.complete(ASK) for _ in range(8)))
    assert sorted(reply.message.text for reply in replies) == [str(number) for number in range(8)]
    assert (model.spent.requests, model.spent.output_tokens) == (8, 160)
