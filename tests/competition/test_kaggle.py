"""The official client, driven against a server of ours that speaks Kaggle's API over the loopback."""

import json
import os
import random
import re
import signal
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import pytest
from kaggle_server import Kaggle, serve

from dojo_kernel import cli
from dojo_kernel.competition import Leaderboard, find
from dojo_kernel.competition.kaggle import credentials

TOML = """
title = "Own"
kaggle = "own-on-kaggle"
metric = "rmse"
[submission]
id = "id"
columns = { y = "float" }
[board]
kind = "kaggle"
[prepare]
recipe = "table"
source = "all.csv"
split = { kind = "random", test_fraction = 0.2, seed = 0 }
"""
dice = random.Random(7)
FILES = {
    "all.csv": ("id,x,y\n" + "".join(f"r{n:04d},{dice.random():.6f},{dice.gauss(0, 1):.6f}\n" for n in range(1000))).encode(),
    "images/a.bin": dice.randbytes(400_000),
    "images/b.bin": dice.randbytes(500_000),
}


@pytest.fixture
def home(tmp_path, monkeypatch):
    """A user with a key of Kaggle's, and a competition of his own."""
    for name in [name for name in os.environ if name.startswith("KAGGLE_") or name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    for name, value in {
        "HOME": tmp_path / "home",
        "DOJO_DATA": tmp_path / "data",
        "DOJO_STATE": tmp_path / "state",
        "KAGGLE_USERNAME": "ann",
        "KAGGLE_KEY": "secret",
        "KAGGLE_API_ENVIRONMENT": "LOCALHOST",
    }.items():
        monkeypatch.setenv(name, str(value))
    (tmp_path / "home").mkdir()
    folder = tmp_path / "own"
    folder.mkdir()
    (folder / "competition.toml").write_text(TOML)
    (folder / "description.md").write_text("# Own\n")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def kaggle(home, monkeypatch):
    with serve(Kaggle(dict(FILES))) as server:
        for name in ("http_proxy", "https_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{server.port}")
        yield server


def dojo(capfd, *arguments):
    with pytest.raises(SystemExit) as end:
        cli.main([str(one) for one in arguments])
    printed = capfd.readouterr()
    return end.value.code, printed.out, " ".join(printed.err.split())


def test_a_competition_is_downloaded_checked_and_prepared(home, kaggle, capfd):
    status, out, err = dojo(capfd, "prepare", "./own")
    assert (status, "prepared in" in out) == (0, True), err
    assert (home / "data/own/raw/own-on-kaggle.zip").read_bytes() == kaggle.bundle
    assert (home / "data/own/raw/all.csv").read_bytes() == FILES["all.csv"]
    tables = [home / "data/own" / name for name in ("public/train.csv", "private/answers.csv")]
    assert sum(len(table.read_text().splitlines()) - 1 for table in tables) == 1000
    assert kaggle.sent == [(0, len(kaggle.bundle))]
    assert kaggle.asked.count("ListDataFiles") == 2, "the list has two pages"
    assert not (home / "data/own/download").exists()


def test_what_is_here_is_not_asked_for_again(home, kaggle, capfd):
    assert dojo(capfd, "prepare", "./own")[0] == 0
    kaggle.asked.clear()
    assert dojo(capfd, "prepare", "./own")[0] == 0
    assert dojo(capfd, "prepare", "./own", "--force")[0] == 0
    assert kaggle.asked == []


def test_a_connection_that_breaks_at_sixty_percent_goes_on_from_there(home, kaggle, capfd):
    kaggle.breaks = [0.6]
    status, _, err = dojo(capfd, "prepare", "./own")
    assert (status, "the connection broke at" in err) == (0, True), err
    whole = len(kaggle.bundle)
    resumed = kaggle.sent[-1]
    assert 0.5 * whole < resumed[0] <= 0.6 * whole
    assert sum(resumed) == whole
    assert (home / "data/own/raw/own-on-kaggle.zip").read_bytes() == kaggle.bundle


@pytest.mark.endurance
@pytest.mark.slow
def test_a_download_given_up_is_kept_and_the_next_run_fetches_only_the_rest(home, kaggle, capfd):
    kaggle.breaks = [0.6] + [0.0] * 20
    status, _, err = dojo(capfd, "prepare", "./own")
    assert status == 2
    assert err.endswith("what has come is kept, go on with: dojo prepare own")
    part = home / "data/own/download/own-on-kaggle.zip.part"
    have = part.stat().st_size
    assert have > 0.5 * len(kaggle.bundle)
    kaggle.breaks = []
    kaggle.sent.clear()
    assert dojo(capfd, "prepare", "./own")[0] == 0
    assert kaggle.sent[-1] == (have, len(kaggle.bundle) - have)
    assert (home / "data/own/raw/own-on-kaggle.zip").read_bytes() == kaggle.bundle


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.parametrize("change", ["another file", "no ranges"])
def test_a_part_that_does_not_fit_is_never_glued_to_the_rest(home, kaggle, capfd, change):
    kaggle.breaks = [0.6] + [0.0] * 20
    assert dojo(capfd, "prepare", "./own")[0] == 2
    kaggle.breaks = []
    if change == "another file":
        kaggle.files["images/a.bin"] = random.Random(8).randbytes(400_000)
    else:
        kaggle.ranges = False
    assert dojo(capfd, "prepare", "./own")[0] == 0
    assert (home / "data/own/raw/own-on-kaggle.zip").read_bytes() == kaggle.bundle


@pytest.mark.slow
def test_interrupted_by_its_user_it_keeps_what_has_come_and_goes_on_from_there(home, kaggle, capfd):
    kaggle.files["images/c.bin"] = random.Random(9).randbytes(2_000_000)
    kaggle.hold_at = 400_000
    command = [sys.executable, "-m", "dojo_kernel", "prepare", "./own"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        part = home / "data/own/download/own-on-kaggle.zip.part"
        while not (part.is_file() and part.stat().st_size > 300_000):  # and it gets no further than 400,000
            time.sleep(0.005)
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "go on with: dojo prepare own" in err
    have = part.stat().st_size
    assert have > 300_000
    kaggle.hold_at = 0
    kaggle.go_on.set()
    status, _, err = dojo(capfd, "prepare", "./own")
    assert status == 0, err
    assert kaggle.sent[-1] == (have, len(kaggle.bundle) - have)
    assert (home / "data/own/raw/own-on-kaggle.zip").read_bytes() == kaggle.bundle


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"user": ("ann", "other")}, "does not take the key in KAGGLE_USERNAME and KAGGLE_KEY; make a new token at https://"),
        ({"entered": False}, "open https://www.kaggle.com/c/own-on-kaggle/rules, accept, then: dojo prepare own"),
        ({"closed": True}, "may be closed to newcomers"),
        ({"slug": "something-else"}, "Kaggle knows no own-on-kaggle"),
        ({"slow_down": 99}, "still asks to slow down"),
        ({"listed": {"all.csv": 10**18}}, "needs 2000000 TB to download and unpack"),
        ({"listed": {"all.csv": 5}}, "all.csv (2"),
    ],
    ids=["401", "403 rules", "403 closed", "404", "429", "disk", "sizes"],
)
def test_each_refusal_is_one_line_that_says_what_to_do(home, kaggle, capfd, wrong, says):
    for name, value in wrong.items():
        setattr(kaggle, name, value)
    status, out, err = dojo(capfd, "prepare", "./own")
    line = err.split("dojo: ")[-1]
    assert (status, out) == (2, "")
    assert says in line
    assert "Traceback" not in err
    assert not find("./own").is_prepared()


