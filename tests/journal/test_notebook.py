import asyncio
import base64
import json
import re
import shutil
import signal
import subprocess
import sys
import time
from importlib.metadata import distribution
from pathlib import Path

import nbformat
import pytest
from boxes import NBCONVERT
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from nbconvert import HTMLExporter

from dojo_kernel.actions import ExecuteCode, GetHistory, Invalid, Reset, ValidateCode
from dojo_kernel.competition.grade import Grader
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import find
from dojo_kernel.errors import JournalError
from dojo_kernel.journal import events_from_notebook, read_journal, to_notebook, write_notebook
from dojo_kernel.journal.notebook import plain, relocate
from dojo_kernel.records import (
    Acted,
    Closed,
    Death,
    Display,
    Enforcement,
    Error,
    Execution,
    Grade,
    Interrupted,
    Late,
    Observation,
    Opened,
    Result,
    Resumed,
    Standing,
    Step,
    Stepped,
    Stream,
)
from dojo_kernel.run import run
from dojo_kernel.settings import EpisodeSettings, Experiment, KernelSettings

SHARE = next(
    Path(file.locate()).resolve().parents[3]
    for file in distribution("nbconvert").files
    if str(file).endswith("templates/lab/conf.json")
)
"""Where the templates of nbconvert are, also where this Python sees nbconvert in another environment."""
PNG = base64.b64encode(b"\x89PNG\r\n\x1a\n" + b"0" * 40).decode()
NASTY = [
    "<script>alert(1)</script>",
    "```\n<script>alert(1)</script>\n```",
    "</code></pre><img src=x onerror=alert(1)>",
    "[x](javascript:alert(1))",
    "\x1b]0;title\x07\x1b[31mred\x9b1m\x9d8;;http://x\x9c",
    "\u202egpj.exe\u200b\U000e0041",
    "$$<script>alert(1)</script>$$",
    "\\begin{x}<script>alert(1)</script>\\end{x}",
    "\ud800",
]


def opened(**change) -> Opened:
    about = {
        "episode": "e",
        "competition": "digits",
        "competition_sha256": "0" * 64,
        "better": "higher",
        "seed": 0,
        "agent": "scripted",
        "settings": {},
        "box": "process",
        "enforcement": (Enforcement(limit="memory", by="cgroup", detail="4 GB"),),
        "versions": {},
        "started_at": "2026-11-21T00:00:00+00:00",
    }
    return Opened(**(about | change))


def stepped(index, action, execution=None, *, said=None, text="ok", grade=None) -> list:  # noqa: PLR0913 - parts of a step
    step = Step(
        index=index,
        action=action,
        said=said,
        execution=execution,
        grade=grade,
        reward=0.0,
        observation=Observation(text=text, ok=True, steps_left=1, seconds_left=1.0),
        started_at="2026-11-21T00:00:00+00:00",
        seconds=0.1,
    )
    return [Acted(index=index, action=action), Stepped(step=step)]


def ran(index, code, *outputs, status="ok", action=ExecuteCode, **more) -> list:
    where = "scratch" if action is ValidateCode else "live"
    kept = {key: more.pop(key) for key in ("said", "text", "grade") if key in more}
    run = Execution(code=code, outputs=outputs, status=status, seconds=0.1, where=where, execution_count=index + 1, **more)
    return stepped(index, action(code=code), run, **kept)


GRADE = Grade(
    rows="public", sha256="1" * 64, score=0.5, standings=(Standing(board="reference", position=2, teams=4, human_rank=0.75),)
)


RESUMED = Resumed(
    box="process", data_path="/tmp/other/data", workspace_path="/tmp/other/work", started_at="2026-11-21T01:00:00+00:00"
)


