"""What every kind of box promises, as one suite that runs on each.

The 22 problems of other drivers of Jupyter kernels, and the test that shows each solved here (`o:` in test_outputs.py):
 1 output after the reply ............ test_all_output_is_in_before_the_cell_is_over
 2 reply lost, idle seen ............. test_a_lost_reply_ends_the_cell_all_the_same
 3 loss at the high-water mark ....... test_thousands_of_flushed_lines_all_arrive
 4 first output missed ............... test_a_subscription_that_takes_a_second_misses_no_output
 5 a dead kernel hangs the client .... test_a_death_is_typed_within_half_a_second
 6 why did it die? ................... test_a_death_is_typed_within_half_a_second
 7 a timeout leaves the cell running . test_after_a_timeout_nothing_of_the_cell_runs_on
 8 no total budget ................... test_deaths_beyond_the_budget_lose_the_box
 9 stop_on_error aborts the next ..... test_a_cell_after_a_failed_one_runs
10 display updated by a later cell ... test_a_later_cell_cannot_change_an_earlier_display
11 progress bars ..................... test_thousands_of_display_updates_leave_the_last, o: test_a_line_is_rendered_as_a_terminal_shows_it
12 output flood ...................... test_a_flood_of_200_mb_keeps_head_and_tail
13 widgets, comms .................... o: test_widgets_become_plain_text
14 colour codes in tracebacks ........ test_tracebacks_have_no_colour
15 stdin requests hang ............... test_nothing_waits_for_a_person
16 leaks ............................. test_500_starts_leave_nothing_behind
17 subprocesses survive a restart .... test_a_daemon_dies_with_a_restart
18 auto-restarter races .............. test_a_kernel_that_died_between_cells_is_replaced_once
19 output lost with a killed kernel .. test_the_last_words_of_a_killed_kernel_are_kept
20 background output between cells ... test_late_output_of_a_thread_is_reported_under_its_cell
21 memory held by the kernel ......... test_five_results_of_200_mb_do_not_stay_in_the_kernel
22 fd-level output echoed ............ test_output_of_the_file_descriptor_belongs_to_the_cell
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import resource
import shutil
import signal
import tempfile
import threading
import time
import uuid
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import pytest_asyncio
import zmq
from boxes import BOXES, EPISODE, alive, becomes_true, descendants, needs_held_memory, opened, printed, provisioner

from dojo_kernel.errors import BoxLostError
from dojo_kernel.kernel.box import CHANNELS, OUR_ARGV, BoxProvisioner, on_boxes_thread
from dojo_kernel.kernel.docker import engine
from dojo_kernel.kernel.executor import CUT_OFF_S, Executor
from dojo_kernel.records import Death, Display, Error, Execution, Result, Stream

if TYPE_CHECKING:
    from dojo_kernel.kernel import KernelSession

pytestmark = pytest.mark.asyncio(loop_scope="module")


@pytest_asyncio.fixture(loop_scope="module", scope="module", params=BOXES)
async def box(request) -> str:
    if request.param != "process":
        from dojo_kernel.kernel import doctor  # noqa: PLC0415  imports the docker SDK

        fits, why = await doctor.available(request.param)
        if not fits:
            pytest.skip(f"{request.param}: {why}")
    return request.param


@pytest_asyncio.fixture(loop_scope="module", scope="module")
async def shared(box, tmp_path_factory):
    data = tmp_path_factory.mktemp("data")
    data.chmod(0o755)  # the box may have another uid
    (data / "train.csv").write_text("id,x\n1,2\n")
    kernel = await opened(box, data)
    yield kernel
    await kernel.close()


@pytest_asyncio.fixture(loop_scope="module")
async def kernel(shared):
    shared._deaths = 0
    return shared


def error_of(execution: Execution) -> Error:
    return next(output for output in execution.outputs if isinstance(output, Error))


async def run(kernel: KernelSession, code: str, timeout_s: float = 20, cell: str = "s0000") -> Execution:
    return await kernel.execute(code, timeout_s, cell=cell)


# --- cells -----------------------------------------------------------------------------------------------------------


async def test_the_first_output_of_a_fresh_kernel_arrives(kernel):
    await kernel.restart()
    assert printed(await run(kernel, "print('first')")) == "first\n"


async def relayed(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, path: str, late_s: float) -> None:
    """One connection to a unix socket that takes its time before anything goes through."""

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.closing(sink), contextlib.suppress(OSError):
            while data := await source.read(1 << 16):
                sink.write(data)
                await sink.drain()

    with contextlib.closing(writer):
        await asyncio.sleep(late_s)
        onward_reader, onward_writer = await asyncio.open_unix_connection(path)
        with contextlib.closing(onward_writer):
            await asyncio.gather(pump(reader, onward_writer), pump(onward_reader, writer))


async def test_a_subscription_that_takes_a_second_misses_no_output(box):
    """The other channels are up at once; a client that does not wait for iopub's welcome runs its first cell unheard."""
    home = provisioner(box, argv=list(OUR_ARGV))
    await home.start_box()
    relays = Path(tempfile.mkdtemp(prefix="dk-relay", dir="/tmp"))
    tasks: list[asyncio.Task[None]] = []
    servers, executor = [], None
    try:
        process = await home.spawn("live-0")
        real = process.connection_info["ip"]

        def serve(channel: int, late_s: float):
            def connected(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
                tasks.append(asyncio.create_task(relayed(reader, writer, f"{real}-{channel}", late_s)))

            return asyncio.start_unix_server(connected, relays / f"s-{channel}")

        assert await becomes_true(Path(f"{real}-5").exists, 60), "the last socket that a kernel opens"
        servers = [await serve(channel, 1.0 if name == "iopub" else 0.0) for channel, name in enumerate(CHANNELS, 1)]
        process.connection_info = {**process.connection_info, "ip": str(relays / "s")}
        executor = Executor(process, 100_000)
        started = time.monotonic()
        await executor.connect(60)
        assert time.monotonic() - started >= 1.0
        cell = await executor.run("print('first')", 20, "s0000")
        assert [output.text for output in cell.collector.outputs()] == ["first\n"]
        assert cell.missing is None
    finally:
        if executor is not None:
            executor.close()
        for server in servers:
            server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await home.remove_box()
        shutil.rmtree(relays)


async def test_variables_stay_from_cell_to_cell(kernel):
    await run(kernel, "kept = 41")
    found = await run(kernel, "kept + 1")
    assert found.outputs == (Result(execution_count=found.execution_count, data={"text/plain": "42"}),)


async def test_streams_stay_apart(kernel):
    execution = await run(kernel, "import sys; print('out'); print('err', file=sys.stderr)")
    assert (printed(execution), printed(execution, "stderr")) == ("out\n", "err\n")


async def test_an_error_is_an_output_with_its_line(kernel):
    execution = await run(kernel, "a = 1\n1/0")
    assert execution.status == "error"
    assert error_of(execution).ename == "ZeroDivisionError"
    assert "line 2" in "".join(error_of(execution).traceback)


async def test_tracebacks_have_no_colour(kernel):
    assert "\x1b" not in "".join(error_of(await run(kernel, "undefined")).traceback)


async def test_a_cell_after_a_failed_one_runs(kernel):
    await run(kernel, "1/0")
    assert printed(await run(kernel, "print('on')")) == "on\n"


async def test_a_syntax_error_in_the_live_kernel_is_an_error(kernel):
    assert error_of(await run(kernel, "x = = 1")).ename == "SyntaxError"


async def test_top_level_await_works(kernel):
    assert printed(await run(kernel, "import asyncio; await asyncio.sleep(0.01); print('awaited')")) == "awaited\n"


async def test_magics_work(kernel):
    assert printed(await run(kernel, "%%capture\nprint('no')")) == ""


async def test_a_package_that_the_kernel_has_half_imported_is_whole_for_a_cell(kernel):
    await kernel.restart()
    code = "import jupyter_client.session\nfrom jupyter_client import *\nprint(jupyter_client.session.Session, jupyter_client.KernelManager)"
    assert printed(await run(kernel, code)) == (
        "<class 'jupyter_client.session.Session'> <class 'jupyter_client.manager.KernelManager'>\n"
    )


async def test_an_empty_cell_is_ok(kernel):
    assert (await run(kernel, "")).status == "ok"


async def test_a_large_cell_is_ok(kernel):
    assert printed(await run(kernel, "text = '" + "x" * 900_000 + "'\nprint(len(text))")) == "900000\n"


async def test_the_host_measures_the_time(kernel):
    execution = await run(
        kernel, "import time as t\nt.sleep(0.3)\nreal = t.time, t.monotonic\nt.time = t.monotonic = lambda: 0\n"
    )
    await run(kernel, "t.time, t.monotonic = real")
    assert 0.3 <= execution.seconds < 30


async def test_the_kernel_is_not_the_hosts_environment(kernel, monkeypatch):
    monkeypatch.setenv("DOJO_CANARY", "seen")
    assert printed(await run(kernel, "import os; print(os.environ.get('DOJO_CANARY'))")) == "None\n"


async def test_data_and_workspace_are_where_the_agent_is_told(kernel):
    code = f"import os; print(os.path.exists('{kernel.data_path}/train.csv'), os.path.samefile('.', '{kernel.workspace_path}'))"
    assert printed(await run(kernel, code)) == "True True\n"


# --- display ---------------------------------------------------------------------------------------------------------


async def test_a_display_is_a_mime_bundle(kernel):
    execution = await run(kernel, "from IPython.display import HTML, display\ndisplay(HTML('<b>x</b>'))")
    assert isinstance(execution.outputs[0], Display)
    assert execution.outputs[0].data["text/html"] == "<b>x</b>"


async def test_clear_output_clears(kernel):
    execution = await run(kernel, "from IPython.display import clear_output\nprint('a'); clear_output(); print('b')")
    assert printed(execution) == "b\n"


async def test_clear_output_can_wait_for_the_next_output(kernel):
    execution = await run(kernel, "print('a')\nclear_output(wait=True)")
    assert printed(execution) == "a\n"


async def test_a_display_is_updated_within_its_cell(kernel):
    execution = await run(kernel, "h = display('one', display_id=True)\nh.update('two')")
    assert [output.data["text/plain"] for output in execution.outputs] == ["'two'"]


async def test_a_later_cell_cannot_change_an_earlier_display(kernel):
    await run(kernel, "h = display('one', display_id=True)")
    assert (await run(kernel, "h.update('two')")).outputs == ()


@pytest.mark.parametrize("count", [2_000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.endurance])])
async def test_thousands_of_display_updates_leave_the_last(kernel, count):
    execution = await run(kernel, f"h = display(0, display_id=True)\nfor i in range({count}): h.update(i)", 250)
    assert [output.data["text/plain"] for output in execution.outputs] == [str(count - 1)]


