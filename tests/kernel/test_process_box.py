"""The box without a wall: what it says, what it gives, and that it takes everything with it."""

import asyncio
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
from boxes import alive, becomes_true, provisioner, sleepers
from jupyter_client import AsyncKernelClient

from dojo_kernel.errors import BoxLostError, KernelStartError


async def test_a_kernel_runs_and_each_generation_has_new_sockets_and_keys(tmp_path):
    box = provisioner("process", tmp_path)
    await box.start_box()
    try:
        first = await box.spawn("live-0")
        client = AsyncKernelClient()
        client.load_connection_info(first.connection_info)
        client.start_channels(hb=False)
        await client.wait_for_ready(timeout=60)
        reply = await client.execute_interactive("import os; assert os.environ['DOJO_DATA_DIR'] and os.getcwd()", timeout=30)
        client.stop_channels()
        assert reply["content"]["status"] == "ok"
        second = await box.spawn("live-1")
        for key in ("ip", "key", "curve_publickey", "curve_secretkey"):
            assert first.connection_info[key] != second.connection_info[key]
        await first.kill()
        assert await asyncio.wait_for(first.exited, 10) == -signal.SIGKILL
        assert second.code is None
        assert not first.sockets.exists()
    finally:
        await box.remove_box()


async def test_its_environment_is_a_list_and_holds_nothing_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_TEST_SECRET", "secret")
    out = tmp_path / "env"
    code = f"import os; open({str(out)!r}, 'w').write(chr(10).join(os.environ))"
    box = provisioner("process", argv=[sys.executable, "-c", code, "{connection_file}"])
    await box.start_box()
    try:
        assert await asyncio.wait_for((await box.spawn("live-0")).exited, 20) == 0
    finally:
        await box.remove_box()
    assert set(out.read_text().split()) - {"LC_CTYPE"} == {*box.environment(), "DOJO_PROCESS"}
    assert "DOJO_TEST_SECRET" not in out.read_text()


async def test_an_init_that_dies_is_a_lost_box_and_the_next_start_opens_a_new_one():
    box = provisioner("process", argv=[sys.executable, "-c", "import time; time.sleep(600)"])
    await box.start_box()
    try:
        process = await box.spawn("live-0")
        box._init.kill()
        assert await asyncio.wait_for(process.exited, 10) == -signal.SIGKILL
        assert box.lost is not None
        with pytest.raises(BoxLostError):
            await box.spawn("live-1")
        assert await becomes_true(lambda: not alive(process.pid))
        await box.start_box()
        assert box.lost is None
        assert (await box.spawn("live-2")).pid
    finally:
        await box.remove_box()


async def test_a_program_that_is_not_there_is_a_start_error_and_the_box_lives():
    box = provisioner("process", argv=["/nonexistent/program"])
    await box.start_box()
    try:
        with pytest.raises(KernelStartError, match="could not start live-0"):
            await box.spawn("live-0")
        assert box.lost is None
    finally:
        await box.remove_box()


async def test_it_claims_no_wall():
    box = provisioner("process")
    await box.start_box()
    by = {one.limit: one.by for one in box.enforcement}
    await box.remove_box()
    assert {by[limit] for limit in ("isolation", "network", "memory", "cpu", "pids", "syscalls", "gpu", "gpu_memory")} == {
        "nothing"
    }
    assert by["lifetime"] == "init"


HOST = """
import asyncio, sys
from jupyter_client.kernelspec import KernelSpec
from dojo_kernel.kernel.process import ProcessProvisioner

async def main():
    code = f"import subprocess, time; subprocess.Popen(['sleep', '{sys.argv[1]}'], start_new_session=True); time.sleep(600)"
    box = ProcessProvisioner(kernel_spec=KernelSpec(argv=[sys.executable, "-c", code], display_name="t", language="python"))
    await box.start_box()
    process = await box.spawn("live-0")
    print(box._init.pid, process.pid, box.run_dir, flush=True)
    await asyncio.sleep(600)

asyncio.run(main())
"""


@pytest.mark.slow
async def test_kill_9_of_the_host_leaves_no_process_and_the_next_start_no_files(tmp_path):
    mark = f"96{os.getpid()}"
    env = {**os.environ, "DOJO_STATE": str(tmp_path / "state")}  # no other host reaps what this one leaves
    command = [sys.executable, "-c", textwrap.dedent(HOST), mark]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as host:
        init, kernel, folder = (await asyncio.to_thread(host.stdout.readline)).split()
        assert await becomes_true(lambda: len(sleepers(mark)) == 1)
        host.kill()
    assert await becomes_true(lambda: not (alive(init) or alive(kernel) or sleepers(mark)))
    done = subprocess.run(
        [sys.executable, "-c", "from dojo_kernel.kernel import reaper; reaper.start()"], check=False, timeout=60, env=env
    )
    assert done.returncode == 0
    assert not Path(folder).exists()
    assert folder not in Path("/proc/self/mountinfo").read_text()
