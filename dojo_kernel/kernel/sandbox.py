"""A box of bubblewrap, for hosts without a Docker engine: namespaces, a system-call filter, an empty environment.

As root it is held by a cgroup of its own and runs as an ordinary user; as an ordinary user memory is held by a watchdog
that looks twice a second. The enforcement record says which.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from pathlib import Path
from typing import ClassVar, NamedTuple

from dojo_kernel.errors import KernelStartError
from dojo_kernel.kernel import reaper, seccomp
from dojo_kernel.kernel.box import GB, INSIDE, QUOTA, WATCH_S, WATCHED, BoxProvisioner
from dojo_kernel.records import Enforcement, Limits
from dojo_kernel.settings import data_root, state_root

PACKAGE = Path(__file__).resolve().parent.parent
STAGE = Path(__file__).with_name("stage.py")
MB = 1 << 20
SHM_BYTES = 512 * MB
TMP_BYTES = 1024 * MB
FREEZE_S = 1.0
PERIOD_US = 100_000
SWAP_FILES = ("memory.swap.max", "memory.memsw.limit_in_bytes")
CPU_FILES = ("cpu.max", "cpu.cfs_quota_us")
LINKER = ("ld.so.cache", "ld.so.conf", "ld.so.conf.d")
AT_ROOT = ("bin", "sbin", "lib", "lib64")
"""Links into /usr, or folders beside it."""
ETC = (*LINKER, "localtime", "ssl/certs", "ssl/openssl.cnf", "fonts", "mime.types", "alternatives")


# --- cgroups ---------------------------------------------------------------------------------------------------------


class Cgroup(NamedTuple):
    """The box's own group: one folder in version 2, one a controller in version 1."""

    folders: dict[str, Path]
    """By controller; all the same folder in version 2."""
    version: int
    written: set[str]
    """Files that hold a limit, once `limit` was called."""

    @classmethod
    def make(cls, name: str, limits: Limits) -> Cgroup | None:
        """None where this process may not, or the controllers are not there."""
        if os.geteuid() != 0:
            return None
        root = Path("/sys/fs/cgroup")
        made = cls._version_2(root, name) if (root / "cgroup.controllers").exists() else cls._version_1(root, name)
        if made is None:
            return None
        for folder in made.paths:
            reaper.lease("cgroup", str(folder))
        try:
            made.limit(limits)
        except OSError:
            made.remove()
            return None
        return made

    @classmethod
    def _version_2(cls, root: Path, name: str) -> Cgroup | None:
        wanted = ("memory", "pids", "cpu")
        try:
            given = (root / "cgroup.subtree_control").read_text().split()
            if missing := [f"+{one}" for one in wanted if one not in given]:
                (root / "cgroup.subtree_control").write_text(" ".join(missing))
            folder = root / name
            folder.mkdir()
        except OSError:
            return None
        return cls(dict.fromkeys((*wanted, "freezer"), folder), 2, set())

    @classmethod
    def _version_1(cls, root: Path, name: str) -> Cgroup | None:
        folders = {}
        for line in Path("/proc/self/cgroup").read_text().splitlines():
            _, controllers, place = line.split(":", 2)
            for one in {"memory", "pids", "cpu", "freezer"} & set(controllers.split(",")):
                folder = root / controllers / place.lstrip("/") / name
                try:
                    folder.mkdir(exist_ok=True)
                except OSError:
                    continue
                folders[one] = folder
        return cls(folders, 1, set()) if {"memory", "pids"} <= folders.keys() else None

    @property
    def paths(self) -> list[Path]:
        """Each folder once."""
        return sorted(set(self.folders.values()))

    def limit(self, limits: Limits) -> None:
        """Memory with swap, processes, processors; raises OSError without the first or the second. `written` says which."""
        memory, pids, cpu = str(int(limits.memory_gb * GB)), str(limits.pids), int(limits.cpus * PERIOD_US)
        if self.version == 2:  # noqa: PLR2004
            wanted = {"memory": {"memory.max": memory, SWAP_FILES[0]: "0", "memory.oom.group": "0"}}
            wanted |= {"pids": {"pids.max": pids}, "cpu": {"cpu.max": f"{cpu} {PERIOD_US}"}}
        else:
            wanted = {"memory": {"memory.limit_in_bytes": memory, SWAP_FILES[1]: memory, "memory.swappiness": "0"}}
            wanted |= {"pids": {"pids.max": pids}, "cpu": {"cpu.cfs_period_us": str(PERIOD_US), "cpu.cfs_quota_us": str(cpu)}}
        for controller, files in wanted.items():
            for name, value in files.items():
                file = self.folders.get(controller, Path("/nonexistent")) / name
                if file.exists():
                    with contextlib.suppress(OSError):
                        file.write_text(value)
                        self.written.add(name)
        if not self.written >= {"pids.max"} or not self.written & {"memory.max", "memory.limit_in_bytes"}:
            raise OSError("no limits in the group")

    def number(self, controller: str, name: str, key: str | None = None) -> int | None:
        """A figure of one file, or of one of its lines."""
        try:
            text = (self.folders[controller] / name).read_text()
        except (OSError, KeyError):
            return None
        if key is None:
            return int(text)
        return next((int(line.split()[1]) for line in text.splitlines() if line.split()[0] == key), None)

    async def freeze(self, *, frozen: bool) -> bool:
        """False without a freezer."""
        folder = self.folders.get("freezer")
        if folder is None:
            return False
        if self.version == 2:  # noqa: PLR2004
            file, thawed, value = folder / "cgroup.freeze", "0", str(int(frozen))
            watched, seen = folder / "cgroup.events", f"frozen {int(frozen)}"
        else:
            file, thawed, value = folder / "freezer.state", "THAWED", "FROZEN" if frozen else "THAWED"
            watched, seen = file, value
        file.write_text(value)
        for _ in range(int(FREEZE_S / 0.002)):
            if seen in watched.read_text():
                return True
            await asyncio.sleep(0.002)
        file.write_text(thawed)  # half frozen is worse than not at all
        return False

    def remove(self) -> None:
        """Kills what is still in it."""
        for folder in self.paths:
            reaper.remove_cgroup(folder)
            reaper.release("cgroup", str(folder))


