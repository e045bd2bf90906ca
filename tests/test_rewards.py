"""The rewards as functions of any sequence of grades, and the sum that an episode pays."""

import math
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dojo_kernel.actions import ExecuteCode
from dojo_kernel.episode import REWARDS
from dojo_kernel.errors import ConfigError
from dojo_kernel.records import Closed, Grade, Medal, Observation, State, Step, Stepped

TEAMS = 40
SHA = "0" * 64
PROBLEM = Grade(rows="public", sha256=SHA, problem="3 ids are missing", code="missing_id")

scores = st.floats(-1e12, 1e12)
boards = st.lists(scores, min_size=1, max_size=TEAMS)


def graded(score: float, board: list[float], better: str) -> Grade:
    beaten = sum(score >= other if better == "higher" else score <= other for other in board)
    return Grade(rows="public", sha256=SHA, score=score, human_rank=beaten / len(board))


def opened(better: str = "higher") -> State:
    return State(open=True, better=better)


def after(state: State, grade: Grade | None, reward: float) -> State:
    step = Step(
        index=state.steps,
        action=ExecuteCode(code=""),
        grade=grade,
        reward=reward,
        observation=Observation(text="", ok=True, steps_left=1, seconds_left=1.0),
        started_at="2026-01-01T00:00:00Z",
        seconds=0.1,
    )
    return state.after(Stepped(step=step))


any_grade = st.one_of(
    st.none(),
    st.just(PROBLEM),
    st.builds(
        Grade,
        rows=st.just("public"),
        sha256=st.just(SHA),
        score=st.none() | scores,
        human_rank=st.none() | st.floats(0, 1),
        medal=st.none() | st.sampled_from(get_args(Medal)),
    ),
)


@given(st.lists(any_grade, max_size=12), st.sampled_from(["higher", "lower"]))
def test_no_reward_of_any_grade_is_nan_or_infinite_and_no_sum_of_them(grades, better):
    for name in REWARDS:
        state = opened(better)
        for grade in grades:
            reward = REWARDS[name](state, grade)
            assert math.isfinite(reward)
            if grade is None or (grade.score is None and grade.medal is None):
                assert reward == 0.0
            state = after(state, grade, reward)
        assert math.isfinite(state.reward)


@given(boards, st.lists(st.none() | scores, max_size=12), st.sampled_from(["higher", "lower"]))
def test_improvement_sums_to_the_human_rank_of_the_final_best(board, tries, better):
    state = opened(better)
    for score in tries:
        grade = PROBLEM if score is None else graded(score, board, better)
        state = after(state, grade, REWARDS["improvement"](state, grade))
    best = 0.0 if state.best is None else state.best.human_rank
    assert state.reward == pytest.approx(best, abs=1e-9)


def test_improvement_pays_nothing_for_the_same_or_a_worse_score():
    board = [0.5, 0.6, 0.7]
    best = graded(0.65, board, "higher")
    state = after(opened(), best, 0.0)
    assert REWARDS["improvement"](state, best) == 0.0
    assert REWARDS["improvement"](state, graded(0.55, board, "higher")) == 0.0
    assert REWARDS["improvement"](state, graded(0.7, board, "higher")) == pytest.approx(1 / 3)


def test_improvement_survives_a_best_without_a_board():
    state = after(opened(), Grade(rows="public", sha256=SHA, score=0.1), 0.0)
    assert REWARDS["improvement"](state, graded(0.2, [0.1, 0.3], "higher")) == 0.5


def test_human_rank_is_the_share_of_the_board_that_is_beaten_or_tied():
    assert REWARDS["human_rank"](opened(), graded(0.6, [0.5, 0.6, 0.7, 0.8], "higher")) == 0.5


def test_human_rank_without_a_board_is_nothing():
    assert REWARDS["human_rank"](opened(), Grade(rows="public", sha256=SHA, score=0.6)) == 0.0


def test_score_grows_with_quality_whichever_way_the_metric_goes():
    higher, lower = opened("higher"), opened("lower")
    assert REWARDS["score"](higher, graded(0.9, [0.5], "higher")) == 0.9
    assert REWARDS["score"](lower, graded(0.9, [0.5], "lower")) == -0.9
    assert REWARDS["score"](lower, graded(0.2, [0.5], "lower")) > REWARDS["score"](lower, graded(0.9, [0.5], "lower"))


def test_medals_are_paid_in_their_order():
    paid = [REWARDS["medal"](opened(), Grade(rows="public", sha256=SHA, score=1.0, medal=one)) for one in get_args(Medal)]
    assert paid == sorted(paid, reverse=True) == [1.0, pytest.approx(2 / 3), pytest.approx(1 / 3)]
    assert REWARDS["medal"](opened(), Grade(rows="public", sha256=SHA, score=1.0)) == 0.0


@pytest.mark.parametrize("name", ["human_rank", "improvement", "score", "medal"])
def test_a_problem_and_an_ungraded_step_pay_nothing(name):
    assert REWARDS[name](opened(), PROBLEM) == 0.0
    assert REWARDS[name](opened(), None) == 0.0
    assert after(opened(), PROBLEM, 0.0).best is None


def test_an_unknown_reward_is_the_users_mistake_and_names_the_known_ones():
    with pytest.raises(ConfigError, match="human_rank, improvement, medal, score"):
        REWARDS["fame"]


def test_an_end_does_not_change_what_was_paid():
    state = after(opened(), graded(0.6, [0.5], "higher"), 1.0)
    ended = state.after(Closed(reason="steps", seconds=1.0))
    assert (ended.reward, ended.best, ended.open) == (1.0, state.best, False)
