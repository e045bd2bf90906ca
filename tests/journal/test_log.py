import contextlib
import errno
import os
import resource
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from statistics import median

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dojo_kernel.actions import ExecuteCode
from dojo_kernel.errors import JournalError
from dojo_kernel.journal import Journal, read_journal
from dojo_kernel.journal.log import in_use
from dojo_kernel.records import Acted, Branched, Execution, Observation, Opened, Step, Stepped, Stream


def opened() -> Opened:
    return Opened(
        episode="e",
        competition="digits",
        competition_sha256="0" * 64,
        better="higher",
        seed=0,
        agent="scripted",
        settings={},
        box="process",
        enforcement=(),
        versions={},
        started_at="2026-11-21T00:00:00+00:00",
    )


def stepped(index: int, text: str = "hello\n") -> Stepped:
    code = "print('hello')"
    return Stepped(
        step=Step(
            index=index,
            action=ExecuteCode(code=code),
            execution=Execution(code=code, outputs=(Stream.model_construct(name="stdout", text=text),), status="ok", seconds=0.1),
            reward=0.0,
            observation=Observation(text="ok", ok=True, steps_left=1, seconds_left=1.0),
            started_at="2026-11-21T00:00:00+00:00",
            seconds=0.1,
        )
    )


def branched(parent: Journal) -> Branched:
    return Branched(
        episode="b",
        parent_episode="e",
        parent_events=len(parent.events),
        parent_head_sha256=parent.head,
        index=0,
        seed=0,
        workspace_path="/forks/1/workspace",
        started_at="2026-11-21T00:00:00+00:00",
    )


def played(folder: Path, steps: int = 3) -> Path:
    with Journal.create(folder) as journal:
        journal.append(opened())
        for index in range(steps):
            journal.append(Acted(index=index, action=ExecuteCode(code="1")))
            journal.append(stepped(index))
    return folder / "journal.jsonl"


def test_what_was_appended_is_read_again(tmp_path):
    file = played(tmp_path / "run")
    events = read_journal(tmp_path / "run")
    assert events == read_journal(file)
    assert [event.type for event in events] == ["opened", *["acted", "stepped"] * 3]
    assert file.read_bytes().isascii()


@pytest.fixture
def synced(monkeypatch):
    """Names of what was synced, oldest first."""
    names = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)

        def noted(fd, real=real):
            names.append(Path(f"/proc/self/fd/{fd}").readlink().name)
            real(fd)

        monkeypatch.setattr(os, name, noted)
    return names


def test_a_result_is_on_the_disk_when_append_returns(tmp_path, synced):
    with Journal.create(tmp_path / "run") as journal:
        journal.append(opened())
        journal.append(Acted(index=0, action=ExecuteCode(code="1")))
        synced.clear()
        journal.append(stepped(0))
        assert synced == ["journal.jsonl"]


def test_a_journal_that_goes_with_its_process_waits_for_no_disk_and_a_branch_that_stays_does(tmp_path, synced):
    with Journal.create(tmp_path / "run", durable=False) as journal:
        journal.append(opened())
        journal.append(Acted(index=0, action=ExecuteCode(code="1")))
        journal.append(stepped(0))
        kept = journal.store(b"id,y\n")
        with journal.branch(tmp_path / "twin", branched(journal), durable=False):
            assert synced == []
        with journal.branch(tmp_path / "branch", branched(journal)):
            assert {"journal.jsonl", "files", "branch"} < {*synced}
            assert any(name.endswith(".part") for name in synced), "the stored file, before it has its name"
            assert (tmp_path / "branch/files" / kept).stat().st_nlink == 1


def test_a_journal_cut_at_any_byte_is_an_exact_prefix(tmp_path):
    file = played(tmp_path / "run", steps=1)
    whole, events = file.read_bytes(), read_journal(file)
    ends = [0] + [at + 1 for at, byte in enumerate(whole) if byte == 10]
    cut = tmp_path / "cut.jsonl"
    for size in range(len(whole) + 1):
        cut.write_bytes(whole[:size])
        assert read_journal(cut) == events[: sum(end <= size for end in ends) - 1]


def test_resume_cuts_a_torn_tail_and_goes_on(tmp_path):
    file = played(tmp_path / "run")
    whole = file.read_bytes()
    file.write_bytes(whole[:-7])
    with Journal.resume(tmp_path / "run") as journal:
        assert len(journal.events) == 6
        journal.append(stepped(2))
    assert file.read_bytes() == whole


@pytest.mark.parametrize("number", [0, 2, 6], ids=["first", "middle", "last"])
def test_a_changed_line_is_refused_as_tampering(tmp_path, number):
    file = played(tmp_path / "run")
    lines = file.read_bytes().splitlines(keepends=True)
    lines[number] = lines[number].replace(b'"type":"', b'"type": "')
    file.write_bytes(b"".join(lines))
    for read in (read_journal, Journal.resume):
        with pytest.raises(JournalError, match=f"line {number + 1}"):
            read(tmp_path / "run")


@pytest.mark.parametrize(
    "change", [lambda x: x[:2] + x[3:], lambda x: [x[1], x[0], *x[2:]], lambda x: x[1:], lambda x: [*x, x[-1]]]
)
def test_a_line_left_out_moved_or_repeated_is_refused(tmp_path, change):
    file = played(tmp_path / "run")
    file.write_bytes(b"".join(change(file.read_bytes().splitlines(keepends=True))))
    with pytest.raises(JournalError, match="does not verify"):
        read_journal(file)


