"""What an agent is: something with a name that answers observations. It sees nothing else of the game."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from dojo_kernel.registry import Registry

if TYPE_CHECKING:
    from dojo_kernel.records import Observation, Turn


class Agent(Protocol):
    """One player of one episode; a new one is made for each."""

    @property
    def name(self) -> str:
        """For journals and tables."""
        ...

    @property
    def trusted(self) -> bool:
        """Its code is the user's own, so that it may run without a box when none can be had."""
        ...

    async def act(self, observation: Observation) -> Turn:
        """The answer to an observation; an action of None ends the episode."""
        ...


AGENTS: Registry[Callable[..., Agent]] = Registry("agent")


def find_agent(kind: str) -> Callable[..., Agent]:
    """The class of an agent by its name, or by `package.module:Class`. Raises ConfigError."""
    importlib.import_module("dojo_kernel.agents.scripted")  # registers itself
    return AGENTS[kind]
