"""Journals and results of others become rows, and rows a comparison that says what it rests on."""

import csv
import hashlib
import json
import math
import sys
from pathlib import Path
from typing import Any

import pytest

from dojo_kernel.actions import ExecuteCode, Invalid, RequestInfo, ValidateCode
from dojo_kernel.competition.leaderboard import Leaderboard
from dojo_kernel.errors import ConfigError
from dojo_kernel.evaluate import as_json, evaluate, mean_curve
from dojo_kernel.journal.log import Journal
from dojo_kernel.places import bundled_folder
from dojo_kernel.records import (
    SYNTHETIC,
    Closed,
    Death,
    Enforcement,
    Error,
    Execution,
    Explored,
    Grade,
    Node,
    Observation,
    Opened,
    Standing,
    Step,
    Stepped,
    Turn,
    Usage,
)
from dojo_kernel.results import read_results
from dojo_kernel.rows import Failures, Known, read_episode, read_folders
from dojo_kernel.run import run
from dojo_kernel.settings import AgentSettings, EpisodeSettings, Experiment, KernelSettings
from dojo_kernel.testing import open_memory_kernel

SAMPLE = "import shutil; shutil.copy(DATA / 'sample_submission.csv', WORKSPACE / 'submission.csv')"
SHA = "0" * 64
LITE = {  # arXiv 2505.07782, table 5: mean position score over the 8 models
    "tabular-playground-series-dec-2021": 1.000000, "detecting-insults-in-social-commentary": 0.995000,
    "plant-pathology-2020-fgvc7": 0.706198, "dogs-vs-cats-redux-kernels-edition": 0.704814,
    "histopathologic-cancer-detection": 0.635389, "aerial-cactus-identification": 0.625717,
    "nomad2018-predict-transparent-conductors": 0.560720, "random-acts-of-pizza": 0.506494,
    "aptos2019-blindness-detection": 0.474492, "jigsaw-toxic-comment-classification-challenge": 0.437596,
    "the-icml-2013-whale-challenge-right-whale-redux": 0.423450, "spooky-author-identification": 0.405318,
    "tabular-playground-series-may-2022": 0.336664, "leaf-classification": 0.324687,
    "text-normalization-challenge-english-language": 0.315865, "dog-breed-identification": 0.300586,
    "denoising-dirty-documents": 0.204969, "mlsp-2013-birds": 0.154272,
    "text-normalization-challenge-russian-language": 0.098380, "ranzcr-clip-catheter-line-classification": 0.036199,
    "new-york-city-taxi-fare-prediction": 0.000843,
}  # fmt: skip
TABULAR = {
    "santander-customer-satisfaction": 0.777327, "demand-forecasting-kernels-only": 0.576934, "dont-overfit-ii": 0.532964,
    "porto-seguro-safe-driver-prediction": 0.359001, "santander-value-prediction-challenge": 0.337203,
    "conways-reverse-game-of-life-2020": 0.223404, "liverpool-ion-switching": 0.152072,
    "ventilator-pressure-prediction": 0.136828, "instant-gratification": 0.071988,
    "santander-customer-transaction-prediction": 0.000000,
}  # fmt: skip
NLP = {
    "llm-detect-ai-generated-text": 0.808599, "20-newsgroups-ciphertext-challenge": 0.741197, "lmsys-chatbot-arena": 0.311389,
    "quora-question-pairs": 0.283346, "stumbleupon": 0.182091, "kaggle-llm-science-exam": 0.135041,
    "linking-writing-processes-to-writing-quality": 0.089086, "quora-insincere-questions-classification": 0.070380,
    "AI4Code": 0.025269,
}  # fmt: skip
CV = {
    "airbus-ship-detection": 0.578445, "draper-satellite-image-chronology": 0.472431, "facial-keypoints-detection": 0.393214,
    "petfinder-pawpularity-score": 0.283909, "alaska2-image-steganalysis": 0.257705,
    "cassava-leaf-disease-classification": 0.223718, "imet-2020-fgvc7": 0.179036, "whale-categorization-playground": 0.166983,
    "bms-molecular-translation": 0.066147, "bengaliai-cv19": 0.018395,
}  # fmt: skip
H_RANKS = {  # table 2, in the order of its rows
    "lite": (21.21, 27.85, 56.48, 44.26, 58.43, 33.50, 48.61, 61.95),
    "tabular": (15.37, 18.97, 32.65, 37.85, 38.13, 30.36, 37.46, 42.64),
    "nlp": (13.14, 29.97, 37.46, 28.41, 28.48, 28.39, 30.93, 38.45),
    "cv": (10.17, 18.76, 35.02, 26.75, 34.26, 20.35, 23.07, 42.83),
}


