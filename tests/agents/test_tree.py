"""The search on branches: against a kernel in memory, and in boxes where processes matter."""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from boxes import BOXES_IN_CI, alive, becomes_true, descendants
from competition_fixtures import make_counting
from model_server import ModelServer, Say

from dojo_kernel.actions import ExecuteCode
from dojo_kernel.agents.agent import Searcher, Wish, find_agent
from dojo_kernel.agents.tree import TreeAgent, code_in
from dojo_kernel.episode import in_a_box, open_episode
from dojo_kernel.errors import ConfigError, PluginError
from dojo_kernel.journal import read_journal
from dojo_kernel.journal.notebook import to_notebook
from dojo_kernel.records import Acted, Closed, Explored, Node, Observation, Resumed, Stepped
from dojo_kernel.replay import replay
from dojo_kernel.run import play
from dojo_kernel.settings import EpisodeSettings, KernelSettings
from dojo_kernel.testing import open_memory_kernel

W = "from pathlib import Path\nW = globals().get('WORKSPACE', Path('.'))\n"


def scores(value):
    """A cell whose submission is off by `value`, an expression: its rmse."""
    write = "(W / 'submission.csv').write_text('Id,y\\n' + ''.join(f'{i},{i + OFF}\\n' for i in range(60)))"
    return f"{W}OFF = {value}\n_ = {write}"


