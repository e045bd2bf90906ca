"""One container an episode: no network, read-only root, no capability, limits by cgroup, init as PID 1.

Kernels are reached by unix sockets over a bind mount, init by the engine's attach stream: when the host process goes,
so does the stream, and init ends the box. The engine therefore has to be a local one.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import json
import os
import re
import shutil
import socket
import threading
import time
from http import HTTPStatus
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, TypeVar

import docker
from docker.errors import APIError, DockerException, ImageNotFound, NotFound
from docker.types import DeviceRequest, LogConfig, Ulimit

from dojo_kernel.errors import BoxLostError, BoxUnavailableError, KernelStartError
from dojo_kernel.kernel import reaper
from dojo_kernel.kernel.box import GB, INSIDE, QUOTA, WATCHED, BoxProvisioner
from dojo_kernel.kernel.seccomp import docker_profile
from dojo_kernel.records import Enforcement, Limits

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")

SDK_TIMEOUT_S = 120.0
"""Of one call to the engine; 60 s, docker-py's own, is too short for a busy one."""
GONE_S = 20.0
NO_FILES = 1024
STEPS_AT_ONCE = threading.BoundedSemaphore(4)
"""Creates and starts of this process that the engine has to bear at once."""
COPY_BYTES = 1 << 30
STDERR_BYTES = 4000
_HEAD, _MAX_FRAME = 8, 1 << 20
CGROUP = Path("/sys/fs/cgroup")
DEFAULT_IMAGE = "dojo-kernel:latest"
NO_NVIDIA = "the Docker engine has no NVIDIA runtime"


# --- the engine ------------------------------------------------------------------------------------------------------


class Engine(NamedTuple):
    """A local Docker engine that answered."""

    client: docker.DockerClient
    socket: str
    """Path of its unix socket."""
    info: dict[str, Any]
    """What `docker info` says."""

    def has_image(self, name: str) -> bool:
        """Whether it is here; nothing is ever pulled."""
        try:
            self.client.api.inspect_image(name)
        except ImageNotFound:
            return False
        return True

    def versions(self) -> dict[str, str]:
        """Of the engine and what it runs on."""
        told = {"docker": "ServerVersion", "runtime": "DefaultRuntime", "cgroup": "CgroupVersion", "storage": "Driver"}
        return {name: str(self.info.get(key)) for name, key in told.items()}


_engines: dict[int, Engine] = {}  # by pid: a forked child must not share its parent's connections
_engines_lock = threading.Lock()


def socket_path() -> str:
    """Where the engine listens. Raises BoxUnavailableError for a remote one: sockets and files do not reach it."""
    host = os.environ.get("DOCKER_HOST", "unix:///var/run/docker.sock")
    if not host.startswith("unix://"):
        raise BoxUnavailableError(f"DOCKER_HOST={host} is not on this machine; run: unset DOCKER_HOST")
    return host.removeprefix("unix://")


def engine() -> Engine:
    """The engine, asked once a process.

    Raises:
        BoxUnavailableError: none answers.
    """
    with _engines_lock:
        known = _engines.get(os.getpid())
        if known is None:
            path = socket_path()
            try:
                with socket.socket(socket.AF_UNIX) as probe:  # docker-py leaves one open that finds nobody
                    probe.settimeout(SDK_TIMEOUT_S)  # an engine that hangs lets its queue fill up
                    probe.connect(path)
                # docker-py keeps a pool for each URL, and each container has its own: connections that nobody asks for again
                client = docker.DockerClient(
                    base_url=f"unix://{path}", timeout=SDK_TIMEOUT_S, version="auto", num_pools=1, max_pool_size=1
                )
                known = Engine(client, path, client.info())
            except (DockerException, OSError) as error:
                raise BoxUnavailableError(_no_engine(path, error)) from None
            _engines[os.getpid()] = known
        return known


def _no_engine(path: str, error: Exception) -> str:
    if not Path(path).exists():
        return "no Docker engine runs here"
    if "Permission" in str(error):
        return f"this user may not use the Docker engine at {path}"
    return f"the Docker engine at {path} does not answer"


