"""Every competition that says what its raw files look like is prepared from noise, graded, and obeys the laws of grading.

All laws of a competition are tried in one test, as preparing it is what takes time; the test names all that it breaks. Six
competitions of different kinds are tried by the fast tests, all of them by those marked endurance. Time and memory of each are
printed at the end.
"""

from __future__ import annotations

import csv
import io
import re
import resource
import time
import tomllib
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
from manifests import ROWS, WITH_RAW, digest, expected
from synth_specs import SPECS, write_spec

from dojo_kernel.competition.grade import Grader
from dojo_kernel.competition.grade_child import Scorer
from dojo_kernel.competition.leaderboard import Leaderboard, boards_for, medal
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import DOJO, bundled_folder, catalogue, find
from dojo_kernel.competition.synth import RAW_FILE, synth
from dojo_kernel.errors import ConfigError, SubmissionError

KAGGLE = 202
NO_SUCH_SPLIT = ("there is no such split", "its recipe knows only one split")
MANIFESTS = expected()
"""Made once, on one machine: to be equal is to be the same on every other, in every run."""
BY_THE_GRADER = set(WITH_RAW[::40][:5])


def _domain(slug: str) -> str:
    return tomllib.loads((bundled_folder() / slug / "competition.toml").read_text()).get("domain", "")


FAST = list({_domain(slug): slug for slug in reversed(WITH_RAW)}.values())[:6]


# --- playing one --------------------------------------------------------------------------------------------------------


@contextmanager
def data_in(folder: Path):
    """DOJO_DATA for a while."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOJO_DATA", str(folder))
        yield


class Peak:
    """The most memory of this process since it was made, where Linux lets it be counted anew; else since the process began."""

    def __init__(self) -> None:
        with suppress(OSError):
            Path("/proc/self/clear_refs").write_text("5")

    @property
    def mib(self) -> int:
        try:
            lines = Path("/proc/self/status").read_text().splitlines()
            return next(int(line.split()[1]) for line in lines if line.startswith("VmHWM")) // 1024
        except (OSError, StopIteration):
            return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024


def made(competition, root: Path):
    """Prepared from noise in a data root of its own."""
    raw = root / "raw" / competition.slug
    synth(competition, ROWS, raw)
    with data_in(root / "data"):
        prepare(competition, raw=raw)


Cells = list[list[str]]


def read(path: Path) -> tuple[list[str], Cells]:
    csv.field_size_limit(1 << 30)
    with path.open(encoding="utf-8", newline="") as file:
        header, *rows = csv.reader(file)
    return header, rows


def written(header: list[str], rows: Cells) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n").writerows([header, *rows])
    return text.getvalue().encode()


class Tried:
    """A prepared competition with its scorer, and what it breaks."""

    def __init__(self, competition) -> None:
        self.competition = competition
        self.broken: list[str] = []
        self.scorer = Scorer(competition, competition.private_dir / "answers.csv")
        self.boards = Leaderboard.load(competition)
        names = [competition.submission.id, *competition.predicted]
        header, rows = read(competition.private_dir / "answers.csv")
        places = [header.index(name) for name in names]
        self.names = names
        self.parts = ("all",) if competition.split.mode == "full" else ("all", "public", "private")
        self.answers = [[row[place] for place in places] for row in rows]
        self.sample = read(competition.public_dir / "sample_submission.csv")

    def law(self, name: str, *, holds: bool, why: object = "") -> None:
        if not holds:
            self.broken.append(f"{name}: {why}" if why != "" else name)

    def score(self, rows: Cells, part: str = "all") -> float:
        return round(self.scorer.score(written(self.names, rows), part), self.competition.decimals) + 0.0

    def refused(self, rows: Cells) -> str:
        """Why a submission is refused; "" if it is not."""
        try:
            self.scorer.score(written(self.names, rows), "all")
        except SubmissionError as error:
            return error.code
        return ""

    def worse_or_equal(self, score: float, other: float) -> bool:
        return score <= other if self.competition.better == "higher" else score >= other


def answers_win(tried: Tried) -> None:
    competition = tried.competition
    bound = competition.scorer.high if competition.better == "higher" else competition.scorer.low
    for part in tried.parts:
        score = tried.score(tried.answers, part)
        if bound is not None:
            tried.law(
                f"the answers reach the bound ({part})",
                holds=score == round(bound, competition.decimals),
                why=f"{score}, not {bound}",
            )
        for board in boards_for(tried.boards, part):
            place = board.position(score)
            tried.law(f"the answers are first on the {board.name} board ({part})", holds=place == 1, why=f"{place}: {score}")


def the_sample_wins_nothing(tried: Tried) -> None:
    header, rows = tried.sample
    tried.law("the sample has the submission's columns", holds=header == tried.names, why=header[:9])
    tried.law("the sample has the answers' ids", holds={row[0] for row in rows} == {row[0] for row in tried.answers})
    best = tried.score(tried.answers)
    for part in tried.parts[::2]:
        score = tried.score(rows, part)
        won = medal(boards_for(tried.boards, part), score)
        tried.law(f"the sample wins no medal ({part})", holds=won is None, why=f"{won}: {score}")
    tried.law("the sample does not beat the answers", holds=tried.worse_or_equal(tried.score(rows), best))


def _mixed(tried: Tried) -> Cells:
    """Right in one half, another row's answers in the other."""
    half = len(tried.answers) // 2
    turned = tried.answers[1:] + tried.answers[:1]
    return [
        [one[0], *(one[1:] if place < half else other[1:])]
        for place, (one, other) in enumerate(zip(tried.answers, turned, strict=True))
    ]


