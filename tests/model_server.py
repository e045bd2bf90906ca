"""A model server on loopback that plays a script, in all three dialects, streamed or whole, as a thread of the test.

    with ModelServer([Say(calls=[call("execute_code", code="1 + 1")]), Fail(429, retry_after=0.1), Say("Done.")]) as server:
        model = Model("lab/any", base_url=server.url, dialect="chat")

Each request takes the next line of the script; a line may be a function of the request's body. Past its end every request
fails for good. `server.requests` holds what was asked. A reply with a `thought` must come back verbatim with every later
request that holds its message: one without it is answered 400, as Gemini and Anthropic do.
"""

import itertools
import json
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

TOKENS = {"input": 100, "cached": 40, "output": 20, "reasoning": 5}
_ids = itertools.count()


@dataclass
class Call:
    name: str
    arguments: str
    id: str = ""


def call(name, /, **arguments):
    return Call(name, json.dumps(arguments))


@dataclass
class Say:
    """An answer; `calls` may hold bad JSON, `refusal` is one in the dialect's own way, `cut` ends the stream half way."""

    text: str = ""
    calls: list = field(default_factory=list)
    thought: str = ""
    refusal: str = ""
    length: bool = False
    usage: dict | None = field(default_factory=lambda: dict(TOKENS))
    token_ids: list | None = None
    logprobs: list | None = None
    cut: bool = False
    stall_s: float = 0.0
    """Silence in the middle of the stream."""
    extra: dict = field(default_factory=dict)
    """Unknown fields of the assistant's message."""


@dataclass
class Fail:
    status: int
    message: str = "scripted"
    code: str = ""
    retry_after: float | str | None = None
    late: bool = False
    """In the middle of a stream that began with 200."""


@dataclass
class Stall:
    """Accepts the request and says nothing."""

    seconds: float = 30.0


@dataclass
class Raw:
    """200, and this as the body or as the only event."""

    content: str


class Hangup:
    """Closes the connection instead of answering."""


@dataclass
class Request:
    path: str
    headers: dict
    body: dict
    at: float


