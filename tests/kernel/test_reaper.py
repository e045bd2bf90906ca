"""What a dead host left behind is given back by the next one, and nothing of a living one is touched."""

import fcntl
import json
import os
import subprocess
import sys
import tempfile
import uuid
from pathlib import Path

import pytest
from boxes import alive

from dojo_kernel.kernel import reaper
from dojo_kernel.settings import state_root

HOST = """
import sys, subprocess
from pathlib import Path
from dojo_kernel.kernel import reaper
from dojo_kernel.kernel.workspace import mount_tmpfs
child = subprocess.Popen(["sleep", "600"], start_new_session=True)
import tempfile
folder = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))
reaper.lease("run_dir", str(folder))
(folder / "w").mkdir()
mount_tmpfs(folder / "w", 1 << 20, 0)
(folder / "w/file").write_text("x")
(folder / "w/link").symlink_to(sys.argv[1])
reaper.lease("pid", f"{child.pid}:{reaper.start_time(child.pid)}")
print(child.pid, folder, reaper.host_name(), flush=True)
sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def state(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_STATE", str(tmp_path / "state"))
    return state_root() / "hosts"


@pytest.fixture
def host(tmp_path):
    kept = tmp_path / "kept"
    kept.mkdir()
    (kept / "file").write_text("x")
    with subprocess.Popen(
        [sys.executable, "-c", HOST, str(kept)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        pid, folder, name = process.stdout.readline().split()
        yield process, int(pid), Path(folder), name, kept
        process.kill()
    reaper.reap()


def test_a_dead_host_s_processes_mounts_and_folders_are_given_back(host, state):
    process, pid, folder, name, kept = host
    process.kill()
    process.wait()
    assert folder.exists()
    given = reaper.reap()
    assert {one.kind for one in given} == {"run_dir", "pid"}
    assert not folder.exists()
    assert str(folder) not in Path("/proc/self/mountinfo").read_text()
    assert not alive(pid)
    assert list(state.glob(f"{name}.*")) == []
    assert (kept / "file").exists(), "links out of the tree are not followed"


def test_a_living_host_keeps_what_it_has(host):
    _, pid, folder, _, _ = host
    assert reaper.reap() == []
    assert folder.exists()
    assert alive(pid)


def test_a_host_that_another_took_for_dead_before_it_had_its_lock_writes_a_new_one(state, monkeypatch):
    taken = []

    def late(fd, operation, flock=fcntl.flock):
        if not taken:
            taken.append(fd)
            (state / f"{reaper.host_name()}.lock").unlink()  # as _reap_host does
        flock(fd, operation)

    monkeypatch.setattr(reaper, "_own", {})
    monkeypatch.setattr(reaper.fcntl, "flock", late)
    reaper.start()
    path, fd = reaper._own[os.getpid()]
    assert os.path.samestat(os.fstat(fd), path.stat())
    os.close(fd)


def test_the_hooks_hear_the_name_of_the_dead(host, monkeypatch):
    process, _, _, name, _ = host
    heard = []
    monkeypatch.setattr(reaper, "HOOKS", [heard.append])
    process.kill()
    process.wait()
    reaper.reap()
    assert heard == [name]


def test_a_pid_that_belongs_to_another_process_now_is_spared_and_so_are_folders_that_are_not_ours(state, tmp_path):
    mine = tmp_path / "dk-mine"
    mine.mkdir()
    state.mkdir(parents=True)
    (state / "1-1.lock").touch()
    leases = [("pid", f"{os.getpid()}:1"), ("pid", f"{os.getpid()}:"), ("run_dir", str(mine)), ("cgroup", str(mine))]
    (state / "1-1.json").write_text(json.dumps(leases))
    assert len(reaper.reap()) == len(leases)
    assert mine.exists()


def test_what_cannot_be_given_back_is_for_the_next_one_to_try(host, state, monkeypatch):
    process, _, folder, name, _ = host
    process.kill()
    process.wait()
    with monkeypatch.context() as patch:
        patch.setattr(reaper, "remove_run_dir", lambda _: False)
        assert [one.kind for one in reaper.reap()] == ["pid"]
    assert folder.exists()
    assert [one.what for one in reaper.reap()] == [str(folder)]
    assert not folder.exists()
    assert list(state.glob(f"{name}.*")) == []


def test_a_lock_that_its_host_made_anew_in_that_moment_is_no_dead_ones(host, state, monkeypatch):
    _, pid, folder, name, _ = host
    path = state / f"{name}.lock"

    def late(*_):  # between `open` and `flock` another one has taken it for a dead one's, and its host has made it anew
        path.unlink()
        path.touch()

    with monkeypatch.context() as patch:
        patch.setattr(reaper.fcntl, "flock", late)
        assert reaper.reap() == []
    assert alive(pid)
    assert folder.exists()


@pytest.mark.parametrize("text", ["", "{", "[1]", '[["run_dir"]]', "null"])
def test_a_list_torn_by_a_crash_is_no_error(state, text):
    state.mkdir(parents=True)
    (state / "1-1.lock").touch()
    (state / "1-1.json").write_text(text)
    assert reaper.reap() == []
    assert list(state.iterdir()) == []


@pytest.mark.parametrize("escape", ["{base}/../{name}", "{base}/../../tmp/{name}"])
def test_a_lease_cannot_lead_out_of_the_run_folders(state, escape):
    victim = Path(tempfile.mkdtemp(prefix=f"kept-{uuid.uuid4().hex[:6]}", dir="/tmp"))
    base = Path(tempfile.mkdtemp(prefix="dk-", dir="/tmp"))
    state.mkdir(parents=True)
    (state / "1-1.lock").touch()
    (state / "1-1.json").write_text(json.dumps([("run_dir", escape.format(base=base, name=victim.name))]))
    try:
        reaper.reap()
        assert victim.exists()
    finally:
        base.rmdir()
        victim.rmdir()
