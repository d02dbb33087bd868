"""onnxruntime as the oracle: what does this graph compute?

All graph optimisations are off by default (`ORT_DISABLE_ALL`): with them on, onnxruntime itself changes results
(int4 DequantizeLinear + MatMul moved by 1.4e-2 where the plain run moved by 5e-7).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import onnx_ir as ir

from graphopt import ort
from graphopt.errors import ModelError
from graphopt.graph.save import EXTERNAL_ABOVE, save, weight_bytes

if TYPE_CHECKING:
    import numpy as np
    import onnx

    Array = np.ndarray[Any, Any]


NEWEST_IR, NEWEST_OPSET = 10, 26
ONNX = ("", "ai.onnx")


class Session:
    """An onnxruntime session over an IR model.

    Args:
        model: left unchanged.
        outputs: names of the values to return; any value of the main graph may be named. Default: the outputs.
        threads: intra-op threads.
        device: where onnxruntime runs it.
        optimised: True for onnxruntime's full graph optimisation (for latency), False for the oracle.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str] | None = None,
        *,
        threads: int = 1,
        optimised: bool = False,
        device: Literal["cpu", "cuda"] = "cpu",
    ) -> None:
        self.outputs = list(outputs) if outputs is not None else [str(v.name) for v in model.graph.outputs]
        self._session = _open(
            _with_outputs(model, self.outputs) if outputs is not None else model, threads, optimised, device
        )

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises `DataError` when the feeds don't fit the inputs, `ModelError` when a node fails."""
        results = self._session.run(feeds)
        return {name: results[name] for name in self.outputs}


def run(model: ir.Model, feeds: Mapping[str, Array], outputs: Sequence[str] | None = None) -> dict[str, Array]:
    """Run `model` once; see `Session`."""
    return Session(model, outputs).run(feeds)


def _with_outputs(model: ir.Model, names: Sequence[str]) -> ir.Model:
    clone = model.clone()
    values = {v.name: v for v in [*clone.graph.inputs, *(v for n in clone.graph for v in n.outputs)]}
    missing = [n for n in names if n not in values]
    if missing:
        raise ModelError(f"the graph has no values named {', '.join(map(repr, missing[:5]))}.")
    clone.graph.outputs[:] = [values[n] for n in names]
    return clone


def lift_limits(proto: onnx.ModelProto) -> onnx.ModelProto:
    """`proto`, or a copy with the version numbers that the installed onnxruntime takes.

    It refuses files of IR versions and opsets newer than itself whatever is in them, though operators mostly stay as
    they were; one that it really lacks is refused by name.
    """
    import onnx

    if proto.ir_version <= NEWEST_IR and all(o.version <= NEWEST_OPSET for o in proto.opset_import if o.domain in ONNX):
        return proto
    copy = onnx.ModelProto()
    copy.CopyFrom(proto)
    copy.ir_version = min(proto.ir_version, NEWEST_IR)
    for imported in (copy, *copy.functions):
        for opset in imported.opset_import:
            if opset.domain in ONNX:
                opset.version = min(opset.version, NEWEST_OPSET)
    return copy


def _open(model: ir.Model, threads: int, optimised: bool, device: Literal["cpu", "cuda"]) -> ort.Session:
    if weight_bytes(model) <= EXTERNAL_ABOVE:
        data = lift_limits(ir.to_proto(model)).SerializeToString(deterministic=True)
        return ort.Session(data, threads=threads, optimised=optimised, device=device)
    with tempfile.TemporaryDirectory() as folder:
        path = save(model, Path(folder) / "model.onnx")
        return ort.Session(str(path), threads=threads, optimised=optimised, device=device)