class ModelServer:
    """`url` is for dialects chat and responses, `root` for messages."""

    def __init__(self, script, *, then=None):
        self.requests = []
        self.signatures = {}
        self._script = iter(script)
        self._then = then
        self._lock = threading.Lock()
        self.closing = threading.Event()

    def __enter__(self):
        owner = self

        class Handler(_Handler):
            server_owner = owner

        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._http.daemon_threads = True
        self.root = f"http://127.0.0.1:{self._http.server_address[1]}"
        self.url = f"{self.root}/v1"
        self._thread = threading.Thread(target=self._http.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self.closing.set()
        self._http.shutdown()
        self._http.server_close()
        self._thread.join()

    def address(self, dialect):
        """What `base_url` is in a dialect."""
        return self.root if dialect == "messages" else self.url

    def next(self, request):
        with self._lock:
            self.requests.append(request)
            line = next(self._script, self._then)
        if line is None:
            return Fail(400, "the script is over")
        return line(request.body) if callable(line) and not isinstance(line, type) else line


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_owner: ModelServer

    def log_message(self, *_):
        pass

    def do_POST(self):
        with suppress(BrokenPipeError, ConnectionResetError):
            self._answer()

    def _answer(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        owner = self.server_owner
        line = owner.next(Request(self.path, {k.lower(): v for k, v in self.headers.items()}, body, time.monotonic()))
        dialect = next((d for d, end in _PATHS.items() if self.path.endswith(end)), None)
        if dialect is None:
            line = Fail(404, f"no such path: {self.path}")
        elif missing := _missing(owner, body):
            line = Fail(400, f"a thought signature did not come back: {missing}")
        if line is Hangup or isinstance(line, Hangup):
            self.close_connection = True
        elif isinstance(line, Stall):
            owner.closing.wait(line.seconds)
            self.close_connection = True
        elif isinstance(line, Raw):
            self._raw(line, stream=body.get("stream"))
        elif isinstance(line, Fail) and not line.late:
            self._fail(dialect, line)
        else:
            self._say(dialect, line, body)

    def _fail(self, dialect, line):
        error = {"message": line.message, "type": line.code or "scripted_error", "code": line.code or None}
        data = json.dumps({"type": "error", "error": error}).encode()
        self.send_response(line.status)
        self.send_header("content-type", "application/json")
        self.send_header("content-length", str(len(data)))
        if line.retry_after is not None:
            self.send_header("retry-after", str(line.retry_after))
        self.end_headers()
        self.wfile.write(data)

    def _raw(self, line, *, stream):
        data = (f"event: message_start\ndata: {line.content}\n\n" if stream else line.content).encode()
        self.send_response(200)
        self.send_header("content-type", "text/event-stream" if stream else "application/json")
        self.send_header("content-length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _say(self, dialect, line, body):
        model = body["model"]
        if not body.get("stream"):
            whole = json.dumps(_WHOLE[dialect](_known(self.server_owner, line), model)).encode()
            if line.cut:
                whole = whole[: len(whole) // 2]
            self.send_response(200)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(whole)))
            self.end_headers()
            self.wfile.write(whole)
            return
        self.send_response(200)
        self.send_header("content-type", "text/event-stream")
        self.send_header("connection", "close")
        self.end_headers()
        self.close_connection = True
        if isinstance(line, Fail):
            error = {"message": line.message, "type": line.code, "code": line.code}
            late = {"type": "error", "error": error} if dialect != "responses" else {**error, "type": "error"}
            self._event(late)
            return
        events = _STREAMS[dialect](_known(self.server_owner, line), model)
        for number, event in enumerate(events):
            if number == len(events) // 2:
                if line.cut:
                    return
                self.server_owner.closing.wait(line.stall_s)
            self._event(event)
        if dialect == "chat":
            self.wfile.write(b"data: [DONE]\n\n")

    def _event(self, event):
        name = f"event: {event['type']}\n" if "type" in event else ""
        self.wfile.write(f"{name}data: {json.dumps(event)}\n\n".encode())
        self.wfile.flush()


_PATHS = {"responses": "/v1/responses", "messages": "/v1/messages", "chat": "/v1/chat/completions"}


def _known(owner, line):
    """Ids for the calls, and what must come back with the first of them."""
    for one in line.calls:
        one.id = one.id or f"call_{next(_ids)}"
    if line.thought:
        owner.signatures[line.calls[0].id if line.calls else line.text] = f"signed:{line.thought}"
    return line


def _missing(owner, body):
    """The mark of an earlier message in this request, if its signature is not there."""
    said = json.dumps(body)
    for mark, signature in list(owner.signatures.items()):
        if json.dumps(mark) in said and json.dumps(signature) not in said:
            return mark
    return None


# --- OpenAI Responses ---------------------------------------------------------------------------------------------------


def _responses(line, model):
    output = []
    if line.thought:
        encrypted = f"signed:{line.thought}"
        output.append({"type": "reasoning", "id": f"rs_{next(_ids)}", "summary": [], "encrypted_content": encrypted})
    if line.text or line.refusal:
        part = (
            {"type": "refusal", "refusal": line.refusal}
            if line.refusal
            else {"type": "output_text", "text": line.text, "annotations": []}
        )
        message = {"type": "message", "id": f"msg_{next(_ids)}", "role": "assistant", "status": "completed", "content": [part]}
        output.append(message | line.extra)
    output += [
        {
            "type": "function_call",
            "id": f"fc_{one.id}",
            "call_id": one.id,
            "name": one.name,
            "arguments": one.arguments,
            "status": "completed",
        }
        for one in line.calls
    ]
    usage = line.usage and {
        "input_tokens": line.usage["input"],
        "input_tokens_details": {"cached_tokens": line.usage["cached"]},
        "output_tokens": line.usage["output"],
        "output_tokens_details": {"reasoning_tokens": line.usage["reasoning"]},
        "total_tokens": line.usage["input"] + line.usage["output"],
    }
    return {
        "id": "resp_1", "object": "response", "created_at": 1, "model": f"{model}-served", "output": output, "usage": usage,
        "status": "incomplete" if line.length else "completed", "error": None, "parallel_tool_calls": True, "tool_choice": "auto", "tools": [],
        "incomplete_details": {"reason": "max_output_tokens"} if line.length else None,
    }  # fmt: skip


def _responses_stream(line, model):
    whole = _responses(line, model)
    begun = {**whole, "status": "in_progress", "output": [], "usage": None}
    events = [{"type": "response.created", "response": begun}, {"type": "response.in_progress", "response": begun}]
    for index, item in enumerate(whole["output"]):
        events += [
            {"type": kind, "output_index": index, "item": item}
            for kind in ("response.output_item.added", "response.output_item.done")
        ]
    events.append({"type": f"response.{whole['status']}", "response": whole})
    return [{**event, "sequence_number": number} for number, event in enumerate(events)]


# --- Anthropic Messages -------------------------------------------------------------------------------------------------


def _messages_usage(line):
    usage = line.usage or {"input": 0, "cached": 0, "output": 0}
    fresh = usage["input"] - usage["cached"] - usage.get("written", 0)
    return {
        "input_tokens": fresh,
        "cache_read_input_tokens": usage["cached"],
        "cache_creation_input_tokens": usage.get("written", 0),
        "output_tokens": usage["output"],
    }


def _messages_stop(line):
    return "refusal" if line.refusal else "max_tokens" if line.length else "tool_use" if line.calls else "end_turn"


def _messages(line, model):
    content = []
    if line.thought:
        content.append({"type": "thinking", "thinking": line.thought, "signature": f"signed:{line.thought}"})
    if line.text or line.refusal:
        content.append({"type": "text", "text": line.text or line.refusal} | line.extra)
    content += [{"type": "tool_use", "id": one.id, "name": one.name, "input": json.loads(one.arguments)} for one in line.calls]
    return {
        "id": "msg_1", "type": "message", "role": "assistant", "model": f"{model}-served", "content": content,
        "stop_reason": _messages_stop(line), "stop_sequence": None, "usage": _messages_usage(line),
    }  # fmt: skip


def _halves(text):
    return [text[: len(text) // 2], text[len(text) // 2 :]]


def _messages_stream(line, model):
    plain = Say(line.text, [], line.thought, line.refusal, extra=line.extra)
    blocks = [(block, None) for block in _messages(plain, model)["content"]]
    blocks += [({"type": "tool_use", "id": one.id, "name": one.name, "input": {}}, one.arguments) for one in line.calls]
    start = {
        **_messages(Say(), model),
        "content": [],
        "stop_reason": None,
        "usage": {**_messages_usage(line), "output_tokens": 1},
    }
    events = [{"type": "message_start", "message": start}, {"type": "ping"}]
    for index, (block, arguments) in enumerate(blocks):
        if arguments is not None:
            first, deltas = block, [{"type": "input_json_delta", "partial_json": half} for half in _halves(arguments)]
        elif block["type"] == "thinking":
            first = {"type": "thinking", "thinking": "", "signature": ""}
            deltas = [{"type": "thinking_delta", "thinking": half} for half in _halves(block["thinking"])]
            deltas.append({"type": "signature_delta", "signature": block["signature"]})
        else:
            first, deltas = {**block, "text": ""}, [{"type": "text_delta", "text": half} for half in _halves(block["text"])]
        events.append({"type": "content_block_start", "index": index, "content_block": first})
        events += [{"type": "content_block_delta", "index": index, "delta": delta} for delta in deltas]
        events.append({"type": "content_block_stop", "index": index})
    delta = {"stop_reason": _messages_stop(line), "stop_sequence": None}
    events.append({"type": "message_delta", "delta": delta, "usage": {"output_tokens": _messages_usage(line)["output_tokens"]}})
    return [*events, {"type": "message_stop"}]


# --- Chat Completions ---------------------------------------------------------------------------------------------------


def _chat_stop(line):
    return (
        "content_filter"
        if line.refusal and not line.text
        else "length"
        if line.length
        else "tool_calls"
        if line.calls
        else "stop"
    )


def _chat_usage(line):
    return line.usage and {
        "prompt_tokens": line.usage["input"],
        "completion_tokens": line.usage["output"],
        "total_tokens": line.usage["input"] + line.usage["output"],
        "prompt_tokens_details": {"cached_tokens": line.usage["cached"]},
        "completion_tokens_details": {"reasoning_tokens": line.usage["reasoning"]},
    }


def _chat_calls(line):
    for number, one in enumerate(line.calls):
        made = {"id": one.id, "type": "function", "function": {"name": one.name, "arguments": one.arguments}}
        if line.thought and number == 0:
            made["extra_content"] = {"google": {"thought_signature": f"signed:{line.thought}"}}
        yield made


def _chat(line, model):
    message = {"role": "assistant", "content": line.text or None} | line.extra
    if line.thought:
        message["reasoning_content"] = line.thought
        if not line.calls:
            message["extra_content"] = {"google": {"thought_signature": f"signed:{line.thought}"}}
    if line.refusal:
        message["refusal"] = line.refusal
    if line.calls:
        message["tool_calls"] = list(_chat_calls(line))
    choice = {"index": 0, "message": message, "finish_reason": _chat_stop(line)}
    if line.token_ids:
        choice["token_ids"] = line.token_ids
    if line.logprobs:
        choice["logprobs"] = {
            "content": [{"token": "x", "logprob": one, "bytes": None, "top_logprobs": []} for one in line.logprobs]
        }
    whole = {"id": "c1", "object": "chat.completion", "created": 1, "model": f"{model}-served", "choices": [choice]}
    if line.usage:
        whole["usage"] = _chat_usage(line)
    if line.token_ids:
        whole["prompt_token_ids"] = [1, 2, 3]
    return whole


def _chat_stream(line, model):
    whole = _chat(line, model)
    (choice,) = whole["choices"]
    message = choice["message"]
    deltas = [{"role": "assistant", "content": ""}]
    deltas += [{"reasoning_content": half} for half in _halves(message.get("reasoning_content", "")) if half]
    deltas += [{"content": half} for half in _halves(line.text) if half]
    known = {"role", "content", "reasoning_content", "tool_calls"}
    if rest := {name: value for name, value in message.items() if name not in known}:
        deltas.append(rest)
    for index, one in enumerate(message.get("tool_calls", ())):
        first, second = _halves(one["function"]["arguments"])
        deltas.append(
            {"tool_calls": [{**one, "index": index, "function": {"name": one["function"]["name"], "arguments": first}}]}
        )
        deltas.append({"tool_calls": [{"index": index, "function": {"arguments": second}}]})
    head = {"id": "c1", "object": "chat.completion.chunk", "created": 1, "model": whole["model"]}
    chunks = [{**head, "choices": [{"index": 0, "delta": delta, "finish_reason": None}]} for delta in deltas]
    if line.token_ids:
        chunks[0]["prompt_token_ids"] = whole["prompt_token_ids"]
        chunks[-1]["choices"][0]["token_ids"] = line.token_ids[:-1]
    if line.logprobs:
        chunks[-1]["choices"][0]["logprobs"] = choice["logprobs"]
    end = {"index": 0, "delta": {}, "finish_reason": choice["finish_reason"]}
    if line.token_ids:
        end["token_ids"] = line.token_ids[-1:]
    chunks.append({**head, "choices": [end]})
    if line.usage:
        chunks.append({**head, "choices": [], "usage": whole["usage"]})
    return chunks


_WHOLE = {"responses": _responses, "messages": _messages, "chat": _chat}
_STREAMS = {"responses": _responses_stream, "messages": _messages_stream, "chat": _chat_stream}
