"""What only a container has: an engine that takes boxes away, an image with layers, GPUs. The walls are in test_isolation.py."""

import asyncio
import hashlib
import re
import signal
import subprocess
import tarfile
import uuid
from pathlib import Path

import pytest
from boxes import EPISODE, Cells, becomes_true, provisioner

from dojo_kernel.competition import catalogue
from dojo_kernel.competition.prepare import prepare
from dojo_kernel.errors import BoxUnavailableError
from dojo_kernel.kernel import docker, doctor
from dojo_kernel.kernel.docker import DEFAULT_IMAGE, engine, reap_containers
from dojo_kernel.records import Limits

pytestmark = pytest.mark.docker

GPU = "GPU-00000000-0000-0000-0000-000000000000"


def containers():
    return [row["Names"][0] for row in engine().client.api.containers(all=True, filters={"label": f"dojo.episode={EPISODE}"})]


async def test_a_container_removed_behind_our_back_is_a_lost_box():
    async with Cells("docker") as cells:
        engine().client.api.remove_container(cells.box._name, force=True)
        assert await asyncio.wait_for(cells.process.exited, 30) == -signal.SIGKILL
        assert cells.box.lost is not None


@pytest.mark.slow
async def test_a_start_that_is_given_up_leaves_no_container():
    for turn in range(20):
        box = provisioner("docker")
        start = asyncio.create_task(box.start_box())
        await asyncio.sleep(0.005 * turn)
        start.cancel()
        await asyncio.wait({start})
        await box.remove_box()
        assert box.run_dir is None
    assert await becomes_true(lambda: containers() == [])


async def test_the_reaper_removes_boxes_of_the_dead_paused_ones_too(monkeypatch):
    api = engine().client.api
    mine = f"pid:[{uuid.uuid4().hex}]"  # in that of this machine the next host of any other test would reap it
    monkeypatch.setattr(docker, "_pid_namespace", lambda: mine)
    labels = {"dojo.owner": "999999999-1", "dojo.namespace": mine, "dojo.episode": EPISODE}
    box = api.create_container(DEFAULT_IMAGE, ["sleep", "600"], name=f"dojo-orphan-{uuid.uuid4().hex[:8]}", labels=labels)
    api.start(box["Id"])
    api.pause(box["Id"])
    assert any(name.startswith("dojo-orphan-") for name in await asyncio.to_thread(reap_containers))
    assert not any("orphan" in name for name in containers())


# --- the image -------------------------------------------------------------------------------------------------------


def layers(folder):
    """Every layer of the image, files that a later one deletes included, as open tar files."""
    path = folder / "image.tar"
    with path.open("wb") as file:
        for chunk in engine().client.images.get(DEFAULT_IMAGE).save():
            file.write(chunk)
    with tarfile.open(path) as image:
        for member in image:
            if member.isfile() and (member.name.endswith("layer.tar") or member.size > 4096):
                with tarfile.open(fileobj=image.extractfile(member)) as layer:
                    yield layer


def secrets(folder):
    """Files of the competitions that no box may hold, by size: answers, boards, specs, and what grades them."""
    found = {}
    for competition in catalogue():
        if competition.kaggle is None:
            prepare(competition)
            private = [path for path in competition.private_dir.rglob("*") if path.is_file()]
        else:
            private = []
        for path in [*private, *(one for one in competition.folder.iterdir() if one.is_file())]:
            data = path.read_bytes()
            found.setdefault(len(data), set()).add(hashlib.sha256(data).digest())
    return found