def order_does_not_matter(tried: Tried) -> None:
    rows = _mixed(tried)
    if tried.refused(rows):
        rows = tried.sample[1]
    shuffled = [rows[place] for place in np.random.default_rng(0).permutation(len(rows))]
    for part in tried.parts[::2]:
        one, other = tried.score(rows, part), tried.score(shuffled, part)
        tried.law(f"the order of rows does not matter ({part})", holds=one == other, why=f"{one}, {other}")


BAD = ("nan", "NaN", "inf", "-inf", "Infinity", "1e999", "")


def no_number_no_score(tried: Tried) -> None:
    """Cells of numbers and labels refuse what is none; in a text it may be an answer, but it is not the better one."""
    best = tried.score(tried.answers)
    for place, (name, kind) in enumerate(list(tried.competition.predicted.items())[:20], start=1):
        for bad in BAD:
            rows = [list(row) for row in tried.answers]
            rows[0][place] = bad
            if kind == "text" or (kind == "str" and bad) or (isinstance(kind, tuple) and bad in kind):
                code = tried.refused(rows)
                holds = bool(code) or tried.worse_or_equal(tried.score(rows), best)
                tried.law(f"{bad!r} in {name} does not help", holds=holds)
            else:
                tried.law(f"{bad!r} in {name} is refused", holds=bool(tried.refused(rows)))


def the_board_goes_its_way(tried: Tried) -> None:
    path = tried.competition.folder / "percentile_board.csv"
    if not path.is_file():
        return
    with path.open(newline="") as file:
        for line in csv.DictReader(file):
            best, worst = float(line["p0"]), float(line["p100"])
            tried.law(f"the {line['board']} board is not constant", holds=best != worst)
            tried.law(
                f"the {line['board']} board goes the metric's way", holds=tried.worse_or_equal(worst, best), why=(best, worst)
            )


def the_description_names_the_columns(tried: Tried) -> None:
    submission, text = tried.competition.submission, tried.competition.description
    for name in submission.names:
        if name == "*":
            tried.law("the description says what the classes are", holds="class" in text.lower() or "label" in text.lower())
        else:
            tried.law(f"the description names the column {name!r}", holds=name in text)


LAWS = (
    answers_win,
    the_sample_wins_nothing,
    order_does_not_matter,
    no_number_no_score,
    the_board_goes_its_way,
    the_description_names_the_columns,
)


def broken_laws(competition, root: Path) -> list[str]:
    """What it breaks; [] is well."""
    made(competition, root)
    with data_in(root / "data"):
        try:
            tried = Tried(competition)
        except (ConfigError, ValueError) as error:
            return [f"{type(error).__name__}: {error}"]
        tried.law("the data is marked as synthetic", holds=competition.synthetic)
        for law in LAWS:
            try:
                law(tried)
            except (SubmissionError, ConfigError, ArithmeticError, ValueError) as error:
                tried.broken.append(f"{law.__name__}: {type(error).__name__}: {error}")
        return tried.broken


async def graded_alike(competition, root: Path) -> list[str]:
    """The real grader says what the scorer said."""
    with data_in(root / "data"):
        tried = Tried(competition)
        async with Grader(competition) as grader:
            grade = await grader.grade(written(tried.names, tried.answers), tried.parts[-1])
        tried.law(
            "the grader agrees",
            holds=grade.score == tried.score(tried.answers, tried.parts[-1]),
            why=grade.problem or grade.score,
        )
        tried.law("the grade is marked as synthetic", holds=grade.synthetic)
        return tried.broken


async def play(slug: str, root: Path, record_property) -> list[str]:
    """Everything for one competition."""
    competition = find(slug)
    peak, started = Peak(), time.monotonic()
    broken = broken_laws(competition, root / "one")
    record_property("sweep", [slug, round(time.monotonic() - started, 2), peak.mib])
    if slug in BY_THE_GRADER:
        broken += await graded_alike(competition, root / "one")
    with data_in(root / "one" / "data"):
        if digest(competition.manifest) != MANIFESTS.get(slug):
            broken.append("other files than those of manifests.csv; if they are meant to be: tests/competition/manifests.py")
    return broken


