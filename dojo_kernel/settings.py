"""What a user can turn, and where data lives."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Literal

import platformdirs
from pydantic import Field

from dojo_kernel.records import Limits, Record

BoxKind = Literal["auto", "docker", "sandbox", "process"]


class KernelSettings(Record):
    """The box of an episode and the kernel in it."""

    box: BoxKind = "auto"
    """`auto` takes docker, then sandbox; never `process`."""
    image: str = "dojo-kernel:latest"
    """Docker only; `make image` builds it."""
    limits: Limits = Limits()
    start_timeout_s: float = Field(default=60.0, gt=0)
    max_restarts: int = Field(default=5, ge=0)
    """Deaths and kills of the live kernel after which the episode is truncated."""
    observation_chars: int = Field(default=20_000, ge=200)
    """Output of one cell that an agent reads, head and tail together."""
    journal_chars: int = Field(default=5_000_000, ge=1_000)
    """Output of one cell that the journal keeps, head and tail together."""


class EpisodeSettings(Record):
    """Budget and rules of one episode."""

    max_steps: int = Field(default=20, ge=1)
    max_seconds: float = Field(default=3600.0, gt=0)
    cell_timeout_s: float = Field(default=600.0, gt=0)
    """Longest run of one cell; never more than what is left of `max_seconds`."""
    max_submissions: int = Field(default=50, ge=1)
    """Graded in an episode; later ones cost a step and are not graded."""
    max_submission_mb: float = Field(default=200.0, gt=0)
    reward: str = "human_rank"
    """human_rank, improvement, score, medal, or `package.module:name`."""
    feedback: tuple[str, ...] = ("base",)
    seed: int = 0


def data_root() -> Path:
    """Prepared competitions: `$DOJO_DATA`, or the platform's user-data folder; `<slug>/{raw,public,private}` inside."""
    given = os.environ.get("DOJO_DATA")
    return Path(given).expanduser().resolve() if given else Path(platformdirs.user_data_path("dojo_kernel")) / "data"


def state_root() -> Path:
    """Locks, leases and logs of this user's host processes."""
    given = os.environ.get("DOJO_STATE")
    return Path(given).expanduser().resolve() if given else Path(platformdirs.user_state_path("dojo_kernel"))
