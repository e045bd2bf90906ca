"""As much of Kaggle's API as its official client needs here, over real HTTP on the loopback.

The client reaches it as a proxy for http://localhost, the address that `KAGGLE_API_ENVIRONMENT=LOCALHOST` gives it. As at Kaggle, a
request for the files is answered with a redirect to another host that knows ranges and nobody's key.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zipfile
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

if TYPE_CHECKING:
    from collections.abc import Iterator

PAGE = 2
"""Files or teams on a page, whatever the client asks for: it must turn pages."""
STORAGE = "http://storage.kaggle.test/bundle.zip"
RULES = "You must accept this competition's rules before you'll be able to download files."


@dataclass
class Kaggle:
    """What it has, whom it knows, how it misbehaves, and what it was asked."""

    files: dict[str, bytes]
    slug: str = "own-on-kaggle"
    user: tuple[str, str] = ("ann", "secret")
    token: str = "KGAT_0"
    entered: bool = True
    closed: bool = False
    ended: bool = True
    boards: dict[str, list[str]] = field(
        default_factory=lambda: {"public": ["0.9", "0.8", "0.7"], "private": ["0.85", "0.75", ""]}
    )
    slow_down: int = 0
    """So many of the next API requests are answered with 429."""
    retry_after: str = "0"
    breaks: list[float] = field(default_factory=list)
    """At which part of what is asked for each of the next downloads breaks off."""
    ranges: bool = True
    listed: dict[str, int] = field(default_factory=dict)
    """Sizes in the list that differ from the truth."""
    hold_at: int = 0
    """A download waits there for `go_on`; 0: never."""
    go_on: threading.Event = field(default_factory=threading.Event)
    port: int = 0
    asked: list[str] = field(default_factory=list)
    sent: list[tuple[int, int]] = field(default_factory=list)
    """First byte and number of bytes of the bundle that went out, for each download."""

    @property
    def bundle(self) -> bytes:
        """All files in one zip, always the same bytes."""
        out = io.BytesIO()
        with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as packed:
            for name, content in self.files.items():
                packed.writestr(zipfile.ZipInfo(name), content)
        return out.getvalue()

    @property
    def tag(self) -> str:
        return f'"{hashlib.md5(self.bundle).hexdigest()}"'


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    kaggle: Kaggle

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers.get("Content-Length", 0))) or b"{}")
        path = urlsplit(self.path).path
        method = path.rsplit("/", 1)[-1]
        self.kaggle.asked.append(method)
        if self.kaggle.slow_down:
            self.kaggle.slow_down -= 1
            self._error(429, "Too many requests", **{"Retry-After": self.kaggle.retry_after})
        elif method == "IntrospectToken":
            known = body.get("token") == self.kaggle.token
            self._json({"active": known, "username": "ann" if known else ""})
        elif not self._known():
            self._error(401, "Unauthenticated")
        elif body.get("competitionName") != self.kaggle.slug:
            self._error(404, "Competition not found")
        else:
            answers = {
                "GetCompetition": self._competition,
                "ListDataFiles": self._list_files,
                "DownloadDataFiles": self._download,
                "GetLeaderboard": self._leaderboard,
            }
            answers[method](body)

    def do_GET(self) -> None:
        kaggle, bundle = self.kaggle, self.kaggle.bundle
        assert self.path == STORAGE, self.path
        assert "Authorization" not in self.headers, "the key must not go to another host"
        begin, status = 0, 200
        if kaggle.ranges and "Range" in self.headers and self.headers.get("If-Range", kaggle.tag) == kaggle.tag:
            begin, status = int(self.headers["Range"].removeprefix("bytes=").removesuffix("-")), 206
        rest = bundle[begin:]
        self.send_response(status)
        self.send_header("Content-Type", "application/zip")
        self.send_header("Content-Length", str(len(rest)))
        self.send_header("ETag", kaggle.tag)
        self.send_header("Last-Modified", "Sat, 01 Jan 2000 00:00:00 GMT")
        if kaggle.ranges:
            self.send_header("Accept-Ranges", "bytes")
        if status == 206:
            self.send_header("Content-Range", f"bytes {begin}-{len(bundle) - 1}/{len(bundle)}")
        self.end_headers()
        until = int(len(rest) * kaggle.breaks.pop(0)) if kaggle.breaks else len(rest)
        went, place = 0, len(kaggle.sent)
        kaggle.sent.append((begin, went))  # before the client has all and looks
        try:
            for at in range(0, until, 4096):
                if kaggle.hold_at and at >= kaggle.hold_at:
                    kaggle.go_on.wait(60)
                went = min(at + 4096, until)
                kaggle.sent[place] = (begin, went)
                self.wfile.write(rest[at:went])
        except OSError:  # the client has heard enough
            pass
        self.close_connection = self.close_connection or went < len(rest)

    def _known(self) -> bool:
        plain = base64.b64encode(":".join(self.kaggle.user).encode()).decode()
        return self.headers.get("Authorization") in {f"Basic {plain}", f"Bearer {self.kaggle.token}"}

    def _competition(self, _: dict[str, Any]) -> None:
        deadline = "2001-01-01T00:00:00Z" if self.kaggle.ended else "2999-01-01T00:00:00Z"
        self._json({"ref": self.kaggle.slug, "userHasEntered": self.kaggle.entered, "deadline": deadline})

    def _list_files(self, body: dict[str, Any]) -> None:
        if self.kaggle.closed:
            self._error(403, "Permission 'competitions.participate' was denied")
            return
        sizes = {name: self.kaggle.listed.get(name, len(content)) for name, content in self.kaggle.files.items()}
        at = int(body.get("pageToken") or 0)
        page = [{"name": name, "totalBytes": size} for name, size in list(sizes.items())[at : at + PAGE]]
        self._json({"files": page, "nextPageToken": str(at + PAGE) if at + PAGE < len(sizes) else ""})

    def _download(self, _: dict[str, Any]) -> None:
        if not self.kaggle.entered:
            self._error(403, RULES)
            return
        self.send_response(302)
        self.send_header("Location", STORAGE)
        self.send_header("Content-Length", "0")
        self.end_headers()

    def _leaderboard(self, body: dict[str, Any]) -> None:
        public = body.get("overridePublic") or not self.kaggle.ended
        scores = self.kaggle.boards["public" if public else "private"]
        at = int(body.get("pageToken") or 0)
        page = [{"teamId": n, "teamName": f"team {n}", "score": score} for n, score in enumerate(scores)][at : at + PAGE]
        self._json({"submissions": page, "nextPageToken": str(at + PAGE) if at + PAGE < len(scores) else ""})

    def _error(self, code: int, message: str, **headers: str) -> None:
        self._json({"code": code, "message": message}, code, **headers)

    def _json(self, value: object, code: int = 200, **headers: str) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        for name, text in {"Content-Type": "application/json", "Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, text)
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serve(kaggle: Kaggle) -> Iterator[Kaggle]:
    handler = type("Handler", (_Handler,), {"kaggle": kaggle})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        kaggle.port = server.server_address[1]
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        try:
            yield kaggle
        finally:
            server.shutdown()
            thread.join()