# --- what the box sees -----------------------------------------------------------------------------------------------


class Bind(NamedTuple):
    """One path of the host in the box."""

    source: Path
    target: str
    writable: bool = False


def system_binds() -> list[str]:
    """Options of bubblewrap for a box that can run the programs of /usr; not all of /, where other boxes' mounts come and go."""
    options = ["--ro-bind", "/usr", "/usr"]
    for path in (Path("/", name) for name in AT_ROOT):
        if path.is_symlink():
            options += ["--symlink", str(path.readlink()), str(path)]
        elif path.is_dir():
            options += ["--ro-bind", str(path), str(path)]
    return options


def python_folders() -> list[Path]:
    """What the running interpreter needs outside /usr: of each prefix its programs and libraries, and nothing else."""
    found: list[Path] = []
    for prefix in dict.fromkeys((sys.base_prefix, sys.base_exec_prefix, sys.prefix, sys.exec_prefix)):
        found += [Path(prefix, part) for part in ("bin", "lib", "lib64", "pyvenv.cfg")]
    found += [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    kept: list[Path] = []
    for path in found:
        inside = any(path.is_relative_to(one) for one in (Path("/usr"), *kept))
        if path.exists() and not path.is_symlink() and not inside:
            kept.append(path)
    return kept


def hidden_paths(folders: list[Path]) -> list[Path]:
    """What of ours lies in those folders: the package itself, traces of a checkout, data and state."""
    sites = [Path(entry) for entry in sys.path if Path(entry).name in ("site-packages", "dist-packages")]
    ours = [path for site in sites for path in sorted(site.glob("*dojo_kernel*"))]
    candidates = [PACKAGE, *ours, data_root(), state_root()]
    roots = [Path("/usr"), *folders]
    return [path for path in dict.fromkeys(candidates) if path.exists() and any(path.is_relative_to(root) for root in roots)]


# --- the box ---------------------------------------------------------------------------------------------------------


class SandboxProvisioner(BoxProvisioner):
    """One bubblewrap, its own PID 1, for an episode."""

    kind: ClassVar[str] = "sandbox"
    _bwrap: subprocess.Popen[bytes] | None = None
    _cgroup: Cgroup | None = None
    _watch: asyncio.Task[None] | None = None
    _watchdog_kills: int = 0
    _leased: str = ""

    @property
    def box_uid(self) -> int:
        """As the box numbers it."""
        return self.uid if os.geteuid() == 0 else 1000

    async def _open_box(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        assert self.run_dir is not None
        if self.limits.gpus:
            raise KernelStartError("the sandbox box gives no GPUs; use --box docker")
        bwrap = shutil.which("bwrap")
        if bwrap is None:
            raise KernelStartError("bubblewrap is not installed; run: apt-get install bubblewrap")
        if self._cgroup is None:
            self._cgroup = Cgroup.make(f"dojo-{self.run_dir.name}", self.limits)
        fds = [_memfd(b"".join(part.encode() + b"\0" for part in self._options())), _memfd(seccomp.bpf())]
        command = [bwrap, "--args", str(fds[0]), "--seccomp", str(fds[1]), "--", *self._init_command()]
        ours, theirs = socket.socketpair()
        try:
            self._bwrap = subprocess.Popen(  # noqa: ASYNC220  its death signal watches the thread that starts it: this one
                self._staged(command),
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                stderr=subprocess.PIPE,
                env={},
                cwd="/",
                pass_fds=fds,
                start_new_session=True,
            )
        finally:
            theirs.close()
            for fd in fds:
                os.close(fd)
        self._leased = f"{self._bwrap.pid}:{reaper.start_time(self._bwrap.pid)}"
        reaper.lease("pid", self._leased)
        reader, writer = await asyncio.open_connection(sock=ours, limit=1 << 16)
        if self._cgroup is None:
            self._watch = asyncio.create_task(self._watch_memory())
        return reader, writer

    async def _complaint(self) -> str:
        return await asyncio.to_thread(self._last_words)

    def _last_words(self) -> str:
        if self._bwrap is None or self._bwrap.stderr is None:
            return ""
        try:
            code = self._bwrap.wait(2)
        except subprocess.TimeoutExpired:
            return ""
        lines = self._bwrap.stderr.read(1 << 14).decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else f"bubblewrap ended with {code}"

    def _init_command(self) -> list[str]:
        limits = ["--nproc", str(self.limits.pids), "--nofile", "1024", "--fsize", str(int(self.limits.disk_gb * GB))]
        return [self.python, "-I", "-S", "-B", f"{self.inside_path}/init.py", *limits]

    def _staged(self, command: list[str]) -> list[str]:
        """As root: by way of stage.py."""
        if os.geteuid() != 0:
            return command
        stage = self._stage()
        order = {
            "cgroups": [str(folder) for folder in self._cgroup.paths] if self._cgroup else [],
            "stage": str(stage),
            "binds": [(str(bind.source), str(stage / str(number))) for number, bind in enumerate(self._binds())],
            "uid": self.uid,
            "argv": command,
        }
        return [sys.executable, "-I", "-S", "-B", str(STAGE), json.dumps(order)]

    def _stage(self) -> Path:
        assert self.run_dir is not None
        stage = self.run_dir / "stage"
        stage.mkdir(exist_ok=True)
        return stage

    def _etc(self) -> Path:
        """The few files of /etc that are not the host's."""
        assert self.run_dir is not None
        etc = self.run_dir / "etc"
        etc.mkdir(mode=0o755, exist_ok=True)
        files = {
            "passwd": f"agent:x:{self.box_uid}:{self.box_uid}:agent:/tmp:/bin/sh\n",
            "group": f"agent:x:{self.box_uid}:\n",
            "hosts": "127.0.0.1 localhost\n",
            "nsswitch.conf": "passwd: files\ngroup: files\nhosts: files\n",
            "empty": "",
        }
        for name, text in files.items():
            (etc / name).write_text(text)
            (etc / name).chmod(0o644)
        return etc

    def _binds(self) -> list[Bind]:
        assert self.run_dir is not None
        etc = self._etc()
        binds = [Bind(Path("/usr"), "/usr")]
        binds += [
            Bind(Path("/", name), f"/{name}") for name in AT_ROOT if Path("/", name).is_dir() and not Path("/", name).is_symlink()
        ]
        binds += [Bind(Path("/etc", name), f"/etc/{name}") for name in ETC if Path("/etc", name).exists()]
        binds += [Bind(etc / name, f"/etc/{name}") for name in ("passwd", "group", "hosts", "nsswitch.conf")]
        folders = python_folders()
        binds += [Bind(path, str(path)) for path in folders]
        binds += [Bind(etc / "empty", str(path)) for path in hidden_paths(folders) if path.is_file()]
        binds.append(Bind(INSIDE, self.inside_path))
        if self.data_dir is not None:
            binds.append(Bind(self.data_dir, self.data_path))
        binds.append(Bind(self.run_dir / "k", self.sockets_path, writable=True))
        binds.append(Bind(self.workspace.path, self.workspace_path, writable=True))
        binds.append(Bind(self.forks.path, self.forks_path, writable=True))
        return binds

    def _options(self) -> list[str]:
        """Of bubblewrap; order matters, later mounts lie over earlier ones."""
        uid = str(self.box_uid)
        options = [f"--unshare-{kind}" for kind in ("user", "pid", "net", "ipc", "uts", "cgroup")]
        options += ["--disable-userns", "--die-with-parent", "--new-session", "--as-pid-1", "--cap-drop", "ALL", "--clearenv"]
        options += ["--uid", uid, "--gid", uid, "--hostname", "dojo"]
        options += ["--setenv", "PATH", "/usr/bin:/bin", "--setenv", "LANG", "C.UTF-8"]
        options += ["--proc", "/proc", "--dev", "/dev", "--size", str(SHM_BYTES), "--tmpfs", "/dev/shm"]  # noqa: S108
        options += ["--perms", "1777", "--size", str(TMP_BYTES), "--tmpfs", "/tmp"]  # noqa: S108
        for name in AT_ROOT:
            path = Path("/", name)
            if path.is_symlink():
                options += ["--symlink", str(path.readlink()), str(path)]
        stage, staged = self._stage(), os.geteuid() == 0
        for number, bind in enumerate(self._binds()):
            source = stage / str(number) if staged else bind.source
            options += ["--bind" if bind.writable else "--ro-bind", str(source), bind.target]
        for path in hidden_paths(python_folders()):
            if path.is_dir():
                options += ["--size", str(MB), "--tmpfs", str(path), "--remount-ro", str(path)]
        if self.data_dir is None:
            options += ["--dir", self.data_path]
        return [*options, "--remount-ro", "/dev", "--remount-ro", "/", "--chdir", "/"]

    async def _close_box(self) -> None:
        watch, self._watch = self._watch, None
        if watch is not None:
            watch.cancel()
        bwrap, self._bwrap = self._bwrap, None
        if bwrap is not None:
            with contextlib.suppress(subprocess.TimeoutExpired):
                await asyncio.to_thread(bwrap.wait, 3)
            if bwrap.poll() is None:
                bwrap.kill()  # its death signal ends PID 1 of the box, and that everything in it
                await asyncio.to_thread(bwrap.wait)
            if bwrap.stderr is not None:
                bwrap.stderr.close()
            reaper.release("pid", self._leased)
        cgroup, self._cgroup = self._cgroup, None
        if cgroup is not None:
            await asyncio.to_thread(cgroup.remove)

    # --- limits ---

    async def oom_kills(self) -> int | None:
        """Of the cgroup, or of the watchdog."""
        if self._cgroup is None:
            return self._watchdog_kills
        name = "memory.events" if self._cgroup.version == 2 else "memory.oom_control"  # noqa: PLR2004
        return self._cgroup.number("memory", name, "oom_kill")

    async def memory_used(self) -> int | None:
        """Bytes, without file pages that can be dropped."""
        if self._cgroup is None:
            return sum(self._processes().values()) if self._bwrap is not None else None
        new = self._cgroup.version == 2  # noqa: PLR2004
        used = self._cgroup.number("memory", "memory.current" if new else "memory.usage_in_bytes")
        cached = self._cgroup.number("memory", "memory.stat", "inactive_file" if new else "total_inactive_file")
        return None if used is None else max(0, used - (cached or 0))

    async def _set_frozen(self, *, frozen: bool) -> bool:
        return False if self._cgroup is None else await self._cgroup.freeze(frozen=frozen)

    def _pids(self) -> list[int]:
        tree: dict[int, list[int]] = {}
        for entry in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError, ValueError, IndexError):
                parent = int((entry / "stat").read_bytes().rpartition(b")")[2].split()[1])
                tree.setdefault(parent, []).append(int(entry.name))
        found: list[int] = []
        todo = [self._bwrap.pid] if self._bwrap is not None else []
        while todo:
            below = tree.get(todo.pop(), [])
            found += below
            todo += below
        return found

    def _processes(self) -> dict[int, int]:
        """Bytes (PSS) of each process of the box, by its number on the host."""
        found = {}
        for pid in self._pids():
            with contextlib.suppress(OSError, ValueError):
                lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()
                found[pid] = sum(int(line.split()[1]) for line in lines if line.startswith("Pss:")) << 10
        return found

    async def _watch_memory(self) -> None:
        """Where there is no cgroup: the largest process dies when all together are over the limit."""
        most = int(self.limits.memory_gb * GB)
        while True:
            await asyncio.sleep(WATCH_S)
            sizes = await asyncio.to_thread(self._processes)
            if sizes and sum(sizes.values()) > most:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(max(sizes, key=lambda pid: sizes[pid]), signal.SIGKILL)
                    self._watchdog_kills += 1

    def _enforcement(self) -> tuple[Enforcement, ...]:
        root = os.geteuid() == 0
        held = self._cgroup
        group = f"version {held.version}" if held else ""
        user = f"an ordinary user ({self.uid}), not the host's root" if root else "this user, mapped"
        swap = "swap included" if held and held.written & set(SWAP_FILES) else "swap is not limited"
        memory = f"{group}, {swap}" if held else "PSS of all processes twice a second"
        cpu = held is not None and bool(held.written & set(CPU_FILES))
        quota = self.workspace.quota
        return (
            Enforcement(
                limit="isolation",
                by="namespace",
                detail=f"bubblewrap; runs as {user}; host paths of its mounts are public, what lies beside them is not there",
            ),
            Enforcement(limit="network", by="namespace", detail="none but its own loopback"),
            Enforcement(limit="memory", by="cgroup" if held else "watchdog", detail=memory),
            Enforcement(limit="cpu", by="cgroup" if cpu else "nothing", detail=group if cpu else "a hint to libraries only"),
            Enforcement(limit="pids", by="cgroup" if held else "rlimit", detail=group or "RLIMIT_NPROC in the user namespace"),
            Enforcement(
                limit="disk",
                by="tmpfs" if quota else "watchdog",
                detail=QUOTA if quota else WATCHED,
            ),
            Enforcement(limit="syscalls", by="seccomp", detail="deny-list; socket families by equality"),
            Enforcement(limit="gpu", by="namespace", detail="no device is visible"),
            Enforcement(limit="gpu_memory", by="nothing", detail="no device is visible"),
            Enforcement(limit="lifetime", by="init", detail="dies when the host's socket closes, or after a minute of silence"),
        )


def _memfd(data: bytes) -> int:
    """An anonymous file: no path, and no 64 KiB limit, unlike a pipe."""
    fd = os.memfd_create("dojo", os.MFD_CLOEXEC)
    os.write(fd, data)
    os.lseek(fd, 0, os.SEEK_SET)
    return fd
