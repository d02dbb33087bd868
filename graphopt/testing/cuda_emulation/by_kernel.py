"""`check_kernels`: every distinct kernel of a model, once, in the emulator, with the inputs it gets in the model.

Three values of each kernel's output are compared. *Emulated* is its CUDA C on the emulated device. *Host* is the same
loops before they were scheduled, compiled for this CPU; a run of the whole model this way gives the inputs.
*onnxruntime* is the value of the ONNX graph that comes nearest: most kernels end where a node does, some (a part of an
operator) do not. The host's run is held against onnxruntime by the model's outputs.
"""

from __future__ import annotations

import dataclasses
import pickle
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphopt import oracle
from graphopt.base import Context
from graphopt.testing.cuda_emulation import host
from graphopt.testing.cuda_emulation.build import EmulationError, driver, settings
from graphopt.testing.cuda_emulation.process import in_process

if TYPE_CHECKING:
    import onnx_ir as ir

Array = np.ndarray[Any, Any]


@dataclasses.dataclass(frozen=True)
class KernelCheck:
    """What was found of one function (one kernel; of a few, two or three) at one combination of shapes.

    `error`: largest difference of emulated and host values over the largest magnitude, inf where only one is a number;
    `onnxruntime_error`: the same to the nearest value of the graph, None where none has as many elements. Both None
    where `fault` says what the kernel did that CUDA forbids. `nodes`: of the source model; `schedule`: the rule;
    `dtype`: of what it gives (first).
    """

    function: str
    shapes: list[list[int]]
    nodes: list[str]
    schedule: str
    dtype: str
    error: float | None = None
    onnxruntime_error: float | None = None
    fault: str = ""


@dataclasses.dataclass(frozen=True)
class ModelCheck:
    """`kernels`, and `output_error`: of the host's outputs, over their largest magnitude, to onnxruntime's.

    `unchecked`: functions the model has and no call of which was checked.
    """

    kernels: list[KernelCheck]
    output_error: float
    unchecked: list[str]


def check_kernels(
    model: ir.Model,
    feeds: Mapping[str, Array],
    *,
    arch: str = "sm_80",
    sample: int | None = 8,
    edit: Callable[[str], str] = str,
) -> ModelCheck:
    """Check every distinct kernel that `model` runs on `feeds`.

    `sample`: how many blocks of each launch run with the checks of memory and races, the others without; all
    blocks run, and all values are compared. None: all with checks. `edit`: as in `emulate`.

    Raises:
        LoweringError: the model can't be compiled for the GPU.
        EmulationError: the host's compiler refused the kernels.
        DataError: the feeds don't fit.
    """
    from graphopt.targets.cuda import Cuda

    program = Cuda(arch=arch, compiler="source", graphs=False).build(model, Context())  # as `host` has the kernels
    calls, outputs = host.calls(model, feeds, arch)
    expected = oracle.run(model, feeds)
    values = list(oracle.run(model, feeds, _names(model)).values())
    values += [value.view(np.int8) ^ -128 for value in values if value.dtype == np.uint8]  # less 128
    values += [np.moveaxis(value, 1, -1) for value in values if value.ndim == 4]  # as convolutions are computed
    known = {row["name"]: row for row in program.report["kernels"]}
    with tempfile.TemporaryDirectory(prefix="graphopt-") as name:
        library = Path(name) / "model.so"
        library.write_bytes(program.library)
        device = settings(edit(program.files["kernels.cu"].decode()), arch, True, sample)
        results = _emulated(calls, library, device)
    rows = [_row(call, known[call.function], result, values) for call, result in zip(calls, results, strict=True)]
    checked = {call.function for call in calls}
    return ModelCheck(
        rows,
        max(difference(outputs[name], value) for name, value in expected.items()),
        [name for name in known if name not in checked],
    )


def difference(value: Array, expected: Array) -> float:
    """``max |value - expected| / max |expected|``; inf where one is NaN or infinite and the other not the same."""
    if value.shape != expected.shape:
        value = value.reshape(expected.shape)
    if value.size == 0:
        return 0.0
    a, b = value.astype(np.float64), expected.astype(np.float64)
    finite = np.isfinite(b)
    if not np.array_equal(a[~finite], b[~finite], equal_nan=True) or not np.isfinite(a[finite]).all():
        return float("inf")
    distance = float(np.abs(a[finite] - b[finite]).max(initial=0.0))
    return distance / max(float(np.abs(b[finite]).max(initial=0.0)), 1e-30) if distance else 0.0


def _names(model: ir.Model) -> list[str]:
    return [str(value.name) for node in model.graph for value in node.outputs if value.name]


def _row(call: host.Call, known: Mapping[str, Any], result: list[Array] | str, values: Sequence[Array]) -> KernelCheck:
    shapes = [list(one.shape) for one in call.arguments if isinstance(one, np.ndarray)]
    expected = [one for index in call.written if isinstance(one := call.arguments[index], np.ndarray)]
    row = KernelCheck(call.function, shapes, known["nodes"], known["schedule"], expected[0].dtype.name)
    if isinstance(result, str):
        return dataclasses.replace(row, fault=result)
    error = max(difference(one, other) for one, other in zip(result, expected, strict=True))
    near = [difference(one, v) for one in result for v in values if v.size == one.size and v.dtype == one.dtype]
    return dataclasses.replace(row, error=error, onnxruntime_error=min(near, default=None))


def _emulated(calls: Sequence[host.Call], library: Path, device: Mapping[str, str]) -> list[list[Array] | str]:
    """What each call gave, or what was wrong with it; after a fault the rest goes on in a new process."""
    places = [library.parent / f"{index}.call" for index in range(len(calls))]
    for place, call in zip(places, calls, strict=True):
        place.write_bytes(pickle.dumps(call))
    found: list[list[Array] | str] = []
    while len(found) < len(calls):
        rest = places[len(found) :]
        task = {"driver": str(driver()), "library": str(library), "calls": list(map(str, rest))}
        fault = None
        try:
            in_process("graphopt.testing.cuda_emulation.calls", task, device)
        except EmulationError as error:
            fault = str(error)
        for place in rest:
            result = place.with_suffix(".result")
            if not result.exists():
                break
            found.append(pickle.loads(result.read_bytes()))
            result.unlink()
        if fault is not None:
            found.append(fault)
    return found
