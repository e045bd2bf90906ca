"""An experiment on a real Ray cluster of two raylets: its episodes outlive a node; and what a node does without shared storage."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from dojo_kernel.errors import ConfigError
from dojo_kernel.journal import read_journal
from dojo_kernel.ray_engine import Job, Report, _packed, _received, play_on_node, run_on_ray
from dojo_kernel.records import Closed, Resumed, Stepped
from dojo_kernel.run import Task
from dojo_kernel.settings import AgentSettings, Experiment

HERE = Path(__file__).parent
AGENT = r"""
from dojo_kernel.actions import ExecuteCode
from dojo_kernel.records import Turn

class Slow:
    name = "slow"
    trusted = False
    def __init__(self, steps, seconds, go=""):
        self.left, self.first, self.seconds, self.go = steps, steps - 1, seconds, go
    async def act(self, observation):
        self.left -= 1
        code = f"import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep({self.seconds})"
        if self.go and self.left < self.first:  # only the first cell does not wait for it
            code += f"\nend = time.time() + 300\nwhile time.time() < end and not os.path.exists({self.go!r}): time.sleep(0.05)"
        return Turn(action=ExecuteCode(code=code) if self.left >= 0 else None)
"""
RUN = """
name = "spread"
competitions = ["wine"]
seeds = [0, 1, 2, 3]
parallel = 4
[[agents]]
kind = "ray_agent:Slow"
name = "slow"
options = { steps = 3, seconds = SECONDS, go = "GO" }
[kernel]
box = "process"
limits = { cpus = 1.0, memory_gb = 0.3 }
"""


@pytest.fixture
def home(data, tmp_path, monkeypatch):
    """A folder to work in, as this machine's only one."""
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.setenv("DOJO_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "ray_agent", raising=False)
    (tmp_path / "ray_agent.py").write_text(AGENT)
    monkeypatch.setenv("RAY_memory_monitor_refresh_ms", "0")  # it would end workers where the whole machine has little left
    return tmp_path


def plan(home, seconds, go=""):
    (home / "run.toml").write_text(RUN.replace("SECONDS", str(seconds)).replace("GO", str(go)))


@pytest.fixture
def cluster(home):
    """Two raylets that hold two episodes each; `.stdin` takes `kill`."""
    command = [sys.executable, str(HERE / "ray_cluster.py"), "2", "1"]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as started:
        told = dict(started.stdout.readline().split() for _ in range(2))
        started.address, started.second = told["address"], int(told["second"])
        yield started
        started.stdin.close()
        started.wait(60)


def dojo(home, cluster, *arguments):
    command = [sys.executable, "-m", "dojo_kernel", "run", "run.toml", "--engine", "ray", *arguments]
    environment = {**os.environ, "RAY_ADDRESS": cluster.address}
    return subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def journals(home):
    return sorted((home / "runs" / "spread").glob("wine-slow-?/journal.jsonl"))


def wait_until(condition, seconds=200):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline or condition()
        time.sleep(0.1)


def stepped(home):
    return [sum(isinstance(event, Stepped) for event in read_journal(one)) for one in journals(home)]


def boxes(home):
    """Programs that work in the run folders of this test's boxes: their names are in the state of this home only."""
    places = []
    for listed in (home / "state" / "hosts").glob("*.json"):
        with contextlib.suppress(FileNotFoundError):  # its host has just given back the last
            places += [what for kind, what in json.loads(listed.read_text()) if kind == "run_dir"]
    found = []
    for one in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            found += [one.pid for place in places if one.cwd().startswith(place)]
    return found


@pytest.mark.endurance
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_episodes_of_a_lost_node_go_on_at_the_other_and_leave_no_box(home, cluster):
    go = home / "go"
    plan(home, 0.1, go)
    playing = dojo(home, cluster, "--json")
    wait_until(lambda: stepped(home) and len(stepped(home)) == 4 and min(stepped(home)) >= 1)
    before = boxes(home)
    assert len(before) >= 4, "the look that finds none in the end finds those that run"
    cluster.stdin.write("kill\n")
    cluster.stdin.flush()
    wait_until(lambda: len(boxes(home)) <= len(before) // 2)
    go.touch()  # from here on: the other node has no place for what is to go on there while its own wait
    out, err = playing.communicate(timeout=200)
    assert playing.returncode == 0, err
    results = json.loads(out)
    assert [one["name"] for one in results] == [f"wine-slow-{seed}" for seed in range(4)]
    assert {one["status"] for one in results} == {"finished"}
    assert "a node of the Ray cluster was lost" in err
    events = [read_journal(one) for one in journals(home)]
    assert all(isinstance(one[-1], Closed) and one[-1].reason == "agent" for one in events)
    moved = [any(isinstance(event, Resumed) for event in one) for one in events]
    assert 1 <= sum(moved) <= 2, "the node held two episodes, and only those went on elsewhere"
    wait_until(lambda: boxes(home) == [], 30)


@pytest.mark.endurance
@pytest.mark.ray
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_ctrl_c_reaches_the_nodes_and_the_run_can_be_resumed(home, cluster):
    plan(home, 600.0)
    playing = dojo(home, cluster)
    wait_until(lambda: len(journals(home)) == 4 and all('"acted"' in one.read_text() for one in journals(home)))
    time.sleep(1)
    playing.send_signal(signal.SIGINT)
    _, err = playing.communicate(timeout=120)
    assert playing.returncode == 130, err
    assert "--resume" in err.splitlines()[-1]
    wait_until(lambda: boxes(home) == [], 30)
    assert not any(isinstance(read_journal(one)[-1], Closed) for one in journals(home))
    plan(home, 0.1)
    again = dojo(home, cluster, "--resume", "--json")
    out, err = again.communicate(timeout=200)
    assert again.returncode == 0, err
    assert {one["status"] for one in json.loads(out)} == {"finished"}


async def test_without_ray_the_mistake_names_the_extra(home, monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"pip install 'dojo_kernel\[ray\]'"):
        await run_on_ray(Experiment(competitions=("wine",)), out=home / "runs")
    assert not (home / "runs").exists()


def job(base, seconds):
    agent = AgentSettings(kind="ray_agent:Slow", name="slow", options={"steps": 2, "seconds": seconds})
    experiment = Experiment.model_validate(
        {"competitions": ["wine"], "agents": [agent.model_dump()], "kernel": {"box": "process"}}
    )
    task = Task(name="wine-slow-0", competition="wine", agent=agent, seed=0)
    return Job(experiment=experiment, task=task, base=str(base), token="here")


def test_a_node_without_the_shared_folder_sends_the_episode_back(home):
    far = home / "far" / "first"
    text, sent = play_on_node(job(far, 0.01).model_dump_json(), None)
    played = Report.model_validate_json(text).played
    assert (played.status, played.steps) == ("finished", 2)
    assert not far.exists()
    here = _received(home / "first" / "wine-slow-0", sent, played)
    assert here.folder == str(home / "first" / "wine-slow-0")
    assert Path(here.notebook).is_file()
    assert isinstance(read_journal(Path(here.folder))[-1], Closed)


def test_a_node_that_is_sent_half_an_episode_goes_on_with_it(home):
    text, sent = play_on_node(job(home / "far", 0.01).model_dump_json(), None)
    folder = Path(_received(home / "half", sent, Report.model_validate_json(text).played).folder)
    lines = (folder / "journal.jsonl").read_bytes().splitlines(keepends=True)
    (folder / "journal.jsonl").write_bytes(b"".join(lines[:3]))
    (home / "far").mkdir()
    other = job(home / "far", 0.01).model_copy(update={"token": "there"})
    text, sent = play_on_node(other.model_dump_json(), _packed(folder))
    back = _received(folder, sent, Report.model_validate_json(text).played)
    kinds = [event.type for event in read_journal(Path(back.folder))]
    assert kinds == ["opened", "acted", "stepped", "resumed", "acted", "stepped", "acted", "stepped", "closed"]


def test_a_task_that_is_run_again_returns_what_had_ended_and_plays_nothing(home):
    base = home / "shared"
    base.mkdir()
    (base / ".token").write_text("here")
    first, sent = play_on_node(job(base, 0.01).model_dump_json(), None)
    assert sent is None
    before = (base / "wine-slow-0" / "journal.jsonl").read_bytes()
    again, _ = play_on_node(job(base, 0.01).model_dump_json(), None)
    assert (base / "wine-slow-0" / "journal.jsonl").read_bytes() == before
    one, two = (Report.model_validate_json(text).played for text in (first, again))
    assert (two.status, two.steps, two.final) == ("finished", one.steps, one.final)
