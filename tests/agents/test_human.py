"""A person at a prompt: keys go in through prompt_toolkit's own pipe, and once through a real terminal."""

import asyncio
import contextlib
import fcntl
import os
import pty
import re
import select
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import pytest
from boxes import becomes_true
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from dojo_kernel.actions import ExecuteCode, GetHistory, RequestInfo, Reset, ValidateCode
from dojo_kernel.agents.human import COMMANDS, HELP, HumanAgent, meant_by, whole
from dojo_kernel.episode import open_episode
from dojo_kernel.errors import ActionError, ConfigError
from dojo_kernel.journal.log import read_journal
from dojo_kernel.records import Closed, Observation, Stepped
from dojo_kernel.run import play
from dojo_kernel.testing import open_memory_kernel

SAW = Observation(text="the column alcalinity_of_ash", ok=True, steps_left=9, seconds_left=60.0)


async def typed(keys: str, folder: Path, turns: int = 1) -> list[object]:
    with create_pipe_input() as keyboard:
        keyboard.send_text(keys)
        agent = HumanAgent(history=str(folder / "history"), input=keyboard, output=DummyOutput())
        return [(await agent.act(SAW)).action for _ in range(turns)]


async def test_a_line_is_a_cell_and_a_block_ends_with_an_empty_line(tmp_path: Path) -> None:
    actions = await typed("1 + 1\rfor i in range(3):\rprint(i)\r\r:quit\r", tmp_path, 3)
    assert actions == [ExecuteCode(code="1 + 1"), ExecuteCode(code="for i in range(3):\n    print(i)\n    "), None]


async def test_an_unfinished_cell_can_be_run_as_it_is(tmp_path: Path) -> None:
    assert await typed("print(\x1b\r", tmp_path) == [ExecuteCode(code="print(")]


@pytest.mark.slow
async def test_tab_completes_what_was_seen_and_indents_at_the_margin(tmp_path: Path) -> None:
    with create_pipe_input() as keyboard:
        agent = HumanAgent(history=str(tmp_path / "history"), input=keyboard, output=DummyOutput())
        asking = asyncio.create_task(agent.act(SAW))
        keyboard.send_text("x = 'alcal\t")
        assert await becomes_true(  # completions are looked for beside the typing
            lambda: agent._session and agent._session.default_buffer.text.endswith("alcalinity_of_ash"), 60
        )
        keyboard.send_text("'\x1b\r")
        assert (await asking).action == ExecuteCode(code="x = 'alcalinity_of_ash'")
    assert await typed("\tpass\x1b\r", tmp_path) == [ExecuteCode(code="    pass")]


async def test_history_outlives_the_episode(tmp_path: Path) -> None:
    await typed("answer = 42\r", tmp_path)
    assert await typed("\x1b[A\x1b\r", tmp_path) == [ExecuteCode(code="answer = 42")]


async def test_ctrl_c_drops_what_was_typed_and_ctrl_d_ends(tmp_path: Path) -> None:
    assert await typed("rm -rf\x03print(1)\r\x04", tmp_path, 2) == [ExecuteCode(code="print(1)"), None]


async def test_a_wrong_command_is_explained_and_asked_again(tmp_path: Path) -> None:
    assert await typed(":jump\r:history x\r:reset\r", tmp_path) == [Reset()]


@pytest.mark.parametrize(
    ("text", "action"),
    [
        (":info", RequestInfo(info_type="all")),
        (":info overview", RequestInfo(info_type="overview")),
        (":try\nx = 1", ValidateCode(code="x = 1")),
        (":try fresh\nx = 1", ValidateCode(code="x = 1", state="fresh")),
        (":history 3", GetHistory(last=3)),
        (':act {"name": "reset"}', Reset()),
    ],
)
def test_commands_are_actions(text: str, action: object) -> None:
    assert meant_by(text) == action


def test_what_cannot_be_meant_is_refused_with_words() -> None:
    for text, words in ((":try", "below :try"), (":act {", "not JSON"), (":help", ":checkpoint"), (":history x", "last")):
        with pytest.raises(ActionError, match=re.escape(words)):
            meant_by(text)
    assert all(command in HELP for command in COMMANDS if command != ":help")


@pytest.mark.parametrize(
    ("text", "done", "indent"),
    [
        ("1 + 1", True, 0),
        ("if x:", False, 4),
        ("a = 1\nb = 2", False, 0),
        ("a = 1\n", True, 0),
        ("%timeit 1", True, 0),
        ("x = (1,", False, 0),
        (":info", True, 0),
        (":try", False, 0),
        (":try\n1\n", True, 0),
    ],
)
def test_enter_knows_when_a_cell_is_whole(text: str, done: object, indent: int) -> None:
    assert whole(text)[0] is done
    if not done:
        assert whole(text)[1] == indent


def test_without_a_terminal_nobody_can_be_asked() -> None:
    with pytest.raises(ConfigError, match="terminal"):
        HumanAgent()


async def test_a_person_plays_an_episode(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))
    submit = "import shutil; shutil.copy(DATA / 'sample_submission.csv', WORKSPACE / 'submission.csv')"
    with create_pipe_input() as keyboard:
        keyboard.send_text(f":info name\r{submit}\r:quit\r")
        agent = HumanAgent(history=str(tmp_path / "history"), input=keyboard, output=DummyOutput())
        async with open_episode("wine", folder=tmp_path / "e", start_kernel=open_memory_kernel) as episode:
            closed = await play(episode, agent)
    assert (closed.reason, closed.detail) == ("agent", "The player has ended it.")
    assert closed.final is not None


@pytest.mark.slow
@pytest.mark.parametrize("end", [":quit\r", "\x03"], ids=["quit", "ctrl-c"])
def test_a_person_plays_in_a_terminal(end: str, data: Path, tmp_path: Path) -> None:
    here, there = pty.openpty()
    fcntl.ioctl(there, termios.TIOCSWINSZ, struct.pack("HHHH", 50, 120, 0, 0))
    argv = [sys.executable, "-m", "dojo_kernel", "run", "wine", "--agent", "human", "--box", "process", "--name", "mine"]
    env = {**os.environ, "DOJO_DATA": str(data), "DOJO_STATE": str(tmp_path), "PROMPT_TOOLKIT_NO_CPR": "1", "TERM": "xterm"}
    playing = subprocess.Popen(argv, cwd=tmp_path, env=env, stdin=there, stdout=there, stderr=there, start_new_session=True)
    os.close(there)
    seen = ""

    def wait_for(words: str) -> None:
        nonlocal seen
        deadline = time.monotonic() + 40
        while words not in seen:
            assert time.monotonic() < deadline, seen
            if select.select([here], [], [], 0.2)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(here, 65536).decode(errors="replace")
        seen = seen.rpartition(words)[2]

    try:
        wait_for("[1]")
        os.write(here, b"print(6 * 7)\r")
        wait_for("42")
        wait_for("[2]")
        os.write(here, end.encode())
        deadline = time.monotonic() + 40
        while playing.poll() is None and time.monotonic() < deadline:
            if select.select([here], [], [], 0.1)[0]:
                with contextlib.suppress(OSError):
                    seen += os.read(here, 65536).decode(errors="replace")
        assert playing.returncode == (0 if end.startswith(":") else 130), seen
    finally:
        playing.kill()
        playing.wait()
        os.close(here)
    events = read_journal(tmp_path / "runs" / "mine" / "wine-human-0")
    assert sum(isinstance(event, Stepped) for event in events) == 1
    assert isinstance(events[-1], Closed) is (end == ":quit\r")
    assert "Traceback" not in seen
