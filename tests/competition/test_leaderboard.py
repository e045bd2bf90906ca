import pytest
from competition_fixtures import make_competition

from dojo_kernel.competition.leaderboard import Leaderboard, boards_for, human_rank, medal, medal_places
from dojo_kernel.errors import ConfigError


def test_human_rank_is_that_of_the_published_trajectories():
    board = Leaderboard.of("private", [1 - i / 1000 for i in range(462)], "higher")
    found = [board.standing(board.scores[place - 1]) for place in (301, 234, 198)]
    assert [one.position for one in found] == [301, 234, 198]
    assert [round(one.human_rank, 6) for one in found] == [0.350649, 0.495671, 0.573593]
    assert sum(one.human_rank for one in found) == pytest.approx(1.419913, abs=1e-6)


@pytest.mark.parametrize(
    ("better", "score", "position"),
    [
        ("higher", 0.9, 1),
        ("higher", 0.95, 1),
        ("higher", 0.8, 2),
        ("higher", 0.7, 4),
        ("higher", 0.1, 5),
        ("lower", 0.1, 1),
        ("lower", 0.5, 1),
        ("lower", 0.8, 2),
        ("lower", 0.85, 4),
        ("lower", 0.9, 4),
        ("lower", 1.0, 5),
    ],
)
def test_a_tie_takes_the_better_place(better, score, position):
    scores = [0.8, 0.9, 0.5, 0.8]
    board = Leaderboard.of("reference", scores, better)
    assert board.position(score) == position
    assert board.position(score) == 1 + sum(other > score if better == "higher" else other < score for other in scores)
    assert board.standing(score).human_rank == (4 - position + 1) / 4


def test_constant_boards_are_left_out_of_the_mean():
    real = Leaderboard.of("private", [3, 2, 1], "higher")
    flat = Leaderboard.of("public", [1, 1], "higher")
    assert human_rank([real, flat], 2) == 2 / 3
    assert human_rank([flat], 2) is None
    assert human_rank([], 2) is None


def test_rows_choose_their_board():
    public, private = Leaderboard.of("public", [1, 2], "higher"), Leaderboard.of("private", [1, 2], "higher")
    assert boards_for([public, private], "public") == [public]
    assert boards_for([public, private], "private") == [private]
    assert boards_for([public, private], "all") == [public, private]
    assert boards_for([public], "private") == [public]


@pytest.mark.parametrize(
    ("teams", "places"),
    [
        (1, (1, 1, 1)),
        (50, (5, 10, 20)),
        (99, (9, 19, 39)),
        (100, (10, 20, 40)),
        (249, (10, 49, 99)),
        (250, (10, 50, 100)),
        (999, (11, 50, 100)),
        (1000, (12, 50, 100)),
        (5000, (20, 250, 500)),
    ],
)
def test_medals_follow_kaggles_table(teams, places):
    assert tuple(medal_places(teams).values()) == places


def test_the_medal_comes_from_the_private_board():
    public, private = Leaderboard.of("public", range(50), "higher"), Leaderboard.of("private", range(50, 100), "higher")
    assert medal([public, private], 99) == "gold"
    assert medal([public, private], 90) == "silver"
    assert medal([public, private], 80) == "bronze"
    assert medal([public, private], 60) is None
    assert medal([], 1) is None


@pytest.mark.parametrize("scores", [[], [1.0, float("nan")], [float("inf")]])
def test_a_board_lists_finite_scores(scores):
    with pytest.raises(ValueError, match="finite"):
        Leaderboard.of("public", scores, "higher")


def test_boards_are_read_from_the_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    board = {"reference_board.csv": "rank,score,entry\n1,0.1,best\n2,0.5,worse\n"}
    assert Leaderboard.load(make_competition(tmp_path, answers="Id,y\n1,2\n", files=board)) == [
        Leaderboard("reference", (0.1, 0.5), "lower")
    ]
    kaggle = make_competition(
        tmp_path,
        answers="Id,y\n1,2\n",
        extra='board = { kind = "kaggle" }',
        files={"private_leaderboard.csv": "TeamId,Score\n1,2\n"},
    )
    assert Leaderboard.load(kaggle) == [Leaderboard("private", (2.0,), "lower")]


def test_a_broken_board_is_one_line_with_its_file(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    competition = make_competition(tmp_path, answers="Id,y\n1,2\n", files={"reference_board.csv": "rank,score\n1,nan\n"})
    with pytest.raises(ConfigError, match=r"reference_board\.csv"):
        Leaderboard.load(competition)


def test_scores_of_public_rows_meet_the_board_of_public_rows(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    files = {
        name: f"rank,score,entry\n1,{score},a\n"
        for name, score in (("reference_board.csv", 1), ("reference_public_board.csv", 2))
    }
    boards = Leaderboard.load(make_competition(tmp_path, answers="Id,y\n1,2\n", files=files))
    assert {rows: [board.scores for board in boards_for(boards, rows)] for rows in ("public", "private", "all")} == {
        "public": [(2.0,)],
        "private": [(1.0,)],
        "all": [(1.0,)],
    }
    only = [board for board in boards if board.name == "reference"]
    assert boards_for(only, "public") == only


def test_a_place_on_a_reference_board_is_never_told_as_one_among_people():
    board = Leaderboard.of("reference_public", range(1, 5), "lower")
    assert str(board.standing(2)) == "2 of 4 on the reference board (programs, not people)"
    assert str(board.standing(9)) == "below all 4 of the reference board (programs, not people)"
    assert str(Leaderboard.of("private", range(1, 5), "lower").standing(2)) == "2 of 4 on the private board"
