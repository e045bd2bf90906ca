import asyncio
import contextlib
import io
import json
import traceback

import pytest
from competition_fixtures import make_competition, regression_answers
from rich.console import Console

from dojo_kernel.actions import ExecuteCode, Reset, ValidateCode
from dojo_kernel.cli import main
from dojo_kernel.competition.grade import Grader
from dojo_kernel.episode import open_episode
from dojo_kernel.errors import JournalError
from dojo_kernel.journal import Journal, read_journal, write_notebook
from dojo_kernel.records import Closed, Death, Error, Execution, Observation, Opened, Result, Step, Stepped, Stream
from dojo_kernel.replay import compare, render, replay
from dojo_kernel.settings import KernelSettings

ANSWERS = regression_answers()


@pytest.fixture(autouse=True)
def prepared(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    return make_competition(tmp_path, answers=ANSWERS)


class FakeKernel:
    """Runs cells with exec() in this process."""

    box, image, enforcement, life = "fake", None, (), 0
    data_path, workspace_path = "/data", "/workspace"

    def __init__(self):
        self.names, self.closed = {}, False

    async def execute(self, code, timeout_s, *, cell=""):
        shown, outputs, status = io.StringIO(), [], "ok"
        with contextlib.redirect_stdout(shown):
            try:
                exec(code, self.names)
            except Exception as error:  # noqa: BLE001 - the cell is foreign code
                status = "error"
                outputs = [
                    Error(
                        ename=type(error).__name__, evalue=str(error), traceback=tuple(traceback.format_exc(limit=0).split("\n"))
                    )
                ]
        text = [Stream(name="stdout", text=shown.getvalue())] if shown.getvalue() else []
        return Execution(code=code, outputs=(*text, *outputs), status=status, seconds=0.0, life=self.life)

    async def read_submission(self, name, max_bytes):
        return self.names.get("submission")

    async def restart(self):
        self.names, self.life = {}, self.life + 1

    async def close(self):
        self.closed = True


async def recorded(folder, competition, *codes, change=None, grades=None, final=None):
    kernel = FakeKernel()
    opened = Opened(
        episode="e", competition="digits", competition_sha256=competition.manifest_sha256(), better="higher", seed=0, agent="a", settings={}, box="fake",
        enforcement=(), versions={}, started_at="2026-11-21T00:00:00+00:00",
    )  # fmt: skip
    events = [opened]
    for index, code in enumerate(codes):
        run = None
        if code is None:
            await kernel.restart()
        else:
            run = await kernel.execute(code, 1)
            run = run if change is None else change(run)
        where = "scratch" if run and run.where == "scratch" else "live"
        action = Reset() if run is None else (ValidateCode if where == "scratch" else ExecuteCode)(code=code)
        step = Step(
            index=index, action=action, execution=run, grade=(grades or {}).get(index), reward=0.0, started_at="2026-11-21T00:00:00+00:00", seconds=0.0,
            observation=Observation(text="", ok=True, steps_left=1, seconds_left=1.0),
        )  # fmt: skip
        events.append(Stepped(step=step))
    events.append(Closed(reason="agent", final=final, seconds=1.0))
    with Journal.create(folder) as journal:
        for event in events:
            journal.append(event)
    return events


async def play(path, competition):
    kernels = []

    async def open_kernel(settings, **_):
        kernels.append(FakeKernel())
        return kernels[-1]

    report = await replay(path, competition=competition, open_kernel=open_kernel)
    assert kernels[0].closed
    return report


async def test_a_run_played_again_is_the_same_with_its_restarts(tmp_path, prepared):
    events = await recorded(tmp_path / "run", prepared, "x = 1", "print(x)", "1/0", None, "print('x' in globals())")
    report = await play(tmp_path / "run", prepared)
    assert [cell.verdict for cell in report.cells] == ["exact"] * 4
    assert not report.diverged
    assert report.findings == ()
    write_notebook(events, tmp_path / "run.ipynb")
    again = await play(tmp_path / "run.ipynb", prepared)
    assert [cell.verdict for cell in again.cells] == ["exact"] * 4
    assert "no chain" in again.findings[0]


async def test_a_forged_output_diverges_and_is_named(tmp_path, prepared):
    await recorded(
        tmp_path / "run",
        prepared,
        "print(41)",
        change=lambda run: run.model_copy(update={"outputs": (Stream(name="stdout", text="42\n"),)}),
    )
    report = await play(tmp_path / "run", prepared)
    assert report.diverged
    assert report.model_dump(mode="json")["diverged"] is True
    assert "'42' then, '41' now" in report.cells[0].detail
    console = Console(record=True, width=200, file=io.StringIO())
    console.print(render(report))
    assert "differs" in console.export_text()


async def test_other_data_is_a_finding_and_a_changed_journal_is_never_run(tmp_path, prepared):
    await recorded(tmp_path / "run", prepared, "print(1)")

    manifest = json.loads(prepared.manifest.read_text())
    manifest["files"]["public/more.csv"] = {"sha256": "0" * 64, "size": 1}
    prepared.manifest.write_text(json.dumps(manifest))
    assert "manifests differ" in (await play(tmp_path / "run", prepared)).findings[0]
    file = tmp_path / "run" / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b"print(1)", b"print(2)"))
    with pytest.raises(JournalError):
        await replay(file, competition=prepared, open_kernel=None)


def run_of(text="", status="ok", **more):
    return Execution(code="", outputs=(Stream(name="stdout", text=text),) if text else (), status=status, seconds=0, **more)