def whole_episode() -> list:
    return [
        opened(),
        *ran(
            0,
            "import os\nrows = open('/data/train.csv').read().split()\nprint(len(rows))",
            Stream(name="stdout", text="3\n"),
            said="I look.",
        ),
        *ran(
            1, "raise ValueError(rows)", Error(ename="ValueError", evalue="x", traceback=("\x1b[31mboom\x1b[0m",)), status="error"
        ),
        *ran(2, "1/0", status="error", action=ValidateCode),
        *stepped(3, GetHistory()),
        *ran(4, "kept = 1\nimport time\ntime.sleep(1e6)", status="timeout", rung="sigint"),
        *ran(5, "print(kept)", Stream(name="stdout", text="1\n")),
        *ran(6, "import os\nos._exit(3)", status="died", death=Death(kind="exited", code=3)),
        *ran(7, "assert 'rows' not in globals()\nopen('submission.csv', 'w').write('id,x')", life=1, grade=GRADE),
        *stepped(8, Reset()),
        *ran(9, "assert 'os' not in globals()\n!ls /data > list.txt", life=2),
        *stepped(10, Invalid(given="nonsense", problem="no such action")),
        Acted(index=11, action=ExecuteCode(code="1")),
        Interrupted(index=11),
        RESUMED,
        *ran(
            12,
            "import os\nos.path.exists(os.environ['DOJO_DATA_DIR'] + '/train.csv')",
            Result(execution_count=1, data={"text/plain": "True"}),
        ),
        Closed(reason="steps", final=GRADE.model_copy(update={"rows": "private"}), seconds=9.0),
    ]


def cell(notebook, name):
    return next(one for one in notebook.cells if one.id == name)


def tags(notebook, name):
    return cell(notebook, name).metadata.get("tags", [])


def test_each_step_is_a_cell_of_its_name_with_the_tags_that_run_all_needs():
    notebook = to_notebook(whole_episode())
    assert cell(notebook, "s0000").cell_type == "code"
    assert tags(notebook, "s0001") == ["raises-exception"]
    assert "skip-execution" in tags(notebook, "s0002")
    assert cell(notebook, "s0003").cell_type == "markdown"
    assert tags(notebook, "s0004") == tags(notebook, "s0006") == ["skip-execution"]
    assert tags(notebook, "dojo-setup") == ["dojo-setup"]
    assert [one.id for one in notebook.cells if one.get("source") == "%reset -f"] == ["s0007-empty", "s0008-empty", "s0011-empty"]
    assert cell(notebook, "s0007").metadata.dojo.score == 0.5
    assert notebook.metadata.dojo.schema == 1
    assert len({one.id for one in notebook.cells}) == len(notebook.cells)


def test_the_header_says_that_a_reference_board_is_no_board_of_people():
    header = to_notebook(whole_episode()).cells[0].source
    assert "Final score 0.5" in header
    assert "2 of 4 on the reference board &#40;programs, not people&#41;" in header


def test_the_notebook_ends_with_what_held_the_limits_of_its_box():
    assert "| memory | cgroup | 4 GB |" in to_notebook(whole_episode()).cells[-1].source


def test_every_step_has_a_heading_and_every_submission_its_score():
    notebook = to_notebook(whole_episode())
    pages = [one.source for one in notebook.cells if one.cell_type == "markdown"]
    headings = [page.split("\n")[0] for page in pages if page.startswith("## Step")]
    assert headings[:4] == [
        "## Step 1: execute&#95;code",
        "## Step 2: execute&#95;code",
        "## Step 3: validate&#95;code",
        "## Step 4: get&#95;history",
    ]
    assert [heading.split(":")[0] for heading in headings] == [f"## Step {number}" for number in range(1, 14)]
    assert "I look." in cell(notebook, "s0000-head").source
    assert "**Score 0.5** on the public rows. Place: 2 of 4" in cell(notebook, "s0007-grade").source
    assert "| 8 | 0.5 | 2 of 4" in notebook.cells[0].source


def test_box_paths_become_relative_and_the_source_as_it_ran_is_kept():
    one = cell(to_notebook(whole_episode()), "s0000")
    assert "open('data/train.csv')" in one.source
    assert "open('/data/train.csv')" in one.metadata.dojo.source


