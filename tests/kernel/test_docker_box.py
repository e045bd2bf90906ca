"""The container against its attackers: rows A1-A6, A8, A9, C1-C5 of the threat table, and boxes lost or left behind."""

import asyncio
import signal
import subprocess
import sys
import textwrap
import time
import uuid
from pathlib import Path

import pytest
from jupyter_client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec

from dojo_kernel.kernel.docker import DockerProvisioner, engine, reap_containers
from dojo_kernel.records import Limits

pytestmark = pytest.mark.docker

SPEC = KernelSpec(
    argv=["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"], display_name="trial", language="python"
)
SMALL = Limits(cpus=1.0, memory_gb=0.5, disk_gb=0.05, pids=96)


class Cells:
    """One box with one kernel; called with code, gives what the cell printed."""

    def __init__(self, data=None):
        self.box = DockerProvisioner(kernel_spec=SPEC, limits=SMALL, data_dir=data, episode="test")

    async def __aenter__(self):
        await self.box.start_box()
        self.process = await self.box.spawn("live-0")
        self.client = AsyncKernelClient()
        self.client.load_connection_info(self.process.connection_info)
        self.client.start_channels(hb=False)
        await self.client.wait_for_ready(timeout=60)
        return self

    async def __aexit__(self, *_):
        self.client.stop_channels()
        await self.box.remove_box()

    async def __call__(self, code, timeout_s=60):
        said = []

        def keep(message):
            content = message["content"]
            said.append(content.get("text", "") or "\n".join(content.get("traceback", ())))

        await self.client.execute_interactive(textwrap.dedent(code), output_hook=keep, timeout=timeout_s)
        return "".join(said)

    @property
    def name(self):
        return self.box._name


@pytest.fixture
async def cells(tmp_path):
    async with Cells() as found:
        yield found


def containers():
    return [row["Names"][0] for row in engine().client.api.containers(all=True, filters={"label": "dojo.episode=test"})]


async def test_no_canary_of_the_host_can_be_found_from_inside(tmp_path, monkeypatch):
    canary = f"canary-{uuid.uuid4().hex}"
    public = tmp_path / canary / "public"
    private = tmp_path / canary / "private"
    for folder in (public, private):
        folder.mkdir(parents=True)
    (public / "train.csv").write_text("id,y\n1,2\n")
    (private / "answers.csv").write_text(f"id,y\n1,{canary}\n")
    (public.parent / "key.txt").write_text(canary)
    monkeypatch.setenv("DOJO_TEST_SECRET", canary)
    split = (canary[:20], canary[20:])
    async with Cells(public) as cells:
        found = await cells(f"""
            import os, subprocess
            print(open('/data/train.csv').read())
            a, b = {split!r}
            word = a + b
            places = '/data /workspace /tmp /run /etc /opt/dojo /home /root /var /srv /mnt /dev/shm'
            run = subprocess.run(f"grep -rlIs --devices=skip -e {{word}} {{places}}; find / -xdev -name '*answer*' -not -path '/opt/venv/*' "
                f"-not -path '/usr/*' 2>/dev/null; find / -name '*{{word}}*' -not -path '/proc/*' 2>/dev/null",
                shell=True, capture_output=True, text=True)
            print('FILES', run.stdout.split())
            seen = []
            for pid in [p for p in os.listdir('/proc') if p.isdigit()]:
                for name in ('environ', 'cmdline', 'mountinfo', 'maps'):
                    try:
                        text = open(f'/proc/{{pid}}/{{name}}', errors='replace').read()
                    except OSError:
                        continue
                    if word in text and name != 'cmdline':
                        seen.append((pid, name))
            print('PROC', seen)
        """)
    assert "id,y" in found
    assert "FILES []" in found
    assert "PROC []" in found