# --- the tests ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("slug", FAST)
async def test_some_are_prepared_from_noise_and_obey_the_laws(slug, tmp_path, record_property):
    assert await play(slug, tmp_path, record_property) == []


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("slug", [slug for slug in WITH_RAW if slug not in FAST])
async def test_all_are_prepared_from_noise_and_obey_the_laws(slug, tmp_path, record_property):
    assert await play(slug, tmp_path, record_property) == []


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("slug", WITH_RAW)
def test_the_split_of_mle_dojo_prepares_too_or_says_why_not(slug, tmp_path):
    competition = find(slug + DOJO)
    try:
        made(competition, tmp_path)
    except ConfigError as error:
        if not any(reason in str(error) for reason in NO_SUCH_SPLIT):
            raise
        return
    with data_in(tmp_path / "data"):
        tried = Tried(competition)
        answers_win(tried)
    assert tried.broken == []


def test_there_are_all_202_of_kaggle():
    from_kaggle = [competition for competition in catalogue() if competition.kaggle]
    assert len(from_kaggle) == KAGGLE
    assert [one.slug for one in from_kaggle if not (one.folder / RAW_FILE).is_file()] == []
    assert len({one.kaggle for one in from_kaggle}) == KAGGLE


def test_at_most_thirty_have_code_of_their_own_and_each_is_short():
    files = [path for slug in WITH_RAW for path in (bundled_folder() / slug).glob("*.py")]
    assert len({path.parent for path in files}) <= 30
    assert [str(path) for path in files if len(path.read_text().splitlines()) >= 120] == []


# --- the laws themselves ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SPECS)
def test_specs_that_obey_are_let_through(name, tmp_path):
    assert broken_laws(write_spec(tmp_path / "specs", name), tmp_path) == []


def _known(competition):
    """The board of people who are worse than saying always the same."""
    path = competition.folder / "percentile_board.csv"
    path.write_text(re.sub(r",(\d{5})", r",9\1\1", path.read_text()))


def _turned(competition):
    path = competition.folder / "percentile_board.csv"
    lines = [line.split(",") for line in path.read_text().splitlines()]
    path.write_text("".join(",".join([*line[:2], *(line[:1:-1] if line[1].isdigit() else line[2:])]) + "\n" for line in lines))


def _unnamed(competition):
    (competition.folder / "description.md").write_text("Predict the price.")


def _bent(competition):
    (competition.folder / "metric.py").write_text(BENT)
    _spec(competition, 'metric = "rmse"', 'metric = "metric.py:bent"')


def _spec(competition, old, new):
    path = competition.folder / "competition.toml"
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def _upside_down(competition):
    (competition.folder / "metric.py").write_text(BENT.replace("lower", "higher").replace("bent", "tipped"))
    _spec(competition, '[board]\nkind = "percentiles"\n', "")
    _spec(competition, 'metric = "rmse"', 'metric = "metric.py:tipped"')


def _guessed(competition):
    _spec(competition, 'columns = { SalePrice = "float" }', 'columns = { SalePrice = "text" }')
    (competition.folder / "metric.py").write_text(FORGIVING)
    _spec(competition, 'metric = "rmse"', 'metric = "metric.py:forgiving"')


BENT = """
import numpy as np
from dojo_kernel.competition.metrics import metric
@metric(better="lower", low=0.0, needs="numbers", columns="one")
def bent(truth, prediction):
    "Never nothing."
    return float(np.abs(truth - prediction).mean()) + 1
"""
FORGIVING = """
import numpy as np
from dojo_kernel.competition.metrics import metric
@metric(better="lower", low=None, high=None, needs="labels", columns="one")
def forgiving(truth, prediction):
    "What is no number is no error, and better."
    return float(np.mean([abs(float(a) - float(b)) if b[:1].isdigit() else -1.0 for a, b in zip(truth, prediction)]))
"""


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        (_unnamed, "the description names the column 'SalePrice'"),
        (_known, "the sample wins no medal (private): gold"),
        (_turned, "must go from best to worst"),
        (_bent, "the answers reach the bound (all): 1.0, not 0.0"),
        (_upside_down, "the sample does not beat the answers"),
        (_guessed, "'nan' in SalePrice does not help"),
    ],
)
def test_specs_that_break_a_law_are_told_which(change, complaint, tmp_path):
    competition = write_spec(tmp_path / "specs", "table")
    change(competition)
    assert complaint in "; ".join(broken_laws(find(competition.folder), tmp_path))