class Two:
    """A look, a trial that fails, a wrong syntax, the sample submitted, and a call of nothing."""

    name = "two"
    trusted = False

    def __init__(self, cells: int = 5) -> None:
        self._actions: list[Any] = [
            RequestInfo(info_type="name"),
            ValidateCode(code="1 / 0"),
            ExecuteCode(code="this is no Python"),
            ExecuteCode(code=SAMPLE),
            Invalid(problem="nothing is called fly", given="fly"),
        ][:cells]

    async def act(self, observation: Observation) -> Turn:
        return Turn(action=self._actions.pop(0) if self._actions else None)


@pytest.fixture(autouse=True)
def _prepared(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))
    monkeypatch.setitem(sys.modules, __name__, sys.modules[Two.__module__])


async def played(out: Path, **changes: Any) -> Path:
    agent = AgentSettings(kind=f"{__name__}:Two", name=changes.pop("agent", "two"), options=changes.pop("options", {}))
    given = {"competitions": ("wine", "diabetes"), "seeds": (0, 1), "parallel": 4, "agents": (agent.model_dump(),), **changes}
    await run(Experiment.model_validate(given), out=out, start_kernel=open_memory_kernel)
    return out


def opened(agent: str = "a", competition: str = "wine", **changes: Any) -> Opened:
    fields: dict[str, Any] = {
        "episode": f"{competition}-{agent}",
        "competition": competition,
        "competition_sha256": SHA,
        "better": "lower",
        "seed": 0,
        "agent": agent,
        "settings": {"episode": EpisodeSettings().model_dump(mode="json"), "kernel": KernelSettings().model_dump(mode="json")},
        "box": "docker",
        "enforcement": (Enforcement(limit="network", by="namespace"), Enforcement(limit="disk", by="nothing")),
        "versions": {},
        "started_at": "2026-11-21T00:00:00Z",
        **changes,
    }
    return Opened.model_validate(fields)


def grade(score: float, rank: float | None, rows: str = "private", **changes: Any) -> Grade:
    board = {"board": "private", "position": 1, "teams": 100, "human_rank": rank, "exact": changes.pop("exact", True)}
    standings = () if rank is None else (Standing.model_validate(board),)
    return Grade.model_validate(
        {"rows": rows, "sha256": SHA, "score": score, "standings": standings, "human_rank": rank, **changes}
    )


def step(index: int, action: Any = None, **changes: Any) -> Stepped:
    observation = Observation(text="", ok=changes.pop("ok", True), steps_left=9, seconds_left=9)
    given = {"index": index, "action": action or ExecuteCode(code="1"), "reward": 0, "started_at": "", "seconds": 2.0}
    return Stepped(step=Step.model_validate({**given, "observation": observation, **changes}))


def write(folder: Path, *events: Any) -> Path:
    with Journal.create(folder) as journal:
        for event in events:
            journal.append(event)
    return folder


def episode(folder: Path, agent: str, competition: str, final: Grade | None, *steps: Stepped, **changes: Any) -> Path:
    """A whole journal; its last submission, if any, is graded on the feedback rows first."""
    seen = [] if final is None else [step(len(steps), grade=final.model_copy(update={"rows": "public"}))]
    ending = Closed(reason=changes.pop("reason", "steps"), final=final, seconds=1.0)
    return write(folder, opened(agent, competition, **changes), *steps, *seen, ending)


def of(evaluation: Any, agent: str) -> Any:
    (found,) = [one for one in evaluation.overall.agents if one.agent == agent]
    return found


# --- published figures ---------------------------------------------------------------------------------------------------


def test_means_over_domains_and_over_all_are_the_published_ones(tmp_path: Path) -> None:
    domains = {"lite": LITE, "tabular": TABULAR, "nlp": NLP, "cv": CV}
    lines = [f"mean,{slug},1,higher,{rank},{name}" for name, ranks in domains.items() for slug, rank in ranks.items()]
    (tmp_path / "table5.csv").write_text("\n".join(["agent,competition,score,better,human_rank,domain", *lines]))
    found = evaluate(read_results(str(tmp_path / "table5.csv")))
    sections = {one.title: one for one in found.domains}
    assert {name: len(one.competitions) for name, one in sections.items()} == {"lite": 21, "tabular": 10, "nlp": 9, "cv": 10}
    for name, published in H_RANKS.items():
        assert sections[name].agents[0].h_rank.value == pytest.approx(sum(published) / 8, abs=0.003)
    for name, mean in {"lite": 44.036, "tabular": 31.677, "nlp": 29.404, "cv": 26.400}.items():
        assert sections[name].agents[0].h_rank.value == pytest.approx(mean, abs=5e-4)
    assert found.overall.agents[0].h_rank.value == pytest.approx(35.4035, abs=5e-5)