async def test_a_plot_is_a_picture(kernel):
    if "No module" in printed(await run(kernel, "try:\n  import matplotlib\nexcept ImportError as e: print(e)", 60)):
        pytest.skip("the box has no matplotlib")
    execution = await run(kernel, "import matplotlib.pyplot as plt\nplt.plot([1, 2]);", 60)
    assert any(isinstance(output, Display) and "image/png" in output.data for output in execution.outputs)


async def test_lone_surrogates_become_valid_text(kernel):
    execution = await run(kernel, "display({'text/plain': 'a\\ud800b'}, raw=True)")
    assert execution.outputs[0].data["text/plain"].encode()


# --- output that is late, or a flood ---------------------------------------------------------------------------------


async def test_all_output_is_in_before_the_cell_is_over(kernel):
    for number in range(50):
        assert printed(await run(kernel, f"print({number})")) == f"{number}\n"


@pytest.mark.parametrize("count", [3_000, pytest.param(20_000, marks=[pytest.mark.slow, pytest.mark.endurance])])
async def test_thousands_of_flushed_lines_all_arrive(kernel, count):
    execution = await run(kernel, f"for i in range({count}): print(i, flush=True)", 60)
    assert printed(execution) == "".join(f"{number}\n" for number in range(count))


async def test_late_output_of_a_thread_is_reported_under_its_cell(kernel):
    await late(kernel, "print('late')")
    execution = await run(kernel, "print('now')", cell="s0008")
    assert printed(execution) == "now\n"
    assert [(late.cell, late.outputs) for late in execution.late] == [("s0007", (Stream(name="stdout", text="late\n"),))]


