"""The built wheel, installed in an empty environment, is the whole product."""

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, **options):
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False, **options)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    return done.stdout


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    run(sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", folder, ROOT)
    (built,) = folder.glob("*.whl")
    return built


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_the_wheel_carries_kernelspecs_and_competitions(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    for kind in ("docker", "sandbox", "process"):
        assert any(name.endswith(f"share/jupyter/kernels/dojo-{kind}/kernel.json") for name in names)
    for slug in (folder.name for folder in (ROOT / "competitions").iterdir() if (folder / "competition.toml").exists()):
        assert f"dojo_kernel/_data/competitions/{slug}/competition.toml" in names
    assert not [name for name in names if "answers.csv" in name or name.startswith("tests/")]


@pytest.mark.endurance
@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_wheel_plays_an_episode_from_another_folder(wheel, tmp_path):
    venv, home = tmp_path / "venv", tmp_path / "home"
    home.mkdir()
    run(sys.executable, "-m", "venv", "--without-pip", venv)
    lock = ROOT / "requirements.lock"
    pip = [sys.executable, "-m", "pip", "--python", venv / "bin" / "python"]
    run(*pip, "install", "-q", "--no-compile", "-c", lock, wheel)
    environment = {"HOME": str(home), "PATH": f"{venv / 'bin'}:{os.environ['PATH']}", "LANG": "C.UTF-8"}
    listed = json.loads(run(venv / "bin" / "jupyter", "kernelspec", "list", "--json", env=environment, cwd=tmp_path))
    assert {"dojo-docker", "dojo-sandbox", "dojo-process"} <= set(listed["kernelspecs"])
    run(venv / "bin" / "dojo", "prepare", "digits", env=environment, cwd=tmp_path)
    run(venv / "bin" / "dojo", "run", "digits", "--box", "process", "--max-steps", "6", env=environment, cwd=tmp_path)
    assert list((tmp_path / "runs").rglob("notebook.ipynb"))
