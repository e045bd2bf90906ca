"""What only bubblewrap has: its own cgroup, and an ordinary user behind a root host. The walls are in test_isolation.py."""

import os
from pathlib import Path

import pytest
from boxes import SMALL, Cells, provisioner

from dojo_kernel.errors import KernelStartError
from dojo_kernel.records import Limits

pytestmark = pytest.mark.sandbox


@pytest.fixture
async def cells():
    async with Cells("sandbox") as found:
        yield found


async def test_what_is_said_to_hold_a_limit_holds_it(cells):
    by = {one.limit: one for one in cells.box.enforcement}
    if by["memory"].by == "cgroup":
        pids = list(cells.box._processes())
        group = cells.box._cgroup
        for controller in ("memory", "pids"):
            listed = (group.folders[controller] / "cgroup.procs").read_text().split()
            assert {str(pid) for pid in pids} <= set(listed)
        assert group.number("pids", "pids.max") == SMALL.pids
        assert group.number("memory", "memory.max" if group.version == 2 else "memory.limit_in_bytes") == SMALL.memory_gb * (
            1 << 30
        )
    assert ("swap" in by["memory"].detail) == (by["memory"].by == "cgroup")
    assert "paths" in by["isolation"].detail


@pytest.mark.skipif(os.geteuid() != 0, reason="only a root host has another uid to give")
async def test_nothing_in_the_box_of_a_root_host_is_root_on_the_host(cells):
    await cells("import subprocess; subprocess.Popen(['sleep', '600'])")
    lines = [line for pid in cells.box._processes() for line in Path(f"/proc/{pid}/status").read_text().splitlines()]
    assert {word for line in lines if line.startswith(("Uid:", "Gid:")) for word in line.split()[1:]} == {"10001"}


async def test_it_gives_no_gpus_and_names_the_box_that_does():
    box = provisioner("sandbox")
    box.limits = Limits(gpus=("GPU-0",))
    with pytest.raises(KernelStartError, match="gives no GPUs; use --box docker"):
        await box.start_box()
    assert box.run_dir is None