@pytest.mark.slow
def test_it_waits_as_long_as_kaggle_asks_and_then_goes_on(home, kaggle, capfd):
    kaggle.slow_down, kaggle.retry_after = 2, "1"
    started = time.monotonic()
    status, _, err = dojo(capfd, "prepare", "./own")
    assert (status, "Kaggle asks to wait 1 s (answer 429)" in err) == (0, True), err
    assert time.monotonic() - started > 2


def test_what_is_no_zip_is_removed(home, kaggle, capfd, monkeypatch):
    monkeypatch.setattr(Kaggle, "bundle", b"<html>not what you asked for</html>" * 100)
    status, _, err = dojo(capfd, "prepare", "./own")
    assert (status, "no whole zip" in err) == (2, True), err
    assert list((home / "data/own/download").iterdir()) == []


def test_an_archive_that_wants_to_write_elsewhere_is_refused(home, kaggle, capfd):
    kaggle.files["../../../evil.csv"] = b"id,y"
    status, _, err = dojo(capfd, "prepare", "./own")
    assert (status, "outside" in err) == (2, True), err
    assert not list(home.rglob("evil.csv"))


@pytest.mark.slow
def test_a_disk_that_fills_up_keeps_what_has_come(home, kaggle):
    (home / "data").mkdir()
    small = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", 'mount -t tmpfs -o size=600k none "$0" && exec "$@"']
    try:
        subprocess.run([*small, home / "data", "true"], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("no user namespaces here: nothing to make a small disk with")
    kaggle.listed = dict.fromkeys(FILES, 1)
    command = [*small, home / "data", sys.executable, "-m", "dojo_kernel", "prepare", "./own"]
    ended = subprocess.run(command, capture_output=True, text=True, check=False)
    assert ended.returncode == 2, ended.stderr
    assert ended.stderr.splitlines()[-1].endswith(
        "the disk is full; what has come is kept; make room and go on with: dojo prepare own"
    )


@pytest.mark.endurance
@pytest.mark.slow
def test_nobody_there_is_one_line(home, capfd, monkeypatch):
    monkeypatch.setenv("http_proxy", "http://127.0.0.1:9")
    status, _, err = dojo(capfd, "prepare", "./own")
    assert (status, "cannot reach Kaggle" in err) == (2, True), err


def test_without_a_key_it_says_where_to_get_one(home, kaggle, capfd, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    status, _, err = dojo(capfd, "prepare", "./own")
    assert (status, "no Kaggle key on this machine: make a token at https://" in err) == (2, True)
    assert kaggle.asked == []


@pytest.mark.parametrize(("token", "status"), [("KGAT_0", 0), ("KGAT_stale", 2)])
@pytest.mark.usefixtures("home", "kaggle")
def test_a_token_signs_in_too_and_a_stale_one_is_named(capfd, monkeypatch, token, status):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("KAGGLE_API_TOKEN", token)
    ended, _, err = dojo(capfd, "prepare", "./own")
    assert ended == status, err
    assert status == 0 or "does not take the key in KAGGLE_API_TOKEN; make a new token" in err


@pytest.mark.parametrize(
    ("path", "content", "found"),
    [
        (".kaggle/access_token", "KGAT_0\n", "~/.kaggle/access_token"),
        (".kaggle/kaggle.json", '{"username": "ann", "key": "secret"}', ".kaggle/kaggle.json"),
        (".config/kaggle/kaggle.json", '{"username": "ann", "key": "secret"}', ".config/kaggle/kaggle.json"),
        (".kaggle/credentials.json", '{"refresh_token": "r"}', "~/.kaggle/credentials.json"),
        (".kaggle/kaggle.json", '{"username": "ann"}', None),
        (".kaggle/kaggle.json", "no JSON", None),
        (".kaggle/access_token", "", None),
    ],
)
def test_a_key_is_found_wherever_the_client_looks(home, monkeypatch, path, content, found):
    for name in ("KAGGLE_USERNAME", "KAGGLE_KEY"):
        monkeypatch.delenv(name)
    file = home / "home" / path
    file.parent.mkdir(parents=True)
    file.write_text(content)
    where = credentials()
    assert where == found or (where or "").endswith(found or "/")


# --- before a download --------------------------------------------------------------------------------------------------


def test_check_lists_what_is_in_the_way_before_any_download(home, kaggle, capfd):
    kaggle.entered = False
    status, out, _ = dojo(capfd, "prepare", "--check", "./own", "digits", "--json")
    own, digits = json.loads(out)
    assert status == 2
    assert (own["rules"], own["can_go"], own["size_bytes"]) == ("not accepted", False, sum(map(len, FILES.values())))
    assert own["problem"] == "accept the rules: https://www.kaggle.com/c/own-on-kaggle/rules"
    assert own["credentials"] == "KAGGLE_USERNAME and KAGGLE_KEY"
    assert own["free_bytes"] > 0
    assert (digits["rules"], digits["can_go"]) == ("not needed", True)
    assert kaggle.sent == []
    kaggle.entered = True
    status, out, _ = dojo(capfd, "prepare", "--check", "./own")
    assert (status, "1 of 1 can go" in out) == (0, True)


def test_check_takes_the_size_from_the_spec_and_knows_when_the_disk_is_too_small(home, kaggle, capfd):
    (home / "own/raw.toml").write_text("bytes = 900000000000000000\n")
    status, out, _ = dojo(capfd, "prepare", "--check", "./own", "--json")
    (own,) = json.loads(out)
    assert (status, own["size_bytes"], own["rules"]) == (2, 900000000000000000, "accepted")
    assert "DOJO_DATA" in own["problem"]


def test_check_without_a_key_still_lists_everything(home, capfd, monkeypatch):
    monkeypatch.delenv("KAGGLE_KEY")
    status, out, _ = dojo(capfd, "prepare", "--check", "./own", "digits", "--json")
    own, digits = json.loads(out)
    assert (status, own["rules"], own["credentials"], digits["can_go"]) == (2, "unknown", None, True)
    assert "no Kaggle key" in own["problem"]
    (home / "other").symlink_to(home / "own")
    _, out, _ = dojo(capfd, "prepare", "--check", "./own", "./other")
    assert (out.count("no Kaggle key"), out.count("see [1]")) == (1, 2), "what many share is said once"


# --- files of the user's ------------------------------------------------------------------------------------------------


def tree(folder: Path):
    return {
        path: (path.stat().st_mtime_ns, path.stat().st_mode, path.read_bytes()) for path in folder.rglob("*") if path.is_file()
    }


@pytest.mark.parametrize("form", ["unpacked", "below its name", "zip file", "zip in a folder"])
def test_files_downloaded_by_hand_are_taken_and_left_as_they_are(home, capfd, form):
    downloads = home / "downloads"
    folder = downloads / "own" if form == "below its name" else downloads
    folder.mkdir(parents=True)
    given = downloads
    if "zip" in form:
        (folder / "anything.zip").write_bytes(Kaggle(FILES).bundle)
        given = folder / "anything.zip" if form == "zip file" else folder
    else:
        (folder / "all.csv").write_bytes(FILES["all.csv"])
    before = tree(downloads)
    status, _, err = dojo(capfd, "prepare", "./own", "--from", given)
    assert status == 0, err
    assert tree(downloads) == before
    assert find("./own").is_prepared()


def test_a_folder_without_files_says_where_to_download_them(home, capfd):
    (home / "empty").mkdir()
    status, _, err = dojo(capfd, "prepare", "./own", "--from", home / "empty")
    assert (status, "https://www.kaggle.com/c/own-on-kaggle/data" in err) == (2, True), err


@pytest.mark.parametrize(
    ("within", "answers"),
    [
        (".", "test_answer.csv"),
        ("own/data", "test_answer.csv"),
        ("own-on-kaggle/prepared", "test.csv"),
        ("own-on-kaggle/prepared", "answers.csv"),
        ("data", "nobody/knows.csv"),
    ],
)
def test_a_folder_prepared_by_others_just_works(home, capfd, within, answers):
    place = home / "theirs" / within
    (place / "public/images").mkdir(parents=True)
    (place / "public/images/a.bin").write_bytes(b"123")
    ids = [f"r{n * 7919 % 1009}" for n in range(100)]
    (place / "public/sampleSubmission.csv").write_text("id,y\n" + "".join(f"{one},0\n" for one in ids))
    (place / "private" / answers).parent.mkdir(parents=True)
    (place / "private" / answers).write_text("y,id,Usage\n" + "".join(f"{n * 31 % 97},{one},x\n" for n, one in enumerate(ids)))
    (place / "private/sample_submission.txt").write_text("nothing")
    before = tree(home / "theirs")
    status, _, err = dojo(capfd, "prepare", "./own", "--from", home / "theirs")
    assert status == 0, err
    assert tree(home / "theirs") == before
    own = find("./own")
    assert (own.private_dir / "answers.csv").read_text().splitlines()[:2] == ["id,y,Usage", "r0,0,x"]
    assert (own.public_dir / "sample_submission.csv").read_text().splitlines()[:2] == ["id,y", "r0,0"]
    assert (own.public_dir / "images/a.bin").read_bytes() == b"123"
    manifest = json.loads(own.manifest.read_text())
    assert manifest["prepared_by"] == {"folder": str(place), "answers": answers}
    assert "public/images/a.bin" in manifest["files"]
    inode = own.manifest.stat().st_ino
    assert dojo(capfd, "prepare", "./own")[0] == 0, "it is prepared, and nobody asks Kaggle"
    assert own.manifest.stat().st_ino == inode


def test_faults_of_a_folder_prepared_by_others_are_shown_and_do_not_stop_it(home, capfd):
    rows = "".join(f"r{n * 7919 % 1009},{n * 31 % 97}\n" for n in range(100))
    for side, name in (("public", "sample_submission.csv"), ("private", "test_answer.csv")):
        (home / "theirs" / side).mkdir(parents=True)
        (home / "theirs" / side / name).write_text("id,y\n" + rows)
    status, _, err = dojo(capfd, "prepare", "./own", "--from", home / "theirs")
    assert (status, "warning:" in err) == (0, True), err
    assert find("./own").is_prepared()


def test_labels_become_classes_and_ids_are_joined_where_the_spec_has_them_so(home, capfd):
    text = TOML.replace('{ y = "float" }', '{ cat = "float", dog = "float" }').replace('"rmse"', '"log_loss"')
    (home / "own/competition.toml").write_text(text + 'id_from = "{a}_{b}"\n')
    place = home / "theirs"
    (place / "public").mkdir(parents=True)
    (place / "private").mkdir()
    (place / "public/sample_submission.csv").write_text("id,cat,dog\n" + "".join(f"{n}_x,.5,.5\n" for n in range(20)))
    pets = ["dog", "cat", "cat", "dog", "cat"] * 4
    (place / "private/test.csv").write_text("a,b,breed\n" + "".join(f"{n},x,{pet}\n" for n, pet in enumerate(pets)))
    status, _, err = dojo(capfd, "prepare", "./own", "--from", place)
    assert status == 0, err
    assert (find("./own").private_dir / "answers.csv").read_text().startswith("id,cat,dog,a,b,breed\n0_x,0,1,0,x,dog\n")


def test_answers_that_are_nowhere_are_said_to_be(home, capfd):
    for side, name in (("public", "sample_submission.csv"), ("private", "other.csv")):
        (home / "theirs" / side).mkdir(parents=True)
        (home / "theirs" / side / name).write_text("id,y\n1,2\n" if side == "public" else "id,z\n1,2\n")
    status, _, err = dojo(capfd, "prepare", "./own", "--from", home / "theirs")
    assert (status, "has the columns id, y; there is: other.csv (id, z)" in err) == (2, True), err


# --- boards -------------------------------------------------------------------------------------------------------------


def test_exact_boards_come_from_kaggle_and_are_used_first(home, kaggle, capfd):
    (home / "own/public_leaderboard.csv").write_text("score\n0.5\n")
    status, out, err = dojo(capfd, "leaderboard", "fetch", "./own", "--json")
    assert status == 0, err
    assert json.loads(out)["teams"] == {"public": 3, "private": 2}
    boards = {board.name: board.scores for board in Leaderboard.load(find("./own"))}
    assert boards == {"public": (0.7, 0.8, 0.9), "private": (0.75, 0.85)}, "rmse: lower is better"
    assert "team" not in (home / "data/own/boards/public_leaderboard.csv").read_text()
    status, out, _ = dojo(capfd, "leaderboard", "show", "./own")
    assert (status, re.search(r"private +2 +yes +0\.75", out) is not None) == (0, True), out


def test_a_competition_that_goes_on_has_no_private_board(home, kaggle, capfd):
    kaggle.ended = False
    assert json.loads(dojo(capfd, "leaderboard", "fetch", "./own", "--json")[1])["teams"] == {"public": 3}


@pytest.mark.parametrize("file", ["private_leaderboard.csv", "own-on-kaggle-privateleaderboard-2020.csv"])
def test_boards_come_from_files_of_the_users_too(home, capfd, file):
    (home / "boards").mkdir()
    (home / "boards" / file).write_text("Rank,TeamName,Score\n1,a,0.1\n2,b,0.2\n")
    status, _, err = dojo(capfd, "leaderboard", "fetch", "./own", "--from", home / "boards")
    assert status == 0, err
    assert [(board.name, board.scores) for board in Leaderboard.load(find("./own"))] == [("private", (0.1, 0.2))]


def test_a_competition_without_a_board_names_the_command_that_gets_one(home, capfd):
    assert dojo(capfd, "leaderboard", "show", "./own")[2].endswith("get it: dojo leaderboard fetch own")
    assert dojo(capfd, "leaderboard", "fetch", "digits")[0] == 2
    status, out, _ = dojo(capfd, "leaderboard", "show", "digits", "--json")
    assert (status, json.loads(out)[0]["board"]) == (0, "reference_public")


def test_no_key_appears_in_anything_that_is_printed_or_kept(home, kaggle, capfd):
    _, out, err = dojo(capfd, "prepare", "./own")
    assert "secret" not in out + err
    with zipfile.ZipFile(home / "data/own/raw/own-on-kaggle.zip") as packed:
        assert packed.testzip() is None
    assert not [path for path in (home / "data").rglob("*.json") if "secret" in path.read_text()]
