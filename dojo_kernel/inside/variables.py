"""Variables of a kernel as a file, for a checkpoint that memory pressure evicts: written and read inside the box only.

What can be pickled within the caps is kept, the rest is listed with its reason. Modules are kept by name. One pickle holds all
that fits together, so that two names for one object stay one object.
"""

from __future__ import annotations

import importlib
import io
import os
import pickle
import types
from typing import Any

HIDDEN = frozenset({"In", "Out", "exit", "quit", "get_ipython", "open"})
ONE_SHARE = 2
"""One variable may take the whole cap divided by this."""


class _Full(Exception):
    pass


class _Bounded(io.BytesIO):
    """Refuses to grow past a size, so that a large object is not held twice."""

    def __init__(self, most: int) -> None:
        super().__init__()
        self._most = most

    def write(self, data: Any) -> int:
        if self.tell() + len(memoryview(data).cast("B")) > self._most:
            raise _Full
        return super().write(data)


def _pickler(file: io.BytesIO) -> pickle.Pickler:
    try:
        from cloudpickle import CloudPickler  # noqa: PLC0415  also takes functions and classes of cells
    except ImportError:
        return pickle.Pickler(file, protocol=5)
    found: pickle.Pickler = CloudPickler(file, protocol=5)
    return found


def save(namespace: dict[str, Any], hidden: Any, path: str, max_mb: int) -> list[str]:
    """Write what can be kept to `path`; returns what cannot, a line each."""
    cap = max_mb << 20
    modules: dict[str, str] = {}
    kept: dict[str, Any] = {}
    missing: list[str] = []
    room = cap
    for name in sorted(namespace):
        value = namespace[name]
        if name.startswith("_") or name in HIDDEN or (name in hidden and hidden[name] is value):
            continue
        if isinstance(value, types.ModuleType):
            modules[name] = value.__name__
            continue
        file = _Bounded(min(room, cap // ONE_SHARE))
        try:
            _pickler(file).dump(value)
        except _Full:
            missing.append(f"{name}: larger than what is left of {max_mb} MB")
        except Exception as error:  # noqa: BLE001  __reduce__ is the agent's code
            missing.append(f"{name}: {type(value).__name__} cannot be kept ({type(error).__name__})")
        else:
            kept[name] = value
            room -= file.tell()
    part = f"{path}.part"
    with open(part, "wb") as whole:
        buffer = io.BytesIO()
        _pickler(buffer).dump((modules, kept))
        whole.write(buffer.getbuffer())
    os.replace(part, path)
    return missing


def load(namespace: dict[str, Any], path: str) -> list[str]:
    """Put what `save` kept into a namespace; returns what did not come back, a line each."""
    missing = []
    with open(path, "rb") as file:
        modules, kept = pickle.load(file)
    for name, module in modules.items():
        try:
            namespace[name] = importlib.import_module(module)
        except Exception as error:  # noqa: BLE001  whatever an import runs
            missing.append(f"{name}: module {module} ({type(error).__name__})")
    namespace.update(kept)
    return missing
