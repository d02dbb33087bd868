"""onnxruntime as the oracle: what does this graph compute?

All graph optimisations are off by default (`ORT_DISABLE_ALL`): with them on, onnxruntime itself changes results
(int4 DequantizeLinear + MatMul moved by 1.4e-2 where the plain run moved by 5e-7).
"""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.errors import DataError, ModelError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

INLINE_LIMIT = 1 << 30
"""Models with more weight bytes go to onnxruntime through a file with external data (protobuf ends at 2 GiB)."""


class Session:
    """An onnxruntime session over an IR model.

    Args:
        model: left unchanged.
        outputs: names of the values to return; any value of the main graph may be named. Default: the outputs.
        threads: intra-op threads.
        optimised: True for onnxruntime's full graph optimisation (for latency), False for the oracle.
    """

    def __init__(
        self,
        model: ir.Model,
        outputs: Sequence[str] | None = None,
        *,
        threads: int = 1,
        optimised: bool = False,
    ) -> None:
        self.outputs = list(outputs) if outputs is not None else [str(v.name) for v in model.graph.outputs]
        self._session = _open(_with_outputs(model, self.outputs) if outputs is not None else model, threads, optimised)

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """Outputs by name. Raises `DataError` when the feeds don't fit the inputs, `ModelError` when a node fails."""
        from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

        try:
            results = self._session.run(self.outputs, dict(feeds))
        except (state.InvalidArgument, ValueError) as error:
            raise DataError(f"the inputs don't fit the model: {_line(error)}") from error
        except (state.Fail, state.RuntimeException) as error:
            raise ModelError(f"onnxruntime can't run the model on this input: {_line(error)}") from error
        return dict(zip(self.outputs, results, strict=True))


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


def _open(model: ir.Model, threads: int, optimised: bool) -> Any:
    import onnxruntime as ort
    from onnxruntime.capi import onnxruntime_pybind11_state as state  # pyright: ignore[reportAttributeAccessIssue]

    options = ort.SessionOptions()
    level = ort.GraphOptimizationLevel
    options.graph_optimization_level = level.ORT_ENABLE_ALL if optimised else level.ORT_DISABLE_ALL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        if (
            sum(v.const_value.nbytes for v in model.graph.initializers.values() if v.const_value is not None)
            <= INLINE_LIMIT
        ):
            proto = ir.to_proto(model)
            _embed_external(proto, model)
            return ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "model.onnx"
            ir.save(model, path, external_data="model.onnx.data")
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        state.Fail,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        raise ModelError(f"onnxruntime refuses the model: {_line(error)}") from error


def _embed_external(proto: Any, model: ir.Model) -> None:
    """Initializers that lie in external files, put into the proto (onnxruntime reads no paths from bytes)."""
    external = {n: v for n, v in model.graph.initializers.items() if isinstance(v.const_value, ir.ExternalTensor)}
    if not external:
        return
    for tensor in proto.graph.initializer:
        if tensor.name in external:
            value = external[tensor.name].const_value
            assert value is not None
            tensor.ClearField("external_data")
            tensor.ClearField("data_location")
            tensor.raw_data = value.tobytes()


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[:500]