async def late(kernel, what):
    """`what` by a thread of the cell s0007, once that is over."""
    go, mark = f"go-{uuid.uuid4().hex}", f"late-{uuid.uuid4().hex}"
    code = (
        "import os, threading, time\ndef late():\n"
        f"    while not os.path.exists({go!r}): time.sleep(0.01)\n    {what}\n    open({mark!r}, 'w').close()\n"
        "threading.Thread(target=late).start()"
    )
    await run(kernel, code, cell="s0007")
    (kernel._box.workspace.path / go).touch()
    assert await becomes_true(lambda: kernel.submission_signature(mark), 30)
    await asyncio.sleep(0.5)  # streams are sent five times a second


LATE = {  # cut by the kernel's cap, by the host's, and unread
    "many lines": ("for _ in range(50): print('x' * 99_999)", 50 * 100_000),
    "one line": ("print('x' * 300_000)", 300_001),
    "displays": ("for _ in range(10): display({'text/plain': 'x' * 1_000_000}, raw=True)", 10 * 1_000_000),
}


@pytest.mark.parametrize(("what", "chars"), LATE.values(), ids=LATE)
async def test_late_output_beyond_the_cap_is_counted(kernel, what, chars):
    await late(kernel, what)
    execution = await run(kernel, "print('now')", cell="s0008")
    kept = sum(len(str(output.model_dump())) for late in execution.late for output in late.outputs)
    dropped = sum(late.dropped for late in execution.late)
    assert kept < 110_000
    assert chars - 110_000 < dropped < chars + 10_000
    assert f"{dropped} characters of late output were cut." in execution.notes
    assert (await run(kernel, "print('now')")).late == (), "counted once"


