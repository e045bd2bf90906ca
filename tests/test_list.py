"""`dojo list` answers programs at once, reads little, and tells what the competitions themselves say."""

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest

from dojo_kernel.cli import main
from dojo_kernel.competition.metrics import METRICS, metric
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import bundled_slugs, catalogue, find
from dojo_kernel.errors import ConfigError
from dojo_kernel.heads import Head, _directions, _table, answer, as_json, choose, heads


def listed(*arguments):
    command = [sys.executable, "-m", "dojo_kernel", "list", *arguments, "--json"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


@pytest.fixture(autouse=True)
def own_data(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))


def seconds_of_processor(work):
    before = resource.getrusage(resource.RUSAGE_CHILDREN)  # the clock belongs to the neighbours, too
    work()
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def test_a_cold_process_lists_all_in_less_than_the_import_of_pandas_takes():
    imports = [sys.executable, "-c", "import pandas"]
    ours, theirs = [], []
    for _ in range(5):
        ours.append(seconds_of_processor(listed))
        theirs.append(seconds_of_processor(lambda: subprocess.run(imports, check=True)))
    assert min(ours) < min(theirs), (ours, theirs)


def test_a_list_for_programs_imports_nothing_heavy():
    code = (
        "import sys, io, contextlib\nfrom dojo_kernel.__main__ import main\nsys.argv = ['dojo', 'list', '--json']\n"
        "with contextlib.redirect_stdout(io.StringIO()): main()\n"
        "print(*sorted({'typer', 'rich', 'pydantic', 'numpy', 'pandas', 'gymnasium', 'asyncio', 'jupyter_client'} & {*sys.modules}))"
    )
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split() == []


def test_the_list_agrees_with_the_competitions_themselves():
    prepare(find("wine"))
    found = {one.slug: one for one in heads()}
    assert [*found] == bundled_slugs()
    for spec in catalogue():
        head = found[spec.slug]
        told = (head.title, head.domain, head.problem, head.tags, head.metric, head.better, head.kaggle, head.prepared)
        assert told == (
            spec.title, spec.domain, spec.problem, spec.tags, spec.metric, spec.better, spec.kaggle, spec.is_prepared(),
        )  # fmt: skip
    assert found["wine"].prepared
    assert not found["wine"].synthetic


def test_the_direction_of_every_metric_is_read_off_its_decorator():
    assert {name: METRICS[name].better for name in METRICS} == _table()


def test_the_direction_of_a_metric_beside_a_spec_is_read_too(tmp_path):
    path = tmp_path / "metric.py"
    path.write_text(
        '@metric(\n    better="lower",\n    low=0.0,\n)\ndef mine(truth, guess): ...\n@metric("b", better="higher")\ndef c(): ...\n'
    )
    assert _directions(path) == {"mine": "lower", "b": "higher"}
    assert callable(metric)


def test_the_quick_way_and_the_long_way_say_the_same(capfd):
    for arguments in ([], ["--domain", "vision"], ["--domain=VISION", "--text", "figure"], ["--prepared"], ["--metric", "rmse"]):
        with pytest.raises(SystemExit):
            main(["list", *arguments, "--json"])
        assert answer([*arguments, "--json"]) == capfd.readouterr().out


@pytest.mark.parametrize(
    "arguments",
    [["--help", "--json"], ["--domain", "--json"], ["--metric", "nope", "--json"], ["--tag", "--json"], []],
    ids=" ".join,
)
def test_what_is_unusual_goes_the_long_way(arguments):
    assert answer(arguments) is None


def head(slug, **facts):
    told = {"title": slug, "domain": "tabular", "problem": "binary", "tags": (), "metric": "mae", "better": "lower"}
    return Head(**{"slug": slug, **told, "kaggle": None, "bytes": None, "prepared": False, "synthetic": False, **facts})


BIRDS = head("birds", title="Hear the Birds", domain="audio", tags=("sound", "Animals"), metric="roc_auc", prepared=True)
CARS = head("cars", problem="regression", tags=("sound",))


@pytest.mark.parametrize(
    ("wishes", "more", "found"),
    [
        ([], {}, [BIRDS, CARS]),
        ([("domain", "Audio")], {}, [BIRDS]),
        ([("metric", "mae")], {}, [CARS]),
        ([("problem", "binary")], {}, [BIRDS]),
        ([("tag", "sound")], {}, [BIRDS, CARS]),
        ([("tag", "sound"), ("tag", "animals")], {}, [BIRDS]),
        ([("tag", "sound"), ("metric", "mae")], {"prepared": True}, []),
        ([], {"text": "AUDIO bird"}, [BIRDS]),
        ([], {"text": "bird cars"}, []),
        ([], {"prepared": True}, [BIRDS]),
    ],
)
def test_wishes_narrow_the_list(wishes, more, found):
    assert choose([BIRDS, CARS], wishes, **more) == found


def test_a_value_that_no_competition_has_is_a_mistake_that_suggests_another():
    with pytest.raises(ConfigError, match=r"--domain: no competition has 'audoi'; did you mean audio\?"):
        choose([BIRDS, CARS], [("domain", "audoi")])


def test_a_program_gets_every_fact():
    facts = json.loads(as_json([BIRDS]))[0]
    assert {"slug", "title", "domain", "problem", "tags", "metric", "better", "kaggle", "bytes", "prepared", "synthetic"} < set(
        facts
    )
    assert facts["public_dir"].endswith("/birds/public")


def test_loading_one_spec_reads_no_other():
    code = (
        "import sys\nfrom dojo_kernel.competition.spec import find, bundled_folder\nopened = []\n"
        "sys.addaudithook(lambda event, args: opened.append(str(args[0])) if event in {'open', 'os.listdir', 'os.scandir'} else None)\n"
        "find('wine').better\nprint(*[one for one in opened if str(bundled_folder()) in one], sep='\\n')"
    )
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split("\n")
    assert [Path(one).parts[-2:] for one in shown if one] == [("wine", "competition.toml")]


def test_the_environment_is_registered_whichever_is_imported_first():
    for order in (
        "import dojo_kernel, gymnasium",
        "import gymnasium, dojo_kernel",
        "import gymnasium.envs.registration, dojo_kernel",
    ):
        code = f"{order}\nimport gymnasium\nassert 'dojo_kernel/Dojo-v0' in gymnasium.registry"
        subprocess.run([sys.executable, "-c", code], check=True)
