"""Many episodes: how many at a time, what is shown of them, and what is left when the runner dies."""

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
import time
from io import StringIO
from pathlib import Path

import pytest
from boxes import alive, descendants
from rich.console import Console

from dojo_kernel.cli import _short
from dojo_kernel.errors import ConfigError
from dojo_kernel.journal.log import read_journal
from dojo_kernel.kernel.docker import enforcement
from dojo_kernel.live import LiveTable
from dojo_kernel.records import Closed, Interrupted, Limits, Observation, Stepped, Turn
from dojo_kernel.run import Watcher, run
from dojo_kernel.settings import Experiment, Slots
from dojo_kernel.slots import Machine, Queue, machine, uuids, width
from dojo_kernel.testing import open_memory_kernel

SAMPLE = "import shutil; shutil.copy(DATA / 'sample_submission.csv', WORKSPACE / 'submission.csv')"
BIG = Machine(cpus=8.0, memory_gb=32.0, gpus=())
PLAYING: set[int] = set()
MOST: list[int] = []


class Spent:
    """What a chat model's count of its own looks like."""

    cost = 0.25


class Sleepy:
    """One cell; notes how many of its kind play at the same time."""

    name = "sleepy"
    trusted = False
    spent = Spent()

    def __init__(self, *, fail: bool = False) -> None:
        self._cells = [SAMPLE]
        self._fail = fail

    async def act(self, observation: Observation) -> Turn:
        PLAYING.add(id(self))
        MOST.append(len(PLAYING))
        await asyncio.sleep(0.05)
        if not self._cells:
            PLAYING.discard(id(self))
            return Turn(action=None)
        if self._fail:
            PLAYING.discard(id(self))
            raise ZeroDivisionError("a bug of this agent")
        return Turn.model_validate({"action": {"name": "execute_code", "code": self._cells.pop(0)}})


@pytest.fixture(autouse=True)
def _prepared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Sleepy.__module__])
    PLAYING.clear()
    MOST.clear()


def experiment(**changes: object) -> Experiment:
    usual = {"competitions": ["wine"], "seeds": list(range(6)), "parallel": 6, "agents": [{"kind": f"{__name__}:Sleepy"}]}
    return Experiment.model_validate({**usual, **changes})


# --- slots -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("has", "changes", "count", "why"),
    [
        (BIG, {"parallel": 3}, 3, ""),
        (BIG, {}, 4, "8 CPUs, an episode takes 2 (kernel.limits.cpus)"),
        (BIG, {"kernel": {"limits": {"cpus": 0.5, "memory_gb": 10}}}, 3, "32 GB, an episode takes 10 (kernel.limits.memory_gb)"),
        (
            Machine(0.1 * 3, 32.0, ()),
            {"kernel": {"limits": {"cpus": 0.1}}},
            3,
            "0.3 CPUs, an episode takes 0.1 (kernel.limits.cpus)",
        ),
        (Machine(1.0, 1.0, ()), {}, 1, "1 CPUs, an episode takes 2 (kernel.limits.cpus)"),
        (
            Machine(64.0, 99.0, ("GPU-a", "GPU-b", "GPU-c")),
            {"slots": {"gpus_each": 1}},
            3,
            "3 GPUs, an episode takes 1 (slots.gpus_each)",
        ),
        (
            Machine(64.0, 99.0, ()),
            {"kernel": {"limits": {"gpus": ["GPU-a"]}}},
            1,
            "all episodes take the GPUs that kernel.limits.gpus names",
        ),
    ],
)
def test_as_many_episodes_are_played_at_a_time_as_fit_and_one_always_does(has, changes, count, why) -> None:
    assert width(experiment(**changes), has) == (count, why)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"slots": {"gpus_each": 2, "gpus": ["GPU-a"]}}, "takes 2 GPUs .* and 1 are here"),
        ({"slots": {"gpus_each": 1, "gpus": ["GPU-a"]}, "kernel": {"limits": {"gpus": ["GPU-a"]}}}, "one of the two"),
    ],
)
async def test_gpus_that_are_not_there_are_a_mistake_before_anything_starts(tmp_path, changes, words) -> None:
    with pytest.raises(ConfigError, match=words):
        await run(experiment(**changes), out=tmp_path, start_kernel=open_memory_kernel)
    assert list(tmp_path.iterdir()) == []


def test_the_machine_is_what_it_has_unless_the_run_file_says_otherwise() -> None:
    has = machine(Slots())
    assert 0 < has.cpus <= (os.cpu_count() or 1)
    assert 0.1 < has.memory_gb < 100_000
    assert has.gpus == ()  # nobody asks for any
    assert machine(Slots(cpus=64, memory_gb=1, gpus=("GPU-a",), gpus_each=1)) == (64, 1, ("GPU-a",))


