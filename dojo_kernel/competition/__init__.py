"""Competitions: what one is, how it is prepared, graded and ranked."""

from dojo_kernel.competition.spec import Competition, catalogue, find

__all__ = ["Competition", "catalogue", "find"]
