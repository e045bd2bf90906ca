"""Nothing is left of forks: not of a thousand trial runs one after the other, nor of a hundred branches at once."""

import asyncio
import gc
import os
import time
from pathlib import Path
from typing import NamedTuple

import pytest
import pytest_asyncio
from boxes import BOXES_IN_CI, descendants, opened, printed

from dojo_kernel.inside import fork
from dojo_kernel.records import Limits

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.slow, pytest.mark.timeout(900)]
FORKS = 1000
BRANCHES = 100
WARM = 30
"""Forks before the first count: pools, caches and lazy threads come with the first ones."""
INSIDE = """
import os, gc, re
_ = gc.collect()
fds = len(os.listdir('/proc/self/fd')); threads = len(os.listdir('/proc/self/task'))
rss = int(re.search(r'VmRSS:\\s+(\\d+)', open('/proc/self/status').read())[1]) // 1024
maps = open('/proc/self/maps').read().count('\\n')
print(fds, threads, rss, maps)
"""


class Count(NamedTuple):
    """What there is of everything that a fork takes."""

    host_fds: int
    host_threads: int
    host_sockets: int
    box_processes: int
    run_dir: list[str]
    forks: list[str]
    scratch: str
    kernel_fds: int
    kernel_threads: int


class Size(NamedTuple):
    """What may vary a little, in MB and mappings."""

    host_mb: int
    kernel_mb: int
    kernel_maps: int


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BOXES_IN_CI)
async def kernel(request, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    data.chmod(0o755)  # the box may have another uid
    kernel = await opened(request.param, data, limits=Limits(memory_gb=6, pids=1500))
    yield kernel
    await kernel.close()


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


async def counted(kernel) -> tuple[Count, Size]:
    gc.collect()
    listing = f"import os; print(sorted(name for name in os.listdir({kernel._box.scratch_root!r}) if 'scratch' in name))"
    scratch = printed(await kernel.execute(listing, 20))
    inside = [int(word) for word in printed(await kernel.execute(INSIDE, 20)).split()]
    fds = fork.targets().values()
    status = Path("/proc/self/status").read_text()
    box = len(kernel._box._pids()) or len(descendants(os.getpid()))
    count = Count(
        host_fds=len(fds),
        host_threads=len(names(Path("/proc/self/task"))),
        host_sockets=sum(target.startswith("socket:") for target in fds),
        box_processes=box,
        run_dir=names(kernel._box.run_dir),
        forks=names(kernel._box.run_dir / "k") + names(kernel._box.forks.path),
        scratch=scratch,
        kernel_fds=inside[0],
        kernel_threads=inside[1],
    )
    rss = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))
    return count, Size(rss >> 10, inside[2], inside[3])


async def comes_back_to(kernel, before: Count) -> Count:
    """The state some moments later: exits are reported and threads end in their own time."""
    after, _ = await counted(kernel)
    for _ in range(50):
        if after == before:
            break
        await asyncio.sleep(0.1)
        after, _ = await counted(kernel)
    return after


async def at_rest(kernel) -> tuple[Count, Size]:
    """The state once nothing of earlier forks is on its way out any more."""
    last, size = await counted(kernel)
    for _ in range(50):
        await asyncio.sleep(0.2)
        before, (count, size) = last, await counted(kernel)
        last = count
        if last == before and last.scratch == "[]\n":
            break
    return last, size


@pytest.mark.endurance
async def test_a_thousand_trial_runs_leave_nothing(kernel, record_property):
    assert (await kernel.execute("x = list(range(1000))", 20)).status == "ok"
    for _ in range(WARM):
        assert (await kernel.validate("x.append(1)", 20)).forked
    before, small = await at_rest(kernel)
    started = time.monotonic()
    for number in range(FORKS):
        execution = await kernel.validate("x.append(1); open('left.txt', 'w').close(); print(len(x))", 20)
        assert (execution.forked, printed(execution)) == (True, "1001\n"), (number, execution)
    seconds = time.monotonic() - started
    after = await comes_back_to(kernel, before)
    large = (await counted(kernel))[1]
    record_property("seconds", round(seconds, 1))
    print(f"\n{kernel.box}: {FORKS} trial runs in {seconds:.1f} s; {before} {small} -> {large}")
    assert after == before
    assert large.kernel_mb - small.kernel_mb < 20, (small, large)
    assert large.kernel_maps - small.kernel_maps < 50, (small, large)
    assert large.host_mb - small.host_mb < 30, (small, large)


@pytest.mark.endurance
async def test_a_hundred_branches_live_at_once_and_leave_nothing(kernel, record_property):
    assert (await kernel.execute("x = list(range(1000))", 20)).status == "ok"
    (one,) = await kernel.branch(1)
    await one.close()
    before, _ = await at_rest(kernel)
    started = time.monotonic()
    branches = await kernel.branch(BRANCHES)
    made = time.monotonic() - started
    try:
        ran = await asyncio.gather(
            *(
                one.execute(f"x.append({number}); open('mine', 'w').close(); print(x[-1], len(x))", 60)
                for number, one in enumerate(branches)
            )
        )
        assert [printed(execution) for execution in ran] == [f"{number} 1001\n" for number in range(BRANCHES)]
        assert printed(await kernel.execute("print(len(x))", 20)) == "1000\n"
        executed = time.monotonic() - started
    finally:
        for one in branches:
            await one.close()
    seconds = time.monotonic() - started
    record_property("seconds", round(seconds, 1))
    print(f"\n{kernel.box}: {BRANCHES} branches made in {made:.1f} s, executed by {executed:.1f} s, gone by {seconds:.1f} s")
    assert await comes_back_to(kernel, before) == before


@pytest.mark.endurance
async def test_a_chain_of_forks_does_not_collect_what_its_ancestors_held(kernel):
    made = await kernel.checkpoint("")
    await kernel.restore(made.id)
    before, _ = await at_rest(kernel)
    for _ in range(15):
        made = await kernel.checkpoint("")
        await kernel.restore(made.id)
    after, _ = await counted(kernel)
    assert after.kernel_fds - before.kernel_fds <= 15, "one for each restore at most"
    assert after.kernel_threads == before.kernel_threads
