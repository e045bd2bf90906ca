"""What tests of boxes share: the kinds and their marks, a box with a bare kernel in it, processes seen from outside."""

from __future__ import annotations

import asyncio
import contextlib
import os
import sys
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING, Self

import psutil
import pytest
from jupyter_client import AsyncKernelClient
from jupyter_client.kernelspec import KernelSpec

from dojo_kernel.kernel import KernelSession, open_kernel
from dojo_kernel.kernel.session import _provisioner as kind_of
from dojo_kernel.records import Enforcement, Execution, Limits, Stream
from dojo_kernel.settings import KernelSettings

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable

    from dojo_kernel.kernel.box import BoxProvisioner

ISOLATED = [  # the slow half, so that people run the rest; `make test` runs all three
    pytest.param("sandbox", marks=[pytest.mark.sandbox, pytest.mark.slow]),
    pytest.param("docker", marks=[pytest.mark.docker, pytest.mark.slow]),
]
BOXES = ["process", *ISOLATED]
ISOLATED_IN_CI = [pytest.param(*one.values, marks=[*one.marks, pytest.mark.endurance]) for one in ISOLATED]
BOXES_IN_CI = ["process", *ISOLATED_IN_CI]
"""For what hardly differs from box to box."""
NBCONVERT = [sys.executable, *["-m", "nbconvert", "--to", "notebook", "--execute", "run.ipynb", "--output", "done.ipynb"]]
NBCONVERT += ["--KernelManager.transport=ipc", "--KernelManager.ip=k"]  # a port may be another's when the kernel comes up
SMALL = Limits(cpus=1.0, memory_gb=0.5, disk_gb=0.05, pids=96)
IPYKERNEL = ["python3", "-m", "ipykernel_launcher", "-f", "{connection_file}"]
EPISODE = f"test-{os.getpid()}"


def provisioner(kind: str, data: Path | None = None, argv: list[str] = IPYKERNEL) -> BoxProvisioner:
    spec = KernelSpec(argv=list(argv), display_name="trial", language="python")
    return kind_of(kind)(kernel_spec=spec, limits=SMALL, data_dir=data, episode=EPISODE)


class Cells:
    """One box with one kernel of stock ipykernel; called with code, gives what the cell printed."""

    def __init__(self, kind: str, data: Path | None = None) -> None:
        self.box = provisioner(kind, data)
        self.count = 0

    async def __aenter__(self) -> Self:
        await self.box.start_box()
        await self.start()
        return self

    async def start(self) -> None:
        self.process = await self.box.spawn(f"live-{self.count}")
        self.count += 1
        self.client = AsyncKernelClient()
        self.client.load_connection_info(self.process.connection_info)
        self.client.start_channels(hb=False)
        await self.client.wait_for_ready(timeout=60)

    async def __aexit__(self, *_: object) -> None:
        self.client.stop_channels()
        await self.box.remove_box()

    async def __call__(self, code: str, timeout_s: float = 60) -> str:
        said = []

        def keep(message):
            content = message["content"]
            said.append(content.get("text", "") or "\n".join(content.get("traceback", ())))

        await self.client.execute_interactive(textwrap.dedent(code), output_hook=keep, timeout=timeout_s)
        return "".join(said)


async def opened(kind: str, folder: Path, **settings: object) -> KernelSession:
    """A session with our own kernel in it, as an episode has it."""
    usual = {"limits": Limits(memory_gb=0.6, pids=128), "max_restarts": 100}
    given = KernelSettings(box=kind, **{**usual, **settings})
    kernel = await open_kernel(given, data_dir=folder, episode=EPISODE)
    assert isinstance(kernel, KernelSession)
    return kernel


def needs_held_memory(enforcement: tuple[Enforcement, ...]) -> None:
    """Skips where no cgroup holds the memory of the box: a plain process, or a host that is not root."""
    if not any(one.limit == "memory" and one.by == "cgroup" for one in enforcement):
        pytest.skip("no cgroup holds this box's memory here")


@contextlib.asynccontextmanager
async def lasting(kind: str, folders: pytest.TempPathFactory, **settings: object) -> AsyncIterator[KernelSession]:
    """A session for all tests of a module; `anew` before each."""
    data = folders.mktemp("data")
    data.chmod(0o755)  # the box may have another uid
    kernel = await opened(kind, data, **settings)
    try:
        yield kernel
    finally:
        await kernel.close()


async def anew(kernel: KernelSession) -> KernelSession:
    """The same box with an empty kernel and an empty workspace."""
    kernel._deaths = 0
    await kernel.restart()
    await went_well(kernel, "!rm -rf -- ./*")
    return kernel


async def went_well(kernel: KernelSession, code: str, timeout_s: float = 60) -> str:
    """What a cell prints that has to end well."""
    execution = await kernel.execute(code, timeout_s)
    assert execution.status == "ok", execution
    return printed(execution)


def printed(execution: Execution, name: str = "stdout") -> str:
    return "".join(output.text for output in execution.outputs if isinstance(output, Stream) and output.name == name)


def alive(pid: int | str) -> bool:
    """No zombie either."""
    try:
        return b") Z" not in Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False


def descendants(pid: int) -> set[int]:
    """Children of a process and theirs, as the machine sees them: those in boxes that it has started itself, zombies too."""
    try:
        return {one.pid for one in psutil.Process(pid).children(recursive=True)}
    except psutil.NoSuchProcess:
        return set()


def sleepers(mark: str) -> list[int]:
    """Processes `sleep MARK` of this machine, those in boxes included; zombies have no arguments."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if words[:2] == [b"sleep", mark.encode()]:
            found.append(int(folder.name))
    return found


async def becomes_true(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Whether it does, in time."""
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            return bool(condition())  # the machine may have stood still since the last look
        await asyncio.sleep(0.02)
    return True
