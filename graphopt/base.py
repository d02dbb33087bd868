"""What a pass and a target are.

A pass is a frozen dataclass whose fields are its options and whose `apply` edits an `onnx_ir.Model` in place::

    from pydantic.dataclasses import dataclass          # validates the options, from Python and from text alike

    @dataclass(frozen=True)
    class FoldConstants(Pass):
        '''One line that `graphopt passes` shows.'''

        name: ClassVar[str] = "fold-constants"
        preserves: ClassVar[Preserves] = tolerance(rtol=1e-5, atol=1e-6)
        max_bytes: int = 1 << 20

        def apply(self, model: ir.Model, context: Context) -> Report:
            report = Report()
            ...
            return report

A target is declared alike; its `build` turns the optimised model into a `Program`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphopt.errors import DataError
from graphopt.packed import Packed

if TYPE_CHECKING:
    import numpy as np
    import onnx_ir as ir

    from graphopt.data import Batches


@dataclasses.dataclass(frozen=True)
class Preserves:
    """What a pass promises about the model's outputs: the pipeline's numeric check judges by it.

    `exact`: equal bit for bit. `tolerance`: ``|after - before| <= atol + rtol * max|before|`` per output.
    `lossy`: outputs may change; the loss is measured on labelled data instead.
    """

    kind: Literal["exact", "tolerance", "lossy"]
    rtol: float = 0.0
    atol: float = 0.0

    def __str__(self) -> str:
        return f"tolerance(rtol={self.rtol:g}, atol={self.atol:g})" if self.kind == "tolerance" else self.kind


EXACT = Preserves("exact")
LOSSY = Preserves("lossy")


def tolerance(rtol: float, atol: float = 0.0) -> Preserves:
    """Outputs stay within ``atol + rtol * max|before|``."""
    return Preserves("tolerance", rtol, atol)


@dataclasses.dataclass(frozen=True)
class Change:
    """One application of a pass: the node it applied to, and what it did there."""

    node: str
    action: str


@dataclasses.dataclass(frozen=True)
class Skip:
    """A candidate that a pass looked at and left alone, and why."""

    node: str
    reason: str


@dataclasses.dataclass
class Report:
    """What one pass did: every change, every candidate left alone, and measured facts (sparsity, error...)."""

    changes: list[Change] = dataclasses.field(default_factory=list[Change])
    skipped: list[Skip] = dataclasses.field(default_factory=list[Skip])
    facts: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])

    def change(self, node: str | None, action: str) -> None:
        """Record that the pass applied at `node`."""
        self.changes.append(Change(node or "<unnamed>", action))

    def skip(self, node: str | None, reason: str) -> None:
        """Record that the candidate `node` was left alone, and why."""
        self.skipped.append(Skip(node or "<unnamed>", reason))


@dataclasses.dataclass(frozen=True)
class Context:
    """What a pass or a target may use besides the model.

    `target`: what it will be compiled for, if that is known. `original`: the model that came into the pipeline, for
    passes that bring back what those before them lost; not to be changed. The driver sets it.
    """

    calibration: Batches | None = None
    seed: int = 0
    target: Target | None = None
    original: ir.Model | None = None

    def needs_calibration(self, who: str) -> Batches:
        """The calibration data, or a `DataError` that says who needs it and how to give it."""
        if self.calibration is None:
            raise DataError(
                f"{who} needs calibration data and none was given: pass --calibration DATA "
                "(an .npz file or a directory of them), or calibration=... in Python."
            )
        return self.calibration


class Pass(abc.ABC):
    """An ONNX -> ONNX rewrite. See the module's docstring for how one is written."""

    name: ClassVar[str]
    preserves: ClassVar[Preserves]

    @abc.abstractmethod
    def apply(self, model: ir.Model, context: Context) -> Report:
        """Edit `model` in place and say what was done. The model must be valid ONNX afterwards."""


