"""The sync faces, against a real kernel in a plain process and, where no box matters, against one in memory."""

import contextlib
import gc
import os
import signal
import subprocess
import sys
import threading
import time
import warnings
import weakref
from pathlib import Path

import gymnasium as gym
import nbformat
import numpy as np
import pytest
from boxes import ISOLATED_IN_CI
from gymnasium.utils.env_checker import check_env

import dojo_kernel
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.competition.spec import find
from dojo_kernel.env import ActionSpace, DojoEnv, DojoVectorEnv, UnicodeText
from dojo_kernel.errors import ConfigError, EpisodeOverError
from dojo_kernel.journal import read_journal
from dojo_kernel.kernel.box import on_boxes_thread
from dojo_kernel.kernel.pool import STACK, WarmPool
from dojo_kernel.testing import open_memory_kernel

PROCESS = {"box": "process"}
SUBMIT = "import os, shutil; shutil.copy(os.environ['DOJO_DATA_DIR'] + '/sample_submission.csv', 'submission.csv'); None"


@pytest.fixture(scope="session")
def prepared(tmp_path_factory):
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOJO_DATA", str(root))
        prepare(find("wine"))
    return root


@pytest.fixture(autouse=True)
def _data(prepared, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(prepared))


def in_memory(**arguments):
    return DojoEnv("wine", start_kernel=open_memory_kernel, **arguments)


def cell(code):
    return {"name": "execute_code", "code": code}


@pytest.mark.parametrize("box", ["memory", pytest.param("process", marks=pytest.mark.slow)])
def test_gymnasiums_checker_has_nothing_to_say(box):
    start = {"start_kernel": open_memory_kernel} if box == "memory" else {"kernel": PROCESS}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make("dojo_kernel/Dojo-v0", competition="wine", render_mode="ansi", disable_env_checker=True, **start)
        try:
            check_env(env.unwrapped)
        finally:
            env.close()


def test_an_episode_in_a_real_kernel_is_graded_and_saved(tmp_path):
    with gym.make("dojo_kernel/Dojo-v0", competition="wine", kernel=PROCESS, settings={"max_steps": 4}, folder=tmp_path) as env:
        observation, info = env.reset(seed=3)
        assert "submission.csv" in observation["text"]
        assert info["competition"] == "wine"
        env.step(cell("grüße = '你好 🎈'"))
        observation, *_ = env.step(cell("print(grüße)"))
        assert "你好 🎈" in observation["text"]
        observation, reward, terminated, truncated, info = env.step(cell(SUBMIT))
        assert (observation["scored"], observation["has_best"], terminated, truncated) == (1, 1, False, False)
        assert observation["score"] == observation["best_score"] == info["grade"]["score"]
        assert isinstance(reward, float)
        *_, truncated, info = env.step({"name": "validate_code", "code": "open('trace', 'w').write('x'); print(2)"})
        assert truncated
        assert (info["done_reason"], info["final"]["rows"]) == ("steps", "private")
        path = env.unwrapped.save_notebook(tmp_path / "played.ipynb")
        assert env.unwrapped.episode.settings.seed == 3
    book = nbformat.read(path, as_version=4)
    nbformat.validate(book)
    assert "print(grüße)" in [one.source for one in book.cells]
    assert (tmp_path / "episode-0000" / "journal.jsonl").is_file()


