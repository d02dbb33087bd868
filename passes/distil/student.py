"""What a student is: a chain of layers fitted to a region, and the small model it becomes."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any, ClassVar, TypeAlias

import numpy as np
import onnx_ir as ir

from graphopt.graph import infer_shapes
from graphopt.passes.distil.moments import Moments
from graphopt.passes.distil.region import Region

Array: TypeAlias = np.ndarray[Any, Any]


class UnsupportedError(Exception):
    """This student can't stand in for this region; the message says why, for the report."""


@dataclasses.dataclass(frozen=True)
class Layer:
    """One node of a student: it reads the layer before it, then its own constant `weights`."""

    op_type: str
    weights: tuple[Array, ...]
    attributes: Mapping[str, Any] = dataclasses.field(default_factory=dict[str, Any])


@dataclasses.dataclass(frozen=True)
class Fitted:
    """A solved student. `error`: relative L2 on the tuning data, where `size` (rank...) was chosen.

    `axis`: where the channels of the region's output are.
    """

    student: str
    layers: tuple[Layer, ...]
    error: float
    size: Mapping[str, int]
    axis: int


class Student(abc.ABC):
    """A smaller form for a region that reads one varying value x and yields one value y.

    Weights are solved on `fitting`, the size is chosen on `tuning`, then both are pooled for the last solve. Every
    error is ``|(student - y) / std| / |(y - mean) / std|``, mean and std those of each channel of y: what a constant
    could do is no merit, and a few channels of large values don't outweigh the rest.
    """

    name: ClassVar[str]
    fitting: Moments
    tuning: Moments

    @abc.abstractmethod
    def __init__(self, model: ir.Model, region: Region, budget: float) -> None:
        """Read the teacher; `budget` is the part of its MACs that the student may cost.

        Raises `UnsupportedError` when this form can't stand in for `region`, or not within the budget.
        """

    @abc.abstractmethod
    def rows(self, x: Array, y: Array) -> Array:
        """What a batch of the region's input and output adds to the moments: (positions, d)."""

    @abc.abstractmethod
    def fit(self, target: float) -> Fitted:
        """The smallest student whose error is at most `target`.

        Raises `UnsupportedError` when none within the budget is.
        """


def to_model(model: ir.Model, region: Region, fitted: Fitted) -> ir.Model:
    """The student as a model of its own: ``x``, of the region's input type, in; ``y`` out."""
    teacher_in, teacher_out = region.inputs[0], region.outputs[0]
    assert teacher_in.dtype is not None
    x = ir.val("x", type=teacher_in.type, shape=teacher_in.shape)
    value, nodes, constants = x, list[ir.Node](), list[ir.Value]()
    for index, layer in enumerate(fitted.layers):
        stem = f"{region.name}/{fitted.student}_{index}"
        own: list[ir.Value] = []
        for weight in layer.weights:
            name = f"{stem}.{'bias' if weight.ndim == 1 else 'weight'}"
            tensor = ir.tensor(weight.astype(teacher_in.dtype.numpy()), name=name)
            own.append(ir.val(name, tensor.dtype, weight.shape, const_value=tensor))
        node = ir.node(layer.op_type, [value, *own], layer.attributes, name=stem)
        value = node.outputs[0]
        value.name = f"{stem}.out"
        constants.extend(own)
        nodes.append(node)
    value.name, value.type = "y", teacher_out.type
    graph = ir.Graph(
        [x], [value], nodes=nodes, initializers=constants, opset_imports=model.graph.opset_imports, name="student"
    )
    student = ir.Model(graph, ir_version=model.ir_version)
    infer_shapes(student)
    return student
