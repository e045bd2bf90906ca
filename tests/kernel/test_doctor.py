"""The doctor says what runs here, and one command for what does not."""

import pytest

from dojo_kernel.kernel import doctor


async def test_every_kind_is_reported_once_strongest_first():
    assert [report.box for report in await doctor.examine()] == ["docker", "sandbox", "process"]


async def test_what_is_missing_has_exactly_one_command_and_what_runs_has_none():
    for report in await doctor.examine():
        assert (report.fix is None) == report.available
        assert "\n" not in report.why + (report.fix or "")
        assert bool(report.enforcement) == report.available


async def test_a_process_box_runs_on_every_machine():
    assert (await doctor.available("process"))[0]


async def test_a_remote_engine_is_refused_by_its_cause(monkeypatch):
    monkeypatch.setenv("DOCKER_HOST", "tcp://192.0.2.1:2375")
    monkeypatch.setattr("dojo_kernel.kernel.docker._engines", {})
    doctor._known.clear()
    usable, why = await doctor.available("docker")
    doctor._known.clear()
    assert not usable
    assert why.endswith("run: unset DOCKER_HOST")


async def test_without_bubblewrap_the_fix_installs_it(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    doctor._known.clear()
    report = await doctor.report("sandbox")
    doctor._known.clear()
    assert report.fix == "sudo apt-get install bubblewrap"


@pytest.mark.docker
async def test_the_docker_report_names_what_holds_each_limit():
    report = await doctor.report("docker")
    assert {row.limit for row in report.enforcement} >= {
        "isolation",
        "network",
        "memory",
        "cpu",
        "pids",
        "disk",
        "syscalls",
        "lifetime",
    }
