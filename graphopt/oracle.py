"""onnxruntime as the oracle: what does this graph compute?

All graph optimisations are off by default (`ORT_DISABLE_ALL`): with them on, onnxruntime itself changes results
(int4 DequantizeLinear + MatMul moved by 1.4e-2 where the plain run moved by 5e-7).
"""

from __future__ import annotations

import re
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import onnx_ir as ir

from graphopt.errors import DataError, ModelError
from graphopt.graph.save import EXTERNAL_ABOVE, save, to_bytes, weight_bytes

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


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
    options.add_session_config_entry("session.force_spinning_stop", "1")  # its threads leave the cores between runs
    options.log_severity_level = 4
    try:
        if weight_bytes(model) <= EXTERNAL_ABOVE:
            return ort.InferenceSession(to_bytes(model), options, providers=["CPUExecutionProvider"])
        with tempfile.TemporaryDirectory() as folder:
            path = save(model, Path(folder) / "model.onnx")
            return ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except (
        state.Fail,
        state.InvalidGraph,
        state.InvalidArgument,
        state.NotImplemented,
        state.RuntimeException,
    ) as error:
        raise ModelError(f"onnxruntime refuses the model: {_line(error)}") from error


def _line(error: Exception) -> str:
    """What onnxruntime said, without its error codes, source files and C++ signatures."""
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    text = re.sub(r"^\d+ : [A-Z_]+ : ", "", text)
    text = re.sub(r"/onnxruntime_src/\S+:\d+ .*?\)(?: const)? (?=\S)", "", text)
    return text[:500]