async def test_output_of_the_file_descriptor_belongs_to_the_cell(kernel):
    execution = await run(kernel, "import os, time; os.write(1, b'raw\\n'); time.sleep(0.5)")
    assert printed(execution) == "raw\n"


async def test_output_of_a_child_arrives(kernel):
    execution = await run(kernel, "import subprocess, sys, time\nsubprocess.Popen(['echo', 'child']).wait(); time.sleep(0.5)")
    assert printed(execution) == "child\n"


async def test_a_flood_of_200_mb_keeps_head_and_tail(kernel):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    execution = await run(kernel, "print('head')\nfor i in range(200_000): print('x' * 1000)\nprint('tail')", 120)
    text = printed(execution)
    assert (text.startswith("head\n"), text.endswith("tail\n")) == (True, True)
    assert len(text) < 5_100_000
    assert execution.dropped > 190_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.slow
async def test_a_flood_of_displays_is_bounded_on_the_host(kernel):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    execution = await run(kernel, "for i in range(200): display({'text/plain': 'x' * 1_000_000}, raw=True)", 120)
    assert sum(len(str(output)) for output in execution.outputs) < 6_000_000
    assert execution.dropped > 100_000_000
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


async def test_five_results_of_200_mb_do_not_stay_in_the_kernel(kernel):
    await kernel.restart()
    resident = "print(int(open('/proc/self/statm').read().split()[1]) * 4096)"
    before = int(printed(await run(kernel, resident)))
    big = "class Big:\n    def __init__(self): self.bytes = bytearray(b'1') * 200_000_000"
    await run(kernel, big)
    for _ in range(5):
        assert ".Big at" in (await run(kernel, "Big()")).outputs[0].data["text/plain"]
    held = int(printed(await run(kernel, resident))) - before
    assert 190_000_000 < held < 250_000_000, "the last one is `_`"
    await run(kernel, "0")
    assert int(printed(await run(kernel, resident))) - before < 50_000_000


# --- nothing waits for a person --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code", ["!cat", "input()", "breakpoint()", "import sys; sys.stdin.read()", "import subprocess; subprocess.run('cat')"]
)
async def test_nothing_waits_for_a_person(kernel, code):
    execution = await run(kernel, code)
    assert execution.seconds < 30
    assert execution.rung is None


@pytest.mark.parametrize("code", ["exit()", "quit()", "exit", "import sys; sys.exit(0)"])
async def test_leaving_is_an_error_that_the_kernel_survives(kernel, code):
    await run(kernel, "kept = 1")
    assert (await run(kernel, code)).status == "error"
    assert printed(await run(kernel, "print(kept)")) == "1\n"


# --- time limits -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "code",
    [
        "import time; time.sleep(60)",
        "while True: pass",
        "await asyncio.sleep(60)",
        "import subprocess; subprocess.run(['sleep', '60'])",
    ],
    ids=["sleep", "loop", "await", "child"],
)
async def test_a_timeout_interrupts_and_variables_survive(kernel, code):
    await run(kernel, "import asyncio\nkept = 1")
    execution = await run(kernel, code, 0.5)
    assert (execution.status, execution.death) == ("timeout", None)
    assert execution.rung in ("message", "sigint")
    assert "kept" in execution.survived
    assert execution.seconds < 6


STUBBORN = {
    "except BaseException": "import time\nwhile True:\n  try:\n    while True: time.sleep(0.01)\n  except BaseException: pass",
    "holds the GIL": "import re; re.match('(a+)+$', 'a' * 60 + 'b')",
    "ignores SIGINT": "import signal, ctypes\nsignal.signal(2, signal.SIG_IGN); ctypes.PyDLL(None).sleep(60)",
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "code",
    [pytest.param(code, marks=[] if name == "holds the GIL" else pytest.mark.slow, id=name) for name, code in STUBBORN.items()],
)
async def test_a_stubborn_cell_is_killed_in_time(kernel, code):
    execution = await run(kernel, code, 0.5)
    assert execution.status == "timeout"
    assert execution.seconds < 20, "it would run for a minute"
    if execution.rung == "kill":
        assert (execution.death.kind, execution.survived) == ("killed_by_host", ())
    assert printed(await run(kernel, "print('on')")) == "on\n"


