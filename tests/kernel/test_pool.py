"""A pool of waiting boxes: every lease is a fresh box that no engine had to be asked for, and nothing stays behind."""

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from boxes import BOXES_IN_CI, ISOLATED_IN_CI, alive, becomes_true, opened, printed

from dojo_kernel.errors import BoxUnavailableError, KernelStartError
from dojo_kernel.kernel import pool as pools
from dojo_kernel.kernel.docker import engine
from dojo_kernel.kernel.pool import STACK, WarmPool, warmed
from dojo_kernel.records import Limits
from dojo_kernel.settings import KernelSettings

SMALL = Limits(memory_gb=0.6, pids=128)
LIGHT = ("json",)
"""Imported in an instant; most tests are not about libraries."""


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "public"
    folder.mkdir()
    folder.chmod(0o755)
    (folder / "word.txt").write_text("first")
    (folder / "word.txt").chmod(0o644)
    for parent in (tmp_path, *list(tmp_path.parents)[:2]):
        parent.chmod(0o755)
    return folder


def settings(box="process", **more):
    return KernelSettings(**{"box": box, "limits": SMALL, "preload": LIGHT, **more})


async def leased(pool, data, box="process", **more):
    return await pool.lease(settings(box, **more), data_dir=data, episode="episode")


async def said(kernel, code):
    execution = await kernel.execute(code, 60)
    assert execution.status == "ok", execution
    return printed(execution)


def folder_of(kernel):
    return kernel._box.run_dir


@contextlib.asynccontextmanager
async def pool_of(size, data, box="process", **more):
    async with WarmPool(size) as pool:
        await pool.start(settings(box, **more), data_dir=data)
        await pool.fill()
        assert pool.ready == size
        yield pool


@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_each_lease_is_a_fresh_box_and_the_next_is_made_behind_it(box, data):
    async with pool_of(1, data, box) as pool:
        seen = []
        for turn in range(3):
            kernel = await leased(pool, data, box)
            seen.append(folder_of(kernel))
            assert await said(kernel, "import os; print(os.listdir('.'), 'mine' in dir())") == "[] False\n"
            await said(kernel, f"mine = {turn}; open('left.txt', 'w').write('x'); None")
            await kernel.close()
            await pool.fill()
            assert pool.ready == 1
        assert len(set(seen)) == 3
    assert await becomes_true(lambda: not any(folder.exists() for folder in seen))


@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_a_hit_starts_nothing_and_connects_nothing(box, data):
    async with pool_of(1, data, box) as pool:
        (waiting,) = (session for shelf in pool._shelves.values() for session in shelf.ready)
        folder, sockets = folder_of(waiting), waiting._live.process.sockets
        assert [entry.name for entry in sockets.iterdir() if entry.name.startswith("s-")] == []  # sealed
        lease = leased(pool, data, box)
        with pytest.raises(StopIteration) as over:  # it ends without waiting for anything at all
            lease.send(None)
        kernel = over.value.value
        assert kernel is waiting
        assert folder_of(kernel) == folder
        assert await said(kernel, "print(40 + 2)") == "42\n"
        await kernel.close()


@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_a_box_that_was_left_is_removed_behind_the_back_of_who_left_it(box, data):
    async with pool_of(1, data, box) as pool:
        kernel = await leased(pool, data, box)
        folder, pid = folder_of(kernel), await said(kernel, "import os; print(os.getpid())")
        assert pid
        closing = kernel.close()
        with pytest.raises(StopIteration):
            closing.send(None)
        assert folder.exists()
        await kernel.close()
        assert await becomes_true(lambda: not folder.exists())


async def test_the_usual_libraries_are_imported_before_the_lease_unless_others_are_named(data):
    assert warmed(KernelSettings()).preload == STACK
    assert warmed(settings()).preload == LIGHT
    async with pool_of(1, data, preload=("sqlite3", "no_such_module")) as pool:
        kernel = await leased(pool, data, preload=("sqlite3", "no_such_module"))
        assert await said(kernel, "import sys; print('sqlite3' in sys.modules, 'pandas' in sys.modules)") == "True False\n"
        await kernel.close()


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_a_kernel_with_the_stack_imported_computes_forks_and_restarts(box, data):
    generous = {"preload": (), "limits": Limits(memory_gb=1.5, pids=256)}
    async with pool_of(1, data, box, **generous) as pool:
        kernel = await leased(pool, data, box, **generous)
        assert await said(kernel, "import sys; print({'pandas', 'sklearn', 'matplotlib.pyplot'} <= set(sys.modules))") == "True\n"
        code = (
            "import numpy as np, pandas as pd\nfrom sklearn.ensemble import HistGradientBoostingClassifier as Model\n"
            "x = np.random.default_rng(0).normal(size=(300, 5)); y = x[:, 0] > 0\n"
            "print(Model(max_iter=5).fit(x, y).score(x, y) > 0.9, (x @ x.T).shape)"
        )
        assert await said(kernel, code) == "True (300, 300)\n"
        tried = await kernel.validate("print(Model(max_iter=5).fit(x, y).score(x, y) > 0.9)", 60)
        assert printed(tried) == "True\n"
        await kernel.restart()
        assert await said(kernel, code) == "True (300, 300)\n"
        await kernel.close()