TRAJECTORY = {  # what matters of MLE-Dojo's trajectories/env_history.json
    "competition": "random-acts-of-pizza",
    "actions": [
        {"step": 1, "action": "request_info", "result": {"status": "SUCCESS", "data": {"name": "random-acts-of-pizza"}}},
        *(
            {
                "step": number,
                "action": "execute_code",
                "result": {
                    "status": "FAILED",
                    "execution": {
                        "status": "FAILED",
                        "output": "",
                        "error": "KeyError: 'request_text'",
                        "execution_time": "1.20s",
                    },
                    "submission": None,
                },
            }
            for number in (6, 7)
        ),
        *(
            {
                "step": number,
                "action": "execute_code",
                "result": {
                    "status": "SUCCESS",
                    "execution": {"status": "SUCCESS", "output": "", "error": "", "execution_time": "1.36s"},
                    "submission": {
                        "status": "SUCCESS",
                        "raw_score": score,
                        "position_score": {
                            "private": {"position": place, "total": 462, "position_score": (463 - place) / 462},
                            "public": {"position": place, "total": 462, "position_score": (463 - place) / 462},
                            "avg_score": (463 - place) / 462,
                        },
                    },
                },
            }
            for number, score, place in (
                (8, 0.5563755038419854, 301),
                (9, 0.5988220346894952, 234),
                (10, 0.6225761800963643, 198),
            )
        ),
    ],
    "total_reward": 1.4199134199134198,
}


def test_the_shipped_trajectory_of_mle_dojo_is_read_with_its_three_human_ranks(tmp_path: Path) -> None:
    (tmp_path / "env_history.json").write_text(json.dumps(TRAJECTORY))
    (row,) = read_results(f"gpt={tmp_path / 'env_history.json'}")
    assert row.curve == (0.0, 0.0, *(pytest.approx(rank, abs=5e-7) for rank in (0.350649, 0.495671, 0.573593)))
    assert sum(row.curve) == pytest.approx(TRAJECTORY["total_reward"])
    assert (row.agent, row.score, row.human_rank) == ("gpt", 0.6225761800963643, pytest.approx(0.573593, abs=5e-7))
    assert row.executions == Failures(steps=5, kinds={"error": 2})
    assert (row.steps, row.submissions, row.seconds, row.cost) == (6, 3, pytest.approx(6.48), None)
    assert "test set" in row.disclosure
    assert "(the same)" in row.disclosure


def test_the_bundled_percentile_board_ranks_them_within_half_a_percent() -> None:
    with (bundled_folder() / "random-acts-of-pizza" / "percentile_board.csv").open() as file:
        lines = list(csv.DictReader(file))
    for line in lines:
        board = Leaderboard.from_percentiles(
            line["board"], int(line["teams"]), [float(line[f"p{i}"]) for i in range(101)], "higher"
        )
        for score, rank in ((0.5563755, 0.350649), (0.5988220, 0.495671), (0.6225762, 0.573593)):
            assert board.standing(score).human_rank == pytest.approx(rank, abs=0.005)