@dataclasses.dataclass(frozen=True)
class Direct:
    """Where a program of known sizes is one call of one `function` of its library: what that takes, in order.

    `inputs`, `outputs`: shapes of the program's. `arguments`: what it is, its number among the inputs, weights or
    outputs (0 for the workspace), and the shape that it has there, of as many elements.
    """

    function: str
    inputs: list[list[int]]
    outputs: list[list[int]]
    arguments: list[tuple[Literal["input", "weight", "output", "workspace"], int, list[int]]]


@dataclasses.dataclass(frozen=True)
class Part:
    """A part of a program that is made of several: a library with a Relax VM executable, or ONNX for onnxruntime.

    `inputs`, `outputs`: names of the model's values that it takes and gives, in order. `weights`: names among the
    program's weights, in the order they follow the inputs; of ONNX, its initializers of those names are external.
    `direct`: of a library, if it can be called so.
    """

    runs: Literal["library", "onnxruntime"]
    data: bytes
    inputs: list[str]
    outputs: list[str]
    weights: list[str]
    direct: Direct | None = None


@dataclasses.dataclass(frozen=True)
class Variant:
    """A program for some `sizes` of open dimensions: its parts, a single one where all is lowered; their weights."""

    sizes: dict[str, int]
    entry: str
    parts: list[Part]
    weights: dict[str, np.ndarray[Any, Any]]
    packed: dict[str, Packed] = dataclasses.field(default_factory=dict[str, Packed])


@dataclasses.dataclass
class Program:
    """What a target's `build` gives to the artifact: host library, weights kept apart, and the call's order.

    `library`: bytes of a shared library exported from a Relax VM executable.
    `inputs`: names of the model's inputs in the order `entry` takes them, the `weights` follow in dict order.
    `outputs`: names of the model's outputs in the order `entry` returns them.
    `cpu_features`: instruction sets `library` may use, by LLVM's names ("avx2"); a host without one is refused.
    `files`: further members of the artifact by path (cubin, command stream, logs).
    `report`: what the target has to say (JSON-able): nodes offloaded, refused, cycles, what was not run.
    `parts`: where not one library does it all; they run in this order, and `library` is empty.
    `variants`: programs for some sizes of open dimensions, the first that fits runs instead.
    `packed`: names of weights that the artifact holds in few bits -> what they are made of when it is loaded.
    `direct`: how to call it without the virtual machine, where that can be.
    """

    library: bytes
    weights: dict[str, np.ndarray[Any, Any]]
    inputs: list[str]
    outputs: list[str]
    device: Literal["cpu", "cuda"] = "cpu"
    entry: str = "main"
    cpu_features: list[str] = dataclasses.field(default_factory=list[str])
    files: dict[str, bytes] = dataclasses.field(default_factory=dict[str, bytes])
    report: dict[str, Any] = dataclasses.field(default_factory=dict[str, Any])
    parts: list[Part] = dataclasses.field(default_factory=list[Part])
    variants: list[Variant] = dataclasses.field(default_factory=lambda: list[Variant]())
    packed: dict[str, Packed] = dataclasses.field(default_factory=dict[str, Packed])
    direct: Direct | None = None


class Target(abc.ABC):
    """A machine to compile for: a frozen dataclass whose fields are its options.

    `falls_back`: whether nodes that it can't lower may run on onnxruntime beside it.
    """

    name: ClassVar[str]
    falls_back: ClassVar[bool] = True

    @abc.abstractmethod
    def build(self, model: ir.Model, context: Context) -> Program:
        """Lower `model` through TVM. Raises `LoweringError` naming each operator that can't be lowered."""

    def weight_bits(self) -> int:
        """Bits of int8 weights that its integer kernels multiply fastest without any loss."""
        return 8

    @classmethod
    @abc.abstractmethod
    def status(cls) -> Mapping[str, Any]:
        """What this target can and can't do on this machine (JSON-able), for `graphopt targets`."""
