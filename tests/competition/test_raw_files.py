import gzip
import io
import os
import signal
import stat
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytest.importorskip("pyarrow")

from raw_fixtures import job_of, own

from dojo_kernel.competition.raw_files import raw_file, raw_files, unpack_raw
from dojo_kernel.errors import ConfigError, DownloadError

ANY = 'source = "x"\nsplit = { kind = "random", test_fraction = 0.25 }'


@pytest.fixture
def job(tmp_path):
    return job_of(tmp_path, own(tmp_path, ANY))


def zipped(path, members):
    path.parent.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


def tarred(path, members, kind=tarfile.REGTYPE):
    with tarfile.open(path, "w:gz" if path.name.endswith("gz") else "w") as archive:
        for name, content in members.items():
            about = tarfile.TarInfo(name)
            about.size, about.type = (len(content), kind) if kind == tarfile.REGTYPE else (0, kind)
            about.linkname = "/etc/passwd"
            archive.addfile(about, io.BytesIO(content.encode()))


def files(job):
    return {
        path.relative_to(job.raw).as_posix(): path.read_text()
        for path in job.raw.rglob("*")
        if path.is_file() and not path.name.endswith((".zip", ".gz", ".tar", ".7z", ".json"))
    }


@pytest.mark.parametrize(
    ("archive", "members", "expected"),
    [
        ("train.csv.zip", {"train.csv": "a"}, {"train.csv": "a"}),
        ("train.zip", {"train/1.jpg": "a", "train/2.jpg": "b"}, {"train/1.jpg": "a", "train/2.jpg": "b"}),
        ("train.zip", {"1.jpg": "a", "2.jpg": "b"}, {"train/1.jpg": "a", "train/2.jpg": "b"}),
        ("own.zip", {"a.csv": "a", "b/c.csv": "b"}, {"a.csv": "a", "b/c.csv": "b"}),
        ("x.tar", {"x/a": "a"}, {"x/a": "a"}),
        ("x.tar.gz", {"x/a": "a", "y": "b"}, {"x/x/a": "a", "x/y": "b"}),
    ],
)
def test_archives_are_unpacked_beside_themselves(job, archive, members, expected):
    (tarred if ".tar" in archive else zipped)(job.raw / archive, members)
    unpack_raw(job)
    assert files(job) == expected


def test_single_files_and_7z_and_archives_in_archives(job):
    py7zr = pytest.importorskip("py7zr")
    (job.raw / "a.csv.gz").write_bytes(gzip.compress(b"a"))
    with py7zr.SevenZipFile(job.raw / "b.json.7z", "w") as archive:
        archive.writestr("b", "data/b.json.txt")
    inner = io.BytesIO()
    with zipfile.ZipFile(inner, "w") as archive:
        archive.writestr("c.csv", "c")
    zipped(job.raw / "own.zip", {"c.csv.zip": inner.getvalue(), "d.csv": "d"})
    unpack_raw(job)
    assert files(job) == {"a.csv": "a", "data/b.json.txt": "b", "c.csv": "c", "d.csv": "d"}


def test_only_the_archives_that_are_named_are_unpacked(job):
    zipped(job.raw / "a.zip", {"a.csv": "a"})
    zipped(job.raw / "deep/b.zip", {"b.csv": "b"})
    unpack_raw(job, ["deep/*.zip"])
    assert files(job) == {"deep/b.csv": "b"}


def test_what_is_unpacked_is_not_unpacked_again_until_the_archive_changes(job, tmp_path):
    said: list[str] = []
    job = job_of(tmp_path, job.competition, said)
    zipped(job.raw / "a.zip", {"a.csv": "a"})
    unpack_raw(job)
    unpack_raw(job)
    assert said == ["unpacking a.zip"]
    zipped(job.raw / "a.zip", {"a.csv": "other"})
    unpack_raw(job)
    assert files(job) == {"a.csv": "other"}


def link_in_zip(path):
    about = zipfile.ZipInfo("link")
    about.create_system, about.external_attr = 3, (stat.S_IFLNK | 0o777) << 16
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(about, "/etc/passwd")


