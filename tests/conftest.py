"""Marks docker, sandbox, gpu and ray: skipped with the doctor's reason, or failed where DOJO_REQUIRE names the mark.

The mark endurance is run only where DOJO_REQUIRE names it.
"""

import asyncio
import importlib.util
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest
from hypothesis import settings

from dojo_kernel.competition import find
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.kernel import doctor, reaper
from dojo_kernel.kernel.doctor import available

# A job in the background of a script ignores SIGINT, and so would the programs that tests interrupt.
signal.signal(signal.SIGINT, signal.default_int_handler)
settings.load_profile("ci")  # no deadline: an example may take long where others work beside it; the same examples each time
MARKS = ("docker", "sandbox", "gpu", "ray", "endurance")
REQUIRED = frozenset(filter(None, os.environ.get("DOJO_REQUIRE", "").split(",")))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data root with wine and diabetes; DOJO_DATA is the test's own business."""
    root = tmp_path_factory.mktemp("data")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DOJO_DATA", str(root))
        prepare(find("wine"))
        prepare(find("diabetes"))
    return root


def _gpu() -> tuple[bool, str]:
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return False, "no NVIDIA driver on this machine"
    found = subprocess.run([tool, "-L"], capture_output=True, text=True, timeout=20, check=False)
    return (found.returncode == 0, found.stderr.strip() or "nvidia-smi lists no GPU")


def _probe(mark: str) -> tuple[bool, str]:
    if mark == "endurance":
        return mark in REQUIRED, "takes long; run: DOJO_REQUIRE=endurance make test"
    if mark == "ray":
        found = importlib.util.find_spec("ray") is not None
        return found, "" if found else "not installed; pip install 'dojo_kernel[ray]'"
    if mark == "gpu":
        return _gpu()
    for pause in (1, 5, 0):
        usable, why = asyncio.run(available(mark))
        if usable or mark not in REQUIRED:
            break
        doctor._known.pop(
            mark, None
        )  # a trial that fails is not asked for again, and all tests would fail for its one bad moment
        time.sleep(pause)
    return usable, why


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    answers: dict[str, tuple[bool, str]] = {}
    for item in items:
        for mark in MARKS:
            if item.get_closest_marker(mark) is None:
                continue
            if mark not in answers:
                answers[mark] = _probe(mark)
            usable, why = answers[mark]
            if not usable and mark not in REQUIRED:
                item.add_marker(pytest.mark.skip(reason=f"{mark}: {why}"))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Time and memory that test_catalogue.py took for each competition."""
    reports = [one for outcome in ("passed", "failed") for one in terminalreporter.stats.get(outcome, ())]
    rows = sorted(value for one in reports for name, value in getattr(one, "user_properties", ()) if name == "sweep")
    if not rows:
        return
    terminalreporter.section("competitions prepared from noise and graded")
    for slug, seconds, mib in rows:
        terminalreporter.write_line(f"{seconds:8.2f} s {mib:6d} MiB  {slug}")
    terminalreporter.write_line(f"{sum(row[1] for row in rows):8.2f} s {max(row[2] for row in rows):6d} MiB  all {len(rows)}")


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in REQUIRED & {found.name for found in item.iter_markers()} & {*MARKS}:
        usable, why = _probe(mark)
        if not usable:
            pytest.fail(f"DOJO_REQUIRE names {mark}, and it is not usable here: {why}", pytrace=False)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Folders of the programs that tests have killed wait for the next box of this user; here none may come."""
    if not hasattr(session.config, "workerinput"):
        reaper.reap()
