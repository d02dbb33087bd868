"""Which programs are one call of one function, so that the virtual machine has nothing to do for them."""

from __future__ import annotations

import math
from typing import Any, Literal

import tvm

from graphopt.base import Direct
from graphopt.errors import LoweringError
from graphopt.targets.llvm.single import single_program
from graphopt.targets.lowering import Lowered

DTYPES = {"bool", "float16", "float32", "float64"} | {f"{s}int{b}" for s in ("", "u") for b in (8, 16, 32, 64)}
"""What numpy and the library lay out alike."""


def direct(module: tvm.IRModule, lowered: Lowered) -> Direct | None:
    """How to call a module (see `merge`) whose ``main`` is one call on tensors of known sizes; None for all others.

    Not where a result is an input or weight, or lies where another does, or a constant is no weight of the artifact.
    """
    try:
        program = single_program(module, lowered)
    except LoweringError:
        return None
    own = {id(array): index for index, array in enumerate(lowered.weights.values())}
    weights = [own.get(id(array)) for array in program.weights]
    arguments: list[tuple[Literal["input", "weight", "output", "workspace"], int, list[int]]] = []
    for argument in program.arguments:
        kind, index = argument.place.kind, argument.place.index
        found = weights[index] if kind == "weight" else index
        if kind == "weight" and program.weights[index].shape != tuple(argument.shape):
            return None  # read as another shape: the machine would reshape it
        if found is None or argument.dtype not in DTYPES or math.prod(argument.shape) == 0:
            return None
        arguments.append((kind, found, list(argument.shape)))
    made = sorted(index for kind, index, _ in arguments if kind == "output")
    if program.copies or made != [*range(len(lowered.outputs))]:
        return None
    main: Any = module["main"]
    given = [parameter.ty for parameter in main.params[: len(lowered.inputs)]]
    results = main.ret_ty.fields if len(lowered.outputs) > 1 else [main.ret_ty]
    shapes = [_shape(kind) for kind in (*given, *results)]
    if any(shape is None for shape in shapes):  # an input that is not read may have open sizes
        return None
    known = [shape for shape in shapes if shape is not None]
    return Direct(program.function, known[: len(given)], known[len(given) :], arguments)


def _shape(kind: Any) -> list[int] | None:
    return [int(dim) for dim in kind.shape] if all(isinstance(dim, tvm.tirx.IntImm) for dim in kind.shape) else None
