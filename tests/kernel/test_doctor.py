"""The doctor says what runs here, and one command for what does not. Each patient is a process of its own."""

import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from dojo_kernel.errors import BoxUnavailableError
from dojo_kernel.kernel import docker, doctor

ASK = """
import asyncio, sys
from dojo_kernel.kernel import doctor
print(asyncio.run(doctor.report(sys.argv[1])).model_dump_json())
"""


def report(box, **changed):
    """Of a machine with other environment variables."""
    env = {**os.environ, **{name: str(value) for name, value in changed.items()}}
    done = subprocess.run(
        [sys.executable, "-c", ASK, box], env=env, cwd="/", capture_output=True, text=True, timeout=120, check=True
    )
    return doctor.BoxReport.model_validate_json(done.stdout)


async def test_every_kind_is_reported_once_strongest_first():
    assert [report.box for report in await doctor.examine()] == ["docker", "sandbox", "process"]


async def test_what_is_missing_has_exactly_one_command_and_what_runs_has_none():
    for found in await doctor.examine():
        assert (found.fix is None) == found.available
        assert "\n" not in found.why + (found.fix or "")
        assert bool(found.enforcement) == found.available


async def test_a_process_box_runs_on_every_machine():
    assert (await doctor.available("process"))[0]


def dead_socket(folder):
    path = folder / "docker.sock"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(path))
    return path


def plain_file(folder):
    path = folder / "plain.sock"
    path.touch()
    return path


ENGINES = {
    "on another machine": (lambda _: "tcp://192.0.2.1:2375", "DOCKER_HOST=tcp://192.0.2.1:2375 is not on this machine"),
    "not there": (lambda folder: f"unix://{folder}/none.sock", "no Docker engine runs here"),
    "stopped": (lambda folder: f"unix://{dead_socket(folder)}", "docker.sock does not answer"),
    "a plain file": (lambda folder: f"unix://{plain_file(folder)}", "plain.sock does not answer"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("host", "why"), ENGINES.values(), ids=ENGINES)
def test_an_engine_that_cannot_be_reached_is_named_with_its_cause(tmp_path, host, why):
    found = report("docker", DOCKER_HOST=host(tmp_path))
    assert not found.available
    assert why in found.why
    assert found.fix
    assert (found.fix == "unset DOCKER_HOST") == found.why.startswith("DOCKER_HOST=")


def test_an_engine_that_takes_no_more_connections_is_given_up(tmp_path, monkeypatch):
    path = str(tmp_path / "full.sock")
    monkeypatch.setenv("DOCKER_HOST", f"unix://{path}")
    monkeypatch.setattr(docker, "SDK_TIMEOUT_S", 0.2)
    monkeypatch.setattr(docker, "_engines", {})
    with socket.socket(socket.AF_UNIX) as listener, socket.socket(socket.AF_UNIX) as first:
        listener.bind(path)
        listener.listen(0)
        first.connect(path)  # and is never accepted
        with pytest.raises(BoxUnavailableError, match="does not answer"):
            docker.engine()


def test_without_bubblewrap_the_fix_installs_it(tmp_path):
    found = report("sandbox", PATH=tmp_path)
    assert (found.available, found.why) == (False, "bubblewrap is not installed")
    assert found.fix == "sudo apt-get install bubblewrap"


def test_a_bubblewrap_that_may_not_make_namespaces_is_quoted_in_one_line(tmp_path):
    tool = tmp_path / "bwrap"
    tool.write_text("#!/bin/sh\necho 'bwrap: No permissions to create new namespace,' >&2\necho 'likely disabled' >&2\nexit 1\n")
    tool.chmod(0o755)
    found = report("sandbox", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert found.why == "bwrap may not make a box: bwrap: No permissions to create new namespace, likely disabled"
    assert found.fix.startswith(("sudo sysctl -w ", "printf "))


@pytest.mark.slow
def test_a_person_reads_the_same_in_the_table_of_the_command(tmp_path):
    env = {**os.environ, "DOCKER_HOST": f"unix://{tmp_path}/none.sock", "COLUMNS": "200"}
    done = subprocess.run(
        [Path(sys.executable).parent / "dojo", "doctor"], env=env, capture_output=True, text=True, timeout=120, check=False
    )
    assert "no Docker engine runs here" in done.stdout + done.stderr


@pytest.mark.docker
async def test_the_docker_report_names_what_holds_each_limit():
    found = await doctor.report("docker")
    assert {row.limit for row in found.enforcement} >= {
        "isolation",
        "network",
        "memory",
        "cpu",
        "pids",
        "disk",
        "syscalls",
        "lifetime",
    }