@pytest.mark.slow
def test_no_layer_of_the_image_holds_answers_boards_journals_or_a_path_of_the_host(tmp_path, monkeypatch):
    monkeypatch.setenv("DOJO_DATA", str(tmp_path / "data"))
    kept_back = secrets(tmp_path)
    assert sum(map(len, kept_back.values())) > 10
    names, copies = [], []
    for layer in layers(tmp_path):
        for member in layer:
            names.append(f"/{member.name}")
            if member.isfile() and member.size in kept_back:
                data = layer.extractfile(member).read()
                if hashlib.sha256(data).digest() in kept_back[member.size]:
                    copies.append(member.name)
    assert "/opt/dojo/init.py" in names, "the listing is of the box's image"
    assert copies == []
    suspects = re.compile(r"answers|leaderboard|reference_board|competition\.toml|journal\.jsonl|\.dojo|kaggle\.json|dojo_kernel")
    assert [name for name in names if suspects.search(name)] == []
    host = [str(Path(__file__).parents[2]), str(Path.home() / ".local"), str(tmp_path)]
    image = engine().client.images.get(DEFAULT_IMAGE)
    said = str(image.attrs["Config"]) + str(image.history())
    assert [path for path in host if path in said or any(name.startswith(path) for name in names)] == []
    assert {name for name in names if name.startswith("/opt/dojo/") and not name.endswith("/")} <= {
        f"/opt/dojo/{path.name}" for path in (Path(docker.INSIDE)).glob("*.py")
    }


# --- GPUs ------------------------------------------------------------------------------------------------------------


def test_a_box_with_gpus_asks_the_engine_for_these_and_no_others():
    found = engine()
    profile = docker._profile(Limits(gpus=(GPU, "MIG-1")), found.info)
    box = found.client.containers.create(DEFAULT_IMAGE, ["true"], **profile)
    try:
        asked = found.client.api.inspect_container(box.id)["HostConfig"]["DeviceRequests"]
    finally:
        box.remove(force=True)
    assert [(one["Driver"], one["DeviceIDs"], one["Count"]) for one in asked] == [("nvidia", [GPU, "MIG-1"], 0)]
    assert asked[0]["Capabilities"] == [["gpu", "compute", "utility"]]


def test_a_box_without_gpus_asks_for_none():
    found = engine()
    box = found.client.containers.create(DEFAULT_IMAGE, ["true"], **docker._profile(Limits(), found.info))
    try:
        assert not found.client.api.inspect_container(box.id)["HostConfig"]["DeviceRequests"]
    finally:
        box.remove(force=True)


def has_nvidia():
    return "nvidia" in engine().info["Runtimes"]


async def test_gpus_on_an_engine_without_an_nvidia_runtime_are_refused_in_one_line():
    if has_nvidia():
        pytest.skip("this engine has an NVIDIA runtime")
    box = provisioner("docker")
    box.limits = Limits(gpus=(GPU,))
    with pytest.raises(BoxUnavailableError) as caught:
        await box.start_box()
    assert "no NVIDIA runtime" in str(caught.value)
    assert "run: " in str(caught.value)
    assert "\n" not in str(caught.value)
    assert containers() == []
    assert box.run_dir is None
    await box.remove_box()


async def test_on_an_engine_without_an_nvidia_runtime_box_and_doctor_say_that_nothing_holds_gpus():
    if has_nvidia():
        pytest.skip("this engine has an NVIDIA runtime")
    async with Cells("docker") as cells:
        for held in (cells.box.enforcement, (await doctor.report("docker")).enforcement):
            rows = {row.limit: row for row in held}
            assert (rows["gpu"].by, rows["gpu_memory"].by) == ("nothing", "nothing")
            assert "no NVIDIA runtime" in rows["gpu"].detail


@pytest.mark.gpu
async def test_a_box_sees_the_gpu_that_it_was_given_and_no_other():
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, timeout=20, check=True).stdout
    gpu = re.search(r"UUID: (GPU-[\w-]+)", listed)[1]
    cells = Cells("docker")
    cells.box.limits = Limits(gpus=(gpu,))
    async with cells:
        said = await cells(
            "import subprocess; print(subprocess.run(['nvidia-smi', '-L'], capture_output=True, text=True).stdout)"
        )
    assert re.findall(r"UUID: (GPU-[\w-]+)", said) == [gpu]
