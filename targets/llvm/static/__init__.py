"""A compiled model as a static library: C calls it, and neither Python nor TVM's runtime is needed."""

from graphopt.targets.llvm.static.export import export

__all__ = ["export"]
