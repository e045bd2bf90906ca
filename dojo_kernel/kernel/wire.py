"""Raw sockets to one kernel: connect once before the agent's code runs, never again; read without blocking; trust no frame.

Everything happens in callbacks of the caller's event loop, so one loop serves many kernels without a thread or a poll.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
import secrets
import socket
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, NamedTuple

import zmq
from zmq.utils.monitor import recv_monitor_message

from dojo_kernel.errors import KernelStartError

if TYPE_CHECKING:
    from collections.abc import Callable

CHANNELS = ("shell", "control", "iopub")
MAX_MESSAGE = 32 << 20
"""Bytes of one frame; libzmq drops the peer that sends more."""
MAX_HEADER = 64 << 10
MAX_FRAMES = 64
BATCH = 200
"""Messages handled before the event loop gets its turn."""
DELIMITER = b"<IDS|MSG>"
_POLLIN, _NOBLOCK = int(zmq.POLLIN), int(zmq.NOBLOCK)  # enums cost a microsecond at each use

_contexts: dict[int, zmq.Context[zmq.Socket[bytes]]] = {}


def _context() -> zmq.Context[zmq.Socket[bytes]]:
    """One for the host process; a forked child makes its own."""
    found = _contexts.get(os.getpid())
    if found is None:
        _contexts.clear()
        found = _contexts[os.getpid()] = zmq.Context()
        found.set(zmq.MAX_SOCKETS, 16_383)
    return found


class Message(NamedTuple):
    """One message that carries the kernel's signature. Its content is a claim."""

    channel: str
    kind: str
    parent: str
    """msg_id of the request of ours that it answers; "" for anything else."""
    content: dict[str, Any]
    metadata: dict[str, Any]
    size: int


