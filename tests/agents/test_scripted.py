"""The baseline agent: what it does with what it reads, and how well it plays what is bundled."""

import json
from pathlib import Path

import pytest

from dojo_kernel.actions import ExecuteCode, RequestInfo, ValidateCode
from dojo_kernel.agents.agent import find_agent, is_bundled
from dojo_kernel.agents.scripted import ScriptedAgent
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import find
from dojo_kernel.episode import open_episode
from dojo_kernel.records import Observation
from dojo_kernel.run import play
from dojo_kernel.settings import EpisodeSettings, KernelSettings

ABOUT = {"metric": "accuracy", "id_column": "id", "prediction_columns": {"label": ["0", "1"]}}
INFO = f"## data_path\n/data\n\n## metadata\n{json.dumps(ABOUT)}\n[left] 9 steps"


def saw(text: str = "", *, ok: bool = True, steps_left: int = 20) -> Observation:
    return Observation(text=text, ok=ok, steps_left=steps_left, seconds_left=100.0)


async def moves(agent: ScriptedAgent, *, failing: frozenset[int] = frozenset(), steps: int = 20) -> list[object]:
    """Its actions in a game where the trials with these numbers fail."""
    done, trials, observation = [], 0, saw(steps_left=steps)
    while (action := (await agent.act(observation)).action) is not None and steps > 0:
        steps -= 1
        done.append(action)
        fails = isinstance(action, ValidateCode) and trials in failing
        trials += isinstance(action, ValidateCode)
        observation = saw(INFO if isinstance(action, RequestInfo) else "", ok=not fails, steps_left=steps)
    return done


def code(actions: list[object], kind: type) -> list[str]:
    return [action.code for action in actions if isinstance(action, kind)]


async def test_every_cell_is_tried_before_it_is_run() -> None:
    actions = await moves(ScriptedAgent())
    assert [action.name for action in actions] == ["request_info", *["validate_code", "execute_code"] * 5]
    for trial, cell in zip(code(actions, ValidateCode), code(actions, ExecuteCode), strict=True):
        assert trial.endswith(cell)
        compile(trial, "trial", "exec")


async def test_a_cell_whose_trial_failed_is_not_run_and_no_later_trial_builds_on_it() -> None:
    actions = await moves(ScriptedAgent(), failing=frozenset({1}))
    cells, trials = code(actions, ExecuteCode), code(actions, ValidateCode)
    assert [cell.splitlines()[0].split(":")[0] for cell in cells] == [
        "# Look at the data",
        "# Features",
        "# Tuned",
        "# A blend of the best three",
    ]
    assert sum("# A constant" in trial for trial in trials) == 1


async def test_without_a_look_at_the_data_it_stops() -> None:
    actions = await moves(ScriptedAgent(), failing=frozenset({0}))
    assert [action.name for action in actions] == ["request_info", "validate_code"]


async def test_with_few_steps_it_runs_cells_untried_rather_than_not_at_all() -> None:
    actions = await moves(ScriptedAgent(), steps=6)
    assert [action.name for action in actions] == ["request_info", *["execute_code"] * 5]


async def test_it_stops_when_nothing_is_known() -> None:
    agent = ScriptedAgent()
    await agent.act(saw())
    assert (await agent.act(saw("refused", ok=False))).action is None


async def test_its_cells_name_no_path_but_the_data() -> None:
    for cell in code(await moves(ScriptedAgent()), ExecuteCode):
        assert "/" not in cell.replace("'/data'", "").replace("DATA /", "").replace("folder /", "").replace(
            "2 * np.pi * date.dt.dayofyear / ", ""
        )


def test_only_classes_of_this_package_are_bundled() -> None:
    class Pretender(ScriptedAgent):
        __module__ = "dojo_kernel.agents.scripted"

    assert find_agent("scripted") is ScriptedAgent
    assert is_bundled(ScriptedAgent())
    assert not is_bundled(Pretender())


OTHERS = ("breast-cancer", "character-scripts", "diabetes", "digits", "seattle-weather")


@pytest.mark.slow
@pytest.mark.timeout(400)
@pytest.mark.parametrize("slug", ["wine", *(pytest.param(slug, marks=pytest.mark.endurance) for slug in OTHERS)])
async def test_it_beats_the_median_of_the_reference_board(slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    prepare(find(slug))
    # the tuned models of the text take minutes; its linear one, untried, is worth the comparison
    settings = EpisodeSettings(max_steps=4 if slug == "character-scripts" else 20)
    kernel = KernelSettings(box="process")
    async with open_episode(slug, settings=settings, kernel=kernel, folder=tmp_path / "run", trusted=True) as episode:
        closed = await play(episode, ScriptedAgent())
        failed = [step.observation.text for step in episode.steps if not step.observation.ok]
    assert failed == []
    assert closed.reason == ("steps" if slug == "character-scripts" else "agent")
    assert closed.final is not None
    assert closed.final.rows == "private"
    assert closed.final.human_rank is not None
    assert closed.final.human_rank > 0.5