@pytest.fixture
def competition(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    return make_counting(tmp_path)


def opened(competition, kind="memory", *, folder=None, resume=False, boxed=None, **settings):
    return open_episode(
        competition.folder,
        settings=EpisodeSettings(**settings),
        kernel=KernelSettings(box="auto" if kind == "memory" else kind, **(boxed or {})),
        start_kernel=open_memory_kernel if kind == "memory" else in_a_box,
        folder=folder,
        resume=resume,
    )


def nodes_of(episode):
    found = [event for event in episode.events if isinstance(event, Explored)]
    return sorted(found, key=lambda one: one.node.id)


def results(episode):
    return [(one.node.kind, one.node.parent, one.node.base, one.node.observation.score) for one in nodes_of(episode)]


async def searched(competition, kind="memory", *, cells, about=None, **options):
    """The episode of a whole search; its policy is a matter of the cells alone."""
    async with opened(competition, kind, **(about or {})) as episode:
        await play(episode, TreeAgent(cells=cells, **{"drafts": 3, "debug_prob": 0.0, **options}))
    return episode


CELLS = (
    scores("5"),
    "raise ValueError('a draft that fails')",
    scores("4") + "\nx = [OFF]",
    scores("x[0]"),  # of the first draft, which has no x
    scores("x[0] - 3.5") + "\nx.append(1)",
    scores("x[0] - len(x)"),
    scores("OFF + len(x) - 2"),
    scores("len(x) - 2") + "\n_ = (W / 'f').write_text('best')",
)
EXPECTED = [
    ("draft", None, None, 5.0),
    ("draft", None, None, None),
    ("draft", None, None, 4.0),
    ("improve", 0, 0, None),
    ("improve", 2, 2, 0.5),
    ("improve", 2, 2, 3.0),
    ("improve", 4, 4, None),
    ("improve", 4, 4, 0.0),
]


# --- the search --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["memory", *BOXES_IN_CI])
async def test_drafts_come_first_then_the_best_is_improved_from_where_it_ended(competition, kind, tmp_path):
    run = tmp_path / "run"
    episode = await searched(competition, kind, cells=CELLS, about={"folder": run})
    assert results(episode) == EXPECTED
    assert [one.forked for one in nodes_of(episode)] == [True] * len(CELLS)
    assert (episode.closed.reason, episode.closed.final.score, episode.state.best.score) == ("agent", 0.0, 0.0)
    assert (episode.state.steps, episode.state.submissions) == (8, 5)
    assert sorted(path.name for path in (run / "branches").iterdir()) == list("01234567")
    for one in nodes_of(episode):
        events = read_journal(run / one.folder)
        assert isinstance(events[-1], Closed)
        assert not any(isinstance(event, Explored) for event in events)
        ran = [event.step.action.code for event in events if isinstance(event, Stepped)]
        path = [one.node.code]
        base = one.node.base
        while base is not None:
            path.append(CELLS[base])
            base = EXPECTED[base][2]
        assert ran == path[::-1], "the journal of a branch is the way from the root"


async def test_a_node_that_submits_what_its_base_did_has_no_score_forked_or_not(competition):
    cells = [scores("2"), f"{W}_ = (W / 'f').write_text('')", scores("2"), scores("1")]
    forked, again = [results(await searched(competition, cells=cells, drafts=1, width=1, forks=forks)) for forks in (True, False)]
    assert forked == again == [("draft", None, None, 2.0), *[("improve", 0, 0, None)] * 2, ("improve", 0, 0, 1.0)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["process"])
async def test_a_failed_cell_is_replaced_where_it_began_and_one_that_only_lacks_a_score_is_built_upon(competition, kind):
    cells = ["x = 1\nraise ValueError", "y = 7", scores("'x' in globals()"), scores("y")]
    episode = await searched(competition, kind, cells=cells, drafts=2, debug_prob=1.0)
    found = {(kind, parent, base, score) for kind, parent, base, score in results(episode)[2:]}
    assert found in ({("debug", 0, None, 0.0), ("debug", 1, 1, 7.0)}, {("debug", 0, None, None), ("debug", 1, 1, 0.0)})


def node(number, kind="draft", parent=None, score=None):
    seen = Observation(text="", ok=score is not None, score=score, steps_left=9, seconds_left=9.0)
    return Node(id=number, kind=kind, parent=parent, base=None, code="", keeps=score is not None, observation=seen)


def test_a_failure_is_mended_a_few_times_and_then_left_alone():
    agent = TreeAgent(cells=["1"] * 99, drafts=1, debug_prob=1.0, max_debug_depth=2, width=3)
    tried = [node(0, score=1.0), node(1)]
    assert agent.choose(tried, 9) == [Wish("debug", tried[1]), *[Wish("improve", tried[0])] * 2]
    tried += [node(2, "debug", 1)]
    assert agent.choose(tried, 1) == [Wish("debug", tried[2])]
    tried += [node(3, "debug", 2)]
    assert agent.choose(tried, 1) == [Wish("improve", tried[0])]
    assert agent.choose([node(0), *tried[1:]], 1) == [Wish("debug", node(0))]
    assert agent.choose(tried[1:], 1) == [Wish("draft")]


async def test_lower_and_higher_are_read_from_the_first_observation():
    tried = [node(0, score=1.0), node(1, score=2.0), node(2, score=2.0)]
    for text, best in (("lower is better", 0), ("higher is better", 1)):
        agent = TreeAgent(cells=["1"] * 9, drafts=1, width=1)
        await agent.act(Observation(text=f"Metric: m, {text}.", ok=True, steps_left=9, seconds_left=9.0))
        assert agent.choose(tried, 9) == [Wish("improve", tried[best])]


def test_the_choice_is_the_same_for_the_same_nodes():
    tried = [node(0, score=1.0), *[node(number) for number in range(1, 20)]]
    one, two = (TreeAgent(cells=["1"] * 99, drafts=1, width=9, seed=4) for _ in range(2))
    assert one.choose(tried, 9) == two.choose(tried, 9) != TreeAgent(cells=["1"] * 99, drafts=1, width=9).choose(tried, 9)


# --- branches ----------------------------------------------------------------------------------------------------------


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("kind", BOXES_IN_CI)
async def test_siblings_run_at_the_same_time(competition, kind):
    wait = (  # each for the other
        "import time\nfrom pathlib import Path\nPath('here').touch()\nend = time.monotonic() + 60\n"
        "def there(): return len(list(Path.cwd().parents[1].glob('*/workspace/here')))\n"
        "while there() < 2 and time.monotonic() < end: time.sleep(0.05)\nprint('met', there())\n"
    )
    episode = await searched(competition, kind, cells=[wait + scores("1"), wait + scores("2")], drafts=2)
    assert all("met 2" in one.node.observation.text for one in nodes_of(episode))


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["memory", *BOXES_IN_CI])
async def test_without_forks_the_way_is_run_again_with_the_same_result(competition, kind, tmp_path):
    episode = await searched(competition, kind, cells=CELLS, about={"folder": tmp_path / "run"}, forks=False)
    assert results(episode) == EXPECTED
    assert (episode.closed.final.score, episode.state.steps, episode.state.submissions) == (0.0, 8, 5)
    assert [one.forked for one in nodes_of(episode)] == [False] * len(CELLS)
    last = read_journal(tmp_path / "run" / "branches" / "7")
    assert sum(isinstance(event, Resumed) for event in last) == 1
    (step,) = [event.step for event in last if isinstance(event, Stepped)]
    assert step.action.code == "\n\n".join([CELLS[2], CELLS[4], CELLS[7]])


