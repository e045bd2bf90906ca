"""A plain child process for code that its user trusts: same wire and same life as the other boxes, but no wall."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import socket
import subprocess
import sys
from typing import Any, ClassVar

from dojo_kernel.kernel import reaper
from dojo_kernel.kernel.box import INSIDE, QUOTA, BoxProcess, BoxProvisioner
from dojo_kernel.records import Enforcement


class ProcessProvisioner(BoxProvisioner):
    """`init.py --subreaper` as our child; it dies, and everything below it, when its standard input ends."""

    kind: ClassVar[str] = "process"
    watches_disk: ClassVar[bool] = False
    _init: subprocess.Popen[bytes] | None = None

    @property
    def uid(self) -> int:
        """Our own: there is no wall that another uid could help."""
        return os.geteuid()

    @property
    def workspace_path(self) -> str:  # type: ignore[override]  # a fixed path in the other boxes
        """The host's own path, like the rest: nothing is mounted here."""
        return str(self.workspace.path)

    @property
    def data_path(self) -> str:  # type: ignore[override]
        """The host's own path."""
        return str(self.data_dir) if self.data_dir is not None else f"{self.run_dir}/data"

    @property
    def sockets_path(self) -> str:  # type: ignore[override]
        """The host's own path."""
        return f"{self.run_dir}/k"

    @property
    def inside_path(self) -> str:  # type: ignore[override]
        """The host's own path."""
        return str(INSIDE)

    @property
    def forks_path(self) -> str:  # type: ignore[override]
        """The host's own path."""
        return str(self.forks.path)

    @property
    def scratch_root(self) -> str:  # type: ignore[override]
        """The host's own path."""
        return f"{self.run_dir}"

    @property
    def home_path(self) -> str:  # type: ignore[override]
        """The host's own path."""
        return f"{self.run_dir}/home"

    def environment(self) -> dict[str, str]:
        """With a TMPDIR, since the host's /tmp is not the box's."""
        return {**super().environment(), "TMPDIR": self.home_path}

    async def _open_box(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self.run_dir is not None
        (self.run_dir / "home").mkdir(mode=0o700, exist_ok=True)
        ours, theirs = socket.socketpair()
        with theirs:
            self._init = subprocess.Popen(  # noqa: ASYNC220  a fork of milliseconds, on the thread that must own the child
                [sys.executable, "-I", "-S", "-B", str(INSIDE / "init.py"), "--subreaper"],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.DEVNULL,
                env={},
                cwd="/",
                start_new_session=True,
            )
        return await asyncio.open_connection(sock=ours, limit=1 << 16)

    async def _close_box(self) -> None:
        init, self._init = self._init, None
        if init is None:
            return
        with contextlib.suppress(subprocess.TimeoutExpired):
            init.send_signal(signal.SIGCONT)  # one that somebody stopped has to end what it holds
            await asyncio.to_thread(init.wait, 10)
        if init.poll() is None:
            init.kill()
            await asyncio.to_thread(init.wait)
        # a kernel that another one forked dies with neither of them, and init may have been killed
        await asyncio.gather(*(asyncio.to_thread(_end, process) for process in self._running))

    def _numbered(self, process: BoxProcess, pid: int) -> None:
        super()._numbered(process, pid)
        process.born = reaper.start_time(pid)

    def _enforcement(self) -> tuple[Enforcement, ...]:
        nothing: Any = ("isolation", "network", "memory", "cpu", "pids", "syscalls", "gpu", "gpu_memory")
        disk = ("tmpfs", QUOTA) if self.workspace.quota else ("nothing", "")
        return (
            *(Enforcement(limit=limit, by="nothing", detail="a plain process of this user") for limit in nothing),
            Enforcement(limit="disk", by=disk[0], detail=disk[1]),
            Enforcement(limit="lifetime", by="init", detail="dies when the host's end of its pipe closes"),
        )


def _end(process: BoxProcess) -> None:
    """If it runs, and is no other one that has its number by now."""
    if process.pid and process.born is not None and reaper.start_time(process.pid) == process.born:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        reaper.end_process(process.pid)