async def attach(path: str, container: str) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
    """Standard output and input of a container's PID 1, as streams of the running loop; its standard error is dropped."""
    raw, writer = await asyncio.open_unix_connection(path)
    request = f"POST /containers/{container}/attach?stream=1&stdin=1&stdout=1&stderr=1 HTTP/1.1\r\n"
    try:
        writer.write(f"{request}Host: docker\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n".encode())
        head = await asyncio.wait_for(raw.readuntil(b"\r\n\r\n"), SDK_TIMEOUT_S)
    except (OSError, asyncio.IncompleteReadError, asyncio.LimitOverrunError, TimeoutError) as error:
        writer.close()
        raise BoxLostError(f"the engine does not attach: {error!r}") from None
    except BaseException:  # given up by the caller, too
        writer.close()
        raise
    status = head.split(None, 2)[1]
    if int(status) not in (HTTPStatus.SWITCHING_PROTOCOLS, HTTPStatus.OK):
        writer.close()
        raise BoxLostError(f"the engine does not attach: HTTP {status.decode()}")
    reader = asyncio.StreamReader(limit=1 << 16)
    task = asyncio.create_task(_unwrap(raw, reader))
    task.add_done_callback(lambda _: writer.close())
    _pumps.add(task)
    task.add_done_callback(_pumps.discard)
    return reader, writer


_pumps: set[asyncio.Task[None]] = set()  # the loop itself keeps only weak references


async def _unwrap(raw: asyncio.StreamReader, out: asyncio.StreamReader) -> None:
    """The engine's frames: stream number, three zeros, length, payload."""
    try:
        while True:
            head = await raw.readexactly(_HEAD)
            size = int.from_bytes(head[4:])
            if size > _MAX_FRAME:
                return
            payload = await raw.readexactly(size)
            if head[0] == 1:
                out.feed_data(payload)
    except (OSError, asyncio.IncompleteReadError):
        return
    finally:
        out.feed_eof()


# --- cgroup files ----------------------------------------------------------------------------------------------------


class Cgroup(NamedTuple):
    """Folders of one container's cgroup; the same folder twice on cgroup v2."""

    memory: Path
    freezer: Path
    v2: bool

    @classmethod
    def find(cls, pid: int, container: str) -> Cgroup | None:
        """Of the process `pid`; None where this host does not see it, e.g. an engine in a virtual machine."""
        try:
            lines = Path(f"/proc/{pid}/cgroup").read_text().splitlines()
        except OSError:
            return None
        paths = {}
        for line in lines:
            _, controllers, path = line.split(":", 2)
            if container in path:
                paths.update(dict.fromkeys(controllers.split(","), path.lstrip("/")))
        if "memory" in paths:
            found = cls(CGROUP / "memory" / paths["memory"], CGROUP / "freezer" / paths.get("freezer", "-"), v2=False)
        elif "" in paths:
            found = cls(CGROUP / paths[""], CGROUP / paths[""], v2=True)
        else:
            return None
        return found if found.memory.is_dir() else None

    def oom_kills(self) -> int | None:
        """The counter `oom_kill`; None when the cgroup is gone."""
        try:
            text = (self.memory / ("memory.events" if self.v2 else "memory.oom_control")).read_text()
        except OSError:
            return None
        found = re.search(r"^oom_kill (\d+)$", text, re.MULTILINE)
        return int(found[1]) if found else None

    def memory_used(self) -> int | None:
        """Bytes, without file pages that can be dropped."""
        try:
            used = int((self.memory / ("memory.current" if self.v2 else "memory.usage_in_bytes")).read_text())
            said = dict(line.split() for line in (self.memory / "memory.stat").read_text().splitlines())
        except (OSError, ValueError):
            return None
        return max(0, used - int(said.get("inactive_file" if self.v2 else "total_inactive_file", 0)))

    def pids(self) -> list[int]:
        """Of all processes in it."""
        try:
            return [int(line) for line in (self.memory / "cgroup.procs").read_text().split()]
        except OSError:
            return []

    def set_frozen(self, *, frozen: bool) -> bool:
        """False where this process may not, or it did not happen within a second."""
        file = self.freezer / ("cgroup.freeze" if self.v2 else "freezer.state")
        thawed, stopped = ("0", "1") if self.v2 else ("THAWED", "FROZEN")
        try:
            file.write_text(stopped if frozen else thawed)
            for _ in range(1000):
                if self._is(frozen=frozen):
                    return True
                time.sleep(0.001)
            file.write_text(thawed)  # half frozen is worse than not at all
        except OSError:
            return False
        return False

    def _is(self, *, frozen: bool) -> bool:
        if self.v2:
            return f"frozen {int(frozen)}" in (self.freezer / "cgroup.events").read_text()
        return (self.freezer / "freezer.state").read_text().strip() == ("FROZEN" if frozen else "THAWED")