async def test_a_refused_fork_falls_back_to_running_the_way_again(competition):
    cells = [cell + "\nnumbers = (i for i in [1])" if number == 2 else cell for number, cell in enumerate(CELLS)]
    episode = await searched(competition, cells=cells)
    assert results(episode) == EXPECTED
    assert [one.forked for one in nodes_of(episode)] == [True] * 4 + [False] * 4


class Prepared(TreeAgent):
    """One that runs a cell before it begins."""

    def __init__(self, first, **options):
        super().__init__(**options)
        self._first = first

    async def act(self, observation):
        turn = await super().act(observation)
        if turn.action is None and self._first:
            self._first, code = "", self._first
            return turn.model_copy(update={"action": ExecuteCode(code=code)})
        return turn


@pytest.mark.parametrize("more", ["", "\nnumbers = (i for i in [1])"], ids=["forked", "refused"])
async def test_what_the_agent_runs_before_is_the_trunk_of_every_node(competition, more):
    async with opened(competition) as episode:
        await play(episode, Prepared("x = 3" + more, cells=[scores("x"), scores("x - 1"), scores("x - 2")], drafts=2))
    assert [one[3] for one in results(episode)] == [3.0, 2.0, 1.0]
    assert [one.forked for one in nodes_of(episode)] == [not more] * 3
    assert episode.closed.final.score == 1.0


@pytest.mark.slow
@pytest.mark.parametrize("kind", BOXES_IN_CI)
async def test_a_branch_that_dies_is_a_failed_node_and_not_the_end(competition, kind):
    cells = [scores("5"), "import os; os._exit(3)", scores("4"), scores("3")]
    episode = await searched(competition, kind, cells=cells, drafts=3, debug_prob=1.0)
    assert episode.closed.final.score == 3.0
    dead = nodes_of(episode)[1].node
    assert (dead.keeps, dead.observation.score, dead.observation.ok) == (False, None, False)
    assert "the kernel died" in dead.observation.text
    assert results(episode)[3][:3] == ("debug", 1, None)


@pytest.mark.slow
async def test_a_lost_box_fails_the_node_later_ones_begin_in_new_boxes_and_nothing_of_it_stays(competition, tmp_path):
    cells = [scores("5"), "import time; time.sleep(600)", scores("4"), scores("OFF - 3")]
    journal = tmp_path / "run" / "branches" / "1" / "journal.jsonl"
    async with opened(competition, "process", folder=tmp_path / "run") as episode:
        playing = asyncio.create_task(play(episode, TreeAgent(cells=cells, width=1, drafts=2, debug_prob=0.0)))
        assert await becomes_true(lambda: journal.exists() and '"acted"' in journal.read_text(), 60)
        init = episode.kernel._box._init.pid
        kernels = descendants(init)
        assert len(kernels) >= 3, "the zygote, the trunk's, the node's"
        os.kill(init, signal.SIGKILL)
        await playing
    assert [one[3] for one in results(episode)] == [5.0, None, 4.0, 1.0]
    assert episode.closed.final.score == 1.0
    assert await becomes_true(lambda: not any(map(alive, kernels)))


