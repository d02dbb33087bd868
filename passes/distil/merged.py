"""Merged linear: a chain of layers that acts on each position alone becomes one linear layer."""

from __future__ import annotations

import math
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphopt import oracle
from graphopt.passes.distil.affine import pointwise_layers, positions
from graphopt.passes.distil.moments import Moments, relative, standard
from graphopt.passes.distil.pointwise import channel_axis, channels
from graphopt.passes.distil.region import LINEAR, Region
from graphopt.passes.distil.student import Array, Fitted, Student, UnsupportedError

LARGEST = 4096
"""Input plus output channels whose joint covariance is kept."""
RIDGE = 1e-6
"""Proximal weight that keeps directions the data never shows at the teacher's own Jacobian."""


class MergedLinear(Student):
    """A region of Gemm / MatMul / 1 x 1 Conv with activations between becomes ``y = W x + c``.

    Starting weights: the teacher's Jacobian J at the mean input (central differences of one standard deviation,
    run through onnxruntime), which for a chain without activations is the product of its matrices. Then ridge
    regression toward it, in closed form::

        minimise  E |(y - E y) - W (x - E x)|^2 + ridge |W - J|^2
        W = J + (cov(y, x) - J cov(x)) (cov(x) + ridge I)^-1,    c = E y - W E x
    """

    name: ClassVar[str] = "merged-linear"

    def __init__(self, model: ir.Model, region: Region, budget: float) -> None:
        self.axis = channel_axis(region)
        linear = [node for node in region.nodes if node.op_type in LINEAR]
        if len(linear) < 2:
            raise UnsupportedError("it holds fewer than two linear layers: there is nothing to merge")
        self.inputs, self.outputs = channels(region.inputs[0], self.axis), channels(region.outputs[0], self.axis)
        teacher = sum(_elements(node.inputs[1]) for node in linear)
        if self.inputs * self.outputs > budget * teacher:
            raise UnsupportedError(
                f"one {self.outputs} x {self.inputs} matrix saves too little beside {teacher} MACs a position"
            )
        if self.inputs + self.outputs > LARGEST:
            raise UnsupportedError(f"it has {self.inputs} + {self.outputs} channels, more than {LARGEST} together")
        self.form = linear[-1].op_type
        self.region, self.model = region, model
        self.fitting, self.tuning = (Moments(self.inputs + self.outputs) for _ in range(2))

    def rows(self, x: Array, y: Array) -> Array:
        """The channels of x and y at each position."""
        return np.concatenate([positions(x, self.axis), positions(y, self.axis)], axis=1)

    def fit(self, target: float) -> Fitted:
        """The one linear layer, if its error is within `target`."""
        n = self.inputs
        start = self._jacobian(self.fitting.mean[:n], np.sqrt(np.maximum(np.diag(self.fitting.covariance)[:n], 0.0)))
        scale = standard(np.diag(self.fitting.covariance)[n:])
        gap = scale[:, None] * np.concatenate([-self._solve(start, self.fitting), np.eye(self.outputs)], axis=1)
        residual = float(np.sum((gap @ self.tuning.about(self.fitting.mean)) * gap))
        error = relative(residual, float(np.sum(scale**2 * np.diag(self.tuning.covariance)[n:])))
        if error > target:
            raise UnsupportedError(
                f"one linear layer leaves an error of {error:.4f} on the tuning data, above {target:.4f}"
            )
        pooled = self.fitting + self.tuning
        weight, rank = self._solve(start, pooled), len(self.region.inputs[0].shape or ())
        layers = pointwise_layers(self.form, rank, weight, pooled.mean[n:] - weight @ pooled.mean[:n])
        return Fitted(self.name, tuple(layers), error, {}, self.axis)

    def _solve(self, start: Array, moments: Moments) -> Array:
        """Ridge regression toward `start`; (outputs, inputs)."""
        n, cov = self.inputs, moments.covariance
        xx, yx = cov[:n, :n], cov[n:, :n]
        ridge = RIDGE * float(np.trace(xx)) / n + 1e-300
        return start + np.linalg.solve(xx + ridge * np.eye(n), (yx - start @ xx).T).T

    def _jacobian(self, mean: Array, spread: Array) -> Array:
        """Central differences of the teacher at `mean`, a channel at a time; (outputs, inputs)."""
        assert self.region.inputs[0].dtype is not None
        step = np.where(spread > 0.0, spread, max(float(spread.max()), 1e-3))
        probes = np.concatenate([mean + np.diag(step), mean - np.diag(step)])
        rank = len(self.region.inputs[0].shape or ())
        shape = (len(probes), self.inputs, *[1] * (rank - 2)) if self.axis == 1 else (*[1] * (rank - 2), *probes.shape)
        name = str(self.region.inputs[0].name)
        feeds = {name: probes.reshape(shape).astype(self.region.inputs[0].dtype.numpy())}
        teacher = _shapeless(self.model, self.region)
        y = positions(next(iter(oracle.run(teacher, feeds).values())), self.axis).astype(np.float64)
        return ((y[: self.inputs] - y[self.inputs :]) / (2.0 * step[:, None])).T


def _elements(weight: ir.Value | None) -> int:
    return 0 if weight is None or weight.shape is None else math.prod(d for d in weight.shape if isinstance(d, int))


def _shapeless(model: ir.Model, region: Region) -> ir.Model:
    """The region as a model of its own that takes any number of positions."""
    graph = ir.convenience.extract(model.graph, list(region.inputs), list(region.outputs))
    for value in [*graph.inputs, *(value for node in graph for value in node.outputs)]:
        value.shape = None if value.shape is None else ir.Shape([None] * len(value.shape))
    return ir.Model(graph, ir_version=model.ir_version)
