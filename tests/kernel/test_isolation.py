"""The walls against their attackers, the same for a container and for bubblewrap: rows A1-A6, A8-A11 and C1-C6, C9.

Each test plays one row of the threat model from inside a box; what only one kind can do is in its own file.
"""

import asyncio
import os
import signal
import uuid
from pathlib import Path

import pytest
from boxes import ISOLATED, SMALL, Cells, becomes_true, needs_held_memory, opened, printed, sleepers

from dojo_kernel.competition import find
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.episode import open_episode
from dojo_kernel.journal import read_journal
from dojo_kernel.kernel.box import on_boxes_thread
from dojo_kernel.settings import KernelSettings


@pytest.fixture(params=ISOLATED)
def kind(request):
    return request.param


@pytest.fixture
async def cells(kind):
    async with Cells(kind) as found:
        yield found


# --- what is not there (A1-A3, A5, A10) ------------------------------------------------------------------------------


@pytest.mark.endurance
@pytest.mark.slow
async def test_no_canary_of_the_host_can_be_found_from_inside(kind, tmp_path, monkeypatch):
    canary = f"canary-{uuid.uuid4().hex}"
    public, private, journal = tmp_path / "slug/public", tmp_path / "slug/private", tmp_path / "runs/1"
    for folder in (public, private, journal):
        folder.mkdir(parents=True)
    (public / "train.csv").write_text("id,y\n1,2\n")
    (private / "answers.csv").write_text(f"id,y\n1,{canary}\n")
    (public.parent / "key.txt").write_text(canary)
    (journal / "journal.jsonl").write_text(canary)
    monkeypatch.setenv("DOJO_TEST_SECRET", canary)
    split = (canary[:20], canary[20:])
    async with Cells(kind, public) as cells:
        (cells.box.run_dir / "host.txt").write_text(canary)
        found = await cells(
            f"""
            import os, subprocess
            print(open('/data/train.csv').read())
            a, b = {split!r}
            open('/tmp/patterns', 'w').write(a + b)  # not an argument: grep would find its own command line
            folders = ['/' + name for name in os.listdir('/') if name not in ('proc', 'sys')]
            run = subprocess.run(['grep', '-rIlsF', '--devices=skip', '-f', '/tmp/patterns', *folders], capture_output=True, text=True)
            print('FILES', [name for name in run.stdout.split() if name != '/tmp/patterns'], run.stdout.count('patterns'))
            run = subprocess.run(['find', *folders, '-name', '*' + a + '*'], capture_output=True, text=True)
            print('NAMES', run.stdout.split())
            seen = []
            for pid in ['self', *(name for name in os.listdir('/proc') if name.isdigit())]:
                for name in ('environ', 'cmdline', 'mountinfo', 'mounts', 'maps'):
                    try:
                        text = open(f'/proc/{{pid}}/{{name}}', errors='replace').read()
                    except OSError:
                        continue
                    if a + b in text:
                        seen.append((pid, name))
            print('PROC', seen, a + b in str(os.environ))
            """,
            500,
        )
    assert "id,y" in found
    assert "FILES [] 1" in found, "only the planted pattern file, which shows that the search works"
    assert "NAMES []" in found
    assert "PROC [] False" in found


async def test_no_path_that_the_mount_table_shows_leads_to_anything(kind, tmp_path):
    public, private = tmp_path / "public", tmp_path / "private"
    for folder in (public, private):
        folder.mkdir()
    (private / "answers.csv").write_text("id,y\n")
    async with Cells(kind, public) as cells:
        said = await cells(f"""
            import os, re
            paths = set(re.findall(r"/[\\w./-]+", open("/proc/self/mountinfo").read() + open("/proc/1/cmdline").read())) | {{{str(public)!r}}}
            for path in paths:
                for guess in (path + "/../private/answers.csv", path + "/answers.csv", os.path.dirname(path) + "/private/answers.csv"):
                    if os.path.exists(guess): print("FOUND", guess)
            print(len(paths) > 10, os.listdir("/data"))
        """)
    assert "FOUND" not in said
    assert "True []" in said


