"""The dojo command as a user and a program meet it."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from synth_specs import write_spec

from dojo_kernel import __version__, cli
from dojo_kernel.journal import read_journal
from dojo_kernel.records import SYNTHETIC, Opened, Stepped
from dojo_kernel.settings import Experiment

ALL = ("list", "prepare", "lint", "synth", "leaderboard", "run", "notebook", "replay", "report", "doctor", "version")
AGENT = """
from dojo_kernel.actions import ExecuteCode
from dojo_kernel.records import Turn

CELLS = [
    "import shutil, os; shutil.copy(os.path.join(os.environ['DOJO_DATA_DIR'], 'sample_submission.csv'), 'submission.csv')",
    "print(6 * 7)",
]

class Two:
    name = "two"
    trusted = True
    def __init__(self):
        self.cells = list(CELLS)
    async def act(self, observation):
        return Turn(action=ExecuteCode(code=self.cells.pop(0)) if self.cells else None)

class Slow(Two):
    name = "slow"
    def __init__(self):
        self.cells = ["print('one')", "import time; time.sleep(600)"]
"""


@pytest.fixture
def home(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with wine prepared and the two agents importable."""
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.setenv("DOJO_STATE", str(tmp_path / "state"))
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "two_agents", raising=False)
    (tmp_path / "two_agents.py").write_text(AGENT)
    return tmp_path


