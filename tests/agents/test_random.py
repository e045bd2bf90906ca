"""The floor: its submissions are valid in every bundled competition that needs no download, and the same in a replay."""

from pathlib import Path

import pytest

from dojo_kernel.agents.random_ import RandomAgent
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import find
from dojo_kernel.episode import open_episode
from dojo_kernel.replay import replay
from dojo_kernel.run import play
from dojo_kernel.settings import EpisodeSettings, KernelSettings


@pytest.mark.slow
@pytest.mark.parametrize(
    "slug",
    [
        "wine",
        *(
            pytest.param(name, marks=[pytest.mark.slow, pytest.mark.endurance])
            for name in ("breast-cancer", "diabetes", "digits", "seattle-weather")
        ),
    ],
)
async def test_chance_makes_valid_submissions_that_differ(slug: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    prepare(find(slug))
    folder = tmp_path / "run"
    async with open_episode(slug, kernel=KernelSettings(box="process"), folder=folder, trusted=True) as episode:
        closed = await play(episode, RandomAgent(submissions=3, seed=1))
        scores = [step.grade.score for step in episode.steps if step.grade is not None]
    assert len(scores) == 3
    assert None not in scores
    assert len(set(scores)) > 1
    assert closed.final is not None
    if slug == "wine":
        assert not (await replay(folder, box="process")).diverged


@pytest.mark.endurance
@pytest.mark.slow
async def test_a_seed_draws_the_same_again_and_steps_are_the_limit(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DOJO_DATA", str(data))
    codes = []
    for number in range(2):
        settings, kernel = EpisodeSettings(max_steps=2), KernelSettings(box="process")
        async with open_episode(
            "diabetes", settings=settings, kernel=kernel, folder=tmp_path / str(number), trusted=True
        ) as episode:
            assert (await play(episode, RandomAgent(seed=7))).reason == "steps"
            codes.append(episode.steps[-1].action.to_wire()["code"])
    assert codes[0] == codes[1]
