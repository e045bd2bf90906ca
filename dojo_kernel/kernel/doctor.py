"""Which boxes this machine can run, found out by running one of each, and the one command that mends what is missing."""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import os
import platform
import shutil
import subprocess
from typing import TYPE_CHECKING

from jupyter_client.kernelspec import KernelSpec

from dojo_kernel.errors import BoxUnavailableError, DojoError
from dojo_kernel.kernel.sandbox import system_binds
from dojo_kernel.records import Enforcement, Limits, Record

if TYPE_CHECKING:
    from dojo_kernel.kernel.box import BoxProvisioner

KINDS = ("docker", "sandbox", "process")
"""Strongest first."""
CLASSES = {kind: f"dojo_kernel.kernel.{kind}:{kind.capitalize()}Provisioner" for kind in KINDS}
TRIAL = Limits(cpus=1.0, memory_gb=0.25, disk_gb=0.05, pids=64)
TRIAL_S = 60.0


class BoxReport(Record):
    """What one kind of box is worth on this machine."""

    box: str
    available: bool
    why: str
    """One line: what was tried and seen, or what is missing."""
    fix: str | None = None
    """The one command that comes next; None when nothing is missing."""
    enforcement: tuple[Enforcement, ...] = ()
    """As in a trial box that ran; empty when none did."""
    versions: dict[str, str] = {}


_known: dict[str, BoxReport] = {}


async def examine() -> list[BoxReport]:
    """Try every kind anew, strongest first."""
    _known.clear()
    return [await report(kind) for kind in KINDS]


async def available(box: str) -> tuple[bool, str]:
    """Whether a box of this kind ran when this process tried, and the line that says why or what to do."""
    found = await report(box)
    return found.available, found.why if found.fix is None else f"{found.why}; run: {found.fix}"


async def report(box: str) -> BoxReport:
    """About one kind; tried once a process."""
    if box not in _known:
        _known[box] = await _examine(box)
    return _known[box]


async def _examine(box: str) -> BoxReport:
    missing = await asyncio.to_thread({"docker": _docker, "sandbox": _sandbox, "process": _process}[box])
    if missing is not None:
        return BoxReport(box=box, available=False, why=missing[0], fix=missing[1], versions=_versions(box))
    try:
        held = await asyncio.wait_for(_trial(box), TRIAL_S)
    except (DojoError, OSError, TimeoutError) as error:
        return BoxReport(
            box=box,
            available=False,
            why=_line(f"a trial box did not run: {error!r}"),
            fix=_after_trial(box, error),
            versions=_versions(box),
        )
    return BoxReport(box=box, available=True, why="a trial box ran", enforcement=held, versions=_versions(box))


async def _trial(box: str) -> tuple[Enforcement, ...]:
    module, _, name = CLASSES[box].partition(":")
    kind: type[BoxProvisioner] = getattr(importlib.import_module(module), name)
    trial = kind(kernel_spec=KernelSpec(argv=["python3"]), limits=TRIAL, episode="doctor")
    try:
        await trial.start_box()
        return trial.enforcement
    finally:
        await trial.remove_box()


# --- what is missing, and what mends it: (why, command), or None ----------------------------------------------------


def _docker() -> tuple[str, str] | None:
    from dojo_kernel.kernel import docker  # noqa: PLC0415  the SDK is slow to import, and `--box process` needs none

    try:
        found = docker.engine()
    except BoxUnavailableError as error:
        return str(error).partition("; run: ")[0], _engine_fix()
    if not found.has_image(docker.DEFAULT_IMAGE):
        return f"the engine has no image {docker.DEFAULT_IMAGE}", "make image"
    return None


def _engine_fix() -> str:
    if os.environ.get("DOCKER_HOST", "unix://").partition("://")[0] != "unix":
        return "unset DOCKER_HOST"
    if shutil.which("dockerd") is None and shutil.which("docker") is None:
        return _sudo("apt-get install docker.io")
    if os.path.exists("/var/run/docker.sock") and not os.access("/var/run/docker.sock", os.W_OK):  # noqa: PTH110
        return "sudo usermod -aG docker $USER && newgrp docker"
    return _sudo("systemctl start docker") if os.path.isdir("/run/systemd/system") else _sudo("scripts/start-docker")  # noqa: PTH112


def _sandbox() -> tuple[str, str] | None:
    tool = shutil.which("bwrap")
    if tool is None:
        return "bubblewrap is not installed", _sudo("apt-get install bubblewrap")
    argv = [
        tool,
        "--unshare-user",
        "--unshare-pid",
        "--unshare-net",
        "--unshare-ipc",
        "--unshare-uts",
        *system_binds(),
        "true",
    ]
    try:
        tried = subprocess.run(argv, capture_output=True, text=True, timeout=20, env={}, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        return _line(f"bwrap does not run: {error}"), _sudo("apt-get install --reinstall bubblewrap")
    if tried.returncode == 0:
        return None
    return _line(f"bwrap may not make a box: {tried.stderr}"), _userns_fix()


def _userns_fix() -> str:
    """The narrow one where AppArmor forbids it (Ubuntu 24.04): a profile for bwrap alone."""
    if _sysctl("kernel/apparmor_restrict_unprivileged_userns") == "1":
        text = "abi <abi/4.0>,\\ninclude <tunables/global>\\nprofile bwrap /usr/bin/bwrap flags=(unconfined) { userns, }\\n"
        return f"printf '{text}' | sudo tee /etc/apparmor.d/bwrap && sudo apparmor_parser -r /etc/apparmor.d/bwrap"
    if _sysctl("kernel/unprivileged_userns_clone") == "0":
        return _sudo("sysctl -w kernel.unprivileged_userns_clone=1")
    return _sudo("sysctl -w user.max_user_namespaces=15000")


def _sysctl(name: str) -> str | None:
    try:
        with open(f"/proc/sys/{name}", encoding="ascii") as file:  # noqa: PTH123
            return file.read().strip()
    except OSError:
        return None


def _process() -> tuple[str, str] | None:
    return None


def _after_trial(box: str, error: BaseException) -> str:
    if isinstance(error, BoxUnavailableError) and "; run: " in str(error):
        return str(error).partition("; run: ")[2]
    return {"docker": "make image", "sandbox": _sudo("apt-get install --reinstall bubblewrap"), "process": "make clean demo"}[box]


def _sudo(command: str) -> str:
    return f"sudo {command}"


def _line(text: str) -> str:
    return " ".join(text.split())[:300]


def _versions(box: str) -> dict[str, str]:
    found = {"kernel": platform.release(), "python": platform.python_version()}
    if box == "docker":
        from dojo_kernel.kernel import docker  # noqa: PLC0415  as above

        with contextlib.suppress(BoxUnavailableError):
            found.update(docker.engine().versions())
    if box == "sandbox" and (tool := shutil.which("bwrap")) is not None:
        with contextlib.suppress(OSError, subprocess.TimeoutExpired):
            said = subprocess.run([tool, "--version"], capture_output=True, text=True, timeout=20, env={}, check=False)
            found["bubblewrap"] = said.stdout.strip().removeprefix("bubblewrap ")
    return found
