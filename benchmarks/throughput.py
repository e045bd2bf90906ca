"""Episodes of ten cells through `dojo run`, against a fresh process a step that repeats all earlier code, as MLE-Dojo runs steps.

Both sides play the same ten cells over the six bundled competitions, two episodes at a time, with one numerical thread each,
on the same Python, in plain processes:

1 import pandas, read the data, look at it; 2 a constant, submitted; 3 build the features' pipeline (imports of scikit-learn);
4 cross-validate a linear model; 5 fit it, submit; 6 its errors, out of fold; 7 cross-validate a forest; 8 fit it, submit;
9 blend the two, submit; 10 a table of what was tried.

*Ours* is the command `dojo run run.toml`: a box and a kernel an episode, a cell a step, each step in the journal and on the disk,
each submission graded by the rows of feedback, the best one on the hidden rows at the end, a notebook written; its time begins
with the command and ends with its exit. *Theirs* is for each step `python3 step.py` with this and all earlier cells in it, in the
episode's folder, and nothing else: no box, no journal, no grading, which MLE-Dojo does besides. Theirs are few, as they take
long; what is compared is steps per second. The two take turns, so that a busy machine slows both.

At the end the command is killed by `kill -9` in mid-run: how soon nothing of it is left, and what the same command with
`--resume` plays.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Self

import psutil
from table import Figure, tell

COMPETITIONS = ("wine", "breast-cancer", "diabetes", "seattle-weather", "digits", "character-scripts")
STEPS = 10
AT_ONCE = 2
ROUNDS = 2
"""In each, ours and theirs play half of their episodes."""
THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_LATER = [
    """# A linear model
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import cross_val_predict, cross_val_score

linear = make_pipeline(prepare, LogisticRegression(max_iter=300) if CLASSIFY else Ridge())
tried = {"linear": cross_val_score(linear, X, y, cv=3, scoring=SCORING).mean()}
print(tried)
""",
    "first = predict(linear.fit(X, y), X_test)\nsubmit(first)\n",
    """# Where it errs
seen = cross_val_predict(linear, X, y, cv=3)
print(pd.crosstab(y, seen).to_string(max_rows=8, max_cols=8) if CLASSIFY else (y - seen).describe())
""",
    """# A forest
from sklearn.ensemble import ExtraTreesClassifier, ExtraTreesRegressor

forest = make_pipeline(prepare, (ExtraTreesClassifier if CLASSIFY else ExtraTreesRegressor)(30, random_state=0))
tried["forest"] = cross_val_score(forest, X, y, cv=3, scoring=SCORING).mean()
print(tried)
""",
    "second = predict(forest.fit(X, y), X_test)\nsubmit(second)\n",
    """# A blend, where there are numbers to blend