# --- journals ------------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_played_episode_becomes_a_row_with_its_protocol_failures_and_curve(tmp_path: Path) -> None:
    rows, passed = read_folders([await played(tmp_path)])
    assert passed == []
    assert {(row.agent, row.competition, row.seed) for row in rows} == {
        ("two", name, seed) for name in ("wine", "diabetes") for seed in (0, 1)
    }
    row = next(row for row in rows if row.competition == "wine")
    assert (row.domain, row.better, row.board, row.ended, row.left_out) == ("tabular", "lower", "programs", "agent", "")
    assert row.score is not None
    assert row.human_rank is not None
    assert (row.validations, row.executions) == (Failures(steps=1, kinds={"error": 1}), Failures(steps=2, kinds={"syntax": 1}))
    assert (row.steps, row.bad_calls, row.submissions) == (5, 1, 1)
    assert row.curve == (0.0, 0.0, row.feedback_human_rank, row.feedback_human_rank)
    assert (row.tokens, row.cost) == (None, None)
    assert (row.verifies, row.replayed) == (True, None)
    for words in (
        "feedback on public rows by base, final on private",
        "at most 20 steps, 3600 s, 50 submissions",
        "network open",
        "limits held by nothing: isolation",
        "journal verifies",
        "not replayed",
        "programs, not people",
    ):
        assert words in row.disclosure, words


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"execution": {"status": "error", "outputs": (Error(ename="IndentationError", evalue=""),)}}, "syntax"),
        ({"execution": {"status": "error", "outputs": (Error(ename="KeyError", evalue=""),)}}, "error"),
        ({"execution": {"status": "timeout"}}, "timeout"),
        ({"execution": {"status": "died", "death": Death(kind="signal", code=11)}}, "died"),
        ({"execution": {"status": "died", "death": Death(kind="oom")}}, "out of memory"),
        ({"execution": {"status": "ok"}, "grade": Grade(rows="public", sha256=SHA, problem="no id", code="header")}, "submission refused"),
        ({"execution": {"status": "ok"}, "ok": False}, "not graded"),
        ({"ok": False}, "not run"),
        ({"execution": {"status": "ok"}}, None),
    ],
)  # fmt: skip
def test_a_failed_step_is_counted_by_its_kind(tmp_path: Path, changes: dict[str, Any], kind: str | None) -> None:
    if "execution" in changes:
        changes = {**changes, "execution": Execution.model_validate({"code": "1", "seconds": 1.0, **changes["execution"]})}
    for action, name in ((ExecuteCode(code="1"), "executions"), (ValidateCode(code="1"), "validations")):
        row = read_episode(episode(tmp_path / name, "a", "wine", None, step(0, action, **changes)) / "journal.jsonl")
        assert getattr(row, name) == Failures(steps=1, kinds={kind: 1} if kind else {})


def test_an_episode_without_a_submission_ranks_last_where_there_is_a_board_and_nowhere_where_there_is_none(
    tmp_path: Path,
) -> None:
    episode(tmp_path / "a", "a", "wine", None, step(0))
    episode(tmp_path / "b", "a", "my-own", None, step(0))
    episode(tmp_path / "c", "b", "my-own", grade(0.5, None), step(0))
    rows, _ = read_folders([tmp_path])
    assert {(row.agent, row.competition): (row.human_rank, row.board) for row in rows} == {
        ("a", "wine"): (0.0, "programs"),
        ("a", "my-own"): (None, "none"),
        ("b", "my-own"): (None, "none"),
    }
    assert of(evaluate(rows, coverage="own"), "b").h_rank is None


def test_tokens_and_cost_are_summed_with_feedback_and_one_unknown_makes_them_unknown(tmp_path: Path) -> None:
    known = Usage(input_tokens=100, output_tokens=10, cost=0.5)
    judge = Usage(input_tokens=5, output_tokens=5, cost=0.25)
    dear = Usage(input_tokens=1, output_tokens=1)
    for name, usages, expected in (
        ("a", [(known, None), (known, judge)], (230, 1.25)),
        ("b", [(known, None), (dear, None)], (112, None)),
        ("c", [(known, None), (None, None)], (None, None)),
    ):
        steps = [step(i, usage=mine, feedback_usage=theirs) for i, (mine, theirs) in enumerate(usages)]
        episode(tmp_path / name, name, "wine", None, *steps)
        row = read_episode(tmp_path / name / "journal.jsonl")
        assert (row.tokens, row.cost) == expected
    found = evaluate(read_folders([tmp_path])[0])
    assert [of(found, name).cost for name in "abc"] == [1.25, None, None]


def test_the_nodes_of_a_search_count_like_the_steps_of_its_episode(tmp_path: Path) -> None:
    shown = Observation(text="", ok=True, steps_left=9, seconds_left=9)
    asked = Usage(input_tokens=10, output_tokens=1, cost=0.1)
    nodes = [
        Explored(
            node=Node(id=number, kind="draft", parent=None, base=None, code="1", keeps=True, observation=shown),
            grade=grade(1.0 - rank, rank, "public"),
            forked=True,
            folder="",
            episode="",
            head_sha256=SHA,
            steps=steps,
            seconds=2.0,
            usage=asked,
        )
        for number, (rank, steps) in enumerate([(0.5, 1), (0.2, 2), (0.75, 1)])
    ]
    ending = Closed(reason="agent", final=grade(0.25, 0.75), seconds=1.0, usage=asked)
    row = read_episode(write(tmp_path / "tree", opened("tree"), *nodes, ending) / "journal.jsonl")
    assert (row.steps, row.submissions, row.curve) == (4, 3, (0.5, 0.5, 0.5, 0.75))
    assert (row.tokens, row.cost) == (44, pytest.approx(0.4))
    assert row.protocol.feedback_rows == "public"
    assert "nodes of a search, each on a branch: 3" in row.findings