@given(st.binary(min_size=1, max_size=40), st.data())
@settings(max_examples=60, deadline=None)
def test_no_bytes_written_over_a_journal_pass_for_other_events(tmp_path_factory, junk, data):
    file = played(tmp_path_factory.mktemp("j") / "run", steps=1)
    whole, events = file.read_bytes(), read_journal(file)
    at = data.draw(st.integers(0, len(whole) - 1))
    file.write_bytes(whole[:at] + junk + whole[at + len(junk) :])
    with contextlib.suppress(JournalError):
        assert read_journal(file) == events[: len(read_journal(file))]


def test_two_writers_are_refused(tmp_path):
    with Journal.create(tmp_path / "run"), pytest.raises(JournalError, match=f"another process writes.*pid {os.getpid()}"):
        Journal.resume(tmp_path / "run")
    with pytest.raises(JournalError, match="has a journal already"):
        Journal.create(tmp_path / "run")
    Journal.resume(tmp_path / "run").close()


def test_half_a_character_is_written_as_a_question_mark(tmp_path):
    with Journal.create(tmp_path / "run") as journal:
        journal.append(opened())
        journal.append(stepped(0, text="\ud800 \U0001f600"))
    assert read_journal(tmp_path / "run")[1].step.execution.outputs[0].text == "? \U0001f600"


def test_files_are_kept_under_their_sha256(tmp_path):
    with Journal.create(tmp_path / "run") as journal:
        name = journal.store(b"id,x\n1,2\n")
        assert journal.store(b"id,x\n1,2\n") == name
    assert [one.name for one in (tmp_path / "run" / "files").iterdir()] == [name]


WRITER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_log import *
journal = Journal.create(Path(sys.argv[1]))
journal.append(opened())
for index in range(10**6):
    journal.append(stepped(index, text="x" * 3000))
    print(index, flush=True)
"""


@pytest.mark.slow
@pytest.mark.parametrize("trial", range(4))
def test_kill_9_loses_nothing_that_was_acknowledged(tmp_path, trial):
    program = WRITER.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", program, tmp_path / "run"], stdout=subprocess.PIPE, text=True) as child:
        child.stdout.readline()
        time.sleep(0.05 + 0.037 * trial)
        child.send_signal(signal.SIGKILL)
        acknowledged = [0, *(int(line) for line in child.stdout if line.endswith("\n"))]
    with Journal.resume(tmp_path / "run") as journal:
        assert [event.step.index for event in journal.events[1:]][: len(acknowledged)] == acknowledged
        journal.append(stepped(10**6))


def fill_and_recover(folder: Path, room, give_space) -> None:
    journal = Journal.create(folder)
    journal.append(opened())
    room()
    count = 0
    with pytest.raises(JournalError, match="nothing of this event was kept") as caught:  # noqa: PT012 - which of many fails
        for count in range(10_000):
            journal.append(stepped(count, text="x" * 5000))
    assert caught.value.__cause__.errno in {errno.ENOSPC, errno.EFBIG}
    with pytest.raises(JournalError):
        journal.store(os.urandom(2_000_000))
    assert not list((folder / "files").glob("*"))
    assert len(read_journal(folder)) == 1 + count == len(journal.events)
    assert (folder / "journal.jsonl").read_bytes().endswith(b"}\n")
    give_space()
    journal.append(stepped(count))
    journal.close()
    assert len(read_journal(folder)) == 2 + count


def test_a_full_disk_fails_closed_and_works_again_with_space(tmp_path):
    if (
        os.geteuid() != 0
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "dojo-test", tmp_path], check=False).returncode
    ):
        pytest.skip("may not mount a small tmpfs")
    try:
        ballast = tmp_path / "ballast"
        fill_and_recover(tmp_path / "run", lambda: ballast.write_bytes(b"x" * 300_000), ballast.unlink)
    finally:
        subprocess.run(["umount", tmp_path], check=True)


def test_a_file_size_limit_fails_closed_and_works_again_without(tmp_path):
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    try:
        fill_and_recover(
            tmp_path / "run",
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1])),
            lambda: resource.setrlimit(resource.RLIMIT_FSIZE, before),
        )
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.mark.slow
def test_a_step_costs_the_same_after_a_thousand(tmp_path):
    def spent(journal, index):
        event = stepped(index, text="x" * 2000)
        begun = time.process_time()
        journal.append(event)
        return time.process_time() - begun

    with Journal.create(tmp_path / "long") as long, Journal.create(tmp_path / "short") as short:
        for journal in (long, short):
            journal.append(opened())
        for index in range(1000):
            spent(long, index)
        times = [(spent(long, 1000 + index), spent(short, index)) for index in range(200)]  # in turns: one machine for both
    assert median(one for one, _ in times) < 3 * median(other for _, other in times) + 1e-4


def test_who_asks_whether_a_journal_is_in_use_keeps_nobody_from_writing(tmp_path):
    Journal.create(tmp_path / "run").close()
    over = threading.Event()

    def ask():
        while not over.is_set():
            in_use(tmp_path / "run")

    asking = [threading.Thread(target=ask) for _ in range(2)]
    for one in asking:
        one.start()
    try:
        for _ in range(200):
            Journal.resume(tmp_path / "run").close()
    finally:
        over.set()
        for one in asking:
            one.join()