def first_process(home: BoxProvisioner) -> int:
    """The box's init, as the host numbers it."""
    if home.kind == "process":
        return home._init.pid
    if home.kind == "docker":
        return engine().client.api.inspect_container(home._name)["State"]["Pid"]
    return next(
        pid
        for pid in home._processes()
        if Path(f"/proc/{pid}/status").read_text().partition("NSpid:")[2].split("\n")[0].split()[-1] == "1"
    )


@pytest.mark.endurance
@pytest.mark.slow
async def test_a_box_that_does_not_end_its_kernel_is_replaced_and_its_files_are_lost(box, tmp_path):
    kernel = await opened(box, tmp_path)
    try:
        await run(kernel, "kept = 1; open('kept.txt', 'w').write('file')")
        old, stopped = kernel._box.run_dir, first_process(kernel._box)
        os.kill(stopped, signal.SIGSTOP)
        execution = await run(kernel, STUBBORN["except BaseException"], 0.5)
        assert (execution.status, execution.rung, execution.death.kind) == ("timeout", "box", "killed_by_host")
        assert execution.survived == ()
        assert "The time limit ended the cell by removing the box." in execution.notes
        assert any("all files of the workspace are lost" in note for note in execution.notes)
        assert not alive(stopped)
        assert not old.exists()
        after = await run(kernel, "import os; print('kept' in globals(), os.listdir())")
        assert (printed(after), after.life) == ("False []\n", 1)
    finally:
        await kernel.close()


@pytest.mark.slow
async def test_after_a_timeout_nothing_of_the_cell_runs_on(kernel):
    await run(
        kernel, STUBBORN["except BaseException"].replace("time.sleep(0.01)", "open('beat', 'w').write(str(time.time()))"), 0.3
    )
    first = await kernel.read_submission("beat", 1000)
    await asyncio.sleep(0.3)
    assert await kernel.read_submission("beat", 1000) == first


# --- deaths ----------------------------------------------------------------------------------------------------------


DEATHS = {
    "os._exit(0)": ("import os; os._exit(0)", Death(kind="user_exit", code=0)),
    "os._exit(3)": ("import os; os._exit(3)", Death(kind="exited", code=3)),
    "segfault": ("import ctypes; ctypes.string_at(0)", Death(kind="signal", code=11)),
    "SIGKILL": ("import os; os.kill(os.getpid(), 9)", Death(kind="signal", code=9)),
    "abort": ("import os; os.abort()", Death(kind="signal", code=6)),
}


@pytest.mark.parametrize(("code", "death"), DEATHS.values(), ids=DEATHS)
async def test_a_death_is_typed_within_half_a_second(kernel, code, death):
    taken = []
    while not taken or (taken[-1] >= 1.0 and len(taken) < 5):  # the machine may stand still at any moment
        life = (await run(kernel, "kept = 1")).life
        execution = await run(kernel, code)
        assert (execution.status, execution.death, execution.life) == ("died", death, life)
        taken.append(execution.seconds)
    assert min(taken) < 1.0
    after = await run(kernel, "'kept' in globals()")
    assert (after.life, after.outputs[0].data["text/plain"]) == (life + 1, "False")


@pytest.mark.slow
async def test_a_death_that_init_tells_late_is_no_breach_of_the_protocol(kernel):
    init = first_process(kernel._box)
    os.kill(init, signal.SIGSTOP)
    dying = asyncio.create_task(run(kernel, DEATHS["SIGKILL"][0]))
    await asyncio.sleep(CUT_OFF_S + 1)  # the host has seen the connections break
    os.kill(init, signal.SIGCONT)
    assert (await dying).death == DEATHS["SIGKILL"][1]


async def test_the_last_words_of_a_killed_kernel_are_kept(kernel):
    execution = await run(kernel, "import os, sys\nprint('last'); print('words', file=sys.stderr); os.kill(os.getpid(), 9)")
    assert (printed(execution), printed(execution, "stderr")) == ("last\n", "words\n")


async def test_a_kernel_that_died_between_cells_is_replaced_once(kernel):
    go = kernel._box.workspace.path / "die"
    waits = "    while not os.path.exists('die'): time.sleep(0.01)\n    os._exit(4)\n"
    life = (await run(kernel, f"import os, threading, time\ndef die():\n{waits}threading.Thread(target=die).start()")).life
    go.touch()
    async with asyncio.timeout(30):
        await kernel.ended()
    go.unlink()
    execution = await run(kernel, "print('new')")
    assert (printed(execution), execution.life) == ("new\n", life + 1)
    assert "died between two cells" in execution.notes[0]


async def test_init_is_the_last_to_go_when_memory_runs_out(kernel):
    needs_held_memory(kernel.enforcement)
    first, ours = printed(
        await run(kernel, "print(*(open(f'/proc/{pid}/oom_score_adj').read().strip() for pid in (1, 'self')))")
    ).split()
    assert int(first) < int(ours)