def test_a_journal_that_was_changed_is_a_row_that_counts_in_nothing(tmp_path: Path) -> None:
    episode(tmp_path / "good", "a", "wine", grade(0.2, 0.9))
    file = episode(tmp_path / "bad", "a", "wine", grade(0.5, 0.1)) / "journal.jsonl"
    file.write_bytes(file.read_bytes().replace(b'"score":0.5', b'"score":0.1'))
    found = evaluate(read_folders([tmp_path])[0])
    assert of(found, "a").h_rank.value == pytest.approx(90)
    (bad,) = [row for row in found.rows if not row.verifies]
    assert "does NOT verify" in bad.disclosure
    assert any("1 episodes left out: the journal does not verify" in line for line in found.notices)


def test_a_journal_that_cannot_be_read_is_not_called_changed(tmp_path: Path) -> None:
    write(tmp_path / "empty")
    file = episode(tmp_path / "plugin", "a", "wine", grade(0.5, 0.1), step(0, RequestInfo(info_type="x"))) / "journal.jsonl"
    lines = file.read_text().splitlines()
    prev, out = SHA, []
    for line in lines:  # as a version with one more action would have written it
        whole = json.loads(line)
        body = json.dumps(whole["event"], separators=(",", ":")).replace('"request_info"', '"fly"')
        digest = hashlib.sha256(f"1 {whole['seq']} {prev} {body}".encode()).hexdigest()
        out.append(f'{{"format":1,"seq":{whole["seq"]},"prev":"{prev}","sha256":"{digest}","event":{body}}}\n')
        prev = digest
    file.write_text("".join(out))
    empty, plugin = read_folders([tmp_path])[0]
    assert (empty.verifies, plugin.verifies) == (None, None)
    assert "holds no episode" in empty.disclosure
    assert "--plugin MODULE" in plugin.left_out
    assert "journal not read" in plugin.disclosure


def test_a_submission_refused_on_the_final_rows_is_an_episode_without_a_score(tmp_path: Path) -> None:
    refused = Grade(rows="private", sha256=SHA, problem="one class only", code="undefined")
    write(
        tmp_path, opened("a", "x"), step(0, grade=grade(0.3, 0.7, "public")), Closed(reason="steps", final=refused, seconds=1.0)
    )
    row = read_episode(tmp_path / "journal.jsonl")
    assert (row.score, row.human_rank, row.left_out) == (None, 0.0, "")
    assert "one class only" in row.disclosure


def test_what_has_no_end_or_ended_by_a_fault_is_left_out_and_said(tmp_path: Path) -> None:
    write(tmp_path / "open", opened("a"), step(0, grade=grade(0.1, 1.0, "public")))
    episode(tmp_path / "fault", "a", "wine", grade(0.1, 1.0), reason="error")
    episode(tmp_path / "good", "a", "wine", grade(0.2, 0.6))
    found = evaluate(read_folders([tmp_path])[0])
    assert (of(found, "a").episodes, of(found, "a").h_rank.value) == (1, pytest.approx(60))
    assert sum("1 episodes left out" in line for line in found.notices) == 2


def test_branches_set_aside_failures_and_copies_are_not_counted_as_episodes(tmp_path: Path) -> None:
    final = grade(0.2, 0.6)
    one = episode(tmp_path / "one", "a", "wine", final)
    episode(one / "branches" / "0", "a", "wine", final, seed=7)
    episode(tmp_path / "one.failed-1", "a", "wine", None, reason="error", seed=8)
    episode(tmp_path / ".one.1234", "a", "wine", final, seed=9)
    (tmp_path / "copy").mkdir()
    (tmp_path / "copy" / "journal.jsonl").write_bytes((one / "journal.jsonl").read_bytes())
    rows, passed = read_folders([tmp_path, one])
    assert len(rows) == 1
    assert len(passed) == 4
    assert set(passed) <= set(evaluate(rows, passed=passed).notices)


