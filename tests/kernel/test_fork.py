"""Kernels that fork: trial runs on the live state, checkpoints, branches; the same on every kind of box."""

import asyncio
import gc
from pathlib import Path

import pytest
import pytest_asyncio
from boxes import BOXES, anew, becomes_true, lasting, opened, printed, went_well

from dojo_kernel.kernel import KernelSession
from dojo_kernel.records import Execution

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BOXES)
async def shared(request, tmp_path_factory):
    async with lasting(request.param, tmp_path_factory) as found:
        yield found


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared):
    return await anew(shared)


async def tried(kernel: KernelSession, code: str, timeout_s: float = 60) -> Execution:
    execution = await kernel.validate(code, timeout_s)
    assert execution.forked, execution.notes
    return execution


# --- what a fork carries over ----------------------------------------------------------------------------------------

STATE = """
import numpy as np, warnings, os, random, contextlib, sys, matplotlib.pyplot as plt, decimal
from IPython import get_ipython
def double(x): return 2 * x
class Thing: value = 5
plt.close('all')
data, thing = {'a': [1]}, Thing()
random.seed(3); np.random.seed(3)
warnings.filterwarnings('ignore', message='mine')
np.seterr(all='raise')
os.makedirs('sub', exist_ok=True); os.chdir('sub')
get_ipython().run_line_magic('config', 'InlineBackend.close_figures = False'); figure = plt.figure()
get_ipython().display_formatter.formatters['text/plain'].for_type(Thing, lambda it, p, c: p.text('a thing'))
get_ipython().run_line_magic('alias', 'shout echo')
sys.stdout.tag = 'same stream'
"""
ASKED = """
print(double(4), thing.value, data, np.random.rand() , random.random(), os.path.basename(os.getcwd()))
print(any('mine' in str(f[1] and f[1].pattern) for f in warnings.filters), np.geterr()['divide'], plt.get_fignums())
print(get_ipython().display_formatter.format(thing)[0]['text/plain'], 'shout' in get_ipython().alias_manager.linemagics
      if hasattr(get_ipython().alias_manager, 'linemagics') else get_ipython().alias_manager.is_alias('shout'), sys.stdout.tag)
"""


@pytest.mark.slow
async def test_a_fork_knows_all_that_its_parent_knows(kernel):
    await went_well(kernel, STATE)
    first = await tried(kernel, ASKED)
    assert first.status == "ok", first
    live = await kernel.execute(ASKED, 60)
    assert printed(first) == printed(live), "the same next random numbers, too"
    assert "8 5 {'a': [1]}" in printed(live)
    assert "True raise [1]\na thing True same stream" in printed(live)
    assert first.execution_count == live.execution_count


async def test_a_trial_run_leaves_variables_and_files_as_they_were(kernel):
    await went_well(kernel, "x = [1]; open('kept.txt', 'w').write('before')")
    execution = await tried(kernel, "x.append(2); open('kept.txt', 'w').write('after'); open('new.txt', 'w').close(); print(x)")
    assert printed(execution) == "[1, 2]\n"
    assert any("kept.txt (5 bytes)" in note and "new.txt (0 bytes)" in note for note in execution.notes)
    assert (
        await went_well(kernel, "import os; print(x, open('kept.txt').read(), os.path.exists('new.txt'))") == "[1] before False\n"
    )


@pytest.mark.slow
async def test_a_top_level_await_is_waited_for_in_forks_too(kernel):
    code = "import asyncio\nawait asyncio.sleep(1.5)\nprint('waited')"
    assert await went_well(kernel, code) == "waited\n"
    assert printed(await tried(kernel, code)) == "waited\n"
    assert (await kernel.validate("await asyncio.sleep(60)", 0.5)).rung in ("message", "sigint")


async def test_an_open_file_is_not_shared_with_a_trial_run(kernel):
    await went_well(kernel, "log = open('log.txt', 'w+'); _ = log.write('one\\n'); log.flush()")
    await went_well(kernel, "import tempfile; hidden = tempfile.TemporaryFile('w+'); _ = hidden.write('abc'); hidden.flush()")
    await went_well(kernel, "open('in.txt', 'w').write('first\\nsecond\\n'); reader = open('in.txt'); print(reader.readline())")
    code = (
        "log.write('two\\n'); log.flush(); hidden.write('def'); hidden.flush(); print(open('log.txt').read(), reader.readline())"
    )
    execution = await tried(kernel, code)
    assert printed(execution) == "one\ntwo\n second\n\n"
    said = await went_well(kernel, "hidden.seek(0); print(open('log.txt').read(), reader.readline(), hidden.read())")
    assert said == "one\n second\n abc\n"


