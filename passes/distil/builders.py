"""Students that are trained: smaller forms of a region's own graph, starting from its own weights.

A builder takes the region as a model of one input and one output, and gives another model of the same two, to be
trained toward the first. It raises `UnsupportedError` where the region has nothing of its kind.
"""

from __future__ import annotations

import dataclasses
import importlib.util
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.errors import UsageError
from graphopt.graph import constant_array, infer_shapes, normalise, remove_unused, views
from graphopt.graph.cost import cost
from graphopt.passes.distil.attention import linearise
from graphopt.passes.distil.student import UnsupportedError
from graphopt.passes.prune_channels import PruneChannels

SMALLEST = 0.05
"""The least part of the budget that dropping layers leaves: less of a region is no student of it."""
TRIED = 24
"""Stretches of layers that are dropped on trial."""
CHEAPER: dict[str, tuple[str, dict[str, float]]] = {
    "Celu": ("LeakyRelu", {"alpha": 0.1}),
    "Elu": ("LeakyRelu", {"alpha": 0.1}),
    "Gelu": ("HardSwish", {}),
    "Mish": ("HardSwish", {}),
    "Selu": ("LeakyRelu", {"alpha": 0.1}),
    "Sigmoid": ("HardSigmoid", {"alpha": 0.2, "beta": 0.5}),
    "Softplus": ("Relu", {}),
    "Swish": ("HardSwish", {}),
}
"""Activations without exponentials for those with one."""


@dataclasses.dataclass(frozen=True)
class Teacher:
    """The region as a model, its inputs as data, and the part of its MACs that a student may cost."""

    model: ir.Model
    data: Batches
    budget: float
    seed: int

    @property
    def macs(self) -> int:
        """The MACs that a student may cost."""
        return int(self.budget * cost(self.model).macs)


Builder = Callable[[Teacher], ir.Model]


def narrow(teacher: Teacher) -> ir.Model:
    """The same layers with fewer channels, neurons and heads, those that matter least gone (see `prune-channels`)."""
    model = teacher.model.clone()
    report = PruneChannels(macs=teacher.budget).apply(model, Context(calibration=teacher.data, seed=teacher.seed))
    if not report.changes:
        raise UnsupportedError("it has no channels between its layers that could go")
    return model


def small_kernel(teacher: Teacher) -> ir.Model:
    """The same layers with the middle half of each kernel: 64 taps become 32, 5x5 becomes 3x3, 3x3 becomes 1x1."""
    model = teacher.model.clone()
    if not any([_crop(node) for node in model.graph if node.op_type == "Conv"]):  # noqa: C419  # each is cropped
        raise UnsupportedError("it has no convolution whose kernel could be smaller")
    infer_shapes(model)
    return model


def fewer_layers(teacher: Teacher) -> ir.Model:
    """The region without one stretch of layers, that which is missed least of those that bring it into the budget.

    A stretch lies between two values of one shape, of which the second is computed from the first alone.
    """
    sample = next(iter(teacher.data.pieces(8)))
    (y,) = oracle.run(teacher.model, sample).values()
    best: tuple[float, ir.Model] | None = None
    for model in _shortened(teacher):
        try:
            (given,) = oracle.run(model, sample).values()
        except Exception:  # a stretch that changed an open size: no student
            continue
        gap = float(np.linalg.norm(given - y)) if given.shape == y.shape else np.inf
        if gap < (best[0] if best else np.inf):
            best = gap, model
    if best is None:
        raise UnsupportedError("no stretch of its layers begins and ends with the same shape")
    return best[1]


def cheap_activations(teacher: Teacher) -> ir.Model:
    """The same layers with activations that take no exponential."""
    model, found = teacher.model.clone(), False
    for node in list(model.graph):
        if node.domain != "" or node.op_type not in CHEAPER:
            continue
        op, attributes = CHEAPER[node.op_type]
        new = ir.node(op, node.inputs, attributes, name=node.name)
        (old,), (made,) = node.outputs, new.outputs
        made.type, made.shape, made.name = old.type, old.shape, old.name
        ir.convenience.replace_nodes_and_values(model.graph, node, [node], [new], [old], [made])
        found = True
    if not found:
        raise UnsupportedError("it has no activation with an exponential")
    return model


def linear_attention(teacher: Teacher) -> ir.Model:
    """The same layers with linear attention; see `graphopt.passes.distil.attention`."""
    model = teacher.model.clone()
    if not linearise(model):
        raise UnsupportedError("it has no attention without a mask: a Softmax between two products")
    remove_unused(model)
    infer_shapes(model)
    return model


BUILDERS: dict[str, Builder] = {
    "narrow": narrow,
    "small-kernel": small_kernel,
    "fewer-layers": fewer_layers,
    "cheap-activations": cheap_activations,
    "linear-attention": linear_attention,
}