@pytest.mark.slow
@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_a_box_that_died_while_it_waited_is_replaced_and_never_leased(box, data):
    async with pool_of(1, data, box) as pool:
        (waiting,) = (session for shelf in pool._shelves.values() for session in shelf.ready)
        await waiting._live.process.kill()
        assert await becomes_true(lambda: waiting._live is None or waiting._closed)
        await pool.fill()
        assert pool.ready == 1
        kernel = await leased(pool, data, box)
        assert kernel is not waiting
        assert await said(kernel, "print(1)") == "1\n"
        await kernel.close()


@pytest.mark.slow
async def test_a_kernel_that_died_just_now_is_passed_over_too(data):
    async with pool_of(2, data) as pool:
        first, second = next(iter(pool._shelves.values())).ready
        first._live.process._tell(-9)  # its exit was heard, and who watches it has not run yet
        kernel = await leased(pool, data)
        assert kernel is second
        await kernel.close()


@pytest.mark.slow
async def test_a_box_that_waited_too_long_is_replaced(data, monkeypatch):
    monkeypatch.setattr(pools, "IDLE_S", 0.3)
    async with pool_of(1, data) as pool:
        (old,) = next(iter(pool._shelves.values())).ready
        assert await becomes_true(lambda: old._closed)
        await pool.fill()
        monkeypatch.undo()
        kernel = await leased(pool, data)
        assert kernel is not old
        await kernel.close()


async def test_the_deadline_of_a_box_leaves_room_for_its_wait(data):
    async with pool_of(1, data) as pool:
        pooled = await leased(pool, data)
        plain = await opened("process", data)
        assert pooled._box.deadline_s == plain._box.deadline_s + pools.IDLE_S
        await pooled.close()
        await plain.close()


@pytest.mark.slow
async def test_data_that_was_made_anew_is_not_served_from_a_box_that_has_the_old(data):
    async with pool_of(1, data) as pool:
        (old,) = next(iter(pool._shelves.values())).ready
        new = data.with_name("new")
        new.mkdir()
        (new / "word.txt").write_text("second")
        data.rename(data.with_name("old"))
        new.rename(data)
        kernel = await leased(pool, data)
        assert kernel is not old
        assert old._closed
        assert await said(kernel, "import os; print(open(os.environ['DOJO_DATA_DIR'] + '/word.txt').read())") == "second\n"
        await kernel.close()
        await pool.fill()
        (waiting,) = next(iter(pool._shelves.values())).ready
        (data.parent / "manifest.json").write_text("{}")  # the same files, another preparation
        kernel = await leased(pool, data)
        assert kernel is not waiting
        await kernel.close()


