"""The CPU target: Relax through LLVM to a shared library."""

from graphopt.targets.llvm.target import Llvm

__all__ = ["Llvm"]