async def test_running_out_of_memory_is_told(kernel):
    needs_held_memory(kernel.enforcement)
    await run(kernel, "open('kept.txt', 'w').write('file')")
    execution = await run(kernel, "b = [bytearray(50_000_000) for _ in range(100)]", 60)
    assert execution.death is not None
    assert execution.death.kind == "oom"
    assert printed(await run(kernel, "print(open('kept.txt').read())")) == "file\n"


@pytest.mark.slow
async def test_a_child_out_of_memory_is_no_death(kernel):
    needs_held_memory(kernel.enforcement)
    child = "open('/proc/self/oom_score_adj', 'w').write('1000'); b = [bytearray(50_000_000) for _ in range(100)]"
    execution = await run(
        kernel, f'import subprocess, sys\nprint(subprocess.run([sys.executable, "-c", "{child}"]).returncode)', 60
    )
    assert (printed(execution), execution.death) == ("-9\n", None)
    assert execution.oom_kills >= 1


@pytest.mark.slow
async def test_a_fork_bomb_ends_with_the_cell(kernel):
    if not any(one.limit == "pids" and one.by in ("cgroup", "rlimit") for one in kernel.enforcement):
        pytest.skip("nothing holds the number of processes of this box")
    bomb = "import os, time\nfor _ in range(2000):\n  try:\n    if os.fork() == 0: time.sleep(60); os._exit(0)\n  except OSError: pass"
    await run(kernel, bomb, 20)
    await kernel.restart()
    assert printed(await run(kernel, "print('on')")) == "on\n"


async def test_a_restart_empties_memory_and_keeps_files(kernel):
    await run(kernel, "kept = 1; open('kept.txt', 'w').write('file')")
    await kernel.restart()
    assert printed(await run(kernel, "print('kept' in globals(), open('kept.txt').read())")) == "False file\n"


async def test_a_daemon_dies_with_a_restart(kernel):
    beat = "import time\\nwhile True: open('beat', 'w').write(str(time.time())); time.sleep(0.02)"
    await run(
        kernel, f"import subprocess, sys\nsubprocess.Popen([sys.executable, '-c', \"{beat}\"], start_new_session=True, env={{}});"
    )
    async with asyncio.timeout(30):
        while not await kernel.read_submission("beat", 1000):
            await asyncio.sleep(0.1)
    await kernel.restart()
    first = await kernel.read_submission("beat", 1000)
    await asyncio.sleep(0.3)
    assert await kernel.read_submission("beat", 1000) == first


async def test_deaths_beyond_the_budget_lose_the_box(box, tmp_path):
    kernel = await opened(box, tmp_path, max_restarts=1)
    try:
        await run(kernel, "import os; os._exit(1)")
        execution = await run(kernel, "import os; os._exit(1)")
        assert execution.notes[-1] == "No restart is left."
        with pytest.raises(BoxLostError, match="died 2 times"):
            await run(kernel, "1")
    finally:
        await kernel.close()
        await kernel.close()


# --- a hostile kernel ------------------------------------------------------------------------------------------------

SESSION = "import threading, time\nkernel = get_ipython().kernel\nsession = kernel.session\nreal = session.send\n"


async def test_a_lost_idle_ends_the_cell_all_the_same(kernel):
    await kernel.restart()
    code = SESSION + (
        "def send(stream, what, content=None, *a, **k):\n"
        "    if what == 'status' and content == {'execution_state': 'idle'}:\n"
        "        session.send = real\n        return\n"
        "    return real(stream, what, content, *a, **k)\n"
        "session.send = send\nprint('said')"
    )
    execution = await run(kernel, code, 15)
    assert (printed(execution), execution.status) == ("said\n", "ok")
    assert execution.seconds < 5


async def test_a_lost_reply_ends_the_cell_all_the_same(kernel):
    await kernel.restart()
    code = SESSION + (
        "def send(stream, what, *a, **k):\n"
        "    if what == 'execute_reply':\n        session.send = real\n        return {'content': {'status': 'ok'}}\n"
        "    return real(stream, what, *a, **k)\n"
        "session.send = send\nprint('said')"
    )
    execution = await run(kernel, code, 15)
    assert printed(execution) == "said\n"
    assert execution.seconds < 5
    assert any("lost its reply" in note for note in execution.notes)


@pytest.mark.slow
async def test_an_early_forged_idle_does_not_end_the_cell(kernel):
    await kernel.restart()
    code = SESSION + (
        "session.send(kernel.iopub_socket, 'status', {'execution_state': 'idle'}, parent=kernel.get_parent())\n"
        "time.sleep(1.6); print('done')"
    )
    execution = await run(kernel, code, 15)
    assert (printed(execution), execution.status) == ("done\n", "ok")


