"""Where two models' numbers part: both run on the same inputs, and compared value by value."""

from graphopt.compare.report import Comparison, NodeError, OutputError
from graphopt.compare.run import compare

__all__ = ["Comparison", "NodeError", "OutputError", "compare"]