async def test_shared_memory_is_private_in_a_trial_run(kernel):
    await went_well(
        kernel,
        "import numpy as np, mmap; m = np.memmap('m.bin', dtype='u1', mode='w+', shape=(8192,)); m[:] = 1; m.flush()\n"
        "anonymous = mmap.mmap(-1, 4096); anonymous[:3] = b'abc'",
    )
    execution = await tried(kernel, "m[:] = 2; m.flush(); anonymous[:3] = b'xyz'; print(m[0], anonymous[:3])")
    assert printed(execution) == "2 b'xyz'\n"
    said = await went_well(kernel, "print(m[0], np.fromfile('m.bin', dtype='u1')[0], anonymous[:3])")
    assert said == "1 1 b'abc'\n"


async def test_threads_children_and_tasks_that_a_fork_lacks_are_named(kernel):
    await went_well(
        kernel,
        "import threading, subprocess, asyncio, time\n"
        "threading.Thread(target=time.sleep, args=(60,), name='sleeper', daemon=True).start()\n"
        "child = subprocess.Popen(['sleep', '61'])\n"
        "task = asyncio.create_task(asyncio.sleep(62), name='waiting')",
    )
    notes = (await tried(kernel, "x = 1")).notes
    assert any("thread sleeper" in note for note in notes)
    assert any("child process" in note for note in notes)
    assert any("asyncio task waiting" in note for note in notes)
    await went_well(kernel, "child.kill(); _ = child.wait(); _ = task.cancel()")


@pytest.mark.slow
async def test_a_thread_that_is_importing_refuses_the_fork(kernel):
    await went_well(
        kernel,
        "import threading, time\nopen('slow_module.py', 'w').write('import time; time.sleep(3)')\n"
        "def slowly():\n    import slow_module\n"
        "t = threading.Thread(target=slowly); t.start(); time.sleep(0.3)",
    )
    execution = await kernel.validate("print('tried')", 30)
    assert not execution.forked
    assert printed(execution) == "tried\n"
    assert any("a thread is importing slow_module" in note for note in execution.notes)
    await went_well(kernel, "t.join()")
    assert (await kernel.validate("x = 1", 30)).forked


@pytest.mark.slow
async def test_forks_while_a_thread_prints_do_not_hang(kernel):
    await went_well(
        kernel,
        "import threading, time\nstop = threading.Event()\n"
        "def chatter():\n    while not stop.is_set():\n        print('chatter', flush=True)\n        time.sleep(0.0005)\n"
        "t = threading.Thread(target=chatter); t.start()",
    )
    for number in range(15):
        assert printed(await tried(kernel, f"print({number})", 20)).splitlines()[-1] == str(number)
    await went_well(kernel, "stop.set(); t.join()")


@pytest.mark.slow
async def test_a_fork_of_a_fork_of_a_fork_has_the_same_stack(kernel):
    await went_well(kernel, "import inspect, sys; depth, count = len(inspect.stack()), 0")
    for _ in range(12):
        made = await kernel.checkpoint("")
        await kernel.restore(made.id)
        await went_well(kernel, "count += 1")
    assert await went_well(kernel, "print(count, len(inspect.stack()) == depth)") == "12 True\n"


async def test_a_module_that_cannot_be_preloaded_is_named_with_the_first_cell(shared, tmp_path):
    tmp_path.chmod(0o755)
    kernel = await opened(shared.box, tmp_path, preload=("colorsys", "no_such_module"))
    try:
        execution = await kernel.execute("import sys; print('colorsys' in sys.modules)", 20)
    finally:
        await kernel.close()
    assert printed(execution) == "True\n"
    assert any("no_such_module cannot be preloaded: ModuleNotFoundError" in note for note in execution.notes)


async def test_a_cell_in_an_empty_scratch_kernel_sees_nothing(kernel):
    await went_well(kernel, "x = 1")
    execution = await kernel.validate("x", 30, state="fresh")
    assert (execution.status, execution.forked) == ("error", False)


# --- what a trial run may not do -------------------------------------------------------------------------------------