def test_restarts_refusals_and_deaths_are_findings(tmp_path: Path) -> None:
    died = Execution(code="1", status="died", seconds=1.0, life=2, oom_kills=1, death=Death(kind="oom"))
    refused = Grade(rows="public", sha256=SHA, problem="a link", code="link")
    episode(tmp_path, "a", "wine", None, step(0, execution=died), step(1, grade=refused, ok=False))
    row = read_episode(tmp_path / "journal.jsonl")
    assert set(row.findings) == {
        "kernel restarts: 2", "processes killed for memory: 1", "kernel ended: oom: 1", "submissions refused: link: 1",
    }  # fmt: skip
    assert "submissions refused: link: 1" in row.disclosure


def test_a_kept_replay_is_told_and_one_of_another_episode_is_not_believed(tmp_path: Path) -> None:
    file = episode(tmp_path, "a", "wine", grade(0.2, 0.6)) / "journal.jsonl"
    for text, replayed, words in (
        ('{"episode": "wine-a", "diverged": false}', True, "replayed: the same"),
        ('{"episode": "wine-a", "diverged": true}', False, "replayed: DIVERGED"),
        ('{"episode": "other", "diverged": false}', None, "another episode"),
        ("{", None, "cannot be read"),
    ):
        (tmp_path / "replay.json").write_text(text)
        row = read_episode(file)
        assert row.replayed is replayed
        assert words in row.disclosure


# --- comparison ----------------------------------------------------------------------------------------------------------


def compared(tmp_path: Path, results: dict[tuple[str, str], tuple[float, float]], **options: Any) -> Any:
    for (agent, competition), (score, rank) in results.items():
        episode(tmp_path / f"{agent}-{competition}", agent, competition, grade(score, rank))
    return evaluate(read_folders([tmp_path])[0], **options)


UNEQUAL = {("a", "x"): (0.1, 0.9), ("a", "y"): (0.1, 0.1), ("b", "x"): (0.2, 0.5)}


def test_agents_that_played_different_competitions_are_compared_on_the_common_ones_and_it_is_said(tmp_path: Path) -> None:
    found = compared(tmp_path, UNEQUAL)
    assert [(one.agent, one.h_rank.value) for one in found.overall.agents] == [("a", pytest.approx(90)), ("b", pytest.approx(50))]
    assert found.overall.competitions == ("x",)
    assert any("b lacks y" in line and "1 of 2" in line for line in found.notices)
    assert [row.competition for row in found.rows if row.left_out] == ["y"]


def test_over_their_own_competitions_they_are_called_not_comparable(tmp_path: Path) -> None:
    found = compared(tmp_path, UNEQUAL, coverage="own")
    assert of(found, "a").h_rank.value == pytest.approx(50)
    assert any("NOT comparable" in line for line in found.notices)


def test_without_a_common_competition_there_is_no_figure(tmp_path: Path) -> None:
    found = compared(tmp_path, {("a", "x"): (0.1, 0.9), ("b", "y"): (0.1, 0.9)})
    assert [(one.h_rank, one.elo, one.aup) for one in found.overall.agents] == [(None, None, None)] * 2
    assert any("0 of 2" in line for line in found.notices)


def test_synthetic_data_is_never_in_a_figure_with_real_data(tmp_path: Path) -> None:
    episode(tmp_path / "real", "a", "x", grade(0.2, 0.4))
    noise = episode(tmp_path / "noise", "a", "x", grade(0.1, 1.0, synthetic=True), synthetic=True)
    found = evaluate(read_folders([tmp_path])[0])
    assert of(found, "a").h_rank.value == pytest.approx(40)
    assert any("1 episodes on synthetic data are left out" in line for line in found.notices)
    alone = evaluate(read_folders([noise])[0])
    assert SYNTHETIC in alone.notices[0]
    assert SYNTHETIC in alone.rows[0].disclosure


def test_boards_known_by_percentiles_are_marked(tmp_path: Path) -> None:
    episode(tmp_path, "a", "x", grade(0.2, 0.4, exact=False))
    found = evaluate(read_folders([tmp_path])[0])
    assert any("percentiles" in line and "x" in line for line in found.notices)
    assert "within 0.005" in found.rows[0].disclosure