async def test_a_forged_reply_and_idle_make_output_late_and_nothing_worse(kernel):
    await kernel.restart()
    code = SESSION + (
        "parent = kernel.get_parent()\n"
        "ident = kernel._parent_ident['shell'] if hasattr(kernel, '_parent_ident') else None\n"
        "session.send(kernel.iopub_socket, 'status', {'execution_state': 'idle'}, parent=parent)\n"
        "time.sleep(1); print('done')"
    )
    assert (await run(kernel, code, 15)).status == "ok"
    assert printed(await run(kernel, "print('next')")) == "next\n"


FRAMES = {
    "content is a list": "session.send(sock, 'stream', ['x'], parent=parent)",
    "text is a number": "session.send(sock, 'stream', {'name': 'stdout', 'text': 5}, parent=parent)",
    "bytes without a message": "sock.send_multipart([b'x' * 100])",
    "no delimiter": "sock.send_multipart([b'a', b'b', b'c'])",
    "deep nesting": "sock.send_multipart([b'<IDS|MSG>', *(lambda p: [session.sign(p), *p])([b'[' * 200_000, b'{}', b'{}', b'{}'])])",
    "a bad signature": "sock.send_multipart([b'<IDS|MSG>', b'0', b'{}', b'{}', b'{}', b'{}'])",
    "NaN": "session.send(sock, 'display_data', {'data': {'application/json': float('inf')}, 'metadata': {}}, parent=parent)",
}


@pytest.mark.parametrize("frame", FRAMES.values(), ids=FRAMES)
async def test_hostile_frames_do_no_harm(kernel, frame):
    setup = (
        SESSION
        + "sock = kernel.iopub_thread if hasattr(kernel, 'iopub_thread') else kernel.iopub_socket\nparent = kernel.get_parent()\n"
    )
    execution = await run(kernel, f"{setup}\ntry:\n    {frame}\nexcept Exception as e: pass\nprint('on')")
    assert printed(execution).endswith("on\n")
    assert printed(await run(kernel, "print('next')")) == "next\n"


async def test_many_hostile_frames_kill_the_kernel(kernel):
    code = "s = get_ipython().kernel.iopub_socket\nimport time\nfor _ in range(1000): s.send_multipart([b'x'])\ntime.sleep(30)"
    execution = await run(kernel, code)
    assert (execution.status, execution.death.kind) == ("died", "protocol")
    assert printed(await run(kernel, "print('on')")) == "on\n"


HUGE = {
    "display": ("display({'text/plain': 'x' * 100_000_000}, raw=True)", 99_000_000),
    "result": ("'x' * 100_000_000", 99_000_000),
    "error": ("raise ValueError('x' * 20_000_000)", 20_000_000),
}


@pytest.mark.parametrize(
    ("code", "cut"),
    [pytest.param(*given, marks=[] if name == "result" else pytest.mark.slow, id=name) for name, given in HUGE.items()],
)
async def test_a_huge_output_is_cut_at_the_source(kernel, code, cut):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    await run(kernel, "kept = 1")
    execution = await run(kernel, code, 20)
    assert execution.death is None
    assert "characters cut" in str(execution.outputs[0])
    assert execution.dropped > cut
    assert printed(await run(kernel, "print(kept)")) == "1\n"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


@pytest.mark.parametrize(
    "pause", [pytest.param("", marks=pytest.mark.slow, id="cell ends"), pytest.param("; time.sleep(30)", id="cell goes on")]
)
async def test_a_huge_frame_ends_the_kernel_and_hurts_nobody(kernel, pause):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    code = f"import time; get_ipython().kernel.iopub_thread.send_multipart([b'x' * 50_000_000]){pause}"
    execution = await run(kernel, code)
    assert (execution.status, execution.death.kind) == ("died", "protocol")
    assert execution.seconds < 5
    assert printed(await run(kernel, "print('on')")) == "on\n"
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 200_000


# --- scratch ---------------------------------------------------------------------------------------------------------


async def test_validation_leaves_no_trace(kernel):
    await run(kernel, "kept = 1\nopen('submission.csv', 'w').write('id,y\\n1,2\\n');")
    signature = kernel.submission_signature("submission.csv")
    code = (
        "kept = 2\nprint(open('submission.csv').read())\nopen('submission.csv', 'w').write('gone')\nopen('new', 'w').write('x');"
    )
    execution = await kernel.validate(code, 20)
    assert (execution.where, execution.status) == ("scratch", "ok")
    assert printed(execution) == "id,y\n1,2\n\n"
    assert kernel.submission_signature("submission.csv") == signature
    assert await kernel.read_submission("submission.csv", 1000) == b"id,y\n1,2\n"
    assert printed(await run(kernel, "import os; print(kept, os.path.exists('new'))")) == "1 False\n"


