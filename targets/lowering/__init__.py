"""The stage all targets share: an ONNX model becomes a TVM Relax module with its weights apart."""

from graphopt.targets.lowering.lower import Lowered, lower

__all__ = ["Lowered", "lower"]
