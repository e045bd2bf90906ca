"""The journal: an append-only file of events, one JSON line each, that a crash, a full disk or an editor cannot bend unseen.

A line is `{"format":1,"seq":7,"prev":"<sha256>","sha256":"<sha256>","event":{...}}` in ASCII. Its `sha256` covers format, seq,
`prev` and the event's bytes; `prev` is the line before's `sha256`, so the last one vouches for all. Bytes after the last
newline are a write that nobody was told about and are dropped; any other line that does not verify is tampering.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, NamedTuple, Self

from pydantic import TypeAdapter, ValidationError

from dojo_kernel.errors import AgentFault, ConfigError, JournalError
from dojo_kernel.records import Acted, Branched, Closed, Event, Explored, Interrupted, Opened, Resumed, Stepped

if TYPE_CHECKING:
    from types import TracebackType

FORMAT: Final = 1
FILE: Final = "journal.jsonl"
_START: Final = "0" * 64
_LINE: Final = re.compile(
    rb'\{"format":(\d{1,9}),"seq":(\d{1,15}),"prev":"([0-9a-f]{64})","sha256":"([0-9a-f]{64})","event":(\{.*\})\}'
)
_EVENTS: Final[TypeAdapter[Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed]] = TypeAdapter(Event)
_KEPT: Final = re.compile(r"[0-9a-f]{64}")
_SPACE: Final = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
"""The disk is full, for now; every other failure of a write or a sync makes the file untrustworthy for good."""


class Journal:
    """The one writer of a run's folder. Make it with `create` or `resume`; close it, or use it as a context manager."""

    def __init__(self, folder: Path, lock: int, file: int, read: Reading, *, durable: bool) -> None:
        self.folder = folder
        self.durable = durable
        """Whether what was told to be written survives a loss of power, and not only the end of this process."""
        self.events: list[Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed] = read.events
        """All events, oldest first, those of earlier hosts included."""
        self.head = read.head
        """The last line's sha256: publish it and nobody can shorten the journal unseen."""
        self._lock = lock
        self._file = file
        self._size = read.size
        self._broken: str | None = None

    @classmethod
    def create(cls, folder: Path, *, durable: bool = True) -> Journal:
        """A new journal; the folder is made. Raises JournalError when it has one or another process writes in it.

        Not `durable`: nothing waits for the disk, for a folder that goes with its process anyway.
        """
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = _locked(folder)
            try:
                file = os.open(folder / FILE, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_APPEND | os.O_NOFOLLOW, 0o644)
            except BaseException:  # an interrupt, too: the lock is let go
                os.close(lock)
                raise
            if durable:
                _sync_folder(folder)
                _sync_folder(folder.parent)
        except FileExistsError as error:
            raise JournalError(f"{folder} has a journal already") from error
        except OSError as error:
            raise JournalError(f"cannot make a journal in {folder}: {error}") from error
        return cls(folder, lock, file, Reading([], _START, 0, 0), durable=durable)

    @classmethod
    def resume(cls, folder: Path) -> Journal:
        """Go on where the journal stops; a torn tail is cut off. Raises JournalError: none there, tampered with, in use."""
        if not (folder / FILE).is_file():
            raise JournalError(f"{folder} has no journal")
        try:
            lock = _locked(folder)
            try:
                file = os.open(folder / FILE, os.O_RDWR | os.O_APPEND | os.O_NOFOLLOW)
                try:
                    read = verify((folder / FILE).read_bytes(), str(folder / FILE))
                    if read.torn:
                        os.ftruncate(file, read.size)
                        os.fsync(file)
                except BaseException:  # an interrupt, too: neither file nor lock stays open
                    os.close(file)
                    raise
            except BaseException:
                os.close(lock)
                raise
        except OSError as error:
            raise JournalError(f"cannot go on with the journal in {folder}: {error}") from error
        return cls(folder, lock, file, read, durable=True)

    def append(self, event: Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed) -> None:
        """Write one event; in a durable journal it is on the disk when this returns, an `Acted` with the event after it.

        A crash of this process loses nothing that was written. Only power loss can lose an `Acted`, and that ends the
        box as well, before anybody heard of a result.

        Raises:
            JournalError: it could not be written, and the file is as it was before; when the disk was full, a later call
                may succeed.
        """
        if self._broken is not None:
            raise JournalError(f"{self.folder / FILE}: {self._broken}")
        line, head = _line(len(self.events), self.head, event)
        try:
            _write_all(self._file, line)
            if self.durable and not isinstance(event, Acted):
                os.fdatasync(self._file)
        except BaseException as error:
            self._roll_back(error)
            if isinstance(error, OSError):
                raise JournalError(
                    f"cannot write {self.folder / FILE}: {error.strerror}; nothing of this event was kept"
                ) from error
            raise
        self._size += len(line)
        self.head = head
        self.events.append(event)

    def _roll_back(self, cause: BaseException) -> None:
        if isinstance(cause, OSError) and cause.errno not in _SPACE:
            self._broken = f"a write failed ({cause.strerror}); resume the run to read what the disk kept"
        try:
            os.ftruncate(self._file, self._size)
            os.fdatasync(self._file)
        except OSError as error:
            self._broken = f"a failed write could not be taken back ({error.strerror}); resume the run to mend it"

    def branch(self, folder: Path, event: Branched, *, durable: bool = True) -> Journal:
        """A new journal in `folder`: this one byte for byte, then `event`, in one write and one sync; kept files come along.

        Raises:
            JournalError: the folder has something in it, or it could not be written; nothing is left of it.
        """
        if self._broken is not None:
            raise JournalError(f"{self.folder / FILE}: {self._broken}")
        if folder.exists() and any(folder.iterdir()):
            raise JournalError(f"cannot make a branch in {folder}: it is not empty")
        made = Journal.create(folder, durable=durable)
        try:
            self._lend_files(folder, durable=durable)
            line, head = _line(len(self.events), self.head, event)
            data = (self.folder / FILE).read_bytes()[: self._size] + line
            made._begin(data, Reading([*self.events, event], head, len(data), 0))  # noqa: SLF001 - the same class
        except BaseException as error:
            made.close()
            shutil.rmtree(folder, ignore_errors=True)
            if isinstance(error, OSError):
                raise JournalError(f"cannot make a branch in {folder}: {error.strerror}") from error
            raise
        return made

    def _begin(self, data: bytes, read: Reading) -> None:
        _write_all(self._file, data)
        if self.durable:
            os.fsync(self._file)
        self.events, self.head, self._size = read.events, read.head, read.size

    def _lend_files(self, folder: Path, *, durable: bool) -> None:
        """What was stored so far, without a second copy where the file system can do that."""
        kept = self.folder / "files"
        if not kept.is_dir():
            return
        (folder / "files").mkdir()
        for file in kept.iterdir():
            if not _KEPT.fullmatch(file.name):  # the half of a write
                continue
            target = folder / "files" / file.name
            never_synced = durable and not self.durable
            if never_synced or not _linked(file, target):
                write_atomically(target, file.read_bytes(), durable=durable)
        if durable:
            _sync_folder(folder / "files")

    def store(self, data: bytes) -> str:
        """Keep bytes as `files/<sha256>`, whole or not at all; returns the sha256. Raises JournalError."""
        if self._broken is not None:
            raise JournalError(f"{self.folder / FILE}: {self._broken}")
        name = hashlib.sha256(data).hexdigest()
        target = self.folder / "files" / name
        try:
            if not (target.is_file() and target.stat().st_size == len(data)):
                target.parent.mkdir(exist_ok=True)
                write_atomically(target, data, durable=self.durable)
        except OSError as error:
            raise JournalError(f"cannot keep a file in {target.parent}: {error.strerror}") from error
        return name

    def close(self) -> None:
        """Let go of the folder; may be called twice."""
        if self._file >= 0:
            self._broken = "the journal is closed"
            os.close(self._file)
            fcntl.flock(self._lock, fcntl.LOCK_UN)  # a child between its fork and its exec holds it as well
            os.close(self._lock)
            self._file = self._lock = -1

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self.close()


