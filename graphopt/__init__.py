"""graphopt: an ONNX graph goes through ordered passes and is lowered through Apache TVM to llvm, cuda or npu.

::

    import graphopt

    model = graphopt.optimize("model.onnx", "fold-batch-norm,insert-qdq", calibration="samples.npz")
    program = graphopt.compile("model.onnx", target="llvm", pipeline="fold-batch-norm")
    program.save("model.gopt")
    outputs = graphopt.load("model.gopt").run({"input": array})

The names below are the public API; they are imported when first used, so that `import graphopt` is cheap.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphopt.api import compile, export, fine_tune, optimize
    from graphopt.artifact import Executable, load
    from graphopt.base import EXACT, LOSSY, Context, Pass, Preserves, Program, Report, Target, tolerance
    from graphopt.errors import GraphoptError

__version__ = "0.1.0"

__all__ = [
    "EXACT",
    "LOSSY",
    "Context",
    "Executable",
    "GraphoptError",
    "Pass",
    "Preserves",
    "Program",
    "Report",
    "Target",
    "compile",
    "export",
    "fine_tune",
    "load",
    "optimize",
    "tolerance",
]

_HOMES = {
    "compile": "graphopt.api",
    "export": "graphopt.api",
    "fine_tune": "graphopt.api",
    "load": "graphopt.artifact",
    "optimize": "graphopt.api",
    "Executable": "graphopt.artifact",
    "GraphoptError": "graphopt.errors",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'graphopt' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "graphopt.base")), name)


def __dir__() -> list[str]:
    return sorted([*__all__, "__version__"])
