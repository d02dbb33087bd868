"""Passes: one optimisation a file, each an ONNX -> ONNX rewrite declared as a `graphopt.base.Pass`.

A free function does the work and says in its docstring what it changes and what it leaves alone; the frozen
dataclass at the end of the file gives it its name, its options and what it preserves. The registry
(`graphopt.pipeline.registry`) knows the files by name and imports them when asked for. Files without such a
class, and folders, hold what passes share or are made of.
"""
