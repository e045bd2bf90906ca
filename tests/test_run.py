"""Whole runs: several episodes at a time, interrupted, resumed, failing one by one."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from boxes import alive, descendants

from dojo_kernel.actions import ExecuteCode
from dojo_kernel.errors import BoxUnavailableError, ConfigError, KernelStartError
from dojo_kernel.journal.log import read_journal
from dojo_kernel.records import Closed, Interrupted, Observation, Stepped, Turn
from dojo_kernel.run import Watcher, run
from dojo_kernel.settings import AgentSettings, Experiment, read_experiment
from dojo_kernel.testing import MemoryKernel, open_memory_kernel

SAMPLE = "import shutil; shutil.copy(DATA / 'sample_submission.csv', WORKSPACE / 'submission.csv')"
SEEN: list[str] = []


class Two:
    """Two cells, the first of which submits the sample."""

    name = "two"
    trusted = False

    def __init__(self, fail: str = "") -> None:
        self._cells = [SAMPLE, "print(6 * 7)"]
        self._fail = fail

    async def act(self, observation: Observation) -> Turn:
        SEEN.append(observation.text)
        if self._fail and self._fail in observation.text:
            raise ZeroDivisionError("a bug of this agent")
        return Turn(action=ExecuteCode(code=self._cells.pop(0)) if self._cells else None)


TWO = AgentSettings(kind=f"{__name__}:Two", name="two")


@pytest.fixture(autouse=True)
def _prepared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Two.__module__])


def experiment(**changes: Any) -> Experiment:
    fields = {"competitions": ("wine", "diabetes"), "seeds": (0, 1), "parallel": 4, "agents": (TWO,), **changes}
    return Experiment.model_validate(
        {key: value.model_dump() if hasattr(value, "model_dump") else value for key, value in fields.items()}
    )


@pytest.mark.slow
async def test_every_competition_is_played_once_a_seed_in_its_own_folder(tmp_path: Path) -> None:
    results = await run(experiment(), out=tmp_path, start_kernel=open_memory_kernel)
    assert {one.name for one in results} == {"wine-two-0", "wine-two-1", "diabetes-two-0", "diabetes-two-1"}
    for one in results:
        assert (one.status, one.reason, one.steps) == ("finished", "agent", 2)
        assert one.best is not None
        assert one.final is not None
        assert (one.best.rows, one.final.rows) == ("public", "private")
        folder = tmp_path / "first" / one.name
        assert Path(one.folder) == folder
        assert json.loads((folder / "notebook.ipynb").read_text())["nbformat"] == 4
        assert read_journal(folder)[0].seed == one.seed


@pytest.mark.slow
async def test_a_finished_run_is_not_overwritten_but_skipped_on_resume(tmp_path: Path) -> None:
    first = await run(experiment(), out=tmp_path, start_kernel=open_memory_kernel)
    with pytest.raises(ConfigError, match="--resume"):
        await run(experiment(), out=tmp_path, start_kernel=open_memory_kernel)
    again = await run(experiment(), out=tmp_path, resume=True, start_kernel=open_memory_kernel)
    assert [one.status for one in again] == ["skipped"] * 4
    assert [one.final for one in again] == [one.final for one in first]


@pytest.mark.slow
async def test_a_failing_episode_leaves_its_siblings_alone_and_is_played_again_on_resume(tmp_path: Path) -> None:
    started = 0

    async def flaky(settings: object, **rest: Any) -> MemoryKernel:
        nonlocal started
        started += 1
        if started == 2:
            raise KernelStartError("no luck")
        return await open_memory_kernel(settings, **rest)

    results = await run(experiment(parallel=2), out=tmp_path, start_kernel=flaky)
    assert sorted(one.status for one in results) == ["failed", "finished", "finished", "finished"]
    (failed,) = [one for one in results if one.status == "failed"]
    assert failed.problem == "KernelStartError: no luck"
    assert "KernelStartError" in (Path(failed.folder) / "error.txt").read_text()
    again = await run(experiment(), out=tmp_path, resume=True, start_kernel=open_memory_kernel)
    assert sorted(one.status for one in again) == ["finished", "skipped", "skipped", "skipped"]


async def test_an_agent_that_raises_fails_its_own_episode_only(tmp_path: Path) -> None:
    agents = (
        TWO.model_dump(),
        {"kind": TWO.kind, "name": "buggy", "options": {"fail": "6 * 7"}},
        {"kind": TWO.kind, "name": "worse", "options": {"fail": "["}},
    )
    results = await run(
        experiment(agents=agents, competitions=("wine",), seeds=(0,)), out=tmp_path, start_kernel=open_memory_kernel
    )
    assert {one.agent: one.status for one in results}["two"] == "finished"
    (worse,) = [one for one in results if one.agent == "worse"]
    assert worse.status == "failed"
    assert "ZeroDivisionError: a bug of this agent" in worse.problem
    last = read_journal(Path(worse.folder))[-1]
    assert isinstance(last, Closed)
    assert last.reason == "error"


async def test_what_would_fail_everywhere_is_said_before_anything_is_played(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for changes, words in (
        ({"plugins": ("no_such_module",)}, "no_such_module"),
        ({"agents": ({"kind": "nobody"},)}, "nobody"),
        ({"agents": (TWO.model_dump(), TWO.model_dump())}, "different names"),
        ({"episode": {"reward": "applause"}}, "applause"),
        ({"episode": {"feedback": ("applause",)}}, "applause"),
    ):
        with pytest.raises(ConfigError, match=words):
            await run(experiment(**changes), out=tmp_path, start_kernel=open_memory_kernel)
    assert list(tmp_path.iterdir()) == []


async def test_without_any_box_the_run_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    trusted = []

    async def none(settings: object, **rest: Any) -> MemoryKernel:
        trusted.append(rest["trusted"])
        raise BoxUnavailableError("no box here")

    with pytest.raises(BoxUnavailableError):
        await run(experiment(), out=tmp_path, start_kernel=none)
    assert trusted == [False] * 4
    assert list((tmp_path / "first").iterdir()) == []


async def test_an_interrupted_episode_goes_on_where_it_stopped(tmp_path: Path) -> None:
    class Stop(Watcher):
        def stepped(self, task: object, step: object, state: object, cost: object) -> None:
            raise RuntimeError("the watcher fell over")

    one = experiment(competitions=("wine",), seeds=(0,))
    with pytest.raises(ExceptionGroup):
        await run(one, out=tmp_path, watcher=Stop(), start_kernel=open_memory_kernel)
    SEEN.clear()
    (result,) = await run(one, out=tmp_path, resume=True, start_kernel=open_memory_kernel)
    assert (result.status, result.steps) == ("finished", 3)
    assert "interrupted" in SEEN[0]
    assert result.final is not None


def test_a_run_file_names_agents_settings_and_plugins(tmp_path: Path) -> None:
    (tmp_path / "run.toml").write_text(
        'name = "mine"\ncompetitions = ["wine"]\nseeds = [1, 2]\nparallel = 2\nplugins = ["json"]\n'
        '[[agents]]\nkind = "scripted"\n[[agents]]\nkind = "a.b:C"\nname = "c"\n[agents.options]\nmodel = "m"\n'
        '[episode]\nmax_steps = 3\n[kernel]\nbox = "sandbox"\n[kernel.limits]\nmemory_gb = 1.5\n'
    )
    read = read_experiment(tmp_path / "run.toml")
    assert (read.name, read.seeds, read.parallel, read.plugins) == ("mine", (1, 2), 2, ("json",))
    assert read.agents[1] == AgentSettings(kind="a.b:C", name="c", options={"model": "m"})
    assert (read.episode.max_steps, read.kernel.box, read.kernel.limits.memory_gb) == (3, "sandbox", 1.5)


SLOW = """
from dojo_kernel.actions import ExecuteCode
from dojo_kernel.records import Turn