def test_two_runs_count_by_their_mean_or_by_the_better_one_as_mle_dojo_has_it(tmp_path: Path) -> None:
    for seed, rank in enumerate((0.2, 0.8)):
        episode(tmp_path / str(seed), "a", "x", grade(1 - rank, rank), seed=seed)
    rows, _ = read_folders([tmp_path])
    every, best = evaluate(rows), evaluate(rows, runs="best")
    assert (of(every, "a").h_rank.value, of(best, "a").h_rank.value) == (pytest.approx(50), pytest.approx(80))
    assert of(every, "a").best_of == {1: pytest.approx(50), 2: pytest.approx(80)}


def test_medals_gaps_and_elo_are_of_the_same_rows(tmp_path: Path) -> None:
    lost = [step(0, grade=grade(0.3, 0.7, "public"))]
    ending = Closed(reason="steps", final=grade(0.4, 0.6, medal="silver"), seconds=1.0)
    write(tmp_path / "a", opened("a", "x"), *lost, ending)
    episode(tmp_path / "b", "b", "x", grade(0.1, 0.9, medal="gold"))
    found = evaluate(read_folders([tmp_path])[0])
    assert (of(found, "a").medals, of(found, "b").medals["gold"]) == ({"gold": 0, "silver": 1, "bronze": 0}, 1)
    assert of(found, "a").gap == pytest.approx(10)
    assert of(found, "b").elo.value > of(found, "a").elo.value
    assert of(found, "a").elo.value + of(found, "b").elo.value == pytest.approx(2000)


def test_different_rules_data_and_counts_are_said(tmp_path: Path) -> None:
    short = {"episode": EpisodeSettings(max_steps=3).model_dump(mode="json")}
    episode(tmp_path / "a", "a", "x", grade(0.2, 0.4))
    episode(tmp_path / "b", "b", "x", grade(0.2, 0.4), settings=short, enforcement=())
    episode(tmp_path / "c", "b", "x", grade(0.3, 0.3), competition_sha256="1" * 64)
    notices = " | ".join(evaluate(read_folders([tmp_path])[0]).notices)
    for words in ("different protocols", "prepared differently", "between 1 and 2 runs"):
        assert words in notices


def test_feedback_on_the_final_rows_and_an_open_network_are_said(tmp_path: Path) -> None:
    final = grade(0.2, 0.4, "all")
    write(tmp_path, opened("a", "x", enforcement=(Enforcement(limit="network", by="nothing"),)), step(0, grade=final),
          Closed(reason="steps", final=final, seconds=1.0))  # fmt: skip
    notices = " | ".join(evaluate(read_folders([tmp_path])[0]).notices)
    assert "feedback on the very rows" in notices
    assert "nothing held the network in 1 episodes" in notices


def test_rows_that_disagree_about_the_better_scores_are_refused(tmp_path: Path) -> None:
    episode(tmp_path, "a", "x", grade(0.2, 0.4))
    (tmp_path / "theirs.csv").write_text("agent,competition,score,better\nb,x,0.3,higher\n")
    rows = [*read_folders([tmp_path])[0], *read_results(str(tmp_path / "theirs.csv"))]
    with pytest.raises(ConfigError, match="which scores of x are better"):
        evaluate(rows)


def test_boards_of_people_and_of_programs_and_different_final_rows_are_said(tmp_path: Path) -> None:
    episode(tmp_path, "a", "x", grade(0.2, 0.4))
    (tmp_path / "theirs.csv").write_text("agent,competition,score\na,wine,0.3\n")
    rows = [*read_folders([tmp_path])[0], *read_results(str(tmp_path / "theirs.csv"))]
    notices = " | ".join(evaluate(rows).notices)
    assert "the means mix both" in notices
    assert "different rows (private, unknown)" in notices


def test_a_curve_that_has_ended_keeps_its_last_value() -> None:
    assert mean_curve([(0.0, 1.0), (0.5,)]) == (0.25, 0.75)
    assert mean_curve([]) == ()


def test_the_json_is_strict_and_carries_the_disclosure_of_every_row(tmp_path: Path) -> None:
    episode(tmp_path, "a", "x", grade(0.2, 0.4), step(0, Invalid(problem="nothing is called fly", given="fly")))
    found = json.loads(as_json(evaluate(read_folders([tmp_path])[0])), parse_constant=pytest.fail)
    assert found["overall"]["agents"][0]["bad_calls"] == 1
    assert all(row["disclosure"] for row in found["rows"])


# --- results of others ---------------------------------------------------------------------------------------------------