HOSTILE = {
    "deletes the workspace": "import shutil, os\nfor name in os.listdir('.'): os.unlink(name)\nshutil.rmtree(HOME)",
    "writes by absolute path": "open(HOME + '/kept.txt', 'w').write('changed')",
    "fills the disk": "open('big', 'wb').write(b'x' * (1 << 30)); open('/tmp/big', 'wb').write(b'x' * (1 << 30))",
    "fills the memory": "hog = [bytearray(1 << 24) for _ in range(2000)]",
    "bombs": "import os\nwhile True:\n    try: os.fork()\n    except OSError: pass",
    "leaves": "import os; os._exit(3)",
    "crashes": "import ctypes; ctypes.string_at(0)",
    "loops": "while True:\n    try:\n        while True: pass\n    except BaseException: pass",
    "kills": "import os, signal\nfor pid in range(2, 400):\n    if pid != os.getpid():\n        try: os.kill(pid, 9)\n        except OSError: pass",
    "kills its parent": "import os, signal; os.kill(LIVE, 9)",
    "looks into its parent": "open(f'/proc/{LIVE}/mem', 'r+b').write(b'x')",
    "steals from descriptors": "import os\nfor fd in range(3, 256):\n"
    "    try: os.set_blocking(fd, False); os.read(fd, 4096)\n    except OSError: pass\n"
    "    try: os.write(fd, b'\\1' * 8)\n    except OSError: pass",
    "speaks to the live kernel": "import os, socket, glob\n"
    "for path in glob.glob(SOCKETS + '/*/*'):\n"
    "    try: socket.socket(socket.AF_UNIX).connect(path)\n    except OSError: continue\n    print('CONNECTED', path)\n"
    "print('FILES', [name for name in glob.glob(SOCKETS + '/*/*') if not name.endswith('output.log')])",
}
DANGEROUS = {"fills the memory": "memory", "bombs": "pids", "kills": "isolation"}


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=pytest.mark.slow) if name in ("fills the disk", "loops") else name for name in HOSTILE]
)
async def test_a_hostile_trial_run_changes_nothing(kernel, name):
    if name in DANGEROUS and kernel.box == "process":
        pytest.skip(f"nothing holds {DANGEROUS[name]} in a plain process")
    if name in ("kills its parent", "kills") and not _scopes_signals():
        pytest.skip("this kernel's Landlock does not scope signals")
    sockets = kernel._box.sockets_path
    await went_well(
        kernel,
        f"import os; open('kept.txt', 'w').write('kept'); x = 41\nHOME, LIVE, SOCKETS = os.getcwd(), os.getpid(), {sockets!r}",
    )
    pid = await went_well(kernel, "print(os.getpid())")
    execution = await kernel.validate(HOSTILE[name], 3)
    assert execution.forked
    if name == "speaks to the live kernel":
        assert printed(execution) == "FILES []\n"
    assert await went_well(kernel, "print(os.getpid())") == pid, "the same live kernel"
    assert await went_well(kernel, "print(x + 1, os.listdir('.'), open('kept.txt').read())") == "42 ['kept.txt'] kept\n"
    assert (await kernel.execute("open('after', 'w').write('1' * 1000)", 20)).status == "ok"


def _scopes_signals() -> bool:
    import ctypes  # noqa: PLC0415  for this question alone

    return int(ctypes.CDLL(None).syscall(444, None, ctypes.c_size_t(0), ctypes.c_uint32(1))) >= 6


async def test_a_trial_run_out_of_memory_dies_first(kernel):
    if await kernel._box.oom_kills() is None:
        pytest.skip("no cgroup holds this box's memory here")
    await went_well(kernel, "held = bytearray(200 << 20); x = 1")
    execution = await kernel.validate("hog = [bytearray(1 << 24) for _ in range(2000)]", 30)
    assert execution.status == "died"
    assert execution.death is not None
    assert execution.death.kind == "oom"
    assert await went_well(kernel, "print(len(held), x)") == f"{200 << 20} 1\n"


# --- checkpoints -----------------------------------------------------------------------------------------------------


async def test_a_restore_brings_back_variables_and_files_and_ends_what_ran(kernel):
    await went_well(kernel, "x = 1; open('a.txt', 'w').write('old'); import random; random.seed(5)")
    made = await kernel.checkpoint("before")
    await went_well(kernel, "x = 2; open('a.txt', 'w').write('new'); open('b.txt', 'w').close(); y = random.random(); print(y)")
    life = kernel.life
    assert await kernel.restore(made.id) == ()
    assert kernel.life == life + 1
    said = await went_well(kernel, "import os; print(x, open('a.txt').read(), os.listdir('.'), 'y' in dir())")
    assert said == "1 old ['a.txt'] False\n"
    first = await went_well(kernel, "print(random.random())")
    await kernel.restore(made.id)
    assert await went_well(kernel, "print(random.random())") == first, "the same numbers each time"


async def test_a_checkpoint_beyond_the_limit_becomes_a_file_of_its_variables(kernel):
    kernel._settings = kernel._settings.model_copy(update={"max_checkpoints": 1})
    try:
        await went_well(kernel, "import numpy as np\na = np.arange(5); b = [a, a]; gen = (i for i in [1]); f = lambda: a.sum()")
        old = await kernel.checkpoint("old")
        await went_well(kernel, "a = None")
        await kernel.checkpoint("new")
        missing = await kernel.restore(old.id)
        assert any(line.startswith("gen:") for line in missing), missing
        assert await went_well(kernel, "print(a.sum(), b[0] is b[1] is a, np.pi > 3, 'gen' in dir())") == "10 True True False\n"
    finally:
        kernel._settings = kernel._settings.model_copy(update={"max_checkpoints": 8})