class Reading(NamedTuple):
    """What a journal's bytes hold."""

    events: list[Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed]
    head: str
    size: int
    """Bytes that verify."""
    torn: int
    """Bytes after them: a write that was never acknowledged."""


def read_journal(path: Path) -> list[Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed]:
    """The events of a journal, oldest first, from its folder or its file; a torn tail is left out. Raises JournalError."""
    file = path / FILE if path.is_dir() else path
    try:
        data = file.read_bytes()
    except OSError as error:
        raise JournalError(f"cannot read a journal at {file}: {error.strerror}") from error
    return verify(data, str(file)).events


def in_use(folder: Path) -> bool:
    """Whether some process, on any machine that sees the folder's locks, writes in it now."""
    try:
        lock = os.open(folder / "run.lock", os.O_RDWR | os.O_NOFOLLOW)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(lock)
    return False


def verify(data: bytes, name: str) -> Reading:
    """Check every line against its checksum and the line before. Raises JournalError at the first that does not fit."""
    size = data.rfind(b"\n") + 1
    events: list[Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed] = []
    head = _START
    for number, line in enumerate(data[:size].split(b"\n")[:-1]):
        found = _LINE.fullmatch(line)
        where = f"{name}, line {number + 1}"
        if found is None:
            raise JournalError(f"{where} is no line of a journal: the file was changed after it was written")
        form, seq, prev, given, body = found.groups()
        if int(form) != FORMAT:
            raise JournalError(f"{where} has format {int(form)}; this version reads {FORMAT}")
        if int(seq) != number or prev.decode() != head or given.decode() != _digest(number, head, body):
            raise JournalError(f"{where} does not verify: the file was changed after it was written")
        try:
            events.append(_EVENTS.validate_json(body))
        except (ValidationError, AgentFault, ConfigError) as error:
            raise JournalError(f"{where} holds an event that this version cannot read: {error}") from error
        head = given.decode()
    return Reading(events, head, size, len(data) - size)


