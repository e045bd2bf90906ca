"""Name -> thing, the one way to add an action, a metric, a recipe, a reward, a feedback or an agent."""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING, Generic, TypeVar

from dojo_kernel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

T = TypeVar("T")


def meant(name: str, known: Iterable[str]) -> str:
    """What to say of a name that is not known: the ones it is like, or all there are."""
    names = sorted(known)
    close = difflib.get_close_matches(name.lower(), names, n=3, cutoff=0.5)
    return f"did you mean {' or '.join(close)}?" if close else f"there are: {', '.join(names)}"


class Registry(Generic[T]):
    """A table that a decorator fills and that `package.module:attribute` addresses reach beyond."""

    def __init__(self, kind: str) -> None:
        self._kind = kind
        self._things: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Decorator. Raises ValueError if the name is taken by something else."""

        def add(thing: T) -> T:
            if self._things.setdefault(name, thing) is not thing:
                raise ValueError(f"{self._kind} {name!r} is registered already")
            return thing

        return add

    def __getitem__(self, name: str) -> T:
        """The thing called `name`, or at the address `package.module:attribute`. Raises ConfigError."""
        if name in self._things:
            return self._things[name]
        if ":" in name:
            return self._load(name)
        raise ConfigError(f"no {self._kind} is called {name!r}; {meant(name, self._things)}")

    def _load(self, address: str) -> T:
        module, _, attribute = address.partition(":")
        try:
            thing: T = getattr(importlib.import_module(module), attribute)
        except (ImportError, AttributeError) as error:
            raise ConfigError(f"cannot load {self._kind} {address!r}: {error}") from error
        return thing

    def __contains__(self, name: object) -> bool:
        return name in self._things

    def __iter__(self) -> Iterator[str]:
        return iter(sorted(self._things))

    def __len__(self) -> int:
        return len(self._things)