def call(capfd: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    with pytest.raises(SystemExit) as end:
        cli.main(arguments)
    printed = capfd.readouterr()
    assert isinstance(end.value.code, int)
    return end.value.code, printed.out, printed.err


def played(home: Path, capfd: pytest.CaptureFixture[str], name: str = "one") -> Path:
    status, out, err = call(capfd, "run", "wine", "--agent", "two_agents:Two", "--box", "process", "--name", name, "--json")
    assert (status, err) == (0, "")
    (result,) = json.loads(out)
    assert result["status"] == "finished"
    return home / result["folder"]


@pytest.fixture
def noise(home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same folder, but wine's data says that it was made by `dojo synth`."""
    root = tmp_path / "noise"
    shutil.copytree(os.environ["DOJO_DATA"], root)
    monkeypatch.setenv("DOJO_DATA", str(root))
    manifest = root / "wine" / "manifest.json"
    manifest.write_text(json.dumps({**json.loads(manifest.read_text()), "synthetic": True}, indent=1, sort_keys=True))
    return home


def test_every_command_explains_itself_with_an_example(capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capfd, "--help")
    assert status == 0
    for name in ALL:
        assert name in out
        status, about, _ = call(capfd, name, "--help")
        assert status == 0
        assert re.search(rf"Examples?: dojo {name}\b", " ".join(about.split()))


def test_a_program_reads_list_prepare_version(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capfd, "list", "--json")
    assert status == 0
    ready = {one["slug"]: one["prepared"] for one in json.loads(out)}
    assert ready["wine"]
    assert not ready["digits"]
    assert len(ready) >= 6
    status, out, _ = call(capfd, "prepare", "wine", "--json")
    assert (status, json.loads(out)[0]["slug"]) == (0, "wine")
    status, out, _ = call(capfd, "version", "--json")
    assert (status, json.loads(out)) == (0, {"dojo_kernel": __version__})


def test_the_list_for_people_says_how_to_prepare(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capfd, "list")
    assert status == 0
    assert "dojo prepare --all" in out


def test_a_name_in_the_list_is_never_cut_however_narrow_the_terminal(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    shown = subprocess.run(
        [
            sys.executable,
            "-c",
            "import rich.console, dojo_kernel.cli as c; c.show = rich.console.Console(width=50); c.main(['list'])",
        ],
        capture_output=True,
        text=True,
        check=True,
    )
    assert "character-scripts " in shown.stdout


@pytest.mark.parametrize(
    ("arguments", "hint"),
    [
        (["prepare", "winne"], "dojo list"),
        (["prepare"], "dojo list"),
        (["run", "winne", "--box", "process"], "dojo list"),
        (["run", "digits", "--box", "process"], "dojo prepare digits"),
        (["run", "wine", "--box", "castle"], "dojo run --help"),
        (["run", "wine", "--box", "process", "--agent", "nobody"], "scripted"),
        (["run", "wine", "--box", "process", "--agent", "no.such:Agent"], "no.such:Agent"),
        (["run", "wine", "--box", "process", "--seeds", "a"], "--seeds"),
        (["run", "wine", "--box", "process", "--reward", "gold"], "human_rank"),
        (["run", "absent.toml"], "absent.toml"),
        (["run", "bad.toml"], "bad.toml: competitions"),
        (["run", "torn.toml"], "not TOML"),
        (["run", "odd.toml"], "odd.toml: episode.max_step: there is no such key; did you mean max_steps"),
        (["run", "odd.toml"], "mend it, then: dojo run odd.toml"),
        (["prepare", "./odd"], "metrik: there is no such key; did you mean metric "),
        (["prepare", "./even"], "prepare.surce: recipe 'split_table' has no such key; did you mean source?"),
        (["run", "wine", "wine"], "named twice"),
        (["run", "wine", "--agent", "json:JSONDecoder", "--box", "process"], "it has no name, trusted, act"),
        (["run", "wine", "--out", "odd.toml", "--box", "process"], "--out FOLDER"),
        (["replay", "odd.toml"], "line 1 is no line of a journal"),
        (["replay", "nowhere"], "dojo run"),
        (["notebook", "nowhere"], "dojo run"),
        (["dance"], "dojo --help"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_to_do(
    home: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], hint: str
) -> None:
    (home / "bad.toml").write_text('competitions = []\nname = "x"\n')
    (home / "torn.toml").write_text("competitions = [\n")
    (home / "odd.toml").write_text('competitions = ["wine"]\n[episode]\nmax_step = 3\n')
    spec = 'title = "x"\nmetric = "rmse"\n[submission]\nid = "id"\ncolumns = { y = "float" }\n[prepare]\nrecipe = "split_table"\n'
    for name, text in (("odd", 'metrik = "rmse"\n' + spec), ("even", spec + 'surce = "a.csv"\n')):
        (home / name).mkdir()
        (home / name / "competition.toml").write_text(text)
    status, out, err = call(capfd, *arguments)
    assert (status, out) == (2, "")
    line = err.splitlines()[-1]  # before it may stand how far it came
    assert line.startswith("dojo: ")
    assert hint in line
    assert not (home / "state" / "logs").exists()


def test_a_crash_is_one_line_and_a_log(home: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    (home / "crash_on_import.py").write_text("raise ZeroDivisionError('a bug\\nof ours')\n")
    (home / "run.toml").write_text('competitions = ["wine"]\nplugins = ["crash_on_import"]\n')
    status, out, err = call(capfd, "run", "run.toml")
    assert (status, out) == (1, "")
    (line,) = err.splitlines()
    assert "ZeroDivisionError: a bug of ours" in line
    (log,) = (home / "state" / "logs").iterdir()
    assert str(log) in line
    assert "Traceback (most recent call last)" in log.read_text()


def test_a_run_is_shown_kept_written_again_and_replayed(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = played(home, capfd)
    status, out, _ = call(capfd, "notebook", str(folder), "--out", "attempt.ipynb", "--json")
    assert (status, json.loads(out)) == (0, {"notebook": "attempt.ipynb"})
    assert json.loads((home / "attempt.ipynb").read_text())["nbformat"] == 4
    status, out, _ = call(capfd, "notebook", str(folder))
    assert (status, out.strip()) == (0, str(folder / "notebook.ipynb"))
    status, out, err = call(capfd, "replay", str(folder), "--box", "process", "--json")
    report = json.loads(out)
    assert (status, err) == (0, "")
    assert not report["diverged"]
    assert [cell["verdict"] for cell in report["cells"]] == ["exact", "exact"]
    status, out, _ = call(capfd, "replay", "attempt.ipynb", "--box", "process")
    assert status == 0
    assert "the same" in out
    assert "not prepared" not in out


@pytest.mark.slow
def test_a_changed_notebook_diverges_and_a_changed_journal_is_refused(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = played(home, capfd)
    text = (folder / "notebook.ipynb").read_text()
    (home / "changed.ipynb").write_text(text.replace("6 * 7", "6 * 8"))
    status, out, _ = call(capfd, "replay", "changed.ipynb", "--box", "process")
    assert status == 1
    assert "differs" in out
    assert "diverged" in out
    journal = folder / "journal.jsonl"
    journal.write_text(journal.read_text().replace("6 * 7", "6 * 8"))
    for command in (["replay", str(folder), "--box", "process"], ["notebook", str(folder)]):
        status, out, err = call(capfd, *command)
        assert (status, out) == (2, "")
        assert len(err.splitlines()) == 1
        assert re.search(rf"{journal}, line \d+ does not verify", err)
    status, out, err = call(capfd, "run", "wine", "--agent", "two_agents:Two", "--box", "process", "--name", "one", "--resume")
    assert (status, out) == (2, "")
    assert re.search(rf"{folder.relative_to(home) / 'journal.jsonl'}, line \d+ does not verify", err)
    assert "--resume" in err.splitlines()[-1]


BRANCHING = """
import asyncio, sys
from pathlib import Path
from dojo_kernel import EpisodeSettings, KernelSettings, open_episode
async def main():
    async with open_episode(
        "wine", kernel=KernelSettings(box="process"), settings=EpisodeSettings(checkpoints=True), folder=Path(sys.argv[1])
    ) as episode:
        await episode.step({"name": "execute_code", "code": "import random; x = 1"})
        await episode.step({"name": "checkpoint"})
        await episode.step({"name": "execute_code", "code": "x = 2"})
        await episode.step({"name": "restore", "id": "c1"})
        async with episode.branch(2) as branches:
            for one in branches:
                await one.step({"name": "execute_code", "code": "print(x, random.random())"})
asyncio.run(main())
"""


@pytest.mark.slow
def test_a_replay_of_a_run_plays_its_branches_too_when_told(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    subprocess.run([sys.executable, "-c", BRANCHING, "run"], check=True, timeout=100)
    status, out, err = call(capfd, "replay", "run", "--box", "process")
    assert (status, out.count("the same\n")) == (0, 1)
    assert err == "branches not played: 2; add --branches\n"
    status, out, err = call(capfd, "replay", "run", "--box", "process", "--branches", "--json")
    assert (status, err) == (0, "")
    reports = json.loads(out)
    assert [len(one["cells"]) for one in reports] == [2, 3, 3]
    assert [cell["verdict"] for one in reports for cell in one["cells"]] == ["exact"] * 8
    status, out, _ = call(capfd, "notebook", "run/branches/1")
    assert status == 0
    assert "seeded with" in (home / "run" / "branches" / "1" / "notebook.ipynb").read_text()


def test_progress_is_shown_step_by_step(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capfd, "run", "wine", "--agent", "two_agents:Two", "--box", "process", "--name", "seen")
    assert status == 0
    assert re.search(r"1/20 +execute_code +\d+\.\d +\d\.\d+ +\d\.\d+ +\d+/\d+", err)
    assert "place among programs" in err
    assert re.search(r"2/20 +execute_code", err)
    assert re.search(r"final score: .* on the reference board \(programs, not people\)", out)
    assert str(Path("runs/seen/wine-two_agents-Two-0/notebook.ipynb")) in out


def test_the_doctor_says_what_enforces_what(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, _ = call(capfd, "doctor", "--json")
    assert status == 0
    reports = {one["box"]: one for one in json.loads(out)}
    assert set(reports) == {"docker", "sandbox", "process"}
    for one in reports.values():
        assert one["enforcement"] if one["available"] else one["fix"]
    status, out, _ = call(capfd, "doctor")
    assert status == 0
    for box, one in reports.items():
        assert f"{box}: {'available' if one['available'] else 'not available'}" in out
        assert one["available"] or one["fix"] in out
    assert "memory" in out


# --- an agent that was not bundled -----------------------------------------------------------------------------------


def without_boxes(home: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Run dojo where neither a Docker engine nor bubblewrap is found."""
    tools = home / "bin"
    tools.mkdir(exist_ok=True)
    for name in ("mount", "umount"):
        if (found := shutil.which(name)) and not (tools / name).exists():
            (tools / name).symlink_to(found)
    env = {**os.environ, "PATH": str(tools), "DOCKER_HOST": "unix:///nonexistent/docker.sock"}
    argv = [sys.executable, "-m", "dojo_kernel", *arguments]
    return subprocess.run(argv, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_a_foreign_agent_that_calls_itself_trusted_gets_no_plain_process(home: Path) -> None:
    arguments = ["run", "wine", "--agent", "two_agents:Two", "--name", "foreign"]
    done = without_boxes(home, *arguments)
    assert done.returncode == 2, done.stderr
    assert "--box process" in done.stderr.splitlines()[-1]
    assert "dojo doctor" in done.stderr.splitlines()[-1]
    assert not (home / "runs" / "foreign" / "wine-two_agents-Two-0").exists()
    again = without_boxes(home, *arguments, "--box", "process")
    assert again.returncode == 0, again.stderr


@pytest.mark.slow
def test_the_bundled_agent_falls_through_to_a_process_with_a_warning(home: Path) -> None:
    done = without_boxes(home, "run", "wine", "--max-steps", "2", "--json")
    assert done.returncode == 0, done.stderr
    assert "warning: no isolated box" in done.stderr
    folder = Path(json.loads(done.stdout)[0]["folder"])
    assert '"box":"process"' in (home / folder / "journal.jsonl").read_text().replace(" ", "")


# --- the run file and the command line -------------------------------------------------------------------------------


def test_the_command_line_overrides_the_run_file(home: Path) -> None:
    (home / "run.toml").write_text(
        'name = "filed"\ncompetitions = ["wine"]\nseeds = [3]\n[[agents]]\nkind = "scripted"\n'
        '[episode]\nmax_steps = 9\nreward = "medal"\n[kernel]\nbox = "process"\n'
    )
    nothing = dict.fromkeys(("box", "max_steps", "max_seconds", "reward", "parallel", "name"))
    filed = cli._experiment(["run.toml"], None, None, "clock", nothing)
    assert (filed.name, filed.kernel.box, filed.agents[0].kind, filed.seeds) == ("filed", "process", "scripted", (3,))
    given = {**nothing, "box": "auto", "max_steps": 4, "parallel": 2, "name": "mine"}
    mixed = cli._experiment(["run.toml"], "two_agents:Two", "0,1", "clock", given)
    assert (mixed.name, mixed.kernel.box, mixed.agents[0].kind, mixed.seeds) == ("mine", "auto", "two_agents:Two", (0, 1))
    assert (mixed.episode.max_steps, mixed.episode.reward, mixed.parallel) == (4, "medal", 2)
    assert isinstance(mixed, Experiment)


def test_resume_goes_on_with_the_run_touched_last_whatever_its_name(tmp_path: Path) -> None:
    now = time.time()
    for name, age in (("aaa", 10), ("zzz", 50), ("mmm", 90)):
        episode = tmp_path / name / "wine-scripted-0"
        episode.mkdir(parents=True)
        (episode / "journal.jsonl").touch()
        for path in (episode / "journal.jsonl", episode, tmp_path / name):
            os.utime(path, (now - age, now - age))
    assert cli._run_name(tmp_path, resume=True) == "aaa"
    os.utime(tmp_path / "mmm" / "wine-scripted-0" / "journal.jsonl")
    assert cli._run_name(tmp_path, resume=True) == "mmm"
    assert re.fullmatch(r"\d{8}-\d{6}", cli._run_name(tmp_path, resume=False))
    assert re.fullmatch(r"\d{8}-\d{6}", cli._run_name(tmp_path / "absent", resume=True))


# --- an action of a plugin -------------------------------------------------------------------------------------------

WAVE = """
from dojo_kernel.actions import ACTIONS, Action
from dojo_kernel.episode import HANDLERS, Outcome
from dojo_kernel.records import Turn

@ACTIONS.register("wave")
class Wave(Action):
    \"\"\"Greet.\"\"\"
    name = "wave"

@HANDLERS.register("wave")
async def wave(episode, action):
    return Outcome("hello")

class Waver:
    name = "waver"
    trusted = False
    def __init__(self):
        self.left = [Wave()]
    async def act(self, observation):
        return Turn(action=self.left.pop() if self.left else None)
"""


@pytest.mark.endurance
@pytest.mark.slow
def test_a_journal_with_an_action_of_a_plugin_says_how_to_replay_it(home: Path) -> None:
    (home / "waving.py").write_text(WAVE)
    (home / "run.toml").write_text(
        'name = "w"\ncompetitions = ["wine"]\nplugins = ["waving"]\n[[agents]]\nkind = "waving:Waver"\n[kernel]\nbox = "process"\n'
    )

    def dojo(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, "-m", "dojo_kernel", *arguments], capture_output=True, text=True, timeout=60, check=False
        )

    played = dojo("run", "run.toml")
    assert played.returncode == 0, played.stderr
    folder = "runs/w/wine-waving-Waver-0"
    for command in (["replay", folder, "--box", "process"], ["notebook", folder]):
        refused = dojo(*command)
        assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1), refused.stderr
        assert "no action is called 'wave'" in refused.stderr
        assert "--plugin MODULE" in refused.stderr
        known = dojo(*command, "--plugin", "waving")
        assert known.returncode == 0, known.stderr


@pytest.mark.slow
def test_a_full_disk_ends_in_one_line_and_the_run_can_go_on(home: Path) -> None:
    limit = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (4100, 4100)); from dojo_kernel.cli import main; main(sys.argv[1:])"
    words = ["run", "wine", "--agent", "two_agents:Two", "--box", "process", "--name", "full"]
    full = subprocess.run([sys.executable, "-c", limit, *words], capture_output=True, text=True, timeout=60, check=False)
    assert full.returncode == 1
    assert "Traceback" not in full.stderr
    assert "File too large" in full.stdout
    assert "add: --name full --resume" in full.stderr
    again = subprocess.run(
        [sys.executable, "-m", "dojo_kernel", *words, "--resume"], capture_output=True, text=True, timeout=60, check=False
    )
    assert again.returncode == 0, again.stderr
    assert "final score" in again.stdout


@pytest.mark.slow
def test_an_interrupted_run_keeps_its_steps_and_says_how_to_go_on(home: Path) -> None:
    words = [
        sys.executable,
        "-m",
        "dojo_kernel",
        "run",
        "wine",
        "--agent",
        "two_agents:Slow",
        "--box",
        "process",
        "--name",
        "cut",
    ]
    journal = home / "runs" / "cut" / "wine-two_agents-Slow-0" / "journal.jsonl"
    with subprocess.Popen(words, stderr=subprocess.PIPE, text=True) as run:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and not (journal.exists() and journal.read_bytes().count(b'"type":"acted"') == 2):
            time.sleep(0.1)
        run.send_signal(signal.SIGINT)
        _, err = run.communicate(timeout=60)
    assert run.returncode == 130
    assert err.splitlines()[-1].endswith("go on by adding: --name cut --resume")
    assert "Traceback" not in err
    assert [event.type for event in read_journal(journal)] == ["opened", "acted", "stepped", "acted"]


def test_synth_writes_raw_files_and_says_where(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_spec(home / "specs", "table")
    status, out, err = call(capfd, "synth", "specs/table", "--rows", "30", "--out", "fake")
    assert (status, out, err) == (0, "table: synthetic raw files in fake\n", "")
    assert len((home / "fake" / "train.csv").read_text().splitlines()) == 31
    status, out, _ = call(capfd, "synth", "./specs/table", "--rows", "30", "--out", "fake", "--seed", "1", "--json")
    assert (status, json.loads(out)) == (0, {"slug": "table", "rows": 30, "seed": 1, "folder": "fake"})


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("wine", "--rows", "30", "--out", "fake"), "raw.toml"),
        (("wnie", "--rows", "30", "--out", "fake"), "did you mean wine"),
        (("specs/table", "--rows", "30", "--out", "specs"), "--out DIR"),
        (("specs/table", "--rows", "0", "--out", "fake"), "--help"),
        (("specs/table", "--rows", "30"), "--help"),
    ],
)
def test_a_mistake_with_synth_is_one_line(
    home: Path, capfd: pytest.CaptureFixture[str], arguments: tuple[str, ...], line: str
) -> None:
    write_spec(home / "specs", "table")
    status, out, err = call(capfd, "synth", *arguments)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert line in err


def test_synthetic_data_is_marked_in_the_list_and_at_prepare(noise: Path, capfd: pytest.CaptureFixture[str]) -> None:
    _, out, _ = call(capfd, "list")
    lines = {line.split()[0]: line for line in out.splitlines() if line.strip()}
    assert lines["wine"].rstrip().endswith("synthetic data")
    assert lines["diabetes"].rstrip().endswith("yes")
    _, out, _ = call(capfd, "list", "--json")
    assert {one["slug"]: one["synthetic"] for one in json.loads(out)}["wine"] is True
    _, out, _ = call(capfd, "prepare", "wine", "diabetes")
    assert f"wine: {SYNTHETIC}" in out
    assert f"diabetes: {SYNTHETIC}" not in out


@pytest.mark.slow
def test_synthetic_data_is_marked_wherever_a_run_shows_a_score(noise: Path, capfd: pytest.CaptureFixture[str]) -> None:
    status, out, err = call(capfd, "run", "wine", "--agent", "two_agents:Two", "--box", "process", "--name", "one")
    assert status == 0
    assert f"wine-two_agents-Two-0: {SYNTHETIC}" in err
    assert [line for line in err.splitlines() if re.match(r" +\d+/\d", line) and "(synthetic data)" not in line] == []
    scores = [line for line in out.splitlines() if "score:" in line]
    assert len(scores) == 2
    assert all("rows, synthetic data)" in line and SYNTHETIC in line for line in scores)
    events = read_journal(noise / "runs" / "one" / "wine-two_agents-Two-0")
    assert [event.synthetic for event in events if isinstance(event, Opened)] == [True]
    (step, _) = [event.step for event in events if isinstance(event, Stepped)]
    assert step.grade is not None
    assert step.grade.synthetic
    assert all(standing.synthetic for standing in step.grade.standings)
    assert f"[submission] {SYNTHETIC}" in step.observation.text
    assert re.search(r"\[left\].* best score [\d.]+ \(synthetic data\)", step.observation.text)
    notebook = json.loads((noise / "runs" / "one" / "wine-two_agents-Two-0" / "notebook.ipynb").read_text())
    texts = ["".join(cell["source"]) for cell in notebook["cells"] if cell["cell_type"] == "markdown"]
    assert notebook["metadata"]["dojo"]["synthetic"] is True
    assert SYNTHETIC in texts[0]
    assert [text for text in texts if "core " in text and "synthetic data" not in text] == []
    steps = [one["metadata"]["dojo"] for one in notebook["cells"] if one["id"] in {"s0000", "s0001"}]
    assert [one["synthetic"] for one in steps] == [True, False]
    status, out, _ = call(capfd, "replay", "runs/one/wine-two_agents-Two-0")
    assert f"the scores are on {SYNTHETIC}" in out
    _, out, _ = call(capfd, "replay", "runs/one/wine-two_agents-Two-0", "--json")
    assert json.loads(out)["synthetic"] is True


@pytest.mark.slow
def test_other_data_is_not_marked(home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    folder = played(home, capfd)
    assert '"synthetic": true' not in (folder / "notebook.ipynb").read_text()
    assert "ynthetic data" not in (folder / "notebook.ipynb").read_text() + (folder / "journal.jsonl").read_text()