def write_atomically(path: Path, data: bytes, *, durable: bool = True) -> None:
    """Put `data` at `path`, whole, or leave what was there: temporary file beside it, sync, rename, sync. Raises OSError.

    Not `durable`: without the syncs, so whole for other processes, and perhaps not after a loss of power.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=".dojo-", suffix=".part")
    try:
        try:
            _write_all(handle, data)
            os.fchmod(handle, 0o644)
            if durable:
                os.fsync(handle)
        finally:
            os.close(handle)
        Path(name).replace(path)
    except BaseException:
        with contextlib.suppress(FileNotFoundError):
            Path(name).unlink()
        raise
    if durable:
        _sync_folder(path.parent)


def _linked(file: Path, target: Path) -> bool:
    """Whether the file system can do that. Raises OSError for any other fault."""
    try:
        os.link(file, target)
    except OSError as error:
        if error.errno not in {errno.EXDEV, errno.EPERM, errno.EMLINK, errno.EOPNOTSUPP}:
            raise
        return False
    return True


def whole_text(value: Any) -> Any:
    """JSON data whose strings are valid unicode: a lone surrogate becomes `?`, which is all that UTF-8 can do with it."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode("utf-8")
    if isinstance(value, dict):
        return {whole_text(key): whole_text(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [whole_text(one) for one in value]
    return value


def _line(
    seq: int, prev: str, event: Opened | Acted | Stepped | Interrupted | Resumed | Branched | Explored | Closed
) -> tuple[bytes, str]:
    body = json.dumps(event.model_dump(), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    if "\\ud" in body:  # perhaps half a character, which no reader of JSON would take
        body = json.dumps(whole_text(json.loads(body)), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    data = body.encode("ascii")
    digest = _digest(seq, prev, data)
    start = f'{{"format":{FORMAT},"seq":{seq},"prev":"{prev}","sha256":"{digest}","event":'
    return start.encode("ascii") + data + b"}\n", digest


def _digest(seq: int, prev: str, body: bytes) -> str:
    return hashlib.sha256(f"{FORMAT} {seq} {prev} ".encode("ascii") + body).hexdigest()


def _write_all(file: int, data: bytes) -> None:
    rest = memoryview(data)
    while rest:  # a full disk gives a short count first and ENOSPC only then
        rest = rest[os.write(file, rest) :]


def _lock_soon(lock: int) -> None:
    """Who asks whether the journal is in use holds the lock, too, for a moment. Raises BlockingIOError."""
    for _ in range(20):
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        time.sleep(0.01)
    fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)


def _locked(folder: Path) -> int:
    lock = os.open(folder / "run.lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o644)
    try:
        _lock_soon(lock)
    except BlockingIOError as error:
        holder = os.pread(lock, 200, 0).decode("ascii", "replace").strip()
        os.close(lock)
        raise JournalError(f"another process writes in {folder}: {holder}") from error
    except BaseException:
        os.close(lock)
        raise
    with contextlib.suppress(OSError):  # for people; the lock itself needs no space
        os.ftruncate(lock, 0)
        os.pwrite(lock, f"pid {os.getpid()}\n".encode("ascii"), 0)
    return lock


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
