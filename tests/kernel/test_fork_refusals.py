"""When a kernel must not be forked, and says so; and what becomes of locks that another thread holds at the fork."""

import os
import shutil
import stat
import subprocess
from pathlib import Path

import pytest
import pytest_asyncio
from boxes import BOXES_IN_CI, anew, lasting, opened, printed, went_well

from dojo_kernel.errors import ForkRefusedError

pytestmark = [pytest.mark.asyncio(loop_scope="module"), pytest.mark.timeout(300)]


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BOXES_IN_CI)
async def shared(request, tmp_path_factory):
    async with lasting(request.param, tmp_path_factory) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared):
    return await anew(shared)


# --- graphics cards --------------------------------------------------------------------------------------------------


async def refused_and_tried_empty(kernel, why):
    """The trial run takes place in an empty kernel; checkpoints and branches, which cannot, are refused."""
    execution = await kernel.validate("print('x' in dir())", 60)
    assert (execution.forked, execution.status, printed(execution)) == (False, "ok", "False\n")
    assert any("Tried in an empty kernel" in note and why in note for note in execution.notes), execution.notes
    with pytest.raises(ForkRefusedError, match=why):
        await kernel.checkpoint("")
    with pytest.raises(ForkRefusedError, match=why):
        await kernel.branch(1)
    assert await went_well(kernel, "print(x)") == "1\n"


@pytest.fixture
def device():
    """Like a card's device file, as far as its name goes."""
    path = Path(f"/dev/nvidia-dojo-test-{os.getpid()}")
    try:
        os.mknod(path, 0o666 | stat.S_IFCHR, os.makedev(1, 3))
    except PermissionError:
        pytest.skip("only root may make a device file")
    path.chmod(0o666)
    yield path
    path.unlink()


async def test_an_open_graphics_device_refuses_the_fork(tmp_path, device):
    tmp_path.chmod(0o755)
    kernel = await opened("process", tmp_path)  # the only box that sees the host's /dev
    try:
        await went_well(kernel, f"x = 1; card = open({str(device)!r}, 'rb')")
        await refused_and_tried_empty(kernel, "a GPU is in use")
        await went_well(kernel, "card.close()")
        assert (await kernel.validate("x", 60)).forked, "again as soon as it is closed"
    finally:
        await kernel.close()


async def test_a_torch_that_says_cuda_is_initialised_refuses_the_fork(kernel):
    claim = "cuda = types.SimpleNamespace(is_initialized=lambda: x == 1)\nsys.modules['torch'] = types.SimpleNamespace(cuda=cuda)"
    await went_well(kernel, f"import sys, types\nx = 1\n{claim}")
    await refused_and_tried_empty(kernel, "CUDA is initialised")
    await went_well(kernel, "del sys.modules['torch']")
    assert (await kernel.validate("x", 60)).forked


CUDA = "import ctypes; x = 1; driver = ctypes.CDLL('libcuda.so.1'); assert driver.cuInit(0) == 0\n"
CONTEXT = """
device, context = ctypes.c_int(), ctypes.c_void_p()
assert driver.cuDeviceGet(ctypes.byref(device), 0) == 0
assert driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), device) == 0
"""


@pytest.mark.gpu
async def test_initialised_cuda_refuses_the_fork(tmp_path):
    tmp_path.chmod(0o755)
    kernel = await opened("process", tmp_path)
    try:
        await went_well(kernel, CUDA + CONTEXT)
        await refused_and_tried_empty(kernel, "a GPU is in use")
    finally:
        await kernel.close()


# --- runtimes that cannot be paused ----------------------------------------------------------------------------------

RUNTIMES = {
    "without the call": ("", "libgomp-old.so.1 cannot be paused"),
    "that says no": ("int omp_pause_resource_all(int kind) { return -1; }", "libgomp-old.so.1 did not pause"),
}


