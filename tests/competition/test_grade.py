import asyncio
import os
import random
import signal
import time
from pathlib import Path

import numpy as np
import pytest
from competition_fixtures import make_competition, regression_answers

from dojo_kernel.competition.grade import Grader
from dojo_kernel.errors import GraderError, NotPreparedError

BOARD = {"reference_board.csv": "rank,score,entry\n1,0.5,a\n2,1.0,b\n3,2.0,c\n4,4.0,d\n"}


@pytest.fixture(autouse=True)
def _data(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))


def shifted(answers, by):
    head, *lines = answers.splitlines()
    return "\n".join([head, *(f"{line.split(',')[0]},{float(line.split(',')[1]) + by:.4f}" for line in lines)]).encode()


async def test_a_submission_gets_its_score_its_standing_and_its_medal(tmp_path):
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers, files=BOARD)) as grader:
        for rows in ("public", "private", "all"):
            grade = await grader.grade(shifted(answers, 1.0), rows)
            assert (grade.rows, grade.score, grade.problem) == (rows, 1.0, None)
            assert [(one.board, one.position, one.teams) for one in grade.standings] == [("reference", 2, 4)]
            assert grade.human_rank == 0.75
        assert (await grader.grade(shifted(answers, 0.0), "all")).medal == "gold"


async def test_public_and_private_rows_part_the_file_by_the_hash_of_the_id(tmp_path):
    answers = regression_answers()
    competition = make_competition(tmp_path, answers=answers)
    wrong_in_public = "\n".join(
        f"{i},{float(y) + 5}" if i != "Id" and competition.split.is_public(i) else f"{i},{y}"
        for i, y in (line.split(",") for line in answers.splitlines())
    ).encode()
    async with Grader(competition) as grader:
        assert (await grader.grade(wrong_in_public, "public")).score == 5.0
        assert (await grader.grade(wrong_in_public, "private")).score == 0.0
        assert 0 < (await grader.grade(wrong_in_public, "all")).score < 5


async def test_without_a_board_there_is_no_rank(tmp_path):
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        grade = await grader.grade(answers.encode(), "all")
    assert (grade.score, grade.human_rank, grade.medal, grade.standings) == (0.0, None, None, ())


async def test_the_order_of_the_rows_and_forgiven_bytes_leave_the_score(tmp_path):
    answers = regression_answers()
    head, *lines = shifted(answers, 1.25).decode().splitlines()
    random.Random(0).shuffle(lines)
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        for end in ("\n", "\r\n", "\n\n"):
            assert (await grader.grade(("\ufeff" + end.join([head, *lines])).encode(), "all")).score == 1.25


ATTACKS = {
    "nothing": (lambda raw: b"", "empty"),
    "one nan": (lambda raw: b"Id,y\n1000,nan\n" + raw.split(b"\n", 2)[2], "not_finite"),
    "all nan but one": (
        lambda raw: b"\n".join(line if i < 2 else line.split(b",")[0] + b",nan" for i, line in enumerate(raw.split(b"\n"))),
        "not_finite",
    ),
    "minus infinity": (lambda raw: b"Id,y\n1000,-inf\n" + raw.split(b"\n", 2)[2], "not_finite"),
    "1e308": (lambda raw: b"Id,y\n1000,1e308\n" + raw.split(b"\n", 2)[2], "not_finite"),
    "one row": (lambda raw: b"\n".join(raw.split(b"\n")[:2]), "missing_ids"),
    "a row twice": (lambda raw: raw + b"\n1000,1.0", "duplicate_id"),
    "float ids": (lambda raw: raw.replace(b"1000,", b"1000.0,"), "unknown_id"),
    "an index column": (lambda raw: b"\n".join(b"0," + line for line in raw.split(b"\n")), "header"),
    "a pickle": (lambda raw: b"\x80\x04\x95\x00\x00", "encoding"),
    "a zip": (lambda raw: b"PK\x03\x04" + bytes(200), "nul"),
    "html": (lambda raw: b"<html>" * 10, "header"),
    "bombs": (lambda raw: b"Id,y\n" + b"1000,1\n" * 3_000_000, "duplicate_id"),
    "memory": (lambda raw: b'Id,y\n1000,"' + "\u4e2d".encode() * 30_000_000, "too_long"),
}


@pytest.mark.slow
async def test_cheats_and_bombs_get_a_problem_that_the_agent_can_read(tmp_path):
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers, files=BOARD)) as grader:
        for name, (attack, code) in ATTACKS.items():
            grade = await grader.grade(attack(answers.strip().encode()), "public")
            assert (name, grade.code, grade.score, grade.human_rank, grade.medal) == (name, code, None, None, None)
            assert grade.problem
            assert (await grader.grade(answers.encode(), "public")).score == 0.0


async def test_no_answer_is_in_any_response(tmp_path):
    labels = [f"CANARY{i:04d}x" for i in range(60)]
    answers = "Id,label\n" + "".join(f"id{i},{label}\n" for i, label in enumerate(labels))
    competition = make_competition(tmp_path, metric="accuracy", columns='{ label = "str" }', answers=answers)
    chance = random.Random(1)
    async with Grader(competition) as grader:
        for _ in range(300):
            raw = bytearray(b"Id,label\n" + b"".join(b"id%d,guess\n" % i for i in range(60)))
            for _ in range(chance.randint(0, 4)):
                raw[chance.randrange(len(raw))] = chance.choice(b'\n\r,"\0\xff1nai')
            assert "CANARY" not in (await grader.grade(bytes(raw), "all")).model_dump_json()


