"""PID 1 of a box without its box: the wire, and the ways in which everything must end."""

import json
import select
import subprocess
import sys
import time
from pathlib import Path

import pytest
from boxes import alive, descendants

INIT = Path(__file__).resolve().parents[2] / "dojo_kernel/inside/init.py"
SLEEP = [sys.executable, "-c", "import time; print('started', flush=True); time.sleep(600)"]
DAEMON = [
    sys.executable,
    "-c",
    "import subprocess, time; subprocess.Popen(['sleep', '611'], start_new_session=True); time.sleep(600)",
]


class Wired:
    """init as a child, with its events read one by one."""

    def __init__(self, tmp_path, **env):
        self.folder = tmp_path
        self.process = subprocess.Popen(
            [sys.executable, "-I", "-S", "-B", str(INIT), "--subreaper"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=env,
            bufsize=0,
        )
        self.count = 0
        assert self.event()["ev"] == "ready"

    def write(self, data):
        self.process.stdin.write(data)

    def order(self, **order):
        self.write(json.dumps(order).encode() + b"\n")

    def event(self, seconds=10):
        assert select.select([self.process.stdout], [], [], seconds)[0], "init says nothing"
        return json.loads(self.process.stdout.readline())

    def spawn(self, name, argv, **more):
        self.count += 1
        self.order(
            op="spawn",
            name=name,
            argv=argv,
            connection={"key": "k"},
            connection_file=str(self.folder / f"{self.count}.json"),
            env={},
            **more,
        )
        return self.event()

    def end(self):
        self.process.stdin.close()
        self.process.wait(10)
        self.process.stdout.close()


@pytest.fixture
def wired(tmp_path):
    found = Wired(tmp_path)
    yield found
    found.end()


def below(pid):
    return [one for one in descendants(pid) if alive(one)]


def wait_until(condition, seconds=10):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_it_refuses_to_be_anything_but_the_first_process():
    done = subprocess.run(
        [sys.executable, "-I", "-S", str(INIT)], capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL, timeout=20
    )
    assert done.returncode != 0
    assert "must be PID 1" in done.stderr
    assert done.stdout == ""


def test_a_program_is_started_interrupted_and_reported(wired):
    said = wired.spawn("a", SLEEP)
    assert said == {"ev": "spawn", "name": "a", "pid": said["pid"]}
    assert (wired.folder / "1.json").stat().st_mode & 0o777 == 0o600
    wired.order(op="ping", of=7)
    assert wired.event() == {"ev": "pong", "of": 7}
    wired.order(op="term", name="a")
    assert wired.event() == {"ev": "exit", "name": "a", "code": -15}
    assert wired.spawn("b", [sys.executable, "-c", "raise SystemExit(3)"])["ev"] == "spawn"
    assert wired.event() == {"ev": "exit", "name": "b", "code": 3}


def test_a_connection_file_is_never_written_through_a_link_or_over_a_file(wired):
    target = wired.folder / "target"
    (wired.folder / "1.json").symlink_to(target)
    (wired.folder / "2.json").write_text("mine")
    for _ in range(2):
        said = wired.spawn("a", SLEEP)
        assert (said["ev"], said["op"], said["name"]) == ("error", "spawn", "a")
        assert "FileExistsError" in said["why"]
    assert not target.exists()


@pytest.mark.parametrize(
    ("line", "why"),
    [
        (b'{"op": "explode"}', "no op"),
        (b"{}", "KeyError"),
        (b"not json", "JSONDecodeError"),
        (b"[1]", "TypeError"),
        (b'"x"', "ValueError"),
        (b"\xff\xfe", "Error"),
        (b'{"op": "int", "name": "nobody"}', "KeyError"),
        (b'{"op": "spawn", "name": "x"}', "KeyError"),
        (
            b'{"op": "spawn", "name": "x", "argv": ["/nonexistent"], "connection": {}, "connection_file": "F", "env": {}}',
            "FileNotFoundError",
        ),
    ],
)
def test_an_order_that_makes_no_sense_is_an_error_event_and_init_lives(wired, line, why):
    wired.write(line.replace(b'"F"', json.dumps(str(wired.folder / "f.json")).encode()) + b"\n")
    said = wired.event()
    assert said["ev"] == "error"
    assert why in said["why"]
    wired.order(op="ping")
    assert wired.event() == {"ev": "pong", "of": None}


def test_killing_one_program_takes_what_it_left_in_other_sessions_and_spares_the_rest(wired):
    wired.spawn("a", DAEMON, cwd="/")
    wired.spawn("b", SLEEP)
    wait_until(lambda: len(below(wired.process.pid)) == 3)
    wired.order(op="kill", name="a")
    assert wired.event() == {"ev": "exit", "name": "a", "code": -9}
    wait_until(lambda: len(below(wired.process.pid)) == 1)
    wired.order(op="kill")
    assert wired.event() == {"ev": "exit", "name": "b", "code": -9}
    assert below(wired.process.pid) == []


def test_the_end_of_input_ends_everything_daemons_too(wired):
    wired.spawn("a", DAEMON)
    wait_until(lambda: len(below(wired.process.pid)) == 2)
    pids = below(wired.process.pid)
    wired.process.stdin.close()
    assert wired.process.wait(10) == 0
    wait_until(lambda: not any(map(alive, pids)))


@pytest.mark.slow
def test_silence_ends_everything(tmp_path):
    wired = Wired(tmp_path, DOJO_SILENCE_S="4")
    wired.spawn("a", DAEMON)
    wait_until(lambda: len(below(wired.process.pid)) == 2)
    pids = below(wired.process.pid)
    end = time.monotonic() + 5  # longer than the silence that ends it
    while time.monotonic() < end:
        wired.order(op="ping")
        assert wired.event() == {"ev": "pong", "of": None}
        time.sleep(0.05)
    assert wired.process.poll() is None
    assert wired.process.wait(10) == 0
    wait_until(lambda: not any(map(alive, pids)))
    wired.end()


def test_a_line_without_end_ends_everything_instead_of_filling_memory(wired):
    with pytest.raises(OSError, match=r"Broken pipe|reset"):
        [wired.write(b"x" * 65536) for _ in range(200)]
    assert wired.process.wait(10) == 0


def test_what_a_program_prints_is_not_an_event(wired):
    forged = 'import os, sys; [os.write(fd, b\'{"ev": "exit", "name": "b", "code": 0}\\n\') for fd in (1, 2)]'
    wired.spawn("a", [sys.executable, "-c", forged])
    assert wired.event() == {"ev": "exit", "name": "a", "code": 0}
    wired.order(op="ping")
    assert wired.event() == {"ev": "pong", "of": None}


def test_nothing_of_ours_stays_open_in_a_program(wired):
    out = wired.folder / "fds"
    wired.spawn(
        "a",
        [
            sys.executable,
            "-c",
            f"import os; open({str(out)!r}, 'w').write(str([os.readlink(f'/proc/self/fd/{{n}}') for n in (0, 1, 2)]))",
        ],
    )
    wired.event()
    assert out.read_text() == str(["/dev/null"] * 3)


EARLY = """
import ctypes, json, os, sys
sys.path.insert(0, {folder!r})
import init
one = init.Init(alone=False, libc=ctypes.CDLL(None))
answers, theirs = os.pipe()
one.zygote = init.Zygote(10**9, os.open(os.devnull, os.O_WRONLY), answers)
one.zygote.waiting.append("live")
pid = os.fork()
if pid == 0:
    os._exit(70)
while not one.zygote.early:
    one.reap()
os.write(theirs, json.dumps({{"name": "live", "pid": pid}}).encode() + b"\\n")
one.hear_zygote()
print(one.pids, one.zygote.early)
"""


def test_a_kernel_that_ended_before_its_making_was_heard_of_is_reported():
    program = EARLY.format(folder=str(INIT.parent))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True, timeout=20)
    *events, left = done.stdout.splitlines()
    assert [json.loads(event)["ev"] for event in events] == ["spawn", "exit"]
    assert json.loads(events[1])["code"] == 70
    assert left == "{} {}"
