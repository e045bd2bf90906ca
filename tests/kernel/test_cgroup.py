"""Version 2 of cgroups, on machines that run either: its freezer for real, its other files as the kernel writes them."""

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from dojo_kernel.kernel import docker, reaper, sandbox
from dojo_kernel.records import Limits

EVENTS = "low 0\nhigh 3\nmax 412\noom 2\noom_kill 1\noom_group_kill 0\nsock_throttled 0\n"
STAT = "anon 1048576\nfile 8192\nkernel 4096\ninactive_anon 0\nactive_anon 1048576\ninactive_file 8192\nactive_file 0\n"
FILES = {
    "cgroup.procs": "17\n42\n",
    "cgroup.events": "populated 1\nfrozen 0\n",
    "cgroup.freeze": "0\n",
    "memory.current": "2097152\n",
    "memory.events": EVENTS,
    "memory.stat": STAT,
    "memory.max": "max\n",
    "memory.swap.max": "max\n",
    "memory.oom.group": "0\n",
    "pids.max": "max\n",
    "cpu.max": "max 100000\n",
}


def unified() -> Path | None:
    """Where version 2 is mounted: /sys/fs/cgroup, or beside version 1."""
    mounts = [line.split() for line in Path("/proc/self/mounts").read_text().splitlines()]
    return next((Path(mount[1]) for mount in mounts if mount[2] == "cgroup2"), None)


def made(root: Path, name: str) -> Path:
    folder = root / name
    folder.mkdir()
    for file, text in FILES.items():
        (folder / file).write_text(text)
    return folder


def test_limits_of_version_2_are_written_as_its_files_take_them(tmp_path):
    (tmp_path / "cgroup.subtree_control").write_text("cpuset cpu io\n")
    group = sandbox.Cgroup._version_2(tmp_path, "box")
    assert group is not None
    assert (tmp_path / "cgroup.subtree_control").read_text() == "+memory +pids"
    group.paths[0].rmdir()
    folder = made(tmp_path, "box")
    group.limit(Limits(cpus=1.5, memory_gb=0.5, pids=64))
    names = ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max", "cpu.max")
    assert [(folder / name).read_text() for name in names] == ["536870912", "0", "0", "64", "150000 100000"]
    assert group.written == set(names)


def test_a_group_without_a_memory_limit_is_refused(tmp_path):
    (tmp_path / "cgroup.subtree_control").write_text("cpu memory pids\n")
    group = sandbox.Cgroup._version_2(tmp_path, "box")
    (tmp_path / "box/pids.max").write_text("max\n")
    with pytest.raises(OSError, match="no limits"):
        group.limit(Limits())


async def test_a_sandbox_reads_the_figures_of_version_2(tmp_path):
    folder = made(tmp_path, "box")
    box = sandbox.SandboxProvisioner()
    box._cgroup = sandbox.Cgroup(dict.fromkeys(("memory", "pids", "cpu", "freezer"), folder), 2, set())
    assert await box.oom_kills() == 1
    assert await box.memory_used() == 2097152 - 8192


def test_a_container_reads_the_figures_of_version_2(tmp_path):
    folder = made(tmp_path, "box")
    group = docker.Cgroup(folder, folder, v2=True)
    assert group.oom_kills() == 1
    assert group.memory_used() == 2097152 - 8192
    assert group.pids() == [17, 42]
    gone = docker.Cgroup(tmp_path / "gone", tmp_path / "gone", v2=True)
    assert (gone.oom_kills(), gone.memory_used(), gone.pids(), gone.set_frozen(frozen=True)) == (None, None, [], False)


async def test_a_group_that_does_not_freeze_in_time_is_thawed_again(tmp_path):
    folder = made(tmp_path, "box")
    (folder / "cgroup.events").write_text("populated 1\nfrozen 0\n")
    assert not docker.Cgroup(folder, folder, v2=True).set_frozen(frozen=True)
    assert (folder / "cgroup.freeze").read_text() == "0"
    (folder / "cgroup.freeze").write_text("-")
    assert not await sandbox.Cgroup({"freezer": folder}, 2, set()).freeze(frozen=True)
    assert (folder / "cgroup.freeze").read_text() == "0"


@pytest.fixture
def real():
    """A group of version 2 of this machine with one process in it."""
    root = unified()
    if root is None or os.geteuid() != 0:
        pytest.skip("version 2 of cgroups is not mounted here, or not ours to write")
    folder = root / f"dojo-test-{os.getpid()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"version 2 of cgroups cannot be written here: {error}")
    with subprocess.Popen(["sh", "-c", "while :; do :; done"]) as process:
        (folder / "cgroup.procs").write_text(str(process.pid))
        yield folder, process
        if folder.exists():
            (folder / "cgroup.freeze").write_text("0")
        process.kill()
    reaper.remove_cgroup(folder)
    assert not folder.exists()


def ticks(process) -> int:
    fields = Path(f"/proc/{process.pid}/stat").read_bytes().rpartition(b")")[2].split()
    return int(fields[11]) + int(fields[12])


def stands_still(process) -> bool:
    before = ticks(process)
    time.sleep(0.4)
    return ticks(process) == before


def goes_on(process) -> bool:
    before, end = ticks(process), time.monotonic() + 10
    while ticks(process) == before and time.monotonic() < end:
        time.sleep(0.05)
    return ticks(process) > before


async def test_a_frozen_group_of_version_2_stands_still_and_goes_on(real):
    folder, process = real
    group = sandbox.Cgroup({"freezer": folder}, 2, set())
    assert await group.freeze(frozen=True)
    assert stands_still(process)
    assert await group.freeze(frozen=False)
    assert goes_on(process)
    same = docker.Cgroup(folder, folder, v2=True)
    assert same.pids() == [process.pid]
    assert same.set_frozen(frozen=True)
    assert stands_still(process)
    assert same.set_frozen(frozen=False)
    assert goes_on(process)


def test_a_frozen_group_of_version_2_is_removed_with_what_is_in_it(real):
    folder, process = real
    assert docker.Cgroup(folder, folder, v2=True).set_frozen(frozen=True)
    reaper.remove_cgroup(folder)
    assert process.wait(5) == -signal.SIGKILL
    assert not folder.exists()