def test_a_gpu_that_is_cut_up_is_given_away_by_its_slices_and_a_whole_one_as_it_is() -> None:
    listed = """GPU 0: NVIDIA A100 (UUID: GPU-aa)
  MIG 3g.20gb     Device  0: (UUID: MIG-11)
  MIG 3g.20gb     Device  1: (UUID: MIG-22)
GPU 1: NVIDIA A100 (UUID: GPU-bb)
"""
    assert uuids(listed) == ("MIG-11", "MIG-22", "GPU-bb")


@pytest.mark.parametrize(
    ("gpus", "by"), [(("MIG-11", "MIG-22"), "MIG"), (("GPU-bb",), "advisory"), (("MIG-11", "GPU-bb"), "advisory")]
)
def test_only_slices_hold_the_memory_of_a_gpu(gpus, by) -> None:
    assert {one.limit: one.by for one in enforcement(Limits(gpus=gpus), {})}["gpu_memory"] == by


async def test_no_two_episodes_have_the_same_gpu_and_each_is_given_back() -> None:
    queue = Queue(2, ("GPU-a", "GPU-b", "GPU-c", "GPU-d"), 2)
    held: list[str] = []

    async def episode() -> None:
        async with queue.slot() as gpus:
            assert len(gpus) == 2
            assert not {*gpus} & {*held}
            held.extend(gpus)
            await asyncio.sleep(0.01)
            for one in gpus:
                held.remove(one)

    await asyncio.gather(*(episode() for _ in range(6)))


@pytest.mark.slow
async def test_a_box_gets_the_gpus_of_its_slot_and_the_journal_does_not_pin_them(tmp_path) -> None:
    given = []

    async def start(settings, **rest):
        given.append(settings.limits.gpus)
        return await open_memory_kernel(settings, **rest)

    slots = {"gpus": ["GPU-a", "GPU-b"], "gpus_each": 1, "cpus": 64, "memory_gb": 64}
    results = await run(experiment(slots=slots), out=tmp_path, start_kernel=start)
    assert sorted(set(given)) == [("GPU-a",), ("GPU-b",)]
    assert len(given) == 6
    assert read_journal(Path(results[0].folder))[0].settings["kernel"]["limits"]["gpus"] == []


@pytest.mark.slow
async def test_the_queue_keeps_the_rest_waiting_and_says_why(tmp_path) -> None:
    class Notes(Watcher):
        lines: list[str] = []
        at_once = 0

        def warned(self, line: str) -> None:
            self.lines.append(line)

        def planned(self, tasks, at_once) -> None:
            self.at_once = at_once

    notes = Notes()
    results = await run(
        experiment(slots={"cpus": 4.0, "memory_gb": 99}), out=tmp_path, watcher=notes, start_kernel=open_memory_kernel
    )
    assert max(MOST) == notes.at_once == 2
    assert len(results) == 6
    assert notes.lines == [
        "2 at a time, not 6: there are 4 CPUs, an episode takes 2 (kernel.limits.cpus); [slots] can say otherwise"
    ]


# --- what is shown ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_the_table_shows_state_step_score_standing_cost_and_time_of_many_episodes(tmp_path) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=140, height=40)
    agents = [{"kind": f"{__name__}:Sleepy"}, {"kind": f"{__name__}:Sleepy", "name": "buggy", "options": {"fail": True}}]
    seen: list[str] = []

    class Seen(LiveTable):
        def stepped(self, task, step, state, cost) -> None:
            super().stepped(task, step, state, cost)
            seen.append(text(self))

    def text(table: LiveTable) -> str:
        shown = Console(file=StringIO(), width=140)
        shown.print(table.drawn())
        return shown.file.getvalue()

    many = experiment(agents=agents, seeds=[0, 1], parallel=1)
    with Seen(console, _short) as table:
        await run(many, out=tmp_path, watcher=table, start_kernel=open_memory_kernel)
    first, last = seen[0], text(table)
    assert re.search(r"wine-.*Sleepy-0 +playing +1/20 +\d+\.\d+ +\d+\.\d+ +\S+.* +\$0\.2500 +\d+:\d\d", first)
    assert re.search(r"wine-.*Sleepy-1 +waiting", first)
    assert re.search(r"1 playing, 3 waiting, cost \$0\.2500, all end in \d+:\d\d", first)
    assert re.search(r"wine-.*Sleepy-1 +finished +1/20 ", last)
    assert re.search(r"wine-buggy-0 +failed .*PluginError: the agent 'sleepy'", last)
    assert "2 failed, 2 finished, cost $" in last
    assert "finished" in console.file.getvalue()