@pytest.mark.parametrize("name", RUNTIMES)
@pytest.mark.parametrize("box", BOXES_IN_CI)
async def test_an_openmp_runtime_that_does_not_pause_refuses_the_fork(tmp_path, box, name):
    code, why = RUNTIMES[name]
    compiler = shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler on this machine: sudo apt-get install gcc")
    tmp_path.chmod(0o755)
    (tmp_path / "old.c").write_text(f"int omp_get_max_threads(void) {{ return 1; }} {code}")
    made = [compiler, "-shared", "-fPIC", "-nostdlib", "-o", tmp_path / "libgomp-old.so.1", tmp_path / "old.c"]
    subprocess.run(made, check=True)
    kernel = await opened(box, tmp_path)
    try:
        await went_well(kernel, f"import ctypes; x = 1; library = ctypes.CDLL('{kernel.data_path}/libgomp-old.so.1')")
        await refused_and_tried_empty(kernel, why)
    finally:
        await kernel.close()


# --- locks -----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
async def test_a_lock_of_a_thread_that_is_gone_costs_the_trial_run_its_time_and_nothing_else(kernel):
    await went_well(
        kernel,
        "import threading, time\nlock, held, done = threading.Lock(), threading.Event(), threading.Event()\n"
        "def hold():\n    with lock:\n        held.set(); done.wait()\n"
        "keeper = threading.Thread(target=hold, name='keeper'); keeper.start(); _ = held.wait(10); x = 1",
    )
    execution = await kernel.validate("print('before', flush=True); lock.acquire(); print('after')", 2)
    assert execution.forked
    assert execution.status == "timeout"
    assert printed(execution) == "before\n"
    assert any("thread keeper" in note for note in execution.notes), "it is named, so that the reader can tell why"
    assert await went_well(
        kernel, "print(x, keeper.is_alive()); done.set(); keeper.join(); print(lock.acquire(timeout=5)); lock.release()"
    ) == ("1 True\nTrue\n")
    assert printed(await kernel.validate("print(lock.acquire(timeout=5))", 20)) == "True\n"


@pytest.mark.endurance
@pytest.mark.slow
async def test_logging_and_printing_work_in_forks_of_a_kernel_whose_thread_logs_and_prints(kernel):
    await went_well(
        kernel,
        "import logging, sys, threading\nlogger = logging.getLogger('mine'); logger.setLevel('INFO'); logger.propagate = False\n"
        "logger.addHandler(logging.StreamHandler(sys.stdout)); logger.addHandler(logging.FileHandler('mine.log'))\n"
        "stop = threading.Event()\n"
        "def chatter():\n    while not stop.is_set():\n        logger.info('thread'); print('thread', file=sys.stderr); stop.wait(0.0002)\n"
        "threads = [threading.Thread(target=chatter, name=f'chatter-{n}') for n in range(2)]\nfor one in threads: one.start()",
    )
    for number in range(50):
        execution = await kernel.validate(
            f"logger.warning('child {number}'); print('printed {number}'); sys.stderr.write('.')", 20
        )
        assert execution.forked
        assert execution.status == "ok", (number, execution)
        assert printed(execution).splitlines()[-2:] == [f"child {number}", f"printed {number}"]
    await went_well(kernel, "stop.set()\nfor one in threads: one.join()")
    assert await went_well(kernel, "print('child' in open('mine.log').read())") == "False\n", "the child logged into its own copy"


@pytest.mark.endurance
@pytest.mark.slow
async def test_buffered_files_that_a_thread_writes_work_in_forks(kernel):
    await went_well(
        kernel,
        "import threading\nbusy = open('busy.bin', 'wb'); stop = threading.Event()\n"
        "def fill():\n    while not stop.is_set():\n        busy.write(b'x' * 100000); busy.flush()\n"
        "        if busy.tell() > 1 << 20: busy.seek(0)\n"
        "t = threading.Thread(target=fill, name='filler'); t.start()",
    )
    for number in range(50):
        execution = await kernel.validate("busy.write(b'child'); busy.flush(); print('done')", 10)
        assert execution.forked
        assert printed(execution) == "done\n", (number, execution)
    await went_well(kernel, "stop.set(); t.join(); busy.close(); assert b'child' not in open('busy.bin', 'rb').read()")
