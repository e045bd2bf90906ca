"""iopub messages of one cell -> nbformat outputs, with bounded memory whatever the kernel sends.

All content is hostile: types are checked, text is made valid Unicode, sizes are capped. The first half of the budget keeps
the beginning, the second half the end; what falls between is counted.
"""

from __future__ import annotations

import json
import math
from collections import deque
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from dojo_kernel.records import Display, Error, Result, Stream

if TYPE_CHECKING:
    from pydantic import JsonValue

    from dojo_kernel.records import Output

TEXT_TYPES = ("text/plain", "text/html", "text/markdown", "text/latex", "image/svg+xml")
IMAGE_TYPES = ("image/png", "image/jpeg", "image/gif", "image/webp")
JSON_TYPES = ("application/json",)
IMAGE_CHARS = 8_000_000
"""Longest base64 text of one image."""
IMAGES_CHARS = 24_000_000
"""Of all images of one cell together."""
OVERHEAD = 40
"""Characters that any output counts at least: a million empty ones must not fill the memory either."""
LINE_CHARS = 100_000
"""A longer line can no longer be overwritten by a carriage return."""
METADATA_CHARS = 10_000
JSON_DEPTH = 30
TRACEBACK_LINES = 2_000


def clean(text: str) -> str:
    """Valid Unicode: surrogate pairs joined, lone surrogates replaced."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")
    return text


def as_text(value: object) -> str:
    """Text of a field that should be text or a list of lines; something readable of anything else."""
    if isinstance(value, str):
        return clean(value)
    if isinstance(value, list) and all(isinstance(line, str) for line in value):
        return clean("".join(value))
    try:
        return clean(str(value))
    except (ValueError, RecursionError):  # an int of 5000 digits; a nested list
        return f"<{type(value).__name__}>"


def as_json(value: object, depth: int = JSON_DEPTH) -> JsonValue:
    """The value without what JSON cannot say: NaN and infinity become text, what nests too deep too."""
    if value is None or isinstance(value, (bool, int)):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else str(value)
    if isinstance(value, str):
        return clean(value)
    if depth > 0 and isinstance(value, list):
        return [as_json(item, depth - 1) for item in value]
    if depth > 0 and isinstance(value, dict):
        return {as_text(key): as_json(item, depth - 1) for key, item in value.items()}
    return f"<{type(value).__name__}>"


def _json_chars(value: JsonValue) -> int:
    try:
        return len(json.dumps(value))
    except (ValueError, RecursionError):  # an int of 5000 digits
        return METADATA_CHARS * 1_000


def shorten(text: str, limit: int) -> tuple[str, int]:
    """Head and tail of `text` within about `limit` characters, and how many were cut."""
    if len(text) <= limit:
        return text, 0
    half = limit // 2
    cut = len(text) - 2 * half
    return f"{text[:half]}\n[... {cut} characters cut ...]\n{text[-half:]}", cut


class Line:
    """The last line of a stream as a terminal shows it: carriage return and backspace move, new text overwrites."""

    def __init__(self) -> None:
        self._text = ""
        self._at = 0

    def write(self, text: str) -> str:
        """Take text; returns what is finished and cannot change any more."""
        if "\r" not in text and "\b" not in text and self._at == len(self._text):
            head, newline, last = text.rpartition("\n")
            if newline:
                done = f"{self._text}{head}\n"
                self._text = ""
            else:
                done = ""
            self._text += last
            self._at = len(self._text)
            return done + self._overflow()
        done_parts = []
        *lines, last = text.split("\n")
        for line in lines:
            self._type(line)
            done_parts.append(self._text + "\n")
            self._text, self._at = "", 0
        self._type(last)
        return "".join(done_parts) + self._overflow()

    def _type(self, line: str) -> None:
        segments = line.split("\r")
        for index, segment in enumerate(segments):
            if index:
                self._at = 0
            for nth, piece in enumerate(segment.split("\b")):
                if nth:
                    self._at = max(self._at - 1, 0)
                self._text = self._text[: self._at] + piece + self._text[self._at + len(piece) :]
                self._at += len(piece)

    def _overflow(self) -> str:
        if len(self._text) <= LINE_CHARS:
            return ""
        done, self._text, self._at = self._text, "", 0
        return done

    def end(self) -> str:
        """What the line shows; starts an empty one."""
        done, self._text, self._at = self._text, "", 0
        return done


@dataclass(slots=True)
class Piece:
    """One output on its way: some text of a stream, or a whole display, result or error."""

    kind: Literal["stdout", "stderr", "rich"]
    text: str = ""
    rich: Display | Result | Error | None = None
    display_id: str | None = None
    size: int = field(default=0)


class Collector:
    """Outputs of one cell. `add` never raises on content, however malformed: it returns False."""

    def __init__(self, max_chars: int) -> None:
        self.dropped = 0
        """Characters cut so far."""
        self.raw_chars = {"stdout": 0, "stderr": 0}
        """Characters that arrived on each stream, before rendering and cutting."""
        self._max = max_chars
        self._half = max_chars // 2
        self._images = 0
        self._cut_outputs = 0
        self._clear_pending = False
        self._reset()

    def _reset(self) -> None:
        self._head: list[Piece] = []
        self._head_room = self._half
        self._tail: deque[Piece] = deque()
        self._tail_chars = 0
        self._open: Literal["stdout", "stderr"] | None = None
        self._line = Line()
        self._displays: dict[str, list[Piece]] = {}

    def add(self, kind: str, content: object) -> bool:
        """Take one message; False if its content is not of the type's schema."""
        if not isinstance(content, dict):
            return False
        match kind:
            case "stream":
                return self._stream(content.get("name"), content.get("text"))
            case "display_data" | "execute_result":
                return self._display(kind, content)
            case "update_display_data":
                return self._update(content)
            case "clear_output":
                self._clear(wait=content.get("wait") is True)
                return True
            case "error":
                return self._error(content)
            case _:
                return True

    def _clear(self, *, wait: bool) -> None:
        if wait:
            self._clear_pending = True
        else:
            self._clear_pending = False
            self._reset()

    def _before_output(self) -> None:
        if self._clear_pending:
            self._clear_pending = False
            self._reset()

    def _stream(self, name: object, text: object) -> bool:
        if name not in ("stdout", "stderr") or not isinstance(text, str):
            return False
        self._before_output()
        self.raw_chars[name] += len(text)
        if self._open != name:
            self._close_line()
            self._open = name
        done = self._line.write(clean(text))
        if done:
            self._text(name, done)
        return True

    def _close_line(self) -> None:
        if self._open is not None and (rest := self._line.end()):
            self._text(self._open, rest)

    def _text(self, name: Literal["stdout", "stderr"], text: str) -> None:
        if self._head_room > 0 and not self._tail:
            taken = text[: self._head_room]
            last = self._head[-1] if self._head else None
            if last is not None and last.kind == name:
                last.text += taken
            else:
                self._head.append(Piece(name, taken))
                self._head_room -= OVERHEAD
            self._head_room -= len(taken)
            text = text[len(taken) :]
        if text:
            self.dropped += max(len(text) - self._half, 0)
            self._push(Piece(name, text[-self._half :], size=len(text[-self._half :]) + OVERHEAD))

    def _push(self, piece: Piece) -> None:
        last = self._tail[-1] if self._tail else None
        if last is not None and last.kind == piece.kind != "rich" and len(last.text) + len(piece.text) < self._half // 8 + 1:
            last.text += piece.text
            last.size += len(piece.text)
            self._tail_chars += len(piece.text)
        else:
            self._tail.append(piece)
            self._tail_chars += piece.size
        while self._tail_chars > self._half and len(self._tail) > 1:
            self._forget(self._tail.popleft())

    def _forget(self, piece: Piece) -> None:
        self._tail_chars -= piece.size
        self.dropped += len(piece.text) if piece.rich is None else piece.size
        self._cut_outputs += 1
        if piece.display_id is not None and piece in (known := self._displays.get(piece.display_id, [])):
            known.remove(piece)
            if not known:
                del self._displays[piece.display_id]

    def _rich(self, output: Display | Result | Error, size: int, display_id: str | None = None) -> None:
        self._before_output()
        self._close_line()
        self._open = None
        piece = Piece("rich", rich=output, display_id=display_id, size=size + OVERHEAD)
        if self._head_room >= piece.size and not self._tail:
            self._head.append(piece)
            self._head_room -= piece.size
        else:
            self._head_room = 0
            self._push(piece)
        if display_id is not None:
            self._displays.setdefault(display_id, []).append(piece)

    def _display(self, kind: str, content: dict[str, Any]) -> bool:
        if not isinstance(content.get("data"), dict):
            return False
        data, size = self._bundle(content["data"])
        if not data:
            return True
        metadata = self._metadata(content.get("metadata"))
        if kind == "display_data":
            self._rich(Display(data=data, metadata=metadata), size, _display_id(content))
            return True
        count = content.get("execution_count")
        number = count if isinstance(count, int) and not isinstance(count, bool) and 0 <= count < 2**53 else None
        self._rich(Result(execution_count=number, data=data, metadata=metadata), size, _display_id(content))
        return True

    def _update(self, content: dict[str, Any]) -> bool:
        display_id = _display_id(content)
        if display_id is None or not isinstance(content.get("data"), dict):
            return False
        pieces = self._displays.get(display_id)
        if pieces is None:  # shown by another cell, or cut: a closed step never changes
            return True
        data, size = self._bundle(content["data"])
        metadata = self._metadata(content.get("metadata"))
        for piece in pieces:
            if isinstance(piece.rich, (Display, Result)):
                piece.rich = piece.rich.model_copy(update={"data": data, "metadata": metadata})
                grown = size + OVERHEAD - piece.size
                piece.size += grown
                if any(piece is one for one in self._tail):
                    self._tail_chars += grown
                else:
                    self._head_room -= grown
        while self._tail_chars > self._half and len(self._tail) > 1:
            self._forget(self._tail.popleft())
        return True

    def _bundle(self, given: dict[str, Any]) -> tuple[dict[str, JsonValue], int]:
        data: dict[str, JsonValue] = {}
        size = 0
        limit = max(self._half // 2, 200)
        for kind in TEXT_TYPES:
            if kind in given:
                text, cut = shorten(as_text(given[kind]), limit)
                if cut and kind != "text/plain":  # half an html table or svg shows nothing
                    self.dropped += len(text) + cut
                    continue
                self.dropped += cut
                data[kind] = text
                size += len(text)
        for kind in IMAGE_TYPES:
            if kind in given:
                size += self._image(kind, as_text(given[kind]), data)
        for kind in JSON_TYPES:
            if kind in given:
                value = as_json(given[kind])
                chars = _json_chars(value)
                if chars <= limit:
                    data[kind] = value
                    size += chars
                else:
                    self.dropped += chars
        if not data and given:
            names = ", ".join(sorted(as_text(kind)[:80] for kind in list(given)[:5]))
            data["text/plain"] = f"<output of type {names}, not kept>"
        return data, size

    def _image(self, kind: str, base64: str, data: dict[str, JsonValue]) -> int:
        if len(base64) > IMAGE_CHARS or self._images + len(base64) > IMAGES_CHARS:
            self.dropped += len(base64)
            note = f"<{kind} of {len(base64) * 3 // 4:,} bytes, too large to keep>"
            data.setdefault("text/plain", note)
            return len(note)
        self._images += len(base64)
        data[kind] = base64
        return 0

    def _metadata(self, given: object) -> dict[str, JsonValue]:
        if not isinstance(given, dict) or not given:
            return {}
        metadata = as_json(given)
        return metadata if isinstance(metadata, dict) and _json_chars(metadata) <= METADATA_CHARS else {}

    def _error(self, content: dict[str, Any]) -> bool:
        limit = max(self._half // 4, 200)
        traceback = content.get("traceback")
        well_formed = isinstance(traceback, list) and isinstance(content.get("ename"), str)
        lines = [as_text(line) for line in traceback[:TRACEBACK_LINES]] if isinstance(traceback, list) else []
        ename, _ = shorten(as_text(content.get("ename", "")), 1_000)
        evalue, cut = shorten(as_text(content.get("evalue", "")), limit)
        text, cut_lines = shorten("\n".join(lines), limit)
        self.dropped += cut + cut_lines
        error = Error(ename=ename, evalue=evalue, traceback=tuple(text.split("\n")) if cut_lines else tuple(lines))
        self._rich(error, len(ename) + len(evalue) + len(text))
        return well_formed

    def outputs(self) -> tuple[Output, ...]:
        """All that was kept, in order, streams merged, with a line where something was cut."""
        self._close_line()
        self._open = None
        pieces = list(self._head)
        if self._cut_outputs or (self._tail and self.dropped and self._head_room <= 0):
            pieces.append(Piece("stdout", f"\n[... output cut here, {self.dropped} characters ...]\n"))
        pieces.extend(self._tail)
        merged: list[Output] = []
        texts: list[str] = []
        name: Literal["stdout", "stderr", "rich"] = "rich"
        for piece in [*pieces, Piece("rich")]:
            if piece.kind == name != "rich":
                texts.append(piece.text)
                continue
            if texts and name != "rich":
                merged.append(Stream(name=name, text="".join(texts)))
            texts, name = [piece.text] if piece.kind != "rich" else [], piece.kind
            if piece.rich is not None:
                merged.append(piece.rich)
        return tuple(merged)


def _display_id(content: dict[str, Any]) -> str | None:
    transient = content.get("transient")
    found = transient.get("display_id") if isinstance(transient, dict) else None
    return found[:200] if isinstance(found, str) else None