@pytest.mark.endurance
@pytest.mark.slow
async def test_a_table_is_never_higher_than_the_terminal_and_shows_who_plays_first(tmp_path) -> None:
    console = Console(file=StringIO(), force_terminal=True, width=100, height=7)
    heights: list[list[str]] = []

    class Seen(LiveTable):
        def stepped(self, task, step, state, cost) -> None:
            super().stepped(task, step, state, cost)
            shown = Console(file=StringIO(), width=100)
            shown.print(self.drawn())
            heights.append(shown.file.getvalue().splitlines())

    with Seen(console, _short) as table:
        await run(experiment(seeds=list(range(6)), parallel=1), out=tmp_path, watcher=table, start_kernel=open_memory_kernel)
    assert all(len(lines) <= 7 for lines in heights)
    assert all("playing" in lines[1] for lines in heights)


@pytest.mark.slow
def test_where_nobody_looks_at_a_terminal_many_episodes_are_a_line_a_step(tmp_path) -> None:
    (tmp_path / "two_cells.py").write_text(QUICK)
    done = subprocess.run(
        command(tmp_path, 2)[:-1],
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert "\x1b[" not in done.stderr
    assert re.search(r"^wine-two_cells-Quick-1 +1/20 +execute_code", done.stderr, re.MULTILINE)


# --- the runner dies -------------------------------------------------------------------------------------------------

QUICK = """
import os
from dojo_kernel.actions import ExecuteCode
from dojo_kernel.records import Turn

class Quick:
    name = "quick"
    trusted = False
    def __init__(self):
        self.cells = [f"import time; time.sleep({os.environ.get('CELL_S', '0')}); print({n})" for n in range(2)]
    async def act(self, observation):
        return Turn(action=ExecuteCode(code=self.cells.pop(0)) if self.cells else None)
"""


def environment(folder: Path, cell_s: str = "0") -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(folder), "DOJO_STATE": str(folder / "state"), "CELL_S": cell_s}


def command(folder: Path, episodes: int, *more: str) -> list[str]:
    (folder / "run.toml").write_text(
        f'name = "many"\ncompetitions = ["wine"]\nseeds = {list(range(episodes))}\nparallel = 2\n'
        '[slots]\ncpus = 8\nmemory_gb = 64\n[[agents]]\nkind = "two_cells:Quick"\n[kernel]\nbox = "process"\n'
    )
    return [sys.executable, "-m", "dojo_kernel", "run", "run.toml", *more, "--json"]


@pytest.mark.endurance
@pytest.mark.slow
def test_of_a_killed_runner_nothing_is_left_and_resume_plays_exactly_what_is_missing(tmp_path) -> None:
    (tmp_path / "two_cells.py").write_text(QUICK)
    folder = tmp_path / "runs" / "many"

    def ended() -> set[str]:
        return {one.parent.name for one in folder.glob("*/journal.jsonl") if '"type":"closed"' in one.read_text()}

    with subprocess.Popen(
        command(tmp_path, 6), cwd=tmp_path, env=environment(tmp_path, "1"), stdout=subprocess.DEVNULL
    ) as playing:
        deadline = time.monotonic() + 100
        while len(ended()) < 2 or '"type":"acted"' not in "".join(
            one.read_text() for one in folder.glob("*/journal.jsonl") if one.parent.name not in ended()
        ):
            assert time.monotonic() < deadline
            time.sleep(0.05)
        below = descendants(playing.pid)
        playing.send_signal(signal.SIGKILL)
    began = time.monotonic()
    while any(map(alive, below)):
        assert time.monotonic() - began < 10
        time.sleep(0.05)
    before = {name: (folder / name / "journal.jsonl").read_bytes() for name in ended()}
    assert 2 <= len(before) < 6
    again = subprocess.run(
        command(tmp_path, 6, "--resume"),
        cwd=tmp_path,
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    results = {one["name"]: one["status"] for one in json.loads(again.stdout)}
    assert {name for name, status in results.items() if status == "skipped"} == set(before)
    assert {name for name, status in results.items() if status == "finished"} == set(results) - set(before)
    assert all((folder / name / "journal.jsonl").read_bytes() == data for name, data in before.items())
    for name in results:
        events = read_journal(folder / name)
        assert sum(isinstance(event, Closed) for event in events) == 1
        steps = sum(isinstance(event, Stepped | Interrupted) for event in events)
        assert steps >= 2