# --- the box ---------------------------------------------------------------------------------------------------------


class DockerProvisioner(BoxProvisioner):
    """A container of the local Docker engine."""

    kind: ClassVar[str] = "docker"
    image_digest: str | None = None
    """Of the image that the container was made from."""
    _name: str | None = None
    _cgroup: Cgroup | None = None
    _at_work: asyncio.Future[Any] | None = None

    @property
    def python(self) -> str:
        """Found by the image's PATH."""
        return "python3"

    @property
    def path_variable(self) -> str:
        """Our image's virtual environment first; an image of the user's may have none."""
        return "/opt/venv/bin:/usr/local/bin:/usr/bin:/bin"

    async def _open_box(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self.run_dir is not None
        found = await asyncio.to_thread(engine)
        await asyncio.to_thread(_sweep_once)
        self._name = f"dojo-{self.run_dir.name.removeprefix('dk-')}"
        try:
            data = await self._thread(self._data)
            await self._thread(self._create, found, data)
            streams = await attach(found.socket, self._name)
            try:
                await self._thread(self._start, found)
            except BaseException:
                streams[1].close()
                raise
        except ImageNotFound:
            raise BoxUnavailableError(f"there is no image {self.image}; run: make image") from None
        except DockerException as error:
            raise KernelStartError(f"the engine did not start a container: {error}") from error
        return streams

    async def _thread(self, work: Callable[..., T], *given: Any) -> T:
        """In a thread, whose end `_close_box` waits for: one that was given up still makes what has to be removed."""
        self._at_work = asyncio.ensure_future(asyncio.to_thread(work, *given))
        return await asyncio.shield(self._at_work)

    def _create(self, found: Engine, data: Path | None) -> None:
        assert self.run_dir is not None
        code = self.run_dir / "code"
        if not code.exists():  # a copy, so that the host's path of the package is not in the box's mountinfo
            shutil.copytree(INSIDE, code, ignore=shutil.ignore_patterns("__pycache__"))
            _open_to_all(code)
        mounts = {str(self.run_dir / "k"): "/run/k:rw", str(self.workspace.path): "/workspace:rw", str(code): "/opt/dojo:ro"}
        mounts[str(self.forks.path)] = "/forks:rw"
        if data is not None:
            mounts[str(data)] = "/data:ro"
        profile = _profile(self.limits, found.info)
        if not self.workspace.quota:
            size = int(self.limits.disk_gb * GB)
            profile["ulimits"] += [Ulimit(name="fsize", soft=size, hard=size)]
        with STEPS_AT_ONCE:
            found.client.containers.create(
                self.image,
                ["python3", "-I", "-S", "-B", "/opt/dojo/init.py"],
                name=self._name,
                labels=self._labels(),
                volumes=[f"{source}:{target}" for source, target in mounts.items()],
                user=f"{self.uid}:{self.uid if os.geteuid() == 0 else os.getgid()}",
                **profile,
            )

    def _start(self, found: Engine) -> None:
        assert self._name is not None
        try:
            with STEPS_AT_ONCE:
                found.client.api.start(self._name)
        except APIError as error:
            if self.limits.gpus and "could not select device driver" in str(error):
                raise BoxUnavailableError(
                    f"{NO_NVIDIA}, so that it gives no GPU; run: sudo apt-get install nvidia-container-toolkit"
                    " && sudo nvidia-ctk runtime configure --runtime=docker && sudo systemctl restart docker"
                ) from None
            raise
        state = found.client.api.inspect_container(self._name)
        self._cgroup = Cgroup.find(state["State"]["Pid"], state["Id"])
        self.image_digest = state["Image"]

    def _labels(self) -> dict[str, str]:
        return {
            "dojo.owner": reaper.host_name(),
            "dojo.namespace": _pid_namespace(),
            "dojo.episode": self.episode,
            "dojo.deadline": str(int(time.time() + self.deadline_s)),
        }

    def _data(self) -> Path | None:
        """The data under a name that tells nothing: the box's mountinfo shows where a mount comes from."""
        if self.data_dir is None:
            return None
        assert self.run_dir is not None
        twin = self.run_dir / "d"
        if not twin.exists() and not _twin(self.data_dir, twin):
            shutil.rmtree(twin, ignore_errors=True)
            return self.data_dir
        return twin

    async def _close_box(self) -> None:
        if self._at_work is not None:
            await asyncio.wait({self._at_work})
        name, self._name, self._cgroup = self._name, None, None
        if name is not None:
            await asyncio.to_thread(_remove, name)

    async def oom_kills(self) -> int | None:
        """From the container's cgroup: the engine's `OOMKilled` misses children."""
        return self._cgroup.oom_kills() if self._cgroup else None

    async def memory_used(self) -> int | None:
        """From the container's cgroup."""
        return self._cgroup.memory_used() if self._cgroup else None

    def _pids(self) -> list[int]:
        return self._cgroup.pids() if self._cgroup else []

    async def _set_frozen(self, *, frozen: bool) -> bool:
        if self._cgroup is not None and await asyncio.to_thread(self._cgroup.set_frozen, frozen=frozen):
            return True
        return await asyncio.to_thread(self._pause, frozen=frozen)

    def _pause(self, *, frozen: bool) -> bool:
        assert self._name is not None
        api = engine().client.api
        try:
            (api.pause if frozen else api.unpause)(self._name)
        except APIError:  # gone, or already so
            return False
        return True

    def _enforcement(self) -> tuple[Enforcement, ...]:
        quota = self.workspace.quota
        disk = Enforcement(limit="disk", by="tmpfs" if quota else "watchdog", detail=QUOTA if quota else WATCHED)
        return (*enforcement(self.limits, engine().info), disk)


def enforcement(limits: Limits, info: dict[str, Any]) -> tuple[Enforcement, ...]:
    """What holds each limit in a container of this engine; all but the disk, which is the workspace's."""

    def cgroup(key: str, detail: str) -> tuple[str, str]:
        return ("cgroup", detail) if info.get(key) else ("nothing", f"the engine reports no {key}")

    memory = cgroup("MemoryLimit", "memory = swap" if info.get("SwapLimit") else "the engine does not limit swap")
    if limits.gpus:  # the engine started the box, so it gave them
        gpu = ("device request", ", ".join(limits.gpus))
        sliced = all(uuid.startswith("MIG-") for uuid in limits.gpus)
        gpu_memory = ("MIG", "the slice's own") if sliced else ("advisory", "a whole GPU; only a MIG slice holds its memory")
    elif "nvidia" in info.get("Runtimes", ()):
        gpu = gpu_memory = ("namespace", "no device in the box")
    else:
        gpu = gpu_memory = ("nothing", f"{NO_NVIDIA}; no box gets a device")
    rows: dict[Any, tuple[str, str]] = {
        "isolation": (
            "docker",
            f"engine {info.get('ServerVersion')}, {info.get('DefaultRuntime')}, cgroup v{info.get('CgroupVersion')}",
        ),
        "network": ("namespace", "none"),
        "memory": memory,
        "cpu": cgroup("CpuCfsQuota", f"{min(limits.cpus, info.get('NCPU', limits.cpus))} CPUs"),
        "pids": cgroup("PidsLimit", str(limits.pids)),
        "syscalls": ("seccomp", "deny-list"),
        "gpu": gpu,
        "gpu_memory": gpu_memory,
        "lifetime": ("init", "ends with the host's stream, or after 60 s of silence; reaper by label"),
    }
    return tuple(Enforcement(limit=limit, by=by, detail=detail) for limit, (by, detail) in rows.items())


def _profile(limits: Limits, info: dict[str, Any]) -> dict[str, Any]:
    """Keywords of `containers.create`: every wall that is the same for all boxes."""
    memory = int(limits.memory_gb * GB)
    tmp = min(2 * GB, memory // 2)
    gpus = DeviceRequest(driver="nvidia", device_ids=list(limits.gpus), capabilities=[["gpu", "compute", "utility"]])
    return {
        "stdin_open": True,
        "tty": False,
        "auto_remove": True,
        "network_mode": "none",
        "read_only": True,
        "cap_drop": ["ALL"],
        "security_opt": ["no-new-privileges", f"seccomp={json.dumps(docker_profile())}"],
        "pids_limit": limits.pids,
        "mem_limit": memory,
        "memswap_limit": memory,
        "nano_cpus": int(min(limits.cpus, info.get("NCPU", limits.cpus)) * 1e9),
        "shm_size": memory // 4,
        "ulimits": [Ulimit(name="nofile", soft=NO_FILES, hard=NO_FILES), Ulimit(name="core", soft=0, hard=0)],
        # exec: compiled kernels of numba and torch are loaded from here, and /workspace allows it anyway
        "tmpfs": {"/tmp": f"rw,exec,nosuid,nodev,size={tmp},nr_inodes={max(4096, tmp >> 15)},mode=1777"},  # noqa: S108
        "log_config": LogConfig(type=LogConfig.types.NONE),
        "device_requests": [gpus] if limits.gpus else [],
    }


def _twin(source: Path, target: Path) -> bool:
    """The same files at another place: hard links, or copies if they are small together. False: too big."""
    link: Callable[[str, str], object] = os.link
    left = COPY_BYTES
    for folder, _, files in os.walk(source):
        here = target / Path(folder).relative_to(source)
        here.mkdir()
        for name in files:
            path = Path(folder, name)
            readable = path.stat().st_mode & 0o004
            try:
                if not readable:
                    raise PermissionError(path)
                link(str(path), str(here / name))
            except OSError:  # another file system, or somebody else's file
                left -= path.stat().st_size
                if left < 0:
                    return False
                shutil.copyfile(path, here / name)
                (here / name).chmod(0o444)
        here.chmod(0o555 if os.geteuid() == 0 else 0o755)
    return True


def _open_to_all(folder: Path) -> None:
    for path in (folder, *folder.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


# --- leaving nothing behind ------------------------------------------------------------------------------------------


def _remove(name: str) -> None:
    """By force, and wait until it is gone; no error if it is."""
    api = engine().client.api
    until = time.monotonic() + GONE_S
    while time.monotonic() < until:
        try:
            state = api.inspect_container(name)
            if cgroup := Cgroup.find(state["State"]["Pid"], state["Id"]):
                cgroup.set_frozen(frozen=False)  # a frozen process does not die
            api.remove_container(name, force=True, v=True)
        except NotFound:
            return
        except APIError as error:
            if error.status_code != HTTPStatus.CONFLICT:  # its removal is under way
                raise BoxLostError(f"the engine does not remove {name}: {error}") from None
        time.sleep(0.02)


def _pid_namespace() -> str:
    return os.readlink("/proc/self/ns/pid")  # noqa: PTH115  the link's text, not a path


def reap_containers() -> list[str]:
    """Remove the boxes whose host process is dead or whose deadline has passed, paused ones too; their names."""
    removed = []
    for name, labels in _boxes():
        if _orphan(labels):
            _remove(name)
            removed.append(name)
    return removed


def _boxes() -> Iterator[tuple[str, dict[str, str]]]:
    for row in engine().client.api.containers(all=True, filters={"label": "dojo.owner"}):
        yield row["Names"][0].lstrip("/") if row["Names"] else row["Id"], row["Labels"]


def _orphan(labels: dict[str, str]) -> bool:
    deadline = labels.get("dojo.deadline", "")
    if deadline.isdigit() and int(deadline) < time.time():
        return True
    pid, _, started = labels["dojo.owner"].partition("-")
    # A process of another PID namespace cannot be looked for: its boxes have their deadline.
    return labels.get("dojo.namespace") == _pid_namespace() and pid.isdigit() and str(reaper.start_time(int(pid))) != started


@functools.cache
def _sweep_once() -> None:
    with contextlib.suppress(DockerException, BoxLostError):
        reap_containers()


def _reap_host(host: str) -> None:
    """The reaper's hook."""
    with contextlib.suppress(DockerException, BoxLostError, BoxUnavailableError):
        for name, labels in _boxes():
            if labels["dojo.owner"] == host:
                _remove(name)


reaper.HOOKS.append(_reap_host)
