"""Competitions: what one is, how a submission is graded, and where its score stands."""

from dojo_kernel.competition.grade import Grader
from dojo_kernel.competition.leaderboard import Leaderboard
from dojo_kernel.competition.metrics import METRICS, Metric, metric
from dojo_kernel.competition.prepare import RECIPES, prepare
from dojo_kernel.competition.spec import Competition, catalogue, find

__all__ = [
    "METRICS",
    "RECIPES",
    "Competition",
    "Grader",
    "Leaderboard",
    "Metric",
    "catalogue",
    "find",
    "metric",
    "prepare",
]