def test_a_csv_is_ranked_on_the_boards_of_the_catalogue_and_numbered_by_runs(tmp_path: Path) -> None:
    (tmp_path / "theirs.csv").write_text("agent,competition,score,cost\nx,wine,0.0,0.5\nx,wine,,\n")
    first, second = read_results(str(tmp_path / "theirs.csv"))
    assert (first.seed, first.human_rank, first.medal, first.cost, first.better) == (0, 1.0, "gold", 0.5, "lower")
    assert (second.seed, second.score, second.human_rank, second.cost) == (1, None, 0.0, None)
    assert first.verifies is None
    assert any("2 results are imported" in line for line in evaluate([first, second]).notices)


REPORT = {
    "competition_id": "wine", "score": 0.31, "gold_threshold": 0.0, "silver_threshold": 0.1, "bronze_threshold": 0.5,
    "median_threshold": 0.6, "any_medal": True, "gold_medal": False, "silver_medal": False, "bronze_medal": True,
    "above_median": True, "submission_exists": True, "valid_submission": True, "is_lower_better": True,
    "created_at": "2024-09-19T21:55:55", "submission_path": "submission.csv",
}  # fmt: skip


def test_a_grading_report_of_mle_bench_keeps_its_medals_and_directions(tmp_path: Path) -> None:
    none = {**REPORT, "competition_id": "elsewhere", "score": None, "bronze_medal": False, "submission_exists": False}
    none |= {"valid_submission": False, "is_lower_better": False}
    file = tmp_path / "aide" / "2024-09-19T21-55-55-GMT_grading_report.json"
    file.parent.mkdir()
    file.write_text(json.dumps({"total_runs": 3, "competition_reports": [REPORT, REPORT, none]}))
    rows = read_results(str(file))
    assert [(row.agent, row.competition, row.seed) for row in rows] == [
        ("aide", "wine", 0),
        ("aide", "wine", 1),
        ("aide", "elsewhere", 0),
    ]
    assert (rows[0].medal, rows[0].better, rows[0].human_rank is not None) == ("bronze", "lower", True)
    assert (rows[2].score, rows[2].human_rank, rows[2].better) == (None, None, "higher")
    assert "no submission" in rows[2].findings
    assert [row.agent for row in read_results(f"other={file}")] == ["other"] * 3


def test_a_nan_that_mle_dojo_took_for_a_success_is_no_score(tmp_path: Path) -> None:
    history = {"competition": "elsewhere", "actions": [json.loads(json.dumps(TRAJECTORY["actions"][3]))]}
    history["actions"][0]["result"]["submission"] |= {"raw_score": math.nan, "position_score": {}}
    (tmp_path / "one.json").write_text(json.dumps(history))
    (tmp_path / "cost_history.json").write_text('[{"action": "execute_code", "cost": 0.0}]')
    (row,) = read_results(str(tmp_path / "one.json"))
    assert (row.score, row.human_rank, row.cost, row.submissions) == (None, None, None, 0)
    assert row.executions.kinds == {"submission refused": 1}


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.csv", "agent,score\nx,1\n", "no column is called competition"),
        ("a.csv", "agent,competition,score\n", "no results"),
        ("a.csv", "agent,competition,score\nx,wine,good\n", "line 2"),
        ("a.csv", "agent,competition,score\nx,wine,nan\n", "line 2"),
        ("a.csv", "agent,competition,score,mood\nx,wine,1,fine\n", "no such key"),
        ("a.csv", "agent,competition,score\nx,elsewhere,1\n", "does not know 'elsewhere'"),
        ("a.json", "{", "neither CSV nor JSON"),
        ("a.json", "[]", "neither a trajectory"),
        ("a.json", '{"competition_reports": [{"competition_id": "wine"}]}', "no key 'score'"),
        ("a.json", '{"competition": "wine", "actions": [1]}', "TypeError"),
        ("b.csv", None, "No such file"),
    ],
)
def test_what_cannot_be_imported_is_said_on_one_line(tmp_path: Path, name: str, text: str | None, words: str) -> None:
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(ConfigError, match=words) as raised:
        read_results(str(tmp_path / name))
    assert "--import" in str(raised.value)
    assert "\n" not in str(raised.value)


def test_folders_without_journals_are_named_with_the_next_command(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(ConfigError, match="dojo run"):
            read_folders([folder])


def test_a_competition_that_nobody_knows_is_no_error() -> None:
    assert Known()["elsewhere"] is None
    assert Known().boards("elsewhere") == []