@pytest.mark.parametrize(
    ("code", "moved"),
    [
        ("open('/data/x')", "open('data/x')"),
        ('f"/data/{name}.csv"', 'f"data/{name}.csv"'),
        ("a = total /data/ 2", "a = total /data/ 2"),
        ("'/database', '/data-2', 'x/data', '/data'", "'/database', '/data-2', 'x/data', 'data'"),
        ("!cat /data/x | wc", "!cat data/x | wc"),
        ("if x:\n    !ls /workspace\n    y = '/workspace/a'", "if x:\n    !ls .\n    y = './a'"),
        ('"""\n/data/x\n""", "/data"', '"""\ndata/x\n""", "data"'),
        ("broken ( '/data/x'", "broken ( 'data/x'"),
        ("# /data in a comment", "# /data in a comment"),
    ],
)
def test_paths_move_in_strings_and_shell_lines_only(code, moved):
    assert relocate(code, {"/data": "data", "/workspace": "."}) == moved


def test_late_output_is_shown_below_the_cell_that_launched_it():
    late = Late(cell="s0000", outputs=(Stream(name="stdout", text="late\n"),))
    notebook = to_notebook([opened(), *ran(0, "start()"), *ran(1, "2", late=(late,))])
    assert cell(notebook, "s0000").outputs[0].text == "late\n"
    assert cell(notebook, "s0001").outputs == []


def test_what_a_notebook_keeps_is_enough_to_play_the_run_again(tmp_path):
    events = whole_episode()
    write_notebook(events, tmp_path / "a.ipynb")
    again = events_from_notebook(tmp_path / "a.ipynb")
    assert [one.type for one in again] == [one.type for one in events if one.type != "acted" or one.index != 11]
    before = [one.step for one in events if isinstance(one, Stepped)]
    after = [one.step for one in again if isinstance(one, Stepped)]
    for old, new in zip(before, after, strict=True):
        assert (old.action, old.grade, old.index) == (new.action, new.grade, new.index)
        if old.execution and old.index != 1:  # whose output was defused
            assert old.execution == new.execution
    assert again[0] == events[0]
    assert again[-1] == events[-1]


def test_a_resume_is_a_restart_and_its_paths_become_relative_too(tmp_path):
    events = [opened(), *ran(0, "x = '/data/a'"), RESUMED, *ran(1, "y = '/tmp/other/data/a'"), RESUMED, *ran(2, "z = 1")]
    notebook = to_notebook(events)
    names = [one.id for one in notebook.cells if one.get("source") == "%reset -f"]
    assert names == ["resumed-1-empty", "resumed-2-empty"]
    assert cell(notebook, "s0001").source == "y = 'data/a'"
    write_notebook(events, tmp_path / "a.ipynb")
    assert [one.type for one in events_from_notebook(tmp_path / "a.ipynb")] == [one.type for one in events]


def test_a_foreign_notebook_is_refused_in_one_sentence(tmp_path):
    (tmp_path / "a.ipynb").write_text(nbformat.writes(nbformat.v4.new_notebook()))
    with pytest.raises(JournalError, match="no notebook that a run of ours wrote"):
        events_from_notebook(tmp_path / "a.ipynb")


def test_floods_and_forged_pictures_stay_out():
    images = tuple(Display(data={"image/png": PNG, "text/plain": "x" * 100}) for _ in range(50))
    outputs = (
        *images,
        Display(data={"image/png": "PHN2Zz4="}),
        Stream(name="stdout", text="y" * 3_000_000),
        Stream(name="stderr", text="z"),
    )
    shown = cell(to_notebook([opened(), *ran(0, "1", *outputs)]), "s0000").outputs
    assert sum("image/png" in one.get("data", {}) for one in shown) == 20
    assert len(json.dumps(shown)) < 300_000