# --- the budget --------------------------------------------------------------------------------------------------------


async def test_steps_and_submissions_hold_over_all_branches_together(competition):
    many = [scores(f"{number} + 1") for number in range(30)]
    episode = await searched(competition, cells=many, width=4, about={"max_steps": 6})
    assert (len(nodes_of(episode)), episode.state.steps, episode.closed.reason) == (6, 6, "steps")
    assert sorted(one.node.observation.steps_left for one in nodes_of(episode)) == list(range(6))
    episode = await searched(competition, cells=many, width=4, about={"max_submissions": 7})
    assert (len(nodes_of(episode)), episode.state.submissions, episode.closed.reason) == (7, 7, "agent")


@pytest.mark.slow
async def test_the_seconds_are_shared_among_siblings(competition, tmp_path):
    slow, run = ["import time; time.sleep(60)"] * 8, tmp_path / "run"
    about = {"max_seconds": 4.0, "folder": run}
    episode = await searched(competition, "process", cells=slow, width=2, drafts=8, about=about)
    assert episode.closed.reason == "time"
    assert len(nodes_of(episode)) == 2
    for one in nodes_of(episode):
        (acted,) = [event for event in read_journal(run / one.folder) if isinstance(event, Acted)]
        assert acted.action.timeout_s == 2.0
        assert "timed out" in one.node.observation.text
        assert one.seconds >= 2.0


async def test_no_more_kernels_wait_than_checkpoints_may(competition, monkeypatch):
    many = [scores(f"{9 - number}") for number in range(9)]
    episode = await searched(competition, cells=many, width=1, drafts=9, about={"boxed": {"max_checkpoints": 2}})
    assert all(one.forked for one in nodes_of(episode))
    episode = await searched(competition, cells=many, width=1, drafts=1, about={"boxed": {"max_checkpoints": 1}})
    assert [one[2] for one in results(episode)] == [None, *range(8)]
    assert all(one.forked for one in nodes_of(episode)), "the best one's kernel is kept"


async def test_a_node_without_a_cell_costs_a_step(competition):
    async with opened(competition, max_steps=4) as episode:
        await play(episode, TreeAgent(propose=lambda ask: None, drafts=9))
    assert (len(nodes_of(episode)), episode.closed.reason) == (3, "steps")


# --- the journal -------------------------------------------------------------------------------------------------------


async def test_the_notebook_of_the_root_tells_what_was_tried_and_holds_the_way_to_the_best(competition, tmp_path):
    episode = await searched(competition, cells=CELLS, about={"folder": tmp_path / "run"})
    notebook = to_notebook(episode.events)
    (table,) = [cell.source for cell in notebook.cells if cell.id == "explored"]
    assert "| 4 | improve | 2 | 2 | 0.5 |" in table
    assert [cell.source for cell in notebook.cells if "dojo-node" in cell.metadata.get("tags", ())] == [
        CELLS[2],
        CELLS[4],
        CELLS[7],
    ]


async def test_the_winning_branch_replays_and_the_root_says_where_it_is(competition, tmp_path):
    await searched(competition, cells=CELLS, about={"folder": tmp_path / "run"})
    root = await replay(tmp_path / "run", competition=competition, open_kernel=open_memory_kernel)
    assert not root.diverged
    assert any("branches/7: play that again" in finding for finding in root.findings)
    for number in ("7", "2"):
        report = await replay(tmp_path / "run" / "branches" / number, competition=competition, open_kernel=open_memory_kernel)
        assert (report.diverged, report.final_equal) == (False, True)


async def test_a_branch_without_forks_replays_too(competition, tmp_path):
    await searched(competition, cells=CELLS, about={"folder": tmp_path / "run"}, forks=False)
    report = await replay(tmp_path / "run" / "branches" / "7", competition=competition, open_kernel=open_memory_kernel)
    assert (report.diverged, report.final_now) == (False, 0.0)