@pytest.mark.slow
async def test_other_limits_or_other_data_are_another_sort_of_box(data, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    async with pool_of(1, data) as pool:
        (mine,) = next(iter(pool._shelves.values())).ready
        for kernel in (
            await leased(pool, data, limits=Limits(memory_gb=0.7, pids=128)),
            await leased(pool, data, preload=("json", "sqlite3")),
            await leased(pool, other),
        ):
            assert kernel is not mine
            await kernel.close()
        kernel = await leased(pool, data)
        assert kernel is mine
        await kernel.close()


@pytest.mark.slow
async def test_leases_are_served_in_the_order_they_came_and_each_gets_its_own(data):
    async with WarmPool(1) as pool:
        order = []

        async def one(number):
            kernel = await leased(pool, data)
            order.append(number)
            return kernel

        kernels = await asyncio.gather(*(one(number) for number in range(4)))
        assert order == [0, 1, 2, 3]
        assert len({folder_of(kernel) for kernel in kernels}) == 4
        for kernel in kernels:
            await kernel.close()


async def test_a_lease_that_finds_the_shelf_empty_waits_for_the_box_under_way(data):
    async with WarmPool(1) as pool:
        await pool.start(settings(), data_dir=data)
        (shelf,) = pool._shelves.values()
        assert shelf.making == 1
        waiting = asyncio.create_task(leased(pool, data))
        await asyncio.sleep(0)
        assert shelf.making == 1
        kernel = await waiting
        assert shelf.making == 1, "the next one is made behind it"
        await kernel.close()


async def test_a_lease_that_is_given_up_costs_no_box(data):
    async with WarmPool(1) as pool:
        lease = asyncio.create_task(leased(pool, data))
        await asyncio.sleep(0.01)
        lease.cancel()
        with pytest.raises(asyncio.CancelledError):
            await lease
        await pool.fill()
        assert pool.ready == 1


@pytest.mark.slow
async def test_never_more_than_two_boxes_are_started_at_a_time(data):
    async with WarmPool(4) as pool:
        await pool.start(settings(), data_dir=data)
        (shelf,) = pool._shelves.values()
        assert shelf.making == 4
        most = 0
        while shelf.making:
            most = max(most, pools.STARTS - pool._starts._value)
            await asyncio.sleep(0.001)
        assert most == pools.STARTS
        assert pool.ready == 4


@pytest.mark.docker
async def test_what_keeps_a_pool_from_its_boxes_is_heard_by_the_next_lease(data):
    broken = settings("docker", image="dojo-no-such-image:none")
    async with WarmPool(2) as pool:
        for _ in range(2):
            with pytest.raises((BoxUnavailableError, KernelStartError)):
                await pool.lease(broken, data_dir=data, episode="episode")
        await pool.fill()
        (shelf,) = pool._shelves.values()
        assert pool.ready == shelf.making == 0, "it does not try for ever"


@pytest.mark.slow
async def test_after_a_failure_behind_the_scenes_the_lease_starts_a_box_itself_and_says_so(data):
    gone = data.with_name("elsewhere")
    warnings = []
    async with pool_of(1, data) as pool:
        (shelf,) = pool._shelves.values()
        data.rename(gone)
        kernel = shelf.ready[0]
        await kernel._live.process.kill()
        assert await becomes_true(lambda: kernel._closed and not shelf.making)
        gone.rename(data)
        shelf.stamp = pools._stamp(data)
        assert isinstance(shelf.problem, OSError)
        kernel = await pool.lease(settings(), data_dir=data, episode="episode", warn=warnings.append)
        assert await said(kernel, "print(1)") == "1\n"
        assert "No such file" in warnings[0]
        await kernel.close()
        await pool.fill()
        assert pool.ready == 1, "and goes on"


@pytest.mark.slow
async def test_a_closed_pool_may_be_used_again_and_a_box_outlives_its_pool(data):
    pool = WarmPool(1)
    await pool.start(settings(), data_dir=data)
    await pool.close()  # while the first box is being made
    await pool.close()
    assert pool.ready == 0
    kernel = await leased(pool, data)
    folder = folder_of(kernel)
    await pool.close()
    assert await said(kernel, "print(1)") == "1\n"
    await kernel.close()
    assert not folder.exists()


async def test_a_pool_belongs_to_one_loop_at_a_time(data):
    pool = WarmPool(1)
    async with pool:
        with pytest.raises(RuntimeError, match="another event loop"):
            await asyncio.to_thread(asyncio.run, leased(pool, data))


def test_a_pool_of_nothing_is_refused():
    with pytest.raises(ValueError, match="at least one"):
        WarmPool(0)


HOST = """
import asyncio, sys
from pathlib import Path
from dojo_kernel.kernel.pool import WarmPool
from dojo_kernel.settings import KernelSettings

async def main():
    settings = KernelSettings(box=sys.argv[1], preload=("json",))
    async with WarmPool(2) as pool:
        kernel = await pool.lease(settings, data_dir=Path(sys.argv[2]), episode="episode")
        if sys.argv[3] == "full":
            await pool.fill()
        sessions = [kernel, *(one for shelf in pool._shelves.values() for one in shelf.ready)]
        print(*(f"{one._box.run_dir}:{one._box._bwrap.pid if one.box == 'sandbox' else 0}" for one in sessions), flush=True)
        try:
            await asyncio.sleep(600)
        finally:
            await kernel.close()

asyncio.run(main())
"""


def running(box, folder, pid):
    """Whether a box still is: its container, or bubblewrap and all that is in its cgroup."""
    if box == "docker":
        return any(f"/dojo-{folder.name.removeprefix('dk-')}" in row["Names"] for row in engine().client.api.containers(all=True))
    groups = []
    for place in Path("/proc").glob("[0-9]*/cgroup"):
        with contextlib.suppress(OSError):
            groups.append(place.read_text())
    return alive(pid) or any(folder.name in text for text in groups)


@pytest.mark.parametrize("box", ISOLATED_IN_CI)
@pytest.mark.parametrize(("number", "when"), [(signal.SIGINT, "full"), (signal.SIGINT, "filling"), (signal.SIGKILL, "full")])
def test_nothing_is_left_of_a_pool_whose_host_was_interrupted_or_killed(box, number, when, data, tmp_path):
    environment = {**os.environ, "DOJO_STATE": str(tmp_path / "state")}
    with subprocess.Popen(
        [sys.executable, "-c", HOST, box, str(data), when],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        env=environment,
        start_new_session=True,
    ) as host:
        told = [name.split(":") for name in host.stdout.readline().decode().split()]
        boxes = [(Path(folder), int(pid)) for folder, pid in told]
        if when == "full":
            assert len(boxes) == 3
        assert all(running(box, *one) for one in boxes)
        host.send_signal(number)
        host.wait(60)
    end = time.monotonic() + 30
    while any(running(box, *one) for one in boxes):
        assert time.monotonic() < end, "a box outlived its host"
        time.sleep(0.1)
    if number == signal.SIGINT:
        assert not list((tmp_path / "state").rglob("*.json")), "no lease is left to be reaped"
    else:
        reap = "from dojo_kernel.kernel import docker, reaper; reaper.start()"
        subprocess.run([sys.executable, "-c", reap], env=environment, check=True)
    assert not any(folder.exists() for folder, _ in boxes)