async def test_a_killed_child_is_replaced(tmp_path):
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        assert (await grader.grade(answers.encode(), "all")).score == 0.0
        first = grader.pid
        os.kill(first, signal.SIGKILL)
        assert (await grader.grade(answers.encode(), "all")).score == 0.0
        assert grader.pid != first


SLOW = """
import time
from dojo_kernel.competition.metrics import metric
@metric(better="lower", low=0.0)
def slow(truth, prediction):
    '''Never ends on a file of tens.'''
    while prediction[0] == 10:
        {wait}
    return 0.0
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("wait", "limit"), [("pass", {"cpu_s": 2}), ("time.sleep(1)", {"deadline_s": 4.0}), ("x = bytearray(1 << 40)", {})]
)
async def test_a_grading_that_does_not_end_is_ended_and_the_next_one_works(tmp_path, wait, limit):
    answers = "Id,y\n1,1\n2,2\n"
    competition = make_competition(
        tmp_path, metric="metric.py:slow", answers=answers, files={"metric.py": SLOW.format(wait=wait)}
    )
    async with Grader(competition, **limit) as grader:
        assert (await grader.grade(b"Id,y\n1,10\n2,10\n", "all")).code in ("resources", "undefined")
        grader._cpu_s, grader._deadline_s = 120, 300.0  # a new child's start may take longer than those
        assert (await grader.grade(answers.encode(), "all")).score == 0.0


BROKEN = """
from dojo_kernel.competition.metrics import metric
@metric(better="lower")
def broken(truth, prediction):
    '''Fails.'''
    print("CANARY")
    if {when}:
        raise RuntimeError(f"CANARY {{truth}}")
    return 1.0
"""


async def test_a_metric_that_fails_on_the_agents_numbers_is_the_agents_problem(tmp_path):
    competition = make_competition(
        tmp_path, metric="metric.py:broken", answers="Id,y\n1,1\n", files={"metric.py": BROKEN.format(when="prediction[0] == 7")}
    )
    async with Grader(competition) as grader:
        grade = await grader.grade(b"Id,y\n1,7\n", "all")
        assert (grade.code, "CANARY" in grade.model_dump_json()) == ("undefined", False)
        assert (await grader.grade(b"Id,y\n1,8\n", "all")).score == 1.0


async def test_a_metric_that_fails_on_the_truth_is_ours_and_quotes_nothing(tmp_path):
    competition = make_competition(
        tmp_path, metric="metric.py:broken", answers="Id,y\n1,1\n", files={"metric.py": BROKEN.format(when="True")}
    )
    async with Grader(competition) as grader:
        with pytest.raises(GraderError) as caught:
            await grader.grade(b"Id,y\n1,7\n", "all")
    assert "CANARY" not in str(caught.value)


@pytest.mark.slow
@pytest.mark.parametrize("answers", ["Id,z\n1,2\n", "Id,y\n1,2\n1,3\n", "Id,y\n1,nan\n", "Id,y\n", ""])
async def test_broken_answers_are_ours(tmp_path, answers):
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        with pytest.raises(GraderError, match="small"):
            await grader.grade(b"Id,y\n1,2\n", "all")


async def test_answers_may_have_quotes_and_more_columns(tmp_path):
    async with Grader(make_competition(tmp_path, answers='Id,note,y\n"a, b",x,1\nc,y,2\n')) as grader:
        assert (await grader.grade(b'Id,y\n"a, b",1\nc,2\n', "all")).score == 0.0


async def test_gradings_at_once_do_not_mix(tmp_path):
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        grades = await asyncio.gather(*(grader.grade(shifted(answers, by), "all") for by in range(8)))
    assert [grade.score for grade in grades] == [float(by) for by in range(8)]


async def test_a_cancelled_grading_leaves_the_grader_usable(tmp_path):
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(grader.grade(answers.encode(), "all"), 0.05)
        assert (await grader.grade(answers.encode(), "all")).score == 0.0


async def test_close_ends_the_child_and_can_be_called_twice(tmp_path):
    answers = regression_answers()
    grader = Grader(make_competition(tmp_path, answers=answers))
    await grader.grade(answers.encode(), "all")
    pid = grader.pid
    await grader.close()
    await grader.close()
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
    with pytest.raises(GraderError, match="closed"):
        await grader.grade(answers.encode(), "all")


async def test_the_childs_environment_holds_no_keys(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_API_KEY", "CANARY")
    answers = regression_answers()
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        await grader.grade(answers.encode(), "all")
        assert "CANARY" not in Path(f"/proc/{grader.pid}/environ").read_text()


def test_an_unprepared_competition_cannot_be_graded(tmp_path):
    competition = make_competition(tmp_path, answers="Id,y\n1,2\n")
    competition.manifest.unlink()
    with pytest.raises(NotPreparedError):
        Grader(competition)


@pytest.mark.endurance
@pytest.mark.slow
async def test_a_million_rows_are_graded_in_seconds(tmp_path):
    values = np.random.default_rng(0).normal(size=1_000_000)
    answers = "Id,y\n" + "".join(f"{i},{value:.6f}\n" for i, value in enumerate(values))
    async with Grader(make_competition(tmp_path, answers=answers)) as grader:
        await grader.grade(answers.encode(), "private")
        started = time.monotonic()
        assert (await grader.grade(answers.encode(), "private")).score == 0.0
        assert time.monotonic() - started < 20
