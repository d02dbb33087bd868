"""A whole model as one function of inputs, weights and places for outputs, with all sizes known."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import tvm
from tvm import relax, tirx

from graphopt.errors import LoweringError
from graphopt.targets.lowering import Lowered
from graphopt.targets.lowering.origins import Origin


@dataclasses.dataclass(frozen=True)
class Place:
    """Where a tensor lies: the number of the input, weight or output; the workspace has the index 0."""

    kind: Literal["input", "weight", "output", "workspace"]
    index: int


@dataclasses.dataclass(frozen=True)
class Argument:
    """A tensor that the function takes."""

    place: Place
    dtype: str
    shape: tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class Program:
    """`function` takes `arguments`; then each of `copies` (output, where it lies) is copied to its output.

    `weights` are constants, `functions` all that the library holds, by symbol.
    """

    function: str
    arguments: list[Argument]
    copies: list[tuple[int, Place]]
    weights: list[np.ndarray[Any, Any]]
    functions: dict[str, tirx.PrimFunc]


def single_program(module: tvm.IRModule, lowered: Lowered) -> Program:
    """The program of a module (see `merge`) whose ``main`` is one call of a run or kernel.

    Raises:
        LoweringError: it is more, or has open dimensions; naming what is in the way.
    """
    main: Any = module["main"]
    bindings = [binding for block in main.body.blocks for binding in block.bindings]
    kernels = {variable.name_hint for variable in module.get_global_vars()}
    calls = [binding for binding in bindings if _callee(binding) in kernels]
    others = [b for b in bindings if b not in calls and not _moves_nothing(b)]
    if others:
        names = dict.fromkeys(name for binding in others for name in _nodes(binding, lowered.sources))
        raise LoweringError(
            f"The model can't become a static library: {', '.join(list(names)[:6])} "
            f"need{'s' if len(names) == 1 else ''} TVM's runtime (control flow, or shapes that depend on data). "
            "Compile an artifact instead, and run it with graphopt."
        )
    if len(calls) != 1:
        raise LoweringError(f"The model can't become a static library: it has {len(calls)} runs of kernels, not one.")
    return _program(module, main, bindings, calls[0], lowered)


def _program(module: tvm.IRModule, main: Any, bindings: Sequence[Any], call: Any, lowered: Lowered) -> Program:
    places: dict[Any, Place] = {}
    weights: list[np.ndarray[Any, Any]] = []
    arrays = list(lowered.weights.values())

    def place_of(value: Any) -> Place:
        if _is_constant(value):
            weights.append(value.value.numpy())
            return Place("weight", len(weights) - 1)
        if value not in places:
            index = list(main.params).index(value)
            if index < len(lowered.inputs):
                return Place("input", index)
            weights.append(arrays[index - len(lowered.inputs)])
            places[value] = Place("weight", len(weights) - 1)
        return places[value]

    arguments: list[Argument] = []
    results: list[Any] = []
    made: list[Place] = []
    elements: dict[Any, list[Any]] = {}
    for binding in bindings:
        value = binding.value
        if binding is call:
            arguments = [_argument(place_of(operand), operand) for operand in value.args[1].fields]
            types = value.ty_args[0]
            results = list(types.fields) if hasattr(types, "fields") else [types]
            made = [Place("output", -1 - i) for i in range(len(results))]  # numbered below
            if len(made) == 1:
                places[binding.var] = made[0]
        elif isinstance(value, relax.TupleGetItem):
            places[binding.var] = made[value.index]
        elif isinstance(value, relax.Tuple):
            elements[binding.var] = list(value.fields)
        else:
            source = value.args[0] if isinstance(value, relax.Call) else value
            places[binding.var] = place_of(source)
            elements[binding.var] = elements.get(source, [source])
    body = main.body.body
    fields = list(body.fields) if isinstance(body, relax.Tuple) else elements.get(body, [body])
    outputs = [place_of(field) for field in (fields if len(lowered.outputs) > 1 else [body])]
    for place, result in zip(made, results, strict=True):
        target = Place("output", outputs.index(place)) if place in outputs else Place("workspace", 0)
        arguments.append(_argument(target, None, result))
    copies = [
        (index, Place("output", outputs.index(place)) if place.kind == "output" else place)
        for index, place in enumerate(outputs)
        if place.kind != "output" or outputs.index(place) != index
    ]
    functions = {
        variable.name_hint: function
        for variable, function in module.functions_items()
        if isinstance(function, tirx.PrimFunc)
    }
    return Program(_callee(call) or "", arguments, copies, weights, functions)


def _argument(place: Place, value: Any, kind: Any = None) -> Argument:
    kind = value.ty if kind is None else kind
    if not all(isinstance(d, tirx.IntImm) for d in kind.shape.values):
        raise LoweringError(
            "The model can't become a static library, because dimensions are open: give them sizes when compiling, "
            "such as --dim N=1."
        )
    return Argument(place, str(kind.dtype), tuple(int(d) for d in kind.shape.values))


def _callee(binding: Any) -> str | None:
    """The function that a binding calls: a run, or a kernel by its symbol."""
    value = binding.value
    if _calls(value, "relax.call_dps_packed"):
        return str(value.args[0].global_symbol)
    return value.args[0].name_hint if _calls(value, "relax.call_tir") else None


def _moves_nothing(binding: Any) -> bool:
    """Whether a binding only gives another name or shape to bytes that lie somewhere."""
    value = binding.value
    plain = isinstance(value, (relax.Var, relax.Tuple, relax.TupleGetItem)) or _is_constant(value)
    return plain or _calls(value, "relax.reshape")


def _calls(value: Any, operator: str) -> bool:
    return isinstance(value, relax.Call) and value.op == tvm.ir.Op.get(operator)


def _is_constant(value: Any) -> bool:
    return isinstance(value, tvm.ir.GenericConst)


def _nodes(binding: Any, sources: Mapping[str, Origin]) -> Sequence[str]:
    """The nodes that a binding computes; the function it calls where these are not known."""
    if binding.var.name in sources:
        return sources[binding.var.name].nodes
    callee = binding.value.args[0] if isinstance(binding.value, relax.Call) and binding.value.args else None
    return [str(getattr(callee, "global_symbol", binding.var.name))]
