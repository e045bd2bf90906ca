"""Reading one file out of a directory that the agent filled: 21 names, two of them honest."""

import os
import shutil
import socket
import subprocess
import sys
import time

import pytest

from dojo_kernel.errors import SubmissionError
from dojo_kernel.kernel.workspace import Workspace, remove_tree

LIMIT = 1000
NAMES = {
    "plain.csv": b"a,b\n1,2\n",
    "folder/inner.csv": b"x\n",
    "absolute": "link",
    "relative": "link",
    "chain": "link",
    "through/plain.csv": "link",
    "magic": "link",
    "dangling": "link",
    "hard": "link",
    "../secret": "link",
    "folder/../../secret": "link",
    "/etc/hostname": "link",
    ".": None,
    "..": None,
    "folder": "not_regular",
    "pipe": "not_regular",
    "sock": "not_regular",
    "sparse": "too_big",
    "big": "too_big",
    "plain.csv\0.png": "name",
    "plain.csv/x": "not_regular",
}


@pytest.fixture
def workspace(tmp_path):
    made = Workspace(tmp_path / "w", size=16 << 20, uid=os.getuid())
    path = made.path
    (tmp_path / "secret").write_text("answers")
    (path / "plain.csv").write_bytes(b"a,b\n1,2\n")
    (path / "folder").mkdir()
    (path / "folder/inner.csv").write_bytes(b"x\n")
    (path / "absolute").symlink_to(tmp_path / "secret")
    (path / "relative").symlink_to("../secret")
    (path / "chain").symlink_to("relative")
    (path / "through").symlink_to(path)
    (path / "magic").symlink_to("/proc/self/fd/0")
    (path / "dangling").symlink_to("nowhere")
    (path / "original").write_text("x")
    os.link(path / "original", path / "hard")
    os.mkfifo(path / "pipe")
    listener = socket.socket(socket.AF_UNIX)
    here = os.open(path, os.O_PATH)
    listener.bind(f"/proc/self/fd/{here}/sock")
    os.close(here)
    listener.close()
    os.truncate(os.open(path / "sparse", os.O_CREAT | os.O_WRONLY), 1 << 40 if not made.quota else 1 << 30)
    (path / "big").write_bytes(b"x" * (LIMIT + 1))
    yield made
    made.remove()
    assert not path.exists()


@pytest.mark.parametrize("openat2", [True, False], ids=["at once", "by steps"])
@pytest.mark.parametrize("name", NAMES, ids=repr)
def test_a_name_is_read_only_if_it_is_a_regular_file_inside(workspace, name, openat2):
    expected = NAMES[name]
    started = time.monotonic()
    if isinstance(expected, bytes):
        assert workspace.read(name, LIMIT, openat2=openat2) == expected
        return
    with pytest.raises(SubmissionError) as caught:
        workspace.read(name, LIMIT, openat2=openat2)
    assert expected is None or caught.value.code == expected
    assert "answers" not in str(caught.value)
    assert time.monotonic() - started < 30, "it would wait for ever"


def test_a_missing_file_is_none_and_has_no_signature(workspace):
    assert workspace.read("submission.csv", LIMIT) is None
    assert workspace.signature("submission.csv") is None


def test_the_signature_changes_with_the_file(workspace):
    before = workspace.signature("plain.csv")
    assert before == workspace.signature("plain.csv")
    (workspace.path / "plain.csv").write_bytes(b"a,b\n3,4\n")
    assert workspace.signature("plain.csv") != before


@pytest.mark.skipif(os.geteuid() != 0, reason="a quota needs root")
def test_the_quota_stops_one_big_file_and_many_small_ones(tmp_path):
    made = Workspace(tmp_path / "w", size=4 << 20, uid=10001)
    try:
        assert made.quota
        with pytest.raises(OSError, match="No space"):
            (made.path / "big").write_bytes(bytes(5 << 20))
        (made.path / "big").unlink()
        with pytest.raises(OSError, match="No space"):
            [(made.path / str(number)).touch() for number in range(1000)]
    finally:
        made.remove()