def load_builder(text: str) -> Builder:
    """The user's own, ``file.py:function``: it takes the region as an `onnx_ir.Model` and returns the student.

    Raises:
        UsageError: there is no such file or function, or it does not run.
    """
    file, _, name = text.rpartition(":")
    spec = importlib.util.spec_from_file_location(f"graphopt_builder_{Path(file).stem}", file)
    if not Path(file).is_file() or spec is None or spec.loader is None:
        raise UsageError(f"'substitute-distilled': there is no Python file {file!r} with builders of students.")
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        raise UsageError(f"the file {file} failed to load: {type(error).__name__}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise UsageError(f"the file {file} defines no function {name!r}.")

    def build(teacher: Teacher) -> ir.Model:
        made: Any = function(teacher.model.clone())
        if not isinstance(made, ir.Model):
            raise UsageError(f"{text} must return an onnx_ir.Model, not {type(made).__name__!r}.")
        made = normalise(made)
        if (len(made.graph.inputs), len(made.graph.outputs)) != (1, 1):
            raise UsageError(f"the model that {text} returned must have one input and one output, as the region has.")
        ends, own = ((m.graph.inputs[0], m.graph.outputs[0]) for m in (teacher.model, made))
        taken = {value.name for value in ends}
        for value in [*made.graph.initializers.values(), *(v for node in made.graph for v in node.outputs)]:
            if value.name in taken:
                value.name = f"{value.name}_own"
        for value, end in zip(own, ends, strict=True):
            value.name = end.name
        return made

    return build


def _crop(node: ir.Node) -> bool:
    """Keep the middle half of the kernel, with margins smaller by what went; False where that can't be."""
    weight = constant_array(node.inputs[1])
    value = node.inputs[1]
    if weight is None or value is None or len(value.uses()) > 1 or weight.ndim < 3:
        return False
    kernel = weight.shape[2:]
    rank = len(kernel)
    small = [k // 2 if k % 2 == 0 else (k // 2) | 1 for k in kernel]
    first = [(k - s) // 2 for k, s in zip(kernel, small, strict=True)]
    dilations = node.attributes.get_ints("dilations", [1] * rank)
    pads = list(node.attributes.get_ints("pads", [0] * 2 * rank))
    if node.attributes.get_string("auto_pad", "NOTSET") == "NOTSET":
        for i, (k, s, f, d) in enumerate(zip(kernel, small, first, dilations, strict=True)):
            pads[i] -= f * d
            pads[i + rank] -= (k - s - f) * d
        if min(pads) < 0:
            return False
        node.attributes["pads"] = ir.AttrInt64s("pads", pads)
    if list(kernel) == small:
        return False
    inside = tuple(slice(f, f + s) for f, s in zip(first, small, strict=True))
    value.const_value = ir.tensor(np.ascontiguousarray(weight[(..., *inside)]), name=value.name)
    value.shape = ir.Shape([*weight.shape[:2], *small])
    node.attributes["kernel_shape"] = ir.AttrInt64s("kernel_shape", small)
    return True


def _shortened(teacher: Teacher) -> Iterator[ir.Model]:
    """The region without each stretch that brings it into the budget; those that leave most first."""
    graph = teacher.model.graph
    above, found = views.dominators(graph), list[tuple[int, str, str]]()
    price = cost(teacher.model).macs
    for stop in (value for node in graph for value in node.outputs):
        start = above.get(stop)
        while start is not None:
            if start.shape is not None and start.shape == stop.shape and start.dtype == stop.dtype:
                try:
                    nodes = views.between(graph, [start], [stop])
                except UsageError:
                    break
                left = price - sum(_macs(node) for node in nodes)
                if SMALLEST * teacher.macs <= left <= teacher.macs:
                    found.append((left, str(start.name), str(stop.name)))
            start = above.get(start)
    for _, start, stop in sorted(found, reverse=True)[:TRIED]:
        model = teacher.model.clone()
        values = {v.name: v for v in [*model.graph.inputs, *(v for node in model.graph for v in node.outputs)]}
        first, last = values[start], values[stop]
        bridge = ir.node("Identity", [first], name=f"{stop}_bridge")
        bridge.outputs[0].type, bridge.outputs[0].shape = last.type, last.shape
        producer = last.producer()
        assert producer is not None
        bridge.outputs[0].name = f"{stop}_bridged"
        model.graph.insert_after(producer, bridge)
        last.replace_all_uses_with(bridge.outputs[0], replace_graph_outputs=True)
        bridge.replace_input_with(0, first)
        remove_unused(model)
        yield model


def _macs(node: ir.Node) -> int:
    from graphopt.graph.cost import macs

    return macs(node)
