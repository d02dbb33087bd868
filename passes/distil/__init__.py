"""Distilled substitution: regions of the graph, students fitted to them, and the graft.

A student is a class whose constructor looks at a region and raises `UnsupportedError` with the reason when it can't
stand in for it; `observe` takes the region's activations batch by batch, and `fit` solves for the weights.
"""

from graphopt.passes.distil.student import Fitted, Layer, Student, UnsupportedError

__all__ = ["Fitted", "Layer", "Student", "UnsupportedError"]