@pytest.mark.skipif(os.geteuid() != 0, reason="a quota needs root")
def test_the_quota_needs_no_program_named_mount(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", str(tmp_path))
    made = Workspace(tmp_path / "w", size=4 << 20, uid=10001)
    assert made.quota
    assert made.path.is_mount()
    made.remove()
    assert not made.path.exists()


@pytest.mark.skipif(os.geteuid() != 0 or shutil.which("setpriv") is None, reason="only root has capabilities to lose")
def test_a_root_that_may_not_mount_gets_a_plain_directory_of_the_right_owner(tmp_path):
    code = (
        "import sys, pathlib; from dojo_kernel.kernel.workspace import Workspace;"
        "made = Workspace(pathlib.Path(sys.argv[1]), size=4 << 20, uid=10001); print(made.quota, made.path.stat().st_uid)"
    )
    argv = ["setpriv", "--bounding-set", "-sys_admin", sys.executable, "-c", code, str(tmp_path / "w")]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stdout.split() == ["False", "10001"]


SIZE = 1 << 20


@pytest.fixture
def plain(tmp_path):
    made = Workspace(tmp_path / "w", size=SIZE, uid=os.getuid(), mount=False)
    made.path.mkdir(exist_ok=True)
    yield made
    made.remove()
    assert not made.path.exists()


def test_over_the_limit_the_largest_files_go_and_the_rest_stays(plain):
    (plain.path / "folder").mkdir()
    (plain.path / "folder/largest").write_bytes(bytes(SIZE))
    (plain.path / "larger").write_bytes(bytes(SIZE // 2))
    (plain.path / "small").write_bytes(b"kept")
    assert plain.crowded()
    plain.make_room()
    assert not plain.crowded()
    assert sorted(path.name for path in plain.path.rglob("*")) == ["folder", "larger", "small"]


def test_what_lies_in_a_closed_folder_counts(plain):
    (plain.path / "closed").mkdir()
    (plain.path / "closed/big").write_bytes(bytes(2 * SIZE))
    (plain.path / "closed").chmod(0)
    assert plain.crowded()
    plain.make_room()
    assert not plain.crowded()


def test_a_deleted_file_counts_while_it_is_open(plain):
    with (plain.path / "big").open("wb") as file:
        file.write(bytes(2 * SIZE))
        file.flush()
        (plain.path / "big").unlink()
        assert not plain.crowded()
        assert plain.crowded([os.getpid()])
    assert not plain.crowded([os.getpid()])


def test_sparse_files_and_second_names_cost_what_they_take(plain):
    (plain.path / "sparse").touch()
    os.truncate(plain.path / "sparse", 100 * SIZE)
    (plain.path / "one").write_bytes(bytes(SIZE * 3 // 4))
    os.link(plain.path / "one", plain.path / "two")
    assert not plain.crowded()


def test_too_many_files_are_over_the_limit_however_small(plain):
    for number in range(70):
        (plain.path / str(number)).touch()
    assert plain.crowded()
    plain.make_room()
    assert not list(plain.path.iterdir())


def test_no_link_leads_out_when_room_is_made(plain, tmp_path):
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "mine").write_bytes(bytes(4 * SIZE))
    (plain.path / "link").symlink_to(outside)
    (plain.path / "file").symlink_to(outside / "mine")
    assert not plain.crowded()
    for number in range(70):
        (plain.path / str(number)).symlink_to(outside)
    plain.make_room()
    plain.remove()
    assert (outside / "mine").stat().st_size == 4 * SIZE


def test_a_tree_deeper_than_recursion_and_paths_and_closed_to_its_owner_is_removed(tmp_path):
    top = tmp_path / "w"
    top.mkdir()
    here = os.open(top, os.O_RDONLY)
    for _ in range(3000):
        os.mkdir("deeper", dir_fd=here)
        below = os.open("deeper", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(os.open("file", os.O_CREAT | os.O_WRONLY, 0, dir_fd=here))
    os.fchmod(here, 0)
    os.close(here)
    (top / "closed/inner").mkdir(parents=True)
    (top / "closed/inner").chmod(0)
    (top / "closed").chmod(0o500)
    remove_tree(top)
    assert not top.exists()