async def test_an_interrupted_search_goes_on_with_the_nodes_that_are_missing(competition, tmp_path):
    class Stop(BaseException):
        pass

    class Stops(TreeAgent):
        async def propose(self, ask):
            if ask.id == 5:
                raise Stop
            return await super().propose(ask)

    with pytest.raises(Stop):
        async with opened(competition, folder=tmp_path / "run") as episode:
            await play(episode, Stops(cells=CELLS, drafts=3, debug_prob=0.0))
    done = nodes_of(episode)
    assert [one.node.id for one in done] == [0, 1, 2, 3, 4]
    episode = await searched(competition, cells=CELLS, about={"folder": tmp_path / "run", "resume": True})
    assert nodes_of(episode)[:5] == done
    assert results(episode)[5:] == [("improve", 4, 4, 2.0), ("improve", 4, 4, None), ("improve", 4, 4, 0.0)]
    assert [one.forked for one in nodes_of(episode)] == [True] * 5 + [False] * 3, "kernels of before are gone"
    assert (episode.closed.final.score, episode.state.steps) == (0.0, 8)


RUN = """
name = "cut"
competitions = ["COMPETITION"]
[[agents]]
kind = "tree"
[agents.options]
cells = CELLS
drafts = 3
debug_prob = 0.0
[kernel]
box = "process"
"""