def test_four_episodes_are_played_at_the_same_time(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        envs = gym.make_vec("dojo_kernel/Dojo-v0", num_envs=4, competition="wine", kernel=PROCESS)
    try:
        assert isinstance(envs, DojoVectorEnv)
        observations, infos = envs.reset(seed=7)
        assert list(infos["competition"]) == ["wine"] * 4
        assert [episode.settings.seed for episode in envs.episodes] == [7, 8, 9, 10]
        meet = (  # all four have to be there before any goes on
            "import os, pathlib, time\nmine, place, end = {i}, pathlib.Path({place!r}), time.monotonic() + 60\n"
            "(place / str(mine)).touch()\n"
            "while len(os.listdir(place)) < 4 and time.monotonic() < end: time.sleep(0.01)\n"
            "assert len(os.listdir(place)) == 4\nmine"
        )
        observations, rewards, terminated, truncated, _ = envs.step(
            [cell(meet.format(i=i, place=str(tmp_path))) for i in range(4)]
        )
        assert observations["ok"].all(), observations["text"]
        assert rewards.shape == terminated.shape == truncated.shape == (4,)
        assert not (terminated | truncated).any()
        assert all(f"\n{i}\n" in text for i, text in enumerate(observations["text"]))
        observations, *_ = envs.step([cell("mine")] * 4)  # each has its own kernel
        assert all(f"\n{i}\n" in text for i, text in enumerate(observations["text"]))
    finally:
        envs.close()
        envs.close()


def test_one_seat_of_several_is_opened_anew_by_its_mask():
    envs = DojoVectorEnv(2, "wine", settings={"max_steps": 1}, start_kernel=open_memory_kernel)
    try:
        with pytest.raises(gym.error.ResetNeeded):
            envs.reset(options={"reset_mask": np.array([True, False])})
        envs.reset()
        *_, truncated, infos = envs.step([{"name": "reset"}, {"name": "reset"}])
        assert truncated.all()
        assert list(infos["done_reason"]) == ["steps", "steps"]
        second = envs.episodes[1]
        envs.reset(options={"reset_mask": np.array([True, False])})
        assert envs.episodes[0].state.open
        assert envs.episodes[1] is second
        with pytest.raises(ValueError, match="1 actions for 2 episodes"):
            envs.step([{"name": "reset"}])
    finally:
        envs.close()


def test_an_observation_fits_its_space_and_a_step_gives_five_values():
    env = in_memory()
    observation, _ = env.reset()
    assert env.observation_space.contains(observation)
    values = env.step(cell("1 + 1"))
    assert len(values) == 5
    assert env.observation_space.contains(values[0])
    assert [type(one) for one in values[1:]] == [float, bool, bool, dict]
    env.close()


@pytest.mark.parametrize(
    "bad", [None, 3, "x", {}, {"name": "fly"}, {"name": "execute_code"}, {"name": "execute_code", "code": 1}, [1]]
)
def test_a_bad_action_is_an_observation_that_costs_a_step(bad):
    env = in_memory(settings={"max_steps": 3})
    env.reset()
    observation, reward, terminated, truncated, _ = env.step(bad)
    assert (observation["ok"], reward, terminated, truncated) == (0, 0.0, False, False)
    assert observation["steps_left"] == 2
    assert not env.action_space.contains(bad)
    env.close()


def test_the_last_step_truncates_and_a_further_one_is_the_callers_bug():
    env = in_memory(settings={"max_steps": 1})
    env.reset()
    _, _, terminated, truncated, info = env.step({"name": "reset"})
    assert (terminated, truncated, info["done_reason"], info["final"]) == (False, True, "steps", {})
    with pytest.raises(EpisodeOverError):
        env.step({"name": "reset"})
    env.reset()
    assert env.step(cell("1"))[0]["ok"] == 1
    env.close()


def test_a_step_before_the_first_reset_is_refused():
    env = in_memory()
    with pytest.raises(gym.error.ResetNeeded):
        env.step(cell("1"))
    env.close()


def own_threads():
    return {thread for thread in threading.enumerate() if thread.name == "dojo-env"}


def test_close_is_idempotent_and_ends_its_thread_and_its_kernel():
    before = own_threads()
    env = in_memory()
    env.reset()
    workspace = env.episode.kernel._workspace
    env.close()
    env.close()
    assert not workspace.exists()
    assert own_threads() <= before
    with pytest.raises(gym.error.ClosedEnvironmentError):
        env.step(cell("1"))


def test_an_environment_that_was_never_opened_or_is_forgotten_closes_too():
    in_memory().close()
    env = in_memory()
    env.reset()
    workspace, gone = env.episode.kernel._workspace, weakref.ref(env)
    del env
    gc.collect()
    assert gone() is None
    end = time.monotonic() + 60
    while workspace.exists() and time.monotonic() < end:
        time.sleep(0.01)
    assert not workspace.exists()


def test_a_reset_closes_the_episode_under_way_and_opens_a_fresh_one(tmp_path):
    env = in_memory(folder=tmp_path)
    env.reset()
    env.step(cell("kept = 1"))
    first = env.episode
    env.reset()
    assert first.closed is not None
    assert "NameError" in env.step(cell("kept"))[0]["text"]
    env.close()
    assert [path.name for path in sorted(tmp_path.iterdir())] == ["episode-0000", "episode-0001"]


def test_rendering_gives_the_last_text_or_prints_it(capsys):
    ansi = in_memory(render_mode="ansi")
    ansi.reset()
    observation, *_ = ansi.step(cell("print('hello')"))
    assert ansi.render() == observation["text"]
    assert "hello" in ansi.render()
    ansi.close()
    assert capsys.readouterr().out == ""
    human = in_memory(render_mode="human")
    human.reset()
    human.step(cell("6 * 7"))
    assert human.render() is None
    human.close()
    assert "\n42\n" in capsys.readouterr().out
    with pytest.raises(ValueError, match="ansi, human"):
        in_memory(render_mode="rgb_array")


def test_an_environment_may_be_used_from_another_thread():
    env, seen = in_memory(), []

    def play():
        env.reset()
        seen.append(env.step(cell("40 + 2"))[0]["text"])

    thread = threading.Thread(target=play)
    thread.start()
    thread.join()
    assert "\n42\n" in seen[0]
    assert "\n43\n" in env.step(cell("40 + 3"))[0]["text"]
    env.close()


def test_two_environments_do_not_know_of_each_other():
    one, two = in_memory(), in_memory()
    one.reset()
    two.reset()
    one.step(cell("x = 1"))
    assert "NameError" in two.step(cell("x"))[0]["text"]
    one.close()
    assert two.step(cell("1"))[0]["ok"] == 1
    two.close()


async def test_an_environment_may_be_used_where_a_loop_is_running_already():
    env = in_memory()
    env.reset()
    assert "\n2\n" in env.step(cell("1 + 1"))[0]["text"]
    env.close()


@pytest.mark.slow
@pytest.mark.parametrize("box", ["memory", "process"])
def test_an_environment_branches_into_environments(box, tmp_path):
    before = own_threads()
    start = {"start_kernel": open_memory_kernel} if box == "memory" else {"kernel": PROCESS}
    env = DojoEnv("wine", folder=tmp_path, settings={"max_steps": 9}, render_mode="ansi", **start)
    env.reset(seed=3)
    env.step(cell("x = 1"))
    left, right = env.branch(2, seeds=[1, 2])
    for number, one in enumerate((left, right, env)):
        assert one.action_space == env.action_space
        observation, *_ = one.step(cell(f"x += {number}; print('x is', x)"))
        assert f"x is {1 + number}\n" in observation["text"]
        assert env.observation_space.contains(observation)
    assert one.step(cell("1"))[0]["steps_left"] == 6
    assert "x is 3" in right.branch(1)[0].step(cell("x += 1; print('x is', x)"))[0]["text"]
    env.close()
    assert "x is 2" in right.step(cell("print('x is', x)"))[0]["text"], "it outlives its parent"
    left.close()
    left.close()
    observation, _ = right.reset()
    assert observation["steps_left"] == 9
    assert "NameError" in right.step(cell("x"))[0]["text"], "a reset is a fresh episode"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["episode-0000", "episode-0001"]
    right.close()
    gc.collect()
    deadline = time.monotonic() + 10
    while own_threads() - before and time.monotonic() < deadline:
        time.sleep(0.05)
    assert own_threads() <= before
    with pytest.raises(gym.error.ClosedEnvironmentError):
        left.branch(1)


def test_the_action_space_holds_checkpoints_where_the_settings_do():
    assert not in_memory().action_space.contains({"name": "checkpoint"})
    env = in_memory(settings={"checkpoints": True})
    assert env.action_space.contains({"name": "checkpoint"})
    assert "restore" in {one["name"] for one in env.action_space.schemas}
    assert env.action_space != in_memory().action_space
    env.reset()
    assert env.step({"name": "checkpoint", "label": "here"})[0]["ok"] == 1
    env.close()


def test_settings_are_given_as_words_and_a_wrong_one_is_named():
    with pytest.raises(ConfigError, match="EpisodeSettings: max_steps"):
        in_memory(settings={"max_steps": 0})
    with pytest.raises(ConfigError, match="no-such-competition"):
        DojoEnv("no-such-competition").reset()


def test_samples_are_harmless_actions_of_the_space_and_follow_the_seed():
    space = ActionSpace(seed=1)
    samples = [space.sample() for _ in range(20)]
    assert all(space.contains(one) for one in samples)
    again = ActionSpace(seed=1)
    assert samples == [again.sample() for _ in range(20)]
    assert {one["name"] for one in space.schemas} >= {"execute_code", "validate_code", "request_info", "get_history", "reset"}


@pytest.mark.parametrize("text", ["", "naïve 你好 🎈", "a\x00b", "\n" * 100])
def test_any_string_is_text(text):
    assert UnicodeText().contains(text)
    assert UnicodeText(10).contains(text) == (len(text) <= 10)


def wait_for(pool, count):
    end = time.monotonic() + 60
    while pool.ready < count:
        assert time.monotonic() < end, "the pool is not full"
        time.sleep(0.01)


@pytest.mark.slow
@pytest.mark.parametrize("box", ["process", *ISOLATED_IN_CI])
def test_a_reset_takes_a_waiting_box_and_the_journal_names_its_own_episode(box, tmp_path):
    pool = WarmPool(1)
    env = DojoEnv("wine", kernel={"box": box, "preload": ("json",)}, pool=pool, folder=tmp_path)
    names, places = [], []
    try:
        for turn in range(3):
            if turn:
                wait_for(pool, 1)
            observation, _ = env.reset(seed=turn)
            assert "wine" in observation["text"]
            assert env.step(cell("kept" if turn else "kept = 1"))[0]["ok"] == (turn == 0)
            opened = env.episode.opened
            names.append(opened.episode)
            places.append(env.episode.kernel._box.run_dir)
            assert (opened.box, opened.seed) == (box, turn)
            assert {one.limit for one in opened.enforcement} >= {"memory", "disk", "network"}
            assert (opened.image or "").startswith("sha256:") == (box == "docker")
            assert opened.settings["kernel"]["preload"] == ["json"]
            env.step(cell(SUBMIT))
    finally:
        env.close()
    assert len({*names}) == len({*places}) == 3
    assert not any(place.exists() for place in places)
    assert pool.ready == 0
    journals = [read_journal(tmp_path / f"episode-{number:04d}") for number in range(3)]
    assert [journal[0].episode for journal in journals] == names
    assert all(journal[-1].reason == "closed" and journal[-1].final is not None for journal in journals)


@pytest.mark.slow
def test_two_environments_may_share_a_pool_which_goes_with_the_last_of_them():
    pool = WarmPool(2)
    kernel = {**PROCESS, "preload": ("json",)}
    one = DojoEnv("wine", kernel=kernel, pool=pool)
    two = gym.make("dojo_kernel/Dojo-v0", competition="wine", kernel=kernel, pool=pool).unwrapped
    one.reset()
    two.reset()
    assert one.episode.kernel is not two.episode.kernel
    assert one._loop is two._loop
    one.step(cell("x = 1"))
    assert "NameError" in two.step(cell("x"))[0]["text"]
    one.close()
    wait_for(pool, 2)
    waiting = [session for shelf in pool._shelves.values() for session in shelf.ready]
    two.reset()
    assert two.episode.kernel in waiting
    two.close()
    assert pool.ready == 0
    again = DojoEnv("wine", kernel=kernel, pool=pool)
    again.reset()
    assert again.step(cell("1 + 1"))[0]["ok"] == 1
    again.close()


@pytest.mark.slow
def test_several_seats_take_their_boxes_from_one_pool():
    envs = gym.make_vec("dojo_kernel/Dojo-v0", num_envs=3, competition="wine", kernel={**PROCESS, "preload": ("json",)}, pool=2)
    try:
        for _ in range(2):
            envs.reset(seed=1)
            observations, *_ = envs.step([cell(f"mine = {i}; mine") for i in range(3)])
            assert all(f"\n{i}\n" in text for i, text in enumerate(observations["text"]))
            assert len({id(episode.kernel) for episode in envs.episodes}) == 3
    finally:
        envs.close()


@pytest.mark.slow
def test_a_forgotten_environment_takes_its_pool_with_it():
    env = DojoEnv("wine", kernel={**PROCESS, "preload": ("json",)}, pool=1)
    env.reset()
    pool = env._loop._pool
    wait_for(pool, 1)
    places = [env.episode.kernel._box.run_dir, *(one._box.run_dir for shelf in pool._shelves.values() for one in shelf.ready)]
    assert all(place.exists() for place in places)
    del env
    gc.collect()
    end = time.monotonic() + 60
    while any(place.exists() for place in places) and time.monotonic() < end:
        time.sleep(0.05)
    assert not any(place.exists() for place in places)


@pytest.mark.parametrize("thread", ["its loop", "the boxes"])
def test_one_that_is_collected_in_a_thread_that_its_end_needs_is_closed_too(thread):
    async def collect():
        gc.collect()

    with contextlib.closing(DojoEnv("wine", kernel=PROCESS, settings={"max_steps": 1_000_000})) as env:
        env.reset()
        (branch,) = env.branch(1)
        kernel = branch.episode.kernel
        branch.itself = branch
        del branch
        env._loop.run(collect() if thread == "its loop" else on_boxes_thread(collect()))
        end = time.monotonic() + 60
        while kernel.alive and time.monotonic() < end:
            env.step(cell("1"))
        assert not kernel.alive


PROGRAM = """
import sys, time
from dojo_kernel.env import DojoEnv
from dojo_kernel.kernel.pool import WarmPool
pool = WarmPool(2)
kernel = {"box": sys.argv[1], "preload": ("json",)}
env, plain = DojoEnv("wine", kernel=kernel, pool=pool), DojoEnv("wine", kernel=kernel)
env.reset()
plain.reset()
print(env.episode.kernel._box.run_dir, plain.episode.kernel._box.run_dir, flush=True)
if sys.argv[2] == "interrupted":
    env.step({"name": "execute_code", "code": "while True: pass"})
"""


@pytest.mark.slow
@pytest.mark.parametrize("end", ["at its end", "interrupted"])
@pytest.mark.parametrize("box", ["process", *ISOLATED_IN_CI])
def test_a_program_that_closes_nothing_leaves_nothing(box, end, tmp_path):
    environment = {**os.environ, "DOJO_STATE": str(tmp_path / "state")}
    with subprocess.Popen(
        [sys.executable, "-c", PROGRAM, box, end], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as program:
        places = [Path(name) for name in program.stdout.readline().split()]
        assert len(places) == 2
        if end == "interrupted":
            time.sleep(0.3)
            program.send_signal(signal.SIGINT)
        _, complaints = program.communicate(timeout=60)
    assert complaints.strip().rpartition("\n")[2] == ("KeyboardInterrupt" if end == "interrupted" else "")
    assert not any(place.exists() for place in places)
    assert not list((tmp_path / "state").rglob("*.json")), "no lease is left to be reaped"


def test_a_pool_says_in_the_settings_what_its_boxes_have_imported():
    env = DojoEnv("wine", pool=1)
    assert env._seat._kernel.preload == STACK
    env.close()


def test_a_pool_beside_a_kernel_of_ones_own_is_the_callers_bug():
    with pytest.raises(ValueError, match="not both"):
        in_memory(pool=1)
    with pytest.raises(ValueError, match="at least one"):
        DojoEnv("wine", pool=-1)


def test_every_public_name_is_there():
    for name in dojo_kernel.__all__:
        assert getattr(dojo_kernel, name) is not None
    assert set(dojo_kernel.__all__) <= set(dir(dojo_kernel))
    assert len(dojo_kernel.__all__) == len({*dojo_kernel.__all__})
    with pytest.raises(AttributeError, match="no_such_name"):
        dojo_kernel.no_such_name  # noqa: B018 - the look-up is the test


def test_registration_is_one_entry_with_both_faces():
    spec = gym.spec("dojo_kernel/Dojo-v0")
    assert (spec.entry_point, spec.vector_entry_point) == ("dojo_kernel.env:DojoEnv", "dojo_kernel.env:DojoVectorEnv")