MIMES = [
    "text/html",
    "application/javascript",
    "image/svg+xml",
    "text/latex",
    "text/markdown",
    "application/vnd.jupyter.widget-view+json",
]
texts = st.one_of(st.sampled_from(NASTY), st.text(st.characters(exclude_categories=[]), max_size=60))
bundles = st.dictionaries(st.one_of(st.sampled_from([*MIMES, "text/plain", "image/png", "image/jpeg"]), texts), texts, max_size=4)


def record(kind, **fields):
    return kind.model_construct(**({"output_type": kind.model_fields["output_type"].default, "metadata": {}} | fields))


outputs = st.one_of(
    st.builds(lambda name, text: record(Stream, name=name, text=text), st.sampled_from(["stdout", "stderr"]), texts),
    st.builds(lambda data: record(Display, data=data), bundles),
    st.builds(lambda data: record(Result, data=data, execution_count=1), bundles),
    st.builds(lambda a, b, c: record(Error, ename=a, evalue=b, traceback=tuple(c)), texts, texts, st.lists(texts, max_size=3)),
)


@st.composite
def journals(draw):
    events = [opened(agent=draw(st.sampled_from(NASTY[:-1])), competition=draw(st.sampled_from(NASTY[:-1])))]
    for index in range(draw(st.integers(0, 5))):
        code, said = draw(texts), draw(st.none() | texts)
        kind = draw(st.sampled_from(["live", "scratch", "other", "reset", "lost"]))
        if kind == "lost":
            events.append(Interrupted(index=index))
            continue
        step = stepped(index, Reset() if kind == "reset" else GetHistory())[1].step
        change = {"said": said, "observation": Observation.model_construct(**(dict(step.observation) | {"text": draw(texts)}))}
        if kind in {"live", "scratch"}:
            change["action"] = ExecuteCode.model_construct(code=code, timeout_s=None)
            change["execution"] = Execution.model_construct(
                code=code, outputs=tuple(draw(st.lists(outputs, max_size=4))), status=draw(st.sampled_from(["ok", "error", "timeout", "died"])), seconds=0.1, where=kind, life=draw(st.integers(0, 2)), late=(Late.model_construct(cell=draw(st.sampled_from(["", "s0000", "s0001"])), outputs=tuple(draw(st.lists(outputs, max_size=2)))),)
            )  # fmt: skip
        events.append(Stepped.model_construct(type="stepped", step=step.model_copy(update=change)))
    return events


def no_live_script(page: str) -> None:
    assert not re.search(r"<script>alert|<img src=x|href=\"javascript:", page), page[:2000]


@pytest.mark.slow
@given(journals())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_any_journal_makes_a_valid_and_harmless_notebook(tmp_path_factory, events):
    path = tmp_path_factory.mktemp("nb") / "a.ipynb"
    write_notebook(events, path)
    text = path.read_bytes()
    assert text.isascii()
    notebook = nbformat.reads(text.decode(), as_version=4)
    nbformat.validate(notebook)
    assert len({one.id for one in notebook.cells}) == len(notebook.cells)
    for one in notebook.cells:
        assert "trusted" not in one.metadata
        visible = [one.source, *(json.dumps(out, ensure_ascii=False) for out in one.get("outputs", []))]
        assert not re.search(r"[\x00-\x08\x0e-\x1f\x7f-\x9f\u202e\U000e0041\ud800-\udfff]", "".join(visible))
        assert {mime for out in one.get("outputs", []) for mime in out.get("data", {})} <= {
            "text/plain",
            "image/png",
            "image/jpeg",
        }
    again = [one.step.index for one in events_from_notebook(path) if isinstance(one, Stepped)]
    assert again == [one.step.index for one in events if isinstance(one, Stepped)]


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_notebook_full_of_payloads_has_no_live_script_as_html(monkeypatch):
    monkeypatch.setenv("JUPYTER_PATH", str(SHARE))
    events = [opened(agent=NASTY[0], competition=NASTY[2])]
    for index, text in enumerate(NASTY[:-1]):
        everything = dict.fromkeys([*MIMES, "text/plain"], text)
        events += ran(
            index,
            f"x = {text!r} # {text}",
            Stream(name="stdout", text=text),
            Display(data=everything),
            Error(ename=text, evalue=text, traceback=(text,)),
            said=text,
            text=text,
        )
    for index, text in enumerate(NASTY[:-1], start=len(NASTY)):
        events += stepped(index, Invalid(given=text, problem=text), text=text, said=text)
    exporter = HTMLExporter()
    empty, _ = exporter.from_notebook_node(to_notebook([opened()]))
    page, _ = exporter.from_notebook_node(to_notebook(events))
    no_live_script(page)
    assert page.count("<script") == empty.count("<script")
    assert "\x1b" not in page


