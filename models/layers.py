"""The layers of a small convolutional network in plain numpy, each with its gradient.

A layer gives its parameters (named, in ONNX layout) and a forward pass that returns the output and the gradient
as a closure. Images are (N, H, W, C) here, so that a convolution is one matrix product over shifted copies.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]
Params = dict[str, Array]
Backward = Callable[[Array], tuple[Array, Params]]
"""Gradient at a layer's output -> the gradient at its input, and those at its parameters."""


@dataclass(frozen=True)
class Layer:
    """A named step of a network, without parameters unless it says otherwise."""

    name: str

    def init(self, rng: np.random.Generator) -> Params:
        """Fresh parameters, float32."""
        return {}

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """The output for `x`, and its gradient."""
        raise NotImplementedError


@dataclass(frozen=True)
class Conv(Layer):
    """Convolution, stride 1, odd kernel, zero padding that keeps the size, no bias."""

    inputs: int
    outputs: int
    kernel: int = 3

    def init(self, rng: np.random.Generator) -> Params:
        """Normal weights of variance 2 / fan-in (He et al., 2015), (outputs, inputs, k, k)."""
        shape = (self.outputs, self.inputs, self.kernel, self.kernel)
        deviation = math.sqrt(2 / (self.inputs * self.kernel**2))
        return {f"{self.name}.weight": rng.normal(0, deviation, shape).astype(np.float32)}

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """``y = columns(x) w``; ``dw = columns(x)' dy``; ``dx`` adds up ``dy w'`` over the k*k shifts."""
        key, k = f"{self.name}.weight", self.kernel
        n, height, width, channels = x.shape
        padded = np.pad(x, ((0, 0), (k // 2, k // 2), (k // 2, k // 2), (0, 0)))
        shifts = [(slice(i, i + height), slice(j, j + width)) for i in range(k) for j in range(k)]
        columns = np.concatenate([padded[:, rows, cols] for rows, cols in shifts], axis=-1)
        columns = columns.reshape(-1, k * k * channels)
        weight = params[key].transpose(2, 3, 1, 0).reshape(-1, self.outputs)

        def backward(dy: Array) -> tuple[Array, Params]:
            dy = dy.reshape(-1, self.outputs)
            dw = (columns.T @ dy).reshape(k, k, channels, self.outputs).transpose(3, 2, 0, 1)
            dcolumns = (dy @ weight.T).reshape(n, height, width, k * k, channels)
            dpadded = np.zeros_like(padded)
            for shift, (rows, cols) in enumerate(shifts):
                dpadded[:, rows, cols] += dcolumns[:, :, :, shift]
            return dpadded[:, k // 2 : k // 2 + height, k // 2 : k // 2 + width], {key: dw}

        return (columns @ weight).reshape(n, height, width, self.outputs), backward


@dataclass(frozen=True)
class BatchNorm(Layer):
    """Batch normalisation (Ioffe and Szegedy, 2015) over all axes but the channels."""

    channels: int
    epsilon: float = 1e-5
    momentum: float = 0.9

    def init(self, rng: np.random.Generator) -> Params:
        """The identity: scale 1, bias 0, running mean 0 and variance 1."""
        start = {"scale": 1, "bias": 0, "mean": 0, "var": 1}
        return {f"{self.name}.{key}": np.full(self.channels, value, np.float32) for key, value in start.items()}

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """``y = scale h + bias`` with ``h = (x - mean) / sqrt(var + epsilon)``.

        Training takes the batch's own mean and variance and moves the running ones in `params`; its gradient is
        ``dx = scale / sqrt(var + epsilon) (dy - mean(dy) - h mean(dy h))``.
        """
        scale, bias, mean, var = (params[f"{self.name}.{key}"] for key in ("scale", "bias", "mean", "var"))
        axes = tuple(range(x.ndim - 1))
        if training:
            batch_mean, batch_var = x.mean(axes), x.var(axes)
            mean += (1 - self.momentum) * (batch_mean - mean)
            var += (1 - self.momentum) * (batch_var - var)
            mean, var = batch_mean, batch_var
        gain = 1 / np.sqrt(var + x.dtype.type(self.epsilon))
        h = (x - mean) * gain

        def backward(dy: Array) -> tuple[Array, Params]:
            dscale, dbias = (dy * h).sum(axes), dy.sum(axes)
            count = math.prod(dy.shape[:-1])
            through_moments = (dbias + h * dscale) / count if training else 0
            return scale * gain * (dy - through_moments), {f"{self.name}.scale": dscale, f"{self.name}.bias": dbias}

        return scale * h + bias, backward


@dataclass(frozen=True)
class Relu(Layer):
    """``max(x, 0)``."""

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """The gradient passes where the input is positive."""
        return np.maximum(x, 0), lambda dy: (dy * (x > 0), {})


@dataclass(frozen=True)
class MaxPool(Layer):
    """Maximum over 2 x 2 windows, stride 2; an odd last row or column is dropped."""

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """The gradient goes to the largest element; equal ones share it."""
        n, height, width, channels = x.shape
        h, w = height // 2, width // 2
        windows = x[:, : 2 * h, : 2 * w].reshape(n, h, 2, w, 2, channels)
        y = windows.max(axis=(2, 4), keepdims=True)

        def backward(dy: Array) -> tuple[Array, Params]:
            largest = windows == y
            share = largest * (dy.reshape(y.shape) / largest.sum(axis=(2, 4), keepdims=True, dtype=dy.dtype))
            dx = np.zeros_like(x)
            dx[:, : 2 * h, : 2 * w] = share.reshape(n, 2 * h, 2 * w, channels)
            return dx, {}

        return y.reshape(n, h, w, channels), backward


@dataclass(frozen=True)
class Residual(Layer):
    """``x + body(x)`` (He et al., 2015)."""

    body: tuple[Layer, ...]

    def init(self, rng: np.random.Generator) -> Params:
        """The body's parameters."""
        return init(self.body, rng)

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """The gradients of both ways add up."""
        y, body_backward = forward(self.body, params, x, training)

        def backward(dy: Array) -> tuple[Array, Params]:
            dx, gradients = body_backward(dy)
            return dx + dy, gradients

        return x + y, backward


@dataclass(frozen=True)
class Classifier(Layer):
    """Global average pooling and a linear layer: (N, H, W, C) -> logits (N, classes)."""

    channels: int
    classes: int

    def init(self, rng: np.random.Generator) -> Params:
        """Normal weights of variance 1 / fan-in, zero bias."""
        weight = rng.normal(0, 1 / math.sqrt(self.channels), (self.classes, self.channels))
        bias = np.zeros(self.classes, np.float32)
        return {f"{self.name}.weight": weight.astype(np.float32), f"{self.name}.bias": bias}

    def forward(self, params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
        """``y = mean(x) w' + b``."""
        weight, bias = params[f"{self.name}.weight"], params[f"{self.name}.bias"]
        pooled = x.mean(axis=(1, 2))

        def backward(dy: Array) -> tuple[Array, Params]:
            dx = (dy @ weight)[:, None, None] / (x.shape[1] * x.shape[2])
            gradients = {f"{self.name}.weight": dy.T @ pooled, f"{self.name}.bias": dy.sum(0)}
            return np.broadcast_to(dx, x.shape), gradients

        return pooled @ weight.T + bias, backward


def init(layers: tuple[Layer, ...], rng: np.random.Generator) -> Params:
    """Fresh parameters of all layers."""
    return {key: value for layer in layers for key, value in layer.init(rng).items()}


def forward(layers: tuple[Layer, ...], params: Params, x: Array, training: bool) -> tuple[Array, Backward]:
    """One layer after the other; the gradient goes back through them."""
    backwards: list[Backward] = []
    for layer in layers:
        x, backward = layer.forward(params, x, training)
        backwards.append(backward)

    def chain(dy: Array) -> tuple[Array, Params]:
        gradients: Params = {}
        for backward in reversed(backwards):
            dy, own = backward(dy)
            gradients |= own
        return dy, gradients

    return x, chain
