"""What an artifact is compared with: other ways to run the same ONNX model with all they have to offer.

All get the same number of threads, and none pins them to cores: the system places them alike.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import onnx_ir as ir

from graphopt.errors import ModelError, UsageError
from graphopt.measure.command import Command
from graphopt.measure.latency import Runner


def open_rivals(names: Iterable[str], model: ir.Model, threads: int) -> dict[str, Runner]:
    """A runner for each of `names`, in float32: feeds by name -> outputs by name.

    ``onnxruntime``: all graph optimisations on, on the CPU. ``onnxruntime-cuda``: the same with its CUDA provider,
    without TF32. ``openvino``: its CPU plugin tuned for latency, with float32
    arithmetic. ``tvm``: TVM's own importer and default pipeline, without anything of graphopt; compiled here. A text
    with ``{model}`` in it is a command (see `command`).

    Raises:
        UsageError: an unknown name, or one that is not installed.
        ModelError: a rival refuses the model.
        HostError: onnxruntime's CUDA provider is asked for and can't run here.
    """
    wanted = list(dict.fromkeys(names))
    for name in wanted:
        if name not in RIVALS and "{model}" not in name:
            raise UsageError(
                f"There is nothing called {name!r} to compare with: it can be {', '.join(RIVALS)}, "
                "or a command that contains {model}."
            )
    return {name: RIVALS.get(name, partial(Command, name))(model, threads) for name in wanted}


def usual(device: str) -> str:
    """The rival of an artifact for `device` when none is named: onnxruntime, on the GPU too where it has a provider."""
    import onnxruntime

    on_gpu = device == "cuda" and "CUDAExecutionProvider" in onnxruntime.get_available_providers()
    return "onnxruntime-cuda" if on_gpu else "onnxruntime"


def _onnxruntime(model: ir.Model, threads: int) -> Runner:
    from graphopt import oracle

    return oracle.Session(model, threads=threads, optimised=True).run


def _onnxruntime_cuda(model: ir.Model, threads: int) -> Runner:
    from graphopt import oracle

    return oracle.Session(model, threads=threads, optimised=True, device="cuda").run


def _openvino(model: ir.Model, threads: int) -> Runner:
    try:
        import openvino  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise UsageError(
            "OpenVINO is not installed, so nothing can be compared with it: pip install openvino."
        ) from error
    settings = {
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_PRECISION_HINT": "f32",
        "ENABLE_CPU_PINNING": False,
    }
    core = openvino.Core()
    try:
        read = core.read_model(ir.to_proto(model).SerializeToString())
        request = core.compile_model(read, "CPU", settings).create_infer_request()
    except RuntimeError as error:
        raise ModelError(f"OpenVINO refuses the model: {_line(error)}") from error
    inputs = {str(v.name): index for index, v in enumerate(model.graph.inputs)}
    outputs = [str(v.name) for v in model.graph.outputs]

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        results = request.infer({inputs[name]: array for name, array in feeds.items()}, share_inputs=True)
        return {name: results[index] for index, name in enumerate(outputs)}

    return run


def _tvm(model: ir.Model, threads: int) -> Runner:
    import tvm
    from tvm import relax
    from tvm.relax.frontend.onnx import from_onnx
    from tvm.target import codegen

    from graphopt.artifact.runtime import limit_threads

    target = tvm.target.Target(
        {"kind": "llvm", "mtriple": codegen.llvm_get_system_triple(), "mcpu": codegen.llvm_get_system_cpu()}
    )
    proto: Any = ir.to_proto(model)  # from_onnx is annotated as taking a GraphProto
    try:
        machine = relax.VirtualMachine(tvm.compile(from_onnx(proto), target), [tvm.cpu()])  # pyright: ignore[reportArgumentType]
    except Exception as error:  # whatever TVM raises, from its C++ or its Python
        raise ModelError(f"Stock TVM can't compile the model for {platform.machine()}: {_line(error)}") from error
    inputs, outputs = ([str(v.name) for v in values] for values in (model.graph.inputs, model.graph.outputs))

    def run(feeds: Mapping[str, Any]) -> dict[str, Any]:
        limit_threads(threads)
        results = machine["main"](*(tvm.runtime.tensor(feeds[name]) for name in inputs))
        leaves = [results] if isinstance(results, tvm.runtime.Tensor) else results
        return {name: leaf.numpy() for name, leaf in zip(outputs, leaves, strict=True)}

    return run


RIVALS: dict[str, Callable[[ir.Model, int], Runner]] = {
    "onnxruntime": _onnxruntime,
    "onnxruntime-cuda": _onnxruntime_cuda,
    "openvino": _openvino,
    "tvm": _tvm,
}


def _line(error: Exception) -> str:
    return " ".join(str(error).split())[-300:]