def test_escapes_go_and_invisible_characters_are_spelled_out():
    assert plain("a\x1b[31mb\x1b[0m\x1b]0;t\x07c\x00\x9b1md\u202ee\tf\n") == "abcd\\u202ee\tf\n"


@pytest.mark.slow
def test_plain_nbconvert_runs_an_exported_notebook_to_its_end(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "train.csv").write_text("a\nb\nc\n")
    write_notebook(whole_episode(), tmp_path / "run.ipynb")
    done = subprocess.run(NBCONVERT, cwd=tmp_path, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(tmp_path / "done.ipynb", as_version=4)
    assert cell(notebook, "s0000").outputs[0].text == "3\n"
    assert cell(notebook, "s0012").outputs[0].data["text/plain"] == "True"
    assert (tmp_path / "list.txt").read_text() == "train.csv\n"


@pytest.mark.endurance
@pytest.mark.slow
async def test_the_notebook_of_a_real_run_runs_to_its_end_in_a_plain_jupyter_and_scores_the_same(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "prepared"))
    competition = find("breast-cancer")
    prepare(competition)
    few = EpisodeSettings(max_steps=5)  # too few to try each cell first
    experiment = Experiment(name="plain", competitions=("breast-cancer",), episode=few, kernel=KernelSettings(box="process"))
    [played] = await run(experiment, out=tmp_path / "runs")
    place = tmp_path / "plain"
    place.mkdir()
    (place / "data").symlink_to(competition.public_dir)
    shutil.copy(played.notebook, place / "run.ipynb")
    done = await asyncio.to_thread(subprocess.run, NBCONVERT, cwd=place, capture_output=True, text=True, timeout=150, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    notebook = nbformat.read(place / "done.ipynb", as_version=4)
    ran = [one for one in notebook.cells if one.cell_type == "code"]
    assert len(ran) >= 4
    assert not [out for one in ran for out in one.outputs if out.output_type == "error"]
    async with Grader(competition) as grader:
        again = await grader.grade((place / "submission.csv").read_bytes(), "public")
    last = [event.step.grade for event in read_journal(Path(played.folder)) if isinstance(event, Stepped) and event.step.grade][
        -1
    ]
    assert again.score == pytest.approx(last.score, rel=1e-6)


WRITER = """
import sys
sys.path[:0] = {tests!r}
from pathlib import Path
from test_notebook import *
events = [opened(), *ran(0, "1", Stream(name="stdout", text="x" * 100_000))]
while True:
    write_notebook(events, Path(sys.argv[1]))
    print(".", end="", flush=True)
"""


@pytest.mark.slow
def test_kill_9_while_writing_leaves_a_whole_notebook(tmp_path):
    path = tmp_path / "a.ipynb"
    program = WRITER.format(tests=[str(folder) for folder in Path(__file__).parents[:2]])
    for trial in range(2):
        with subprocess.Popen([sys.executable, "-c", program, path], stdout=subprocess.PIPE) as child:
            child.stdout.read(1)
            time.sleep(0.013 * (trial + 1))
            child.send_signal(signal.SIGKILL)
        nbformat.validate(nbformat.read(path, as_version=4))
