"""Name -> thing, the one way to add an action, a metric, a recipe, a reward, a feedback or an agent."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Generic, TypeVar

from dojo_kernel.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

T = TypeVar("T")


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
        raise ConfigError(f"no {self._kind} is called {name!r}; there are: {', '.join(sorted(self._things))}")

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
