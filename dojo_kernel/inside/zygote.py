"""Forks kernels: imports what every kernel needs once, then answers init's orders, one JSON line each.

`python zygote.py MODULE ...` imports the modules named as well, those that can be imported. It has one thread and no
socket, so a fork of it is whole; it is not dumpable, so code in the box can end it but not look into it.
"""

from __future__ import annotations

import ctypes
import gc
import importlib
import importlib.util
import json
import os
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

PR_SET_PDEATHSIG, PR_SET_DUMPABLE = 1, 4
HERE = Path(__file__).resolve().parent
COMING_UP = ("IPython.core.completerlib", "IPython.core.debugger", "IPython.extensions.storemagic", "tornado.platform.asyncio")
"""What a kernel imports while it comes up, a third of that time: once here, not in each."""


def load_app() -> Any:
    """app.py, under a name that no module of the agent's has."""
    spec = importlib.util.spec_from_file_location("dojo_kernel_app", HERE / "app.py")
    assert spec is not None
    assert spec.loader is not None
    module = sys.modules["dojo_kernel_app"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def preload(names: list[str]) -> None:
    """Import what is there; a name that is missing or broken is the kernel's to complain about."""
    for name in names:
        try:
            importlib.import_module(name)
        except Exception as error:  # noqa: BLE001  a package of the image, whatever it does
            say(warning=f"{name} cannot be preloaded: {type(error).__name__}: {error}"[:300])


def serve(app: Any) -> None:
    """Until init closes the pipe. In a child this does not return before the kernel ends."""
    pending = b""
    while chunk := os.read(0, 65536):
        *lines, pending = (pending + chunk).split(b"\n")
        for line in lines:
            order = json.loads(line)
            pid = fork()
            if pid == 0:
                begin(app, order)
            say(name=order["name"], pid=pid or 0)


def fork() -> int | None:
    """Twice, so that init adopts the kernel and reaps it. Its pid, 0 in it; None: no process is left."""
    reading, writing = os.pipe()
    try:
        first = os.fork()
        if first == 0:
            try:
                pid = os.fork()
            except OSError:
                os._exit(70)
            if pid:
                os.write(writing, b"%d" % pid)
                os._exit(0)
            return 0
        os.waitpid(first, 0)
        os.set_blocking(reading, False)
        return int(os.read(reading, 20))
    except OSError:
        return None
    finally:
        os.close(reading)
        os.close(writing)


def say(**answer: object) -> None:
    """One line to init."""
    os.write(1, json.dumps(answer).encode() + b"\n")


def begin(app: Any, order: dict[str, Any]) -> None:
    """In the child: a kernel of its own."""
    status = 70
    try:
        null = os.open(os.devnull, os.O_RDWR)
        for number in (0, 1, 2):
            os.dup2(null, number)
        os.close(null)
        gc.enable()
        die_with(order["init"])
        app.run(order)
        status = 0
    finally:
        os._exit(status)


def die_with(init: int) -> None:
    """In a box without a PID namespace nothing else ends a kernel whose init was killed."""
    between = os.getppid()
    while os.getppid() == between != init:  # it ends at once; a signal tied to its end would be ours
        time.sleep(0.0005)
    ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != init:  # it went before that
        os._exit(70)


def main() -> None:
    """Prepare and serve."""
    ctypes.CDLL(None).prctl(PR_SET_DUMPABLE, 0, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.path[:] = [entry for entry in sys.path if entry and os.path.abspath(entry) != str(HERE)]
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
    app = load_app()
    app.environment()
    preload([*COMING_UP, *sys.argv[1:]])
    gc.disable()
    gc.freeze()  # or each child would copy every page at its first collection
    serve(app)


if __name__ == "__main__":
    main()