async def test_an_agent_that_rewrites_all_it_can_and_kills_its_kernel_leaves_the_journal_whole(kind, tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    prepare(find("wine"))
    rewrite = """
import os
for root, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if os.path.join(root, name) not in ("/proc", "/sys", "/usr", "/opt/venv")]
    for name in files:
        try: open(os.path.join(root, name), "w").write("garbage")
        except OSError: pass
for name in ("journal.jsonl", "../journal.jsonl"): open("/workspace/" + name if name[0] == "j" else "/tmp/" + name[3:], "w").write("{}")
os._exit(0)
"""
    folder = tmp_path / "episode"
    async with open_episode("wine", kernel=KernelSettings(box=kind), folder=folder) as episode:
        await episode.step({"name": "execute_code", "code": "open('mine.txt', 'w').write('x')"})
        written = (folder / "journal.jsonl").read_bytes()
        step = await episode.step({"name": "execute_code", "code": rewrite})
        assert step.execution is not None
        assert step.execution.status == "died"
    assert (folder / "journal.jsonl").read_bytes().startswith(written)
    kinds = [event.type for event in read_journal(folder)]  # verifies the chain
    assert kinds == ["opened", "acted", "stepped", "acted", "stepped", "closed"]


async def test_nothing_of_the_host_s_processes_or_of_another_episode_can_be_seen_or_hurt(kind, cells):
    async with Cells(kind) as other:
        await other(
            "open('/dev/shm/mine', 'w').write('x'); open('/tmp/mine', 'w').write('x'); open('/workspace/mine', 'w').write('x')"
        )
        said = await cells("""
            import os, glob
            print('SEEN', [path for path in ('/dev/shm/mine', '/tmp/mine', '/workspace/mine') if os.path.exists(path)], glob.glob('/tmp/dk-*'))
            print('PIDS', len([name for name in os.listdir('/proc') if name.isdigit()]), len(os.listdir('/run/k')))
            print('IPC', len(open('/proc/sysvipc/shm').readlines()))
        """)
        assert "SEEN [] []" in said
        assert "PIDS 2 1" in said
        assert "IPC 1" in said
        cells.client.execute("import os\ntry: os.kill(-1, 9)\nfinally: os.kill(os.getpid(), 9)")
        assert await asyncio.wait_for(cells.process.exited, 10) == -signal.SIGKILL
        assert "alive" in await other("print('alive')")
        assert other.process.code is None


async def test_root_devices_data_and_code_cannot_be_written(kind, tmp_path):
    (tmp_path / "a.csv").write_text("1")
    async with Cells(kind, tmp_path) as cells:
        said = await cells("""
            for path in ('/x', '/dev/y', '/data/a.csv', '/data/b', '/opt/dojo/app.py', '/etc/passwd', '/usr/x', '/run/x', '/run/k/x'):
                try: open(path, 'a').close(); print('WRITTEN', path)
                except OSError as error: print('no', path)
        """)
    if os.geteuid() != 0:  # the box's user is the host's, to whom the folder of the sockets belongs
        said = said.replace("WRITTEN /run/k/x", "no /run/k/x")
    assert "WRITTEN" not in said
    assert said.count("no /") == 9
    assert (tmp_path / "a.csv").read_text() == "1"


# --- the supervisor (A4, A6) -----------------------------------------------------------------------------------------


async def test_pid_1_cannot_be_killed_traced_or_read(cells):
    said = await cells("""
        import os, signal
        for number in (1, 2, 9, 10, 15):
            try: os.kill(1, number)
            except OSError: pass
        for name in ('mem', 'environ', 'fd/0', 'maps'):
            try:
                open(f'/proc/1/{name}', 'rb').read(1); print('READ', name)
            except OSError as error: print(type(error).__name__)
        try:
            print('READ', os.listdir('/proc/1/fd'))
        except OSError as error: print(type(error).__name__)
    """)
    assert "READ" not in said
    assert "alive" in await cells("print('alive')")
    assert cells.box.lost is None


async def test_forged_lines_on_any_descriptor_are_not_heard_and_the_end_of_input_still_ends_the_box(cells):
    mark = f"95{os.getpid()}"
    await cells(f"""
        import glob, os, subprocess
        lines = b'{{"ev": "exit", "name": "live-0", "code": 0}}\\n{{"op": "kill"}}\\n{{"op": "kill", "name": "live-0"}}\\n'
        held = []
        for path in [*(f'/proc/1/fd/{{n}}' for n in range(64)), *glob.glob('/proc/[0-9]*/fd/*')]:
            for mode in (os.O_WRONLY, os.O_RDWR):
                try: fd = os.open(path, mode | os.O_NONBLOCK)
                except OSError: continue
                os.set_inheritable(fd, True)
                held.append(fd)  # a writer on the pipe of PID 1 would keep its end of input from coming
                try: os.lseek(fd, 0, os.SEEK_CUR)
                except OSError:
                    try: os.write(fd, lines)
                    except OSError: pass
        subprocess.Popen(['sleep', '{mark}'], start_new_session=True, close_fds=False)
    """)
    assert await becomes_true(lambda: sleepers(mark))
    assert "alive" in await cells("print('alive')")
    assert (cells.process.code, cells.box.lost) == (None, None)
    await on_boxes_thread(cells.box._wire.close())
    assert await becomes_true(lambda: not sleepers(mark)), "nothing was killed by the host: init ends the box"


# --- the kernel's doors (A8, A9) -------------------------------------------------------------------------------------


async def test_odd_socket_families_and_system_calls_are_denied_with_the_upper_half_set_too(cells):
    said = await cells("""
        import ctypes, socket
        libc = ctypes.CDLL(None, use_errno=True)
        libc.syscall.restype = ctypes.c_long
        for upper in (0, 1 << 32):
            for family in (38, 40):
                got = libc.syscall(ctypes.c_long(41), ctypes.c_long(upper + family), ctypes.c_long(1), ctypes.c_long(0))
                print('DENIED' if got < 0 else 'OPEN', family, upper)
        for number in (425, 101, 272, 308, 321, 298, 250, 323, 165, 310):
            got = libc.syscall(ctypes.c_long(number), *[ctypes.c_long(0)] * 6)
            print('DENIED' if got < 0 else 'OPEN', number, ctypes.get_errno())
        socket.socketpair()
    """)
    assert "OPEN" not in said
    assert said.count("DENIED") == 14


async def test_there_is_no_network(cells):
    said = await cells("""
        import socket
        for family, place in ((socket.AF_INET, ('1.1.1.1', 53)), (socket.AF_INET, ('169.254.169.254', 80)), (socket.AF_INET6, ('2606:4700:4700::1111', 53))):
            probe = socket.socket(family); probe.settimeout(3)
            try: probe.connect(place); print('CONNECTED', place)
            except OSError as error: print('no', error)
        try: socket.getaddrinfo('example.com', 80); print('CONNECTED')
        except OSError as error: print('no', error)
    """)
    assert said.count("no [Errno") == 4
    assert "CONNECTED" not in said


# --- limits (C1, C4, C5, C6) -----------------------------------------------------------------------------------------

BOMBS = {
    "processes": """
        import os, signal, time
        made = []
        try:
            for _ in range(2000):
                pid = os.fork()
                if pid == 0:
                    signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(60); os._exit(0)
                made.append(pid)
        except OSError:
            print('stopped', 60 < len(made) < 96)
    """,
    "threads": """
        import threading
        made = []
        try:
            for _ in range(2000):
                made.append(threading.Thread(target=threading.Event().wait, daemon=True))
                made[-1].start()
        except RuntimeError:
            print('stopped', 60 < len(made) < 96)
    """,
}
CHILD = "import subprocess; print(subprocess.run(['echo', 'alive'], capture_output=True, text=True).stdout)"


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
async def test_a_bomb_stops_at_the_limit_spares_another_box_and_ends_with_its_kernel(kind, cells, bomb):
    assert "stopped True" in await cells(bomb)
    async with Cells(kind) as other:
        assert "alive" in await other(CHILD)
    await cells.process.kill()
    assert await asyncio.wait_for(cells.process.exited, 10) == -signal.SIGKILL
    cells.client.stop_channels()
    await cells.start()
    assert "alive" in await cells(CHILD)


async def test_a_thread_bomb_in_a_session_leaves_the_kernel_alive_or_dead_with_a_cause(kind, tmp_path):
    kernel = await opened(kind, tmp_path)
    try:
        bomb = "import threading\nwhile True: threading.Thread(target=threading.Event().wait, daemon=True).start()"
        execution = await kernel.execute(bomb, 20)
        assert execution.status in ("error", "died")
        assert (execution.status == "died") == (execution.death is not None)
        await kernel.restart()
        assert printed(await kernel.execute("print('on')", 20)) == "on\n"
    finally:
        await kernel.close()


PLACES = {
    "memfd": "fd = os.memfd_create('m')",
    "shm": "fd = os.open('/dev/shm/m', os.O_CREAT | os.O_RDWR)",
    "tmp": "fd = os.open('/tmp/m', os.O_CREAT | os.O_RDWR)",
    "shared": "import mmap; m = mmap.mmap(-1, 40 << 20)",
}


@pytest.mark.parametrize("place", PLACES.values(), ids=PLACES)
async def test_memory_that_is_a_file_counts_as_memory(cells, place):
    needs_held_memory(cells.box.enforcement)
    before = await cells.box.memory_used()
    assert "written" in await cells(f"""
        import os
        {place}
        page = os.urandom(1 << 20)
        for _ in range(40): os.write(fd, page) if 'fd' in globals() else m.write(page)
        print('written')
    """)
    grown = await cells.box.memory_used() - before
    assert 40 << 20 <= grown < 60 << 20


async def test_all_of_them_together_end_at_the_limit_and_the_kernel_lives(cells):
    needs_held_memory(cells.box.enforcement)
    child = """
        import os, resource
        open('/proc/self/oom_score_adj', 'w').write('1000')
        page = b'1' * (1 << 20)
        keep = []
        while True:  # files of 40 MB: the size of one file has a limit of its own
            keep.append(os.memfd_create('m'))
            for _ in range(40): os.write(keep[-1], page)
    """
    code = f"""
        import subprocess, sys, textwrap
        for path in ('/dev/shm/m', '/tmp/m'): open(path, 'wb').write(b'1' * (40 << 20))
        print(subprocess.run([sys.executable, '-c', textwrap.dedent({child!r})]).returncode)
    """
    assert "-9" in await cells(code)
    assert await cells.box.oom_kills() >= 1
    assert await cells.box.memory_used() < SMALL.memory_gb * 2**30
    assert "alive" in await cells("print('alive')")


async def test_disk_shm_and_the_number_of_files_have_an_end(cells):
    said = await cells("""
        import os
        def fill(path, size):
            try:
                with open(path, 'wb') as file:
                    for _ in range(size >> 20): file.write(b'1' * (1 << 20))
                print('FULL SIZE', path)
            except OSError as error: print('no', error.errno, path)
            finally: os.unlink(path)
        fill('/workspace/big', 100 << 20)
        fill('/dev/shm/big', 300 << 20)
        try:
            for number in range(10 ** 5): open(f'/workspace/{number}', 'w').close()
            print('FULL SIZE')
        except OSError as error: print('no', error.errno, 'files')
    """)
    for path in ("/workspace/big", "/dev/shm/big"):
        assert any(f"no {number} {path}" in said for number in (27, 28)), "full, or larger than one file may be"
    if cells.box.workspace.quota:
        assert "no 28 files" in said
        assert "FULL SIZE" not in said


# --- standing still --------------------------------------------------------------------------------------------------


async def test_a_frozen_box_stands_still_and_goes_on_after_the_thaw(cells):
    beat = "/workspace/beat"
    await cells(f"""
        import threading, time
        def work():
            with open({beat!r}, 'w') as file:
                while True: file.write('.'); file.flush(); time.sleep(0.001)
        threading.Thread(target=work, daemon=True).start()
    """)
    size = lambda: (cells.box.workspace.path / "beat").stat().st_size  # noqa: E731
    assert await becomes_true(lambda: (cells.box.workspace.path / "beat").exists() and size() > 0)
    await cells.box.freeze()
    if not cells.box._wire.frozen:
        pytest.skip("nothing here can freeze this box")
    first = size()
    await asyncio.sleep(0.5)
    assert size() == first > 0
    await cells.box.thaw()
    assert await becomes_true(lambda: size() > first)


async def test_a_box_whose_freeze_is_given_up_goes_on(cells):
    for turn in range(20):
        freezing = asyncio.create_task(cells.box.freeze())
        await asyncio.sleep(0.0005 * turn)
        freezing.cancel()
        await asyncio.wait({freezing})
        await cells.box.thaw()
        assert await cells(f"print({turn})") == f"{turn}\n"


@pytest.mark.parametrize("kind", ["process", *ISOLATED])
async def test_a_process_that_left_its_session_and_its_environment_ends_with_the_box(kind):
    mark = f"94{os.getpid()}"
    async with Cells(kind) as cells:
        await cells(f"import subprocess; subprocess.Popen(['sleep', '{mark}'], start_new_session=True, env={{}})")
        assert await becomes_true(lambda: sleepers(mark))
        folder = cells.box.run_dir
        await cells.box.remove_box()
        assert sleepers(mark) == []
        assert not folder.exists()
        assert str(folder) not in Path("/proc/self/mountinfo").read_text()
