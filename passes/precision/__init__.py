"""Which nodes lose most by quantization, and the fastest choice of those that work on integers."""

from graphopt.passes.precision.search import Point, Search, search
from graphopt.passes.precision.sensitivity import Noise, sensitivity

__all__ = ["Noise", "Point", "Search", "search", "sensitivity"]
