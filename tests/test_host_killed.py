"""kill -9 of the host process in the middle of a cell: no box is left, the journal verifies, resume goes on."""

import contextlib
import os
import signal
import subprocess
import sys

import docker
import pytest
from boxes import ISOLATED, becomes_true, sleepers

from dojo_kernel.competition import find
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.episode import open_episode
from dojo_kernel.journal import read_journal
from dojo_kernel.settings import KernelSettings

HOST = """
import asyncio, sys
from pathlib import Path
from dojo_kernel.episode import open_episode
from dojo_kernel.settings import KernelSettings

async def main():
    async with open_episode("wine", kernel=KernelSettings(box=sys.argv[1]), folder=Path(sys.argv[2])) as episode:
        await episode.step({"name": "execute_code", "code": "x = 1"})
        await episode.step({"name": "execute_code", "code": sys.argv[3]})

asyncio.run(main())
"""

# Several processes, one of them a daemon that left the group; the argument is how they are found from outside.
CELL = """
import subprocess, time
subprocess.Popen(["sleep", "{mark}"], start_new_session=True)
subprocess.run(["sleep", "{mark}"])
"""


@pytest.mark.parametrize("box", ["process", *ISOLATED])
async def test_nothing_is_left_of_a_killed_host_and_resume_goes_on(box, tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    prepare(find("wine"))
    folder, mark = tmp_path / "episode", f"98{os.getpid()}"
    command = [sys.executable, "-c", HOST, box, str(folder), CELL.format(mark=mark)]
    with subprocess.Popen(command) as host:
        assert await becomes_true(lambda: len(sleepers(mark)) == 2, 90), "the cell never ran"
        host.send_signal(signal.SIGKILL)
    assert await becomes_true(lambda: not sleepers(mark), 5), "processes of the box are left after 5 s"
    if box == "docker":
        mine = {"label": f"dojo.episode={read_journal(folder)[0].episode}"}
        with contextlib.closing(docker.from_env()) as client:
            assert await becomes_true(lambda: not client.containers.list(filters=mine, sparse=True), 5), "the container runs on"

    assert [event.type for event in read_journal(folder)] == ["opened", "acted", "stepped", "acted"]
    async with open_episode("wine", kernel=KernelSettings(box=box), folder=folder, resume=True) as episode:
        assert episode.state.steps == 2, "the interrupted step is marked, not run again"
        step = await episode.step({"name": "execute_code", "code": "print('x' in globals())"})
        assert "False" in step.observation.text
    kinds = [event.type for event in read_journal(folder)]
    assert kinds == ["opened", "acted", "stepped", "acted", "interrupted", "resumed", "acted", "stepped", "closed"]