@pytest.mark.endurance
@pytest.mark.slow
async def test_a_search_whose_runner_was_killed_goes_on_and_leaves_nothing_behind(competition, tmp_path):
    def run_file(wait):
        cells = [f"import time; time.sleep({wait})\n{cell}" if number == 5 else cell for number, cell in enumerate(CELLS)]
        text = RUN.replace("CELLS", repr(cells)).replace("COMPETITION", str(competition.folder))
        (tmp_path / "run.toml").write_text(text)
        return [sys.executable, "-m", "dojo_kernel", "run", "run.toml"]

    folder = tmp_path / "runs" / "cut" / "small-tree-0"
    journal = folder / "branches" / "5" / "journal.jsonl"
    with subprocess.Popen(run_file(600), cwd=tmp_path, env=dict(os.environ), stderr=subprocess.DEVNULL) as playing:
        try:
            assert await becomes_true(lambda: journal.exists() and '"type":"acted","index":1' in journal.read_text(), 60)
            assert await becomes_true(lambda: '"id":4' in (folder / "journal.jsonl").read_text(), 30)
            boxes = descendants(playing.pid)
            rooms = rooms_of(boxes)
            assert len(boxes) > 2
            assert rooms
        finally:
            playing.kill()
    assert await becomes_true(lambda: not any(map(alive, boxes)), 30)
    again = subprocess.run(
        [*run_file(0), "--resume", "--json"],
        cwd=tmp_path,
        env=dict(os.environ),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert again.returncode == 0, again.stderr
    events = read_journal(folder)
    explored = sorted((one for one in events if isinstance(one, Explored)), key=lambda one: one.node.id)
    assert [one.node.id for one in explored] == list(range(8))
    assert [one.node.id for one in explored if not one.forked] == [5, 6, 7], "kernels of before are gone"
    assert events[-1].final.score == 0.0
    assert await becomes_true(lambda: not any(folder.exists() for folder in rooms), 30)


def rooms_of(pids):
    """Folders /tmp/dk-* that these processes work in or were told of."""
    told = b""
    for pid in pids:
        with contextlib.suppress(OSError):  # some end at any time
            process = Path(f"/proc/{pid}")
            told += bytes((process / "cwd").readlink()) + b"\0"
            told += (process / "cmdline").read_bytes() + (process / "environ").read_bytes()
    return {Path(os.fsdecode(name)) for name in re.findall(rb"/tmp/dk-[A-Za-z0-9_]+", told)}


@pytest.mark.slow
async def test_nothing_is_left_of_a_search_but_its_journals(competition, tmp_path):
    before = descendants(os.getpid())
    await searched(competition, "process", cells=CELLS, about={"folder": tmp_path / "run"})
    with pytest.raises(PluginError, match="ZeroDivisionError"):
        async with opened(competition, "process", folder=tmp_path / "other") as episode:
            await play(episode, TreeAgent(propose=lambda ask: 1 / 0 if ask.id == 2 else scores("1"), drafts=3))
    assert episode.closed.reason == "error"
    assert await becomes_true(lambda: not any(map(alive, descendants(os.getpid()) - before)))
    names = {path.name for path in (tmp_path / "other" / "branches").iterdir()}
    assert names == {"0", "1", "3"}


async def test_a_policy_that_raises_ends_the_episode_with_its_fault(competition):
    class Confused(TreeAgent):
        def choose(self, nodes, room):
            return super().choose(nodes, room) if not nodes else [1 / 0]

    with pytest.raises(PluginError, match="ZeroDivisionError"):
        async with opened(competition) as episode:
            await play(episode, Confused(cells=CELLS))
    assert (episode.closed.reason, len(nodes_of(episode))) == ("error", 2)


async def test_a_watcher_hears_the_steps_of_the_whole_search(competition):
    heard = []
    async with opened(competition) as episode:
        agent = TreeAgent(cells=CELLS[:4], drafts=3, debug_prob=0.0)
        await play(episode, agent, on_step=lambda now, step: heard.append((step.index, now.state.steps)))
    assert heard == [(0, 1), (1, 2), (2, 3), (3, 4)]


# --- where cells come from ---------------------------------------------------------------------------------------------


async def test_a_model_writes_the_cells_and_reads_what_came_of_them(competition):
    script = [
        Say(f"I begin with a constant.\n```python\n{scores('3')}\n```"),
        Say("I refuse."),
        Say(f"Half of it.\n```python\n{scores('OFF / 2')}\n```\nThat is all."),
    ]
    with ModelServer(script) as server:
        agent = TreeAgent("vllm/any", base_url=server.url, dialect="chat", drafts=1, width=1, debug_prob=0.0)
        async with opened(competition, max_steps=4) as episode:
            await play(episode, agent)
        await agent.aclose()
    assert results(episode) == [("draft", None, None, 3.0), ("improve", 0, 0, None), ("improve", 0, 0, 1.5)]
    first, second, third = [request.body["messages"][1]["content"] for request in server.requests]
    assert "Count to sixty." in first
    assert "OFF = 3" in second
    assert "score 3.0" in second
    assert "- improve, failed: I refuse." in third
    assert "[left]" not in second.partition("Outcome:")[2]
    used = [one.usage.output_tokens for one in nodes_of(episode)]
    assert used == [20, 20, 20]
    assert agent.spent.requests == 3


async def test_the_search_ends_with_the_budget_of_its_model(competition):
    with ModelServer([Say(f"```\n{scores('3')}\n```")] * 9) as server:
        options = {"base_url": server.url, "dialect": "chat", "budget": {"tokens": 200}}
        async with opened(competition) as episode:
            agent = TreeAgent("vllm/any", **options, width=1)
            await play(episode, agent)
            await agent.aclose()
    assert [one[3] for one in results(episode)] == [3.0, 3.0, None]
    assert (episode.closed.reason, episode.closed.final.score) == ("agent", 3.0)


def test_the_last_block_of_python_is_the_cell():
    assert code_in("a\n```python\nx = 1\n```\nb\n```py\ny = '```'\n```\n") == "y = '```'"
    assert code_in("```\nx\n```") == "x"
    assert code_in("```bash\nls\n```") == ""
    assert code_in("none") == ""


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({}, "one of the options model, cells and propose"),
        ({"cells": ["1"], "propose": "a:b"}, "one of the options"),
        ({"cells": ["1"], "temperature": 1}, "temperature belong to a model"),
        ({"cells": ["1"], "width": 0}, "at least 1"),
        ({"propose": "no_such_module:x"}, "no_such_module"),
    ],
)
def test_options_that_make_no_sense_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        TreeAgent(**options)


def test_a_tree_is_a_searcher_by_name():
    assert isinstance(find_agent("tree")(cells=["1"]), Searcher)
    assert not isinstance(find_agent("scripted")(), Searcher)