@pytest.mark.parametrize(
    ("name", "make"),
    [
        ("a.zip", lambda path: zipped(path, {"../evil": "x"})),
        ("a.zip", lambda path: zipped(path, {"/evil": "x"})),
        ("a.zip", lambda path: zipped(path, {"a\\..\\..\\evil": "x"})),
        ("a.zip", lambda path: zipped(path, {"C:/evil": "x"})),
        ("a.zip", link_in_zip),
        ("a.tar", lambda path: tarred(path, {"../evil": "x"})),
        ("a.tar", lambda path: tarred(path, {"link": ""}, tarfile.SYMTYPE)),
        ("a.tar", lambda path: tarred(path, {"link": ""}, tarfile.LNKTYPE)),
        ("a.tar", lambda path: tarred(path, {"pipe": ""}, tarfile.FIFOTYPE)),
    ],
)
def test_an_archive_that_reaches_outside_is_refused(job, tmp_path, name, make):
    make(job.raw / name)
    with pytest.raises(ConfigError, match=r"would be written outside|is a link"):
        unpack_raw(job)
    assert not list(tmp_path.rglob("evil"))
    assert not [path for path in job.raw.rglob("*") if path.is_symlink()]


def test_what_does_not_fit_the_disk_is_refused_before_it_is_written(job):
    about = tarfile.TarInfo("huge")
    about.size = 10**15
    (job.raw / "a.tar").write_bytes(about.tobuf(tarfile.GNU_FORMAT) + bytes(10240))
    with pytest.raises(ConfigError, match=r"a.tar: does not fit: 931322.6 GiB more, .* GiB free"):
        unpack_raw(job)


@pytest.mark.parametrize("name", ["a.zip", "a.tar", "a.csv.gz", "a.7z"])
def test_a_broken_archive_says_to_download_it_again(job, name):
    if name.endswith("7z"):
        pytest.importorskip("py7zr")
    (job.raw / name).write_bytes(b"not an archive" * 100)
    with pytest.raises(DownloadError, match="download it again"):
        unpack_raw(job)


KILLED = """
import os, signal, sys
from pathlib import Path
from raw_fixtures import job_of
from dataclasses import replace
from dojo_kernel.competition import find
from dojo_kernel.competition.raw_files import unpack_raw
tmp = Path(sys.argv[1])
def fraction(share):
    if share > 0.5:
        os.kill(os.getpid(), signal.SIGKILL)
unpack_raw(replace(job_of(tmp, find(tmp / "own")), fraction=fraction))
"""


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("name", ["train.zip", "train.tar"])
def test_killed_half_way_it_goes_on_where_it_was(job, tmp_path, name):
    members = {f"train/{n}.jpg": f"{n}" * 500 for n in range(300)}
    (tarred if name.endswith("tar") else zipped)(job.raw / name, members)
    path = os.pathsep.join(sys.path)
    done = subprocess.run([sys.executable, "-c", KILLED, str(tmp_path)], env={**os.environ, "PYTHONPATH": path}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert not (job.raw / "train").exists()
    half = {path: path.stat().st_ino for path in (job.raw / f".unpacking-{name}").rglob("*.jpg")}
    assert 0 < len(half) < 300
    unpack_raw(job)
    assert files(job) == members
    inodes = {path.name: path.stat().st_ino for path in (job.raw / "train").iterdir()}
    assert all(inodes[path.name] == inode for path, inode in half.items())
    assert not list(job.raw.glob(".unpacking*"))


def test_paths_stay_in_raw(job, tmp_path):
    (tmp_path / "secret").write_text("x")
    (job.raw / "link").symlink_to(tmp_path / "secret")
    (job.raw / "a.txt").write_text("x")
    for name in ("../secret", "link"):
        with pytest.raises(ConfigError, match="leads out of"):
            raw_file(job, name)
    with pytest.raises(DownloadError, match=r"no 'b.txt' in .*; run: dojo prepare own"):
        raw_file(job, "b.txt")
    assert raw_files(job, "*.txt") == [job.raw / "a.txt"]