async def test_pid_1_cannot_be_killed_traced_or_spoken_for(cells):
    said = await cells("""
        import os, signal
        for number in (1, 2, 9, 10, 15):
            try: os.kill(1, number)
            except OSError: pass
        for name in ('mem', 'environ'):
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


async def test_forged_events_on_any_descriptor_are_not_heard_and_the_host_s_end_still_ends_the_box(cells):
    await cells("""
        import glob
        for path in glob.glob('/proc/*/fd/*'):
            try:
                with open(path, 'wb', buffering=0) as file:
                    if not file.seekable(): file.write(b'{"ev": "exit", "name": "live-0", "code": 0}\\n')
            except OSError: pass
    """)
    assert cells.process.code is None
    name = cells.name
    await cells.box.remove_box()
    assert f"/{name}" not in containers()


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


async def test_root_data_and_code_cannot_be_written(tmp_path):
    (tmp_path / "a.csv").write_text("1")
    async with Cells(tmp_path) as cells:
        said = await cells("""
            for path in ('/x', '/data/a.csv', '/data/b', '/opt/dojo/app.py', '/etc/passwd', '/usr/x'):
                try: open(path, 'a').close(); print('WRITTEN', path)
                except OSError as error: print('no', path)
        """)
    assert "WRITTEN" not in said
    assert (tmp_path / "a.csv").read_text() == "1"


async def test_a_fork_bomb_stops_at_the_limit_and_the_box_can_be_removed(cells):
    said = await cells("""
        import os, time, signal
        pids = []
        try:
            for _ in range(2000):
                pid = os.fork()
                if pid == 0:
                    signal.signal(signal.SIGINT, signal.SIG_DFL); time.sleep(30); os._exit(0)
                pids.append(pid)
        except OSError as error:
            print('stopped')
        for pid in pids: os.kill(pid, 9)
        for pid in pids: os.waitpid(pid, 0)
        print(len(pids) < 96)
    """)
    assert "stopped" in said
    assert "True" in said


async def test_memory_of_a_child_is_limited_and_its_death_is_counted(cells):
    assert await cells.box.oom_kills() == 0
    said = await cells("""
        import subprocess, sys
        print(subprocess.run([sys.executable, '-c', 'x = bytearray(2 << 30); x[::4096] = b"1" * len(x[::4096])']).returncode)
    """)
    assert "-9" in said
    assert await cells.box.oom_kills() >= 1
    assert "alive" in await cells("print('alive')")


async def test_the_kernel_that_eats_all_memory_dies_alone(cells):
    cells.client.execute("x = [bytearray(b'1' * (1 << 20)) for _ in range(4000)]")
    assert await asyncio.wait_for(cells.process.exited, 60) == -signal.SIGKILL
    assert await cells.box.oom_kills() >= 1
    assert cells.box.lost is None


async def test_disk_shm_and_files_have_an_end(cells):
    said = await cells("""
        import os
        def fill(path, size):
            try:
                with open(path, 'wb') as file:
                    for _ in range(size >> 20): file.write(b'1' * (1 << 20))
                print('FULL SIZE', path)
            except OSError as error: print('no', error.errno)
            finally: os.unlink(path)
        fill('/workspace/big', 100 << 20)
        fill('/dev/shm/big', 300 << 20)
    """)
    quota = cells.box.workspace.quota
    assert said == ("no 28\nno 28\n" if quota else "no 27\nno 27\n")  # ENOSPC of a tmpfs; EFBIG of the limit of each file
    if quota:
        said = await cells("""
            try:
                for number in range(10 ** 6): open(f'/workspace/{number}', 'w').close()
                print('FULL SIZE')
            except OSError as error: print('no', error.errno)
        """)
        assert said == "no 28\n"


async def test_a_frozen_box_stands_still_and_goes_on_after_the_thaw(cells):
    await cells("""
        import threading, time
        count = 0
        def work():
            global count
            while True: count += 1; time.sleep(0.001)
        threading.Thread(target=work, daemon=True).start()
    """)
    await cells.box.freeze()
    used = cells.box._cgroup.memory.parent.parent.parent / "cpuacct" / "docker" / cells.box._cgroup.memory.name / "cpuacct.usage"
    if used.exists():
        before = used.read_text()
        await asyncio.sleep(0.5)
        assert used.read_text() == before
    await cells.box.thaw()
    assert int(await cells("print(count)")) > 0


async def test_a_container_removed_behind_our_back_is_a_lost_box(cells):
    engine().client.api.remove_container(cells.name, force=True)
    assert await asyncio.wait_for(cells.process.exited, 5) == -signal.SIGKILL
    assert cells.box.lost is not None


async def test_a_host_killed_in_mid_cell_leaves_no_container(tmp_path):
    program = tmp_path / "host.py"
    program.write_text(
        f"import sys; sys.path.insert(0, {str(Path(__file__).parent)!r})\n"
        + textwrap.dedent("""
        import asyncio
        from test_docker_box import Cells
        async def main():
            async with Cells() as cells:
                print(cells.name, flush=True)
                await cells('import time; time.sleep(600)', 600)
        asyncio.run(main())
    """)
    )
    host = subprocess.Popen([sys.executable, str(program)], stdout=subprocess.PIPE, text=True)
    with host:
        name = host.stdout.readline().strip()
        assert f"/{name}" in containers()
        await asyncio.sleep(0.5)
        host.kill()
    until = time.monotonic() + 5
    while f"/{name}" in containers() and time.monotonic() < until:
        await asyncio.sleep(0.1)
    assert f"/{name}" not in containers()


async def test_the_reaper_removes_boxes_of_the_dead_paused_ones_too():
    api = engine().client.api
    labels = {"dojo.owner": "999999999-1", "dojo.namespace": str(Path("/proc/self/ns/pid").readlink()), "dojo.episode": "test"}
    box = api.create_container("dojo-kernel:latest", ["sleep", "600"], name=f"dojo-orphan-{uuid.uuid4().hex[:8]}", labels=labels)
    api.start(box["Id"])
    api.pause(box["Id"])
    assert any(name.startswith("dojo-orphan-") for name in await asyncio.to_thread(reap_containers))
    assert not any("orphan" in name for name in containers())