class Slow:
    name = "slow"
    trusted = False
    def __init__(self):
        self.cells = ["print('one')", "import os, time; print(os.getpid(), flush=True); open('pid', 'w').write(str(os.getpid())); time.sleep(SECONDS)"]
    async def act(self, observation):
        return Turn(action=ExecuteCode(code=self.cells.pop(0)) if self.cells else None)
"""


@pytest.mark.slow
def test_ctrl_c_keeps_everything_removes_the_box_and_can_be_resumed(tmp_path: Path) -> None:
    (tmp_path / "slow_agent.py").write_text(SLOW.replace("SECONDS", "600"))
    argv = [sys.executable, "-m", "dojo_kernel", "run", "wine", "--agent", "slow_agent:Slow", "--box", "process", "--name", "cut"]
    env = {**os.environ, "PYTHONPATH": str(tmp_path)}
    playing = subprocess.Popen(argv, cwd=tmp_path, env=env, stderr=subprocess.PIPE, text=True)
    folder = tmp_path / "runs" / "cut" / "wine-slow_agent-Slow-0"
    deadline = time.monotonic() + 40
    while not ((folder / "journal.jsonl").exists() and '"index":1' in (folder / "journal.jsonl").read_text()):
        assert time.monotonic() < deadline
        assert playing.poll() is None
        time.sleep(0.1)
    time.sleep(0.5)
    boxes = descendants(playing.pid)
    assert boxes
    playing.send_signal(signal.SIGINT)
    _, err = playing.communicate(timeout=30)
    assert playing.returncode == 130, err
    assert "--name cut --resume" in err.splitlines()[-1]
    assert "Traceback" not in err
    assert not any(map(alive, boxes))
    assert not isinstance(read_journal(folder)[-1], Closed)
    (tmp_path / "slow_agent.py").write_text(SLOW.replace("SECONDS", "0"))
    again = subprocess.run(
        [*argv, "--resume", "--json"], cwd=tmp_path, env=env, capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr
    events = read_journal(folder)
    assert sum(isinstance(event, Interrupted) for event in events) == 1
    assert sum(isinstance(event, Stepped) for event in events) == 3
    assert isinstance(events[-1], Closed)
