"""Finding what broke: `bisect` to the pass and its change, `reduce` to the smallest graph that still fails."""

from graphopt.debug.bisect import Culprit, bisect
from graphopt.debug.checks import Check, Verdict, command, condition, keeps, pipeline_fails
from graphopt.debug.reduce import Reduced, reduce

__all__ = [
    "Check",
    "Culprit",
    "Reduced",
    "Verdict",
    "bisect",
    "command",
    "condition",
    "keeps",
    "pipeline_fails",
    "reduce",
]
