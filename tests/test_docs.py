"""The README runs, the notebooks run, and both know every command and every action."""

import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient
from traitlets.config import Config
from typer.main import get_command

from dojo_kernel.actions import ACTIONS
from dojo_kernel.cli import app

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", README, re.MULTILINE | re.DOTALL)
MANUAL = sorted((ROOT / "notebooks").glob("*.ipynb"))
MADE_BY_CI = {"make", "git", "cd"}  # .ci/run plays these words from a clean clone


@pytest.fixture
def environment(tmp_path):
    for name in ("home", "work"):
        (tmp_path / name).mkdir()
    return {
        "HOME": str(tmp_path / "home"),
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LANG": "C.UTF-8",
        "DOJO_DATA": str(tmp_path / "data"),
    }


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_every_code_block_of_the_readme_runs(environment, tmp_path):
    targets = set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    for language, text in BLOCKS:
        if language == "python":
            command = [sys.executable, "-c", text]
            subprocess.run(command, env=environment, cwd=tmp_path / "work", check=True, timeout=300)
        elif language == "bash":
            for line in text.splitlines():
                words = line.split("#")[0].split()
                if words and words[0] == "make":
                    assert words[1] in targets, line
                elif words and words[0] not in MADE_BY_CI:
                    subprocess.run(line, shell=True, env=environment, cwd=tmp_path / "work", check=True, timeout=300)
        else:
            assert language in {"text", "toml", "json"}, f"a block of {language} is not run by any test"


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", MANUAL, ids=lambda path: path.stem)
def test_every_notebook_of_the_manual_runs(path, environment, tmp_path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    sockets = Config({"KernelManager": {"transport": "ipc", "ip": str(tmp_path / "k")}})  # of ports, another may take one first
    client = NotebookClient(
        notebook, timeout=240, kernel_name="python3", resources={"metadata": {"path": str(tmp_path / "work")}}, config=sockets
    )
    client.execute(env={**environment, "PYDEVD_DISABLE_FILE_VALIDATION": "1"})


def test_the_manual_is_there_and_carries_no_output_of_ours():
    assert len(MANUAL) >= 4
    for path in MANUAL:
        assert nbformat.read(path, as_version=4).cells[0].cell_type == "markdown"


def test_the_readme_names_every_command_and_every_action():
    for command in get_command(app).commands:
        assert f"dojo {command}" in README, command
    for action in ACTIONS:
        assert f"`{action}`" in README, action


def test_every_image_and_link_of_the_readme_exists():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (ROOT / target).exists(), target
