"""ONNX text that grows step by step: what the steps of random models are written on."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from graphopt.testing.text import from_text

if TYPE_CHECKING:
    Array = np.ndarray[Any, Any]

CHANNELS, SIZE = 4, 6
"""The input is ``[N, CHANNELS, SIZE, SIZE]``, N open."""
TYPES = {"float32": ("float", 1), "float16": ("float16", 10)}
"""numpy's name -> ONNX's name and number."""


@dataclasses.dataclass(frozen=True)
class Value:
    """What a step reads or writes: [N, channels, size, size], or [N, channels]."""

    name: str
    channels: int
    size: int
    """Height and width, where those of the input are `SIZE`; 0 for a matrix [N, channels]."""


class Net:
    """ONNX text that grows step by step."""

    def __init__(self, seed: int, dtype: str, opset: int = 17, open_image: bool = False) -> None:
        self.opset, self.open_image = opset, open_image
        self.dtype = np.dtype(dtype)
        self.type, self.code = TYPES[dtype]
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: dict[str, Array] = {}
        self.shared: dict[tuple[int, ...], str] = {}
        self.values = [Value("x", CHANNELS, SIZE)]
        self.taken = 0

    def name(self, kind: str) -> str:
        """A name that nothing has yet."""
        self.taken += 1
        return f"{kind}{self.taken}"

    def constant(self, array: Array) -> str:
        """The name of an initializer."""
        name = self.name("w")
        self.weights[name] = array
        return name

    def weight(self, *shape: int, low: float = -1.0, high: float = 1.0) -> str:
        """The name of an initializer of evenly drawn numbers."""
        return self.constant(self.rng.uniform(low, high, shape).astype(self.dtype))

    def kernel(self, share: bool, *shape: int) -> str:
        """Convolution weights that keep the activations' variance; the last of this shape again when `share`."""
        if not share or shape not in self.shared:
            limit = float(3 / np.prod(shape[1:])) ** 0.5
            self.shared[shape] = self.weight(*shape, low=-limit, high=limit)
        return self.shared[shape]

    def line(self, expression: str) -> str:
        """The name of the value of an expression, a value that no later step reads."""
        name = self.name("t")
        self.lines.append(f"{name} = {expression}")
        return name

    def emit(self, expression: str, like: Value, channels: int | None = None, size: int | None = None) -> None:
        """A value that later steps may read; of the sizes of `like` where none are given."""
        value = Value(
            self.line(expression),
            like.channels if channels is None else channels,
            like.size if size is None else size,
        )
        self.values.append(value)

    def partner(self, value: Value, a: int, same_channels: bool) -> Value:
        """Another value (or the same) that can be added to or joined with `value`."""
        fits = [v for v in self.values if v.size == value.size and (v.channels == value.channels or not same_channels)]
        return fits[-1 - a % len(fits)]

    def kind(self, value: Value) -> str:
        """The value's type as ONNX text, its dimensions as the input has them or named anew."""
        if value.size and self.open_image:
            return f"{self.type}[N,{value.channels},{self.name('h')},{self.name('w')}]"
        return f"{self.type}[N,{value.channels}{f',{value.size},{value.size}' if value.size else ''}]"

    def model(self, returned: Sequence[Value]) -> ir.Model:
        """What was written, as a model that returns `returned`."""
        kinds = {"float32": "float", "float16": "float16", "int64": "int64", "bool": "bool", "int8": "int8"}
        declared = [
            f"{kinds[str(array.dtype)]}{list(array.shape) if array.ndim else ''} {name}"
            for name, array in self.weights.items()
        ]
        image = "H,W" if self.open_image else f"{SIZE},{SIZE}"
        inputs = ", ".join([f"{self.type}[N,{CHANNELS},{image}] x", *declared])
        outputs = ", ".join(
            f"{self.type}[{f'n{k},c{k}' if v.size == 0 else f'n{k},c{k},h{k},w{k}'}] {v.name}"
            for k, v in enumerate(dict.fromkeys(returned))
        )
        text = f'<ir_version: 10, opset_import: ["": {self.opset}]>\nmain ({inputs}) => ({outputs}) {{\n'
        return from_text(text + "\n".join(self.lines) + "\n}", **self.weights)