class Wire:
    """Shell, control and iopub of one kernel."""

    def __init__(self, info: dict[str, Any], on_message: Callable[[Message], None], on_violation: Callable[[str], None]) -> None:
        self._key = str(info["key"]).encode()
        self._info = info
        self._on_message = on_message
        self._on_violation = on_violation
        self._session = secrets.token_hex(16)
        self._sockets: dict[str, zmq.Socket[bytes]] = {}
        self._readers: list[int] = []
        self._loop = asyncio.get_running_loop()
        self._scheduled: set[str] = set()
        self._monitors: dict[str, zmq.Socket[bytes]] = {}
        self.on_cut_off: Callable[[str], None] = lambda _channel: None
        """Told the channel whose connection ended: the kernel died, or it sent what libzmq refuses."""
        self.skip: Callable[[int], bool] = lambda _size: False
        """Asked for each large iopub message: True drops it unread."""

    async def connect(self, deadline: float) -> None:
        """Wait until the kernel listens, then connect, once. Raises KernelStartError at `deadline` of the loop's clock."""
        paths = {name: f"{self._info['ip']}-{self._info[f'{name}_port']}" for name in CHANNELS}
        for path in paths.values():
            while not await self._listens(path):
                if self._loop.time() > deadline:
                    raise KernelStartError("the kernel did not open its sockets in time")
                await asyncio.sleep(0.002)
        for name, path in paths.items():
            self._open(name, f"ipc://{path}")

    @staticmethod
    async def _listens(path: str) -> bool:
        # a first connect that fails would be final, since nothing here reconnects
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            try:
                probe.connect(path)
            except OSError:
                return False
        return True

    def _open(self, name: str, address: str) -> None:
        kind = zmq.SUB if name == "iopub" else zmq.DEALER
        opened = _context().socket(kind)
        opened.setsockopt(zmq.LINGER, 0)
        opened.setsockopt(zmq.RECONNECT_IVL, -1)
        opened.setsockopt(zmq.MAXMSGSIZE, MAX_MESSAGE)
        opened.setsockopt(zmq.RCVHWM, 200)
        if self._info.get("curve_publickey"):
            public, secret = (_bytes(self._info[key]) for key in ("curve_publickey", "curve_secretkey"))
            opened.setsockopt(zmq.CURVE_PUBLICKEY, public)
            opened.setsockopt(zmq.CURVE_SECRETKEY, secret)
            opened.setsockopt(zmq.CURVE_SERVERKEY, public)
        if kind == zmq.SUB:
            opened.setsockopt(zmq.SUBSCRIBE, b"")
        else:
            opened.setsockopt(zmq.ROUTING_ID, self._session.encode())
        monitor = self._monitors[name] = opened.get_monitor_socket(zmq.EVENT_DISCONNECTED)
        self._sockets[name] = opened
        opened.connect(address)
        for watched, reader in ((opened, self._read), (monitor, self._look)):
            fd = int(watched.getsockopt(zmq.FD))
            self._readers.append(fd)
            self._loop.add_reader(fd, reader, name)
        self._look(name)
        self._again(name)

    def close(self) -> None:
        """Again is no error."""
        for fd in self._readers:
            self._loop.remove_reader(fd)
        self._readers.clear()
        for name, opened in self._sockets.items():
            opened.disable_monitor()
            self._monitors[name].close(0)
            opened.close(0)
        self._monitors.clear()
        self._sockets.clear()

    def send(self, channel: str, kind: str, content: dict[str, Any]) -> str:
        """Queue one request; returns its msg_id. A kernel that does not read loses it: every wait has its own deadline."""
        msg_id = secrets.token_hex(16)
        header = {
            "msg_id": msg_id,
            "session": self._session,
            "username": "dojo",
            "date": datetime.now(UTC).isoformat(),
            "msg_type": kind,
            "version": "5.3",
        }
        parts = [json.dumps(header).encode(), b"{}", b"{}", json.dumps(content).encode()]
        opened = self._sockets.get(channel)
        if opened is not None:
            try:
                opened.send_multipart([DELIMITER, self._sign(parts), *parts], flags=zmq.NOBLOCK)
            except zmq.Again:
                self._on_violation(f"the kernel does not read its {channel} socket")
            self._again(channel)
        return msg_id

    def _sign(self, parts: list[bytes]) -> bytes:
        return hmac.digest(self._key, b"".join(parts), "sha256").hex().encode()

    def _look(self, name: str) -> None:
        monitor = self._monitors.get(name)
        while monitor is not None and not monitor.closed:
            try:
                recv_monitor_message(monitor, flags=zmq.NOBLOCK)
            except zmq.Again:
                return
            self.on_cut_off(name)

    def _again(self, name: str) -> None:
        if name not in self._scheduled:
            self._scheduled.add(name)
            self._loop.call_soon(self._scheduled_read, name)

    def _scheduled_read(self, name: str) -> None:
        self._scheduled.discard(name)
        self._read(name)

    def _read(self, name: str) -> None:
        # the descriptor of a zmq socket is edge-triggered: read until empty, or come back
        for _ in range(BATCH):
            opened = self._sockets.get(name)
            if opened is None:
                return
            try:
                if not int(opened.getsockopt(zmq.EVENTS)) & _POLLIN:
                    return
                frames = _received(opened)
            except zmq.ZMQError as error:
                self._on_violation(f"{name}: {error}")
                return
            self._take(name, frames)
        self._again(name)

    def _take(self, channel: str, frames: list[bytes]) -> None:
        size = sum(map(len, frames))
        if channel == "iopub" and size > MAX_HEADER and self.skip(size):
            return
        try:
            message = self._decode(channel, frames, size)
        except Exception as error:  # noqa: BLE001  the agent owns the kernel's key: these frames are its code
            self._on_violation(f"{channel}: {type(error).__name__}")
            return
        self._on_message(message)

    def _decode(self, channel: str, frames: list[bytes], size: int) -> Message:
        if len(frames) > MAX_FRAMES:
            raise ValueError("too many frames")
        start = frames.index(DELIMITER)
        signature, *parts = frames[start + 1 : start + 6]
        if len(parts) != 4 or not hmac.compare_digest(signature, self._sign(parts)):  # noqa: PLR2004  the protocol's
            raise ValueError("no signature of the kernel")
        if max(len(part) for part in parts[:3]) > MAX_HEADER:
            raise ValueError("header too long")
        header, parent, metadata, content = ({} if part == b"{}" else json.loads(part.decode()) for part in parts)
        kind = header["msg_type"]
        if not (isinstance(kind, str) and isinstance(content, dict) and isinstance(metadata, dict) and isinstance(parent, dict)):
            raise TypeError("not a message")
        ours = parent.get("session") == self._session and isinstance(parent.get("msg_id"), str)
        return Message(channel, kind, parent["msg_id"] if ours else "", content, metadata, size)


def _received(opened: zmq.Socket[bytes]) -> list[bytes]:
    """The frames of one message. A frame knows whether another follows; recv_multipart asks the socket after each."""
    frames, more = [], True
    while more:
        frame = opened.recv(_NOBLOCK, copy=False)
        frames.append(frame.bytes)
        more = frame.more
    return frames


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