blend = (np.asarray(first) + np.asarray(second)) / 2 if CHANCES or not CLASSIFY else second
submit(blend)
""",
    "print(pd.Series(tried).sort_values(ascending=False).to_string())\n",
]


def cells(slug: str) -> list[str]:
    """The ten; the data is where the environment says."""
    # The same as the agent that comes with the package begins with
    from dojo_kernel.agents.scripted import _CHANCE_METRICS, _CONSTANT, _FEATURES, _LOOK, _SCORERS
    from dojo_kernel.competition import find

    spec = find(slug)
    chances = spec.metric in _CHANCE_METRICS
    classify = chances or next(iter(spec.predicted.values())) != "float"
    facts = {"data": "@", "id": spec.submission.id, "columns": list(spec.predicted), "classify": classify, "chances": chances}
    look = _LOOK.format(**facts).replace("Path('@')", 'Path(os.environ["DOJO_DATA_DIR"])')
    scoring = _SCORERS.get(spec.metric, "accuracy" if classify else "neg_root_mean_squared_error")
    later = [_LATER[0].replace("SCORING", repr(scoring)), *_LATER[1:3], _LATER[3].replace("SCORING", repr(scoring)), *_LATER[4:]]
    return [f"import os\n{look}", _CONSTANT, _FEATURES, *later]


class Ten:
    """Plays the ten cells; the run file names it `throughput:Ten`."""

    name = "ten"
    trusted = False

    def __init__(self) -> None:
        self._cells: list[str] | None = None

    async def act(self, observation):
        """The next cell."""
        from dojo_kernel.actions import ExecuteCode
        from dojo_kernel.records import Turn

        if self._cells is None:  # the first observation names the competition
            self._cells = cells(re.findall(r"\(([a-z-]+)\)\. Metric", observation.text)[0])
        return Turn(action=ExecuteCode(code=self._cells.pop(0)) if self._cells else None)


class Ran(NamedTuple):
    """What one side did."""

    steps: int
    seconds: float


class Memory:
    """Of a process and all that it started, looked at while it runs."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look)
        self.peak_mb = 0.0
        """The sum of PSS at its highest."""
        self.own_mb: list[float] = []
        """Of the process itself, one a look."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def _look(self) -> None:
        while not self._over.wait(0.5):
            own, below = _pss_mb(self._pid), sum(_pss_mb(pid) for pid in descendants(self._pid))
            if own:
                self.own_mb.append(own)
                self.peak_mb = max(self.peak_mb, own + below)


def _pss_mb(pid: int) -> float:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0.0
    return sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) / 1000


def descendants(pid: int) -> list[int]:
    """Of all generations."""
    try:
        return [one.pid for one in psutil.Process(pid).children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def command(folder: Path, name: str, seeds: range, box: str, *more: str) -> tuple[list[str], dict[str, str]]:
    """`dojo run` for these seeds of every competition, and its environment."""
    file = folder / f"{name}.toml"
    file.write_text(
        f'name = "{name}"\ncompetitions = {json.dumps(COMPETITIONS)}\nseeds = {[*seeds]}\nparallel = {AT_ONCE}\n'
        f'[slots]\ncpus = {AT_ONCE}\nmemory_gb = {AT_ONCE}\n[[agents]]\nkind = "throughput:Ten"\nname = "ten"\n'
        f'[kernel]\nbox = "{box}"\nlimits = {{ cpus = 1.0, memory_gb = 1.0 }}\n'
    )
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parent), "DOJO_STATE": str(folder / "state")}
    words = [sys.executable, "-m", "dojo_kernel", "run", str(file), "--json", "--out", str(folder / "runs"), *more]
    return words, environment


def ours(folder: Path, name: str, seeds: range, box: str) -> tuple[Ran, Memory]:
    """The command, from its start to its exit."""
    words, environment = command(folder, name, seeds, box)
    begin = time.monotonic()
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as running, Memory(running.pid) as memory:
        out, _ = running.communicate()
    seconds = time.monotonic() - begin
    played = json.loads(out)
    if bad := [one for one in played if one["status"] != "finished" or one["steps"] != STEPS or one["final"] is None]:
        raise RuntimeError(f"{len(bad)} episodes did not play their ten cells, the first: {bad[0]}")
    return Ran(sum(one["steps"] for one in played), seconds), memory


def theirs(folder: Path, slugs: list[str]) -> Ran:
    """An episode each: a fresh process a step."""
    begin = time.monotonic()
    with ThreadPoolExecutor(AT_ONCE) as pool:
        steps = list(pool.map(lambda slug: _fresh_process_a_step(Path(tempfile.mkdtemp(dir=folder)), slug), slugs))
    return Ran(sum(steps), time.monotonic() - begin)


def _fresh_process_a_step(folder: Path, slug: str) -> int:
    from dojo_kernel.competition import find

    environment = {**os.environ, **THREADS, "DOJO_DATA_DIR": str(find(slug).public_dir)}
    before: list[str] = []
    for cell in cells(slug):
        before.append(cell)
        (folder / "step.py").write_text("\n".join(before))
        subprocess.run([sys.executable, "step.py"], cwd=folder, env=environment, check=True, stdout=subprocess.DEVNULL)
    return len(before)


class Killed(NamedTuple):
    """What `kill -9` left."""

    before: int
    """Episodes that had ended."""
    gone_s: float
    """Until the last process of its boxes was gone."""
    played_again: int
    """By `--resume`."""
    total: int


def killed(folder: Path, box: str, seeds: range) -> Killed:
    """The runner dies when a third of the episodes have ended."""
    words, environment = command(folder, "killed", seeds, box)
    total = len(COMPETITIONS) * len(seeds)

    def over() -> int:
        return sum('"type":"closed"' in path.read_text() for path in (folder / "runs" / "killed").glob("*/journal.jsonl"))

    with subprocess.Popen(words, env=environment, stdout=subprocess.DEVNULL) as running:
        while over() < total // 3:
            time.sleep(0.1)
        below = descendants(running.pid)
        running.send_signal(signal.SIGKILL)
        begin = time.monotonic()
    while any(Path(f"/proc/{pid}").exists() and _pss_mb(pid) for pid in below):
        if time.monotonic() - begin > 60:
            raise TimeoutError("processes of a killed run are left after a minute")
        time.sleep(0.02)
    gone_s, before = time.monotonic() - begin, over()
    words, environment = command(folder, "killed", seeds, box, "--resume")
    again = json.loads(subprocess.run(words, env=environment, stdout=subprocess.PIPE, text=True, check=True).stdout)
    return Killed(before, gone_s, sum(one["status"] == "finished" for one in again), total)


def measure(folder: Path, episodes: int, peers: int, box: str) -> list[Figure]:
    """Throughput of both, memory, and what a kill leaves."""
    from dojo_kernel.competition import find, prepare

    for slug in COMPETITIONS:
        prepare(find(slug))
    seeds = -(-episodes // (len(COMPETITIONS) * ROUNDS))
    their_slugs = [COMPETITIONS[number % len(COMPETITIONS)] for number in range(peers)]
    mine, their, memories = [], [], []
    for turn in range(ROUNDS):
        their.append(theirs(folder, their_slugs[turn::ROUNDS]))
        ran, memory = ours(folder, f"turn-{turn}", range(turn * seeds, (turn + 1) * seeds), box)
        mine.append(ran)
        memories.append(memory)
    left = killed(folder, box, range(max(1, seeds // 4)))
    rate, their_rate = (sum(one.steps for one in side) / sum(one.seconds for one in side) for side in (mine, their))
    growth = max(memory.own_mb[-1] - memory.own_mb[len(memory.own_mb) // 3] for memory in memories)
    return [
        Figure(f"{box}: steps a second, {sum(one.steps for one in mine) // STEPS} episodes of 10", rate, "/s"),
        Figure(f"a fresh process a step, {peers} episodes of 10", their_rate, "/s"),
        Figure("how many times more", rate / their_rate, "", 5.0, at_least=True),
        Figure("the runner's growth over the last two thirds of a run", growth, "MB", 32.0),
        Figure("runner and boxes together, at most", max(memory.peak_mb for memory in memories), "MB", 1500.0),
        Figure("kill -9 of the runner: until no process of it is left", left.gone_s, "s", 5.0),
        Figure(
            f"of {left.total} episodes {left.before} had ended; --resume plays", left.played_again, "", left.total - left.before
        ),
    ]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--episodes", type=int, default=100)
    parser.add_argument("--peers", type=int, default=12, help="episodes of theirs")
    parser.add_argument("--box", choices=("process", "sandbox", "docker"), default="process")
    parser.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ.setdefault("DOJO_DATA", str(Path(folder) / "data"))
        found = measure(Path(folder), arguments.episodes, arguments.peers, arguments.box)
    return tell(found, as_json=arguments.json)


if __name__ == "__main__":
    sys.exit(main())