async def test_validation_cannot_write_to_the_live_workspace(kernel):
    await run(kernel, "open('mine', 'w').write('live');")
    execution = await kernel.validate(f"open('{kernel.workspace_path}/mine', 'w').write('scratch')", 20)
    assert execution.status == "error"
    assert await kernel.read_submission("mine", 1000) == b"live"


async def test_validation_sees_the_live_variables_unless_it_begins_empty(kernel):
    await run(kernel, "only_live = 1")
    assert printed(await kernel.validate("print(only_live)", 20)) == "1\n"
    assert error_of(await kernel.validate("only_live", 20, state="fresh")).ename == "NameError"


async def test_a_syntax_error_is_told_with_its_line_and_nothing_is_run(kernel):
    names = kernel._share.names
    execution = await kernel.validate("open('ran', 'w').close()\nx = = 1\n", 20)
    assert (execution.where, execution.status) == ("scratch", "error")
    assert "line 2" in error_of(execution).evalue
    assert kernel._share.names == names, "no kernel was made for it"
    assert await kernel.read_submission("ran", 10) is None


async def test_a_scratch_kernel_that_dies_leaves_the_live_one(kernel):
    await run(kernel, "kept = 1")
    execution = await kernel.validate("import os; os._exit(5)", 20)
    assert execution.death == Death(kind="exited", code=5)
    assert printed(await run(kernel, "print(kept)")) == "1\n"


async def test_a_scratch_cell_has_its_own_time_limit(kernel):
    await run(kernel, "kept = 1")
    assert (await kernel.validate("import time; time.sleep(60)", 0.5)).status == "timeout"
    assert printed(await run(kernel, "print(kept)")) == "1\n"


# --- nothing stays ---------------------------------------------------------------------------------------------------

AT_ONCE = 4
WORKERS = 40
"""More than asyncio gives one loop: min(32, processors + 4)."""


def held(box: str) -> dict[str, int]:
    """What this process and its boxes hold of the machine."""
    gc.collect()
    held = {
        "descriptors": len(list(Path("/proc/self/fd").iterdir())),
        "threads": threading.active_count(),
        "children": len(descendants(os.getpid())),
        "zmq sockets": sum(isinstance(one, zmq.Socket) and not one.closed for one in gc.get_objects()),
    }
    if box == "docker":
        import docker  # noqa: PLC0415  only where it is used

        client = docker.from_env()
        held["containers"] = len(client.containers.list(all=True, filters={"label": f"dojo.episode={EPISODE}"}, sparse=True))
        client.close()
    return held


async def _starts(box: str, folder: Path, count: int) -> None:
    """Boxes from opening to closing, a cell in each, a few in flight at a time."""
    numbers = iter(range(count))

    async def one_after_the_other() -> None:
        for number in numbers:
            kernel = await opened(box, folder)
            run_dir = kernel._box.run_dir
            assert printed(await run(kernel, f"print({number})", 60)) == f"{number}\n"
            assert str(run_dir) in Path("/proc/self/mountinfo").read_text() or os.geteuid() != 0
            await kernel.close()
            assert not run_dir.exists()
            assert str(run_dir) not in Path("/proc/self/mountinfo").read_text()

    async with asyncio.TaskGroup() as group:
        for _ in range(AT_ONCE):
            group.create_task(one_after_the_other())


async def _fill_threads() -> None:
    """All worker threads that the two event loops will ever start: they stay, and are no leak."""
    async with asyncio.TaskGroup() as group:
        for _ in range(WORKERS):
            group.create_task(asyncio.to_thread(time.sleep, 0.1))


async def _leaves_nothing(box: str, folder: Path, count: int) -> None:
    # what is made once stays: threads of the loops, the reaper, one connection to the engine
    await _fill_threads()
    await on_boxes_thread(_fill_threads())
    await _starts(box, folder, AT_ONCE)
    before = held(box)
    await _starts(box, folder, count)
    until = time.monotonic() + 30
    while (more := {name: (before[name], number) for name, number in held(box).items() if number > before[name]}) and (
        time.monotonic() < until
    ):
        await asyncio.sleep(0.1)
    assert more == {}, "before, after"


@pytest.mark.endurance
@pytest.mark.slow
async def test_starts_leave_nothing_behind(box, tmp_path):
    await _leaves_nothing(box, tmp_path, 1)


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.timeout(2400)
async def test_500_starts_leave_nothing_behind(box, tmp_path):
    await _leaves_nothing(box, tmp_path, 500)