async def test_a_checkpoint_whose_process_was_killed_says_so(kernel):
    await went_well(kernel, "x = 1; open('f.txt', 'w').write('file')")
    made = await kernel.checkpoint("")
    pid = kernel._checkpoints[made.id].executor.process.pid
    await went_well(kernel, f"import os; os.kill({pid}, 9); open('f.txt', 'w').write('other')")
    waiting = kernel._checkpoints[made.id].executor.process
    assert await becomes_true(waiting.exited.done)
    assert any("killed" in line for line in await kernel.restore(made.id))
    assert await went_well(kernel, "print('x' in dir(), open('f.txt').read())") == "False file\n"


# --- branches --------------------------------------------------------------------------------------------------------


async def test_branches_go_their_own_ways(kernel):
    await went_well(kernel, "import random, os; x = 0; open('shared.txt', 'w').write('root')")
    branches = await kernel.branch(3, seeds=[1, 2, 2])
    try:
        drawn = await asyncio.gather(*(went_well(one, "x += 1; print(random.random())") for one in branches))
        assert drawn[0] != drawn[1] == drawn[2]
        for number, one in enumerate(branches):
            await went_well(
                one, f"open('submission.csv', 'w').write('branch {number}'); open('shared.txt', 'a').write('{number}')"
            )
        for number, one in enumerate(branches):
            assert await one.read_submission("submission.csv", 100) == f"branch {number}".encode()
            assert await went_well(one, "print(x, open('shared.txt').read())") == f"1 root{number}\n"
        assert await kernel.read_submission("submission.csv", 100) is None
        assert await went_well(kernel, "print(x, open('shared.txt').read())") == "0 root\n"
    finally:
        for one in branches:
            await one.close()


async def test_a_branch_has_trial_runs_checkpoints_restarts_and_deaths_of_its_own(kernel):
    await went_well(kernel, "x = 1; import os")
    first, second = await kernel.branch(2)
    try:
        assert printed(await tried(first, "x += 1; open('t', 'w').close(); print(x)")) == "2\n"
        made = await first.checkpoint("")
        await went_well(first, "x = 5; open('u', 'w').close()")
        await first.restore(made.id)
        assert await went_well(first, "print(x, os.listdir('.'))") == "1 []\n"
        assert (await second.execute("os._exit(1)", 20)).status == "died"
        assert printed(await second.execute("print('x' in dir())", 60)) == "False\n"
        assert await went_well(first, "print(x)") == "1\n"
        await first.restart()
        assert await went_well(kernel, "print(x)") == "1\n"
    finally:
        await first.close()
        await second.close()


async def test_a_branch_cannot_write_to_its_siblings(kernel):
    first, second = await kernel.branch(2)
    try:
        where = (await went_well(second, "import os; open('own', 'w').close(); print(os.getcwd())")).strip()
        execution = await first.execute(f"open({where!r} + '/own', 'w')", 20)
        assert execution.status == "error"
        assert (await first.execute(f"open({kernel.workspace_path!r} + '/evil', 'w')", 20)).status == "error"
    finally:
        await first.close()
        await second.close()


async def test_a_branch_outlives_its_root(tmp_path):
    tmp_path.chmod(0o755)
    root = await opened("process", tmp_path)
    await went_well(root, "x = 7")
    (branch,) = await root.branch(1)
    await root.close()
    assert await went_well(branch, "print(x)") == "7\n"
    folder = branch._box.run_dir
    await branch.close()
    assert not Path(folder).exists()


@pytest.mark.slow
async def test_nothing_is_left_of_forks(kernel):
    await went_well(kernel, "import os; x = 1")
    box = kernel._box

    def names(folder: Path) -> list[str]:
        return sorted(entry.name for entry in folder.iterdir())

    def state() -> tuple[int, list[str], list[str]]:
        return len(names(Path("/proc/self/fd"))), names(box.run_dir / "k"), names(box.forks.path)

    async def once() -> None:
        await tried(kernel, "x = 2")
        (one,) = await kernel.branch(1)
        await one.close()

    await once()
    await went_well(kernel, "print('what a first print opens')")
    assert await becomes_true(lambda: not any(name.isdigit() for name in names(box.forks.path)))
    gc.collect()
    before = state()

    def is_back() -> bool:  # what ZeroMQ closes in its own time may have been open before
        now = state()
        return now[0] <= before[0] and now[1:] == before[1:]

    inside = (
        "kinds = sorted(os.path.realpath(f'/proc/self/fd/{name}').rpartition(':')[0] for name in os.listdir('/proc/self/fd'))\n"
        "print(len(os.listdir('/proc/self/task')), [(kind, kinds.count(kind)) for kind in sorted(set(kinds))])"
    )
    held = await went_well(kernel, inside)
    for _ in range(15):
        await once()
    assert await becomes_true(is_back), (before, state())
    assert await went_well(kernel, inside) == held