@pytest.mark.parametrize(
    ("then", "now", "verdict"),
    [
        (run_of("a 1.5"), run_of("a 1.5"), "exact"),
        (run_of("<f at 0x7f00> 3.1 s /data/x"), run_of("<f at 0x8e11> 4.7 s /real/x"), "sanitised"),
        (run_of("2026-01-01 10:00:00\n 50%|xx  | 3/6\nend"), run_of("2026-01-02 11:30:00\nend"), "sanitised"),
        (run_of("loss 0.123456789"), run_of("loss 0.123456788"), "close"),
        (run_of("loss 0.1234"), run_of("loss 0.1235"), "differs"),
        (run_of("nan 1"), run_of("nan 2"), "differs"),
        (run_of("a"), run_of("b"), "differs"),
        (run_of("a"), run_of("a", "error"), "differs"),
        (run_of("", "timeout"), run_of("x", "timeout"), "not_replayable"),
        (run_of("", "died", death=Death(kind="oom")), run_of("", "died", death=Death(kind="signal")), "differs"),
    ],
)
def test_a_cell_gets_its_verdict(then, now, verdict):
    assert compare(then, now, {"/data": "<data>", "/real": "<data>"})[0] == verdict


def test_a_result_counts_by_its_value_and_not_by_its_number():
    then, now = (run_of().model_copy(update={"outputs": (Result(execution_count=n, data={"text/plain": "7"}),)}) for n in (1, 5))
    assert compare(then, now, {})[0] == "exact"


async def test_submissions_are_graded_again_by_the_real_grader(tmp_path, prepared):
    data = ANSWERS.encode()
    async with Grader(prepared) as grader:
        then, final = await grader.grade(data, "public"), await grader.grade(data, "private")
    code = f"submission = {data!r}"
    await recorded(tmp_path / "a", prepared, code, grades={0: then}, final=final)
    report = await play(tmp_path / "a", prepared)
    assert (report.cells[0].score_equal, report.cells[0].submission_equal, report.final_equal) == (True, True, True)
    assert not report.diverged
    forged = then.model_copy(update={"score": 99.0})
    await recorded(tmp_path / "b", prepared, code, grades={0: forged}, final=final)
    report = await play(tmp_path / "b", prepared)
    assert report.cells[0].score_equal is False
    assert report.diverged


@pytest.mark.slow
async def test_a_real_run_that_was_resumed_replays_from_its_journal_and_its_notebook(tmp_path, prepared):
    kernel = KernelSettings(box="process")
    write = "import os\nopen('submission.csv', 'wb').write(" + repr(ANSWERS.encode()) + ")\nprint(os.listdir())"
    with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - leaving it so is the test
        async with open_episode(prepared.folder, kernel=kernel, folder=tmp_path / "run") as episode:
            await episode.step(ExecuteCode(code="kept = 1\nopen('file.txt', 'w').close()"))
            await episode.step(ExecuteCode(code=f"import os\nprint(os.listdir({episode.kernel.data_path!r}), os.getcwd())"))
            raise KeyboardInterrupt
    async with open_episode(prepared.folder, kernel=kernel, folder=tmp_path / "run", resume=True) as episode:
        gone = await episode.step(
            ExecuteCode(code=f"import os\nprint('kept' in globals(), os.listdir({episode.kernel.workspace_path!r}))")
        )
        assert "False []" in gone.observation.text
        await episode.step(ExecuteCode(code=write))
        episode.save_notebook()
    assert [event.type for event in read_journal(tmp_path / "run") if event.type not in {"acted", "stepped"}] == [
        "opened",
        "resumed",
        "closed",
    ]
    write_notebook(read_journal(tmp_path / "run"), tmp_path / "run.ipynb")
    for path in (tmp_path / "run", tmp_path / "run.ipynb"):
        report = await replay(path, box="process", competition=prepared)
        assert [cell.verdict for cell in report.cells] == ["exact", "sanitised", "exact", "exact"], report
        assert report.cells[-1].score_equal is report.cells[-1].submission_equal is report.final_equal is True
        assert not report.diverged


@pytest.mark.slow
async def test_the_command_exits_with_0_for_the_same_and_with_1_for_another(tmp_path, prepared, capsys):
    async with open_episode(prepared.folder, kernel=KernelSettings(box="process"), folder=tmp_path / "run") as episode:
        await episode.step(ExecuteCode(code="import random, os\nprint(1)"))
        await episode.step(ExecuteCode(code="print(os.urandom(8).hex())"))
    events = read_journal(tmp_path / "run")
    folder = str(prepared.folder)
    events[0] = events[0].model_copy(update={"competition": folder})
    write_notebook(events, tmp_path / "random.ipynb")
    write_notebook([one for one in events if getattr(getattr(one, "step", one), "index", 0) == 0], tmp_path / "same.ipynb")
    replayed = [
        await asyncio.to_thread(status, "replay", str(tmp_path / f"{name}.ipynb"), "--box", "process")
        for name in ("same", "random")
    ]
    assert replayed == [0, 1], capsys.readouterr()
    assert await asyncio.to_thread(status, "replay", str(tmp_path / "none.ipynb")) == 2
    shown = capsys.readouterr().out
    assert "the same\n" in shown
    assert "diverged\n" in shown


def status(*arguments):
    with pytest.raises(SystemExit) as end:
        main(arguments)
    return end.value.code
