"""Programs of several parts: what a target can't lower runs on onnxruntime, inside the same artifact."""

from graphopt.mixed.variants import build

__all__ = ["build"]
