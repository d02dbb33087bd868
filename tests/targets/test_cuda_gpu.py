"""The model set on a GPU: ``pytest -m gpu``, where there is one (otherwise each test is skipped, and listed as such).

float32, float16 and int8, sizes fixed (with CUDA graphs) and open. So far only the rehearsal below has run, which
walks the same way on the emulated device: no GPU was at hand.
"""

from __future__ import annotations

import itertools
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

import graphopt
from graphopt import artifact, graph, models, oracle
from graphopt.base import Context
from graphopt.measure.artifact import bench_artifact
from graphopt.models.base import ReferenceModel
from graphopt.pipeline.presets import preset
from graphopt.targets.cuda import Cuda, arch
from graphopt.testing.cuda_emulation import emulate

Array = np.ndarray
Run = Callable[[Path, Sequence[Mapping[str, Array]]], list[dict[str, Array]]]

needs_gpu = pytest.mark.skipif(not arch.devices(), reason="no CUDA device on this machine")
needs_emulation = pytest.mark.skipif(
    sys.platform != "linux" or not shutil.which("g++"), reason="the emulated device needs Linux and g++"
)
WAYS = {"float32": ("O3", 1e-3), "float16": ("float16", 2e-2), "int8": ("int8", 5e-2)}
"""Preset, and what the largest difference may be over an output's largest value; for int8 where a value that lies
between two steps goes the other way."""


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", models.names())
def test_the_model_set_with_fixed_sizes_and_graphs(name, way, tmp_path):
    """Three calls with other inputs, which lie elsewhere: the first captures, the others launch the graphs."""
    report = check(models.get(name), way, tmp_path, on_device, arch=_arch())
    assert report["cuda_graphs"]["kernels"] > 0


@pytest.mark.gpu
@needs_gpu
@pytest.mark.parametrize("name", models.names())
def test_the_model_set_with_open_sizes(name, tmp_path):
    check(models.get(name), "float32", tmp_path, on_device, arch=_arch(), fixed=False)


@pytest.mark.gpu
@needs_gpu
def test_bench_beside_onnxruntime(tmp_path):
    check(models.get("digits"), "float32", tmp_path, on_device, arch=_arch())
    assert bench_artifact(tmp_path / "model.gopt", seconds=1)["ratio"] > 0


@needs_emulation
@pytest.mark.parametrize("way", [pytest.param(way, marks=[] if way == "float16" else pytest.mark.slow) for way in WAYS])
def test_rehearsal_on_the_emulated_device(way, tmp_path):
    report = check(models.get("digits"), way, tmp_path, lambda path, feeds: emulate(path, feeds, checks=False))
    assert report["cuda_graphs"]["kernels"] > 0


def check(
    entry: ReferenceModel, way: str, folder: Path, run: Run, *, arch: str = "sm_80", fixed: bool = True
) -> Mapping[str, object]:
    """Compile as `way` says and compare what `run` gives; the report of the build."""
    model = graph.load(entry.path())
    calls = _feeds(entry) if fixed else [entry.example(n) for n in _batches(model)]
    if fixed:
        graph.bind_dims(model, _sizes(model, calls[0]))
    passes, tolerance = WAYS[way]
    data = list(itertools.islice(entry.calibration(), 4)) if entry.calibration else None
    model = graphopt.optimize(model, preset(passes), calibration=data if way != "float32" else None, verify=False)
    program = Cuda(arch=arch).build(model, Context())
    path = artifact.write(
        folder / "model.gopt", program, target=f"cuda{{arch={arch}}}", before=model, after=model, report={}
    )
    # onnxruntime rounds Q/DQ graphs elsewhere; that the llvm target is what docs/integer.md says has tests of its own.
    reference = graphopt.compile(model, "llvm").run if way == "int8" else oracle.Session(model).run
    for given, results in zip(calls, run(path, calls), strict=True):
        for name, expected in reference(given).items():
            got = results[name].astype(np.float64)
            assert np.abs(got - expected).max() <= tolerance * np.abs(expected).max(), name
    return program.report


def on_device(path: Path, feeds: Sequence[Mapping[str, Array]]) -> list[dict[str, Array]]:
    with artifact.load(path) as program:
        return [program.run(given) for given in feeds]


def _feeds(entry: ReferenceModel) -> list[dict[str, Array]]:
    """One example, and twice its values in another order."""
    first = entry.example(1)
    rng = np.random.default_rng(0)
    return [first, *({name: rng.permuted(value) for name, value in first.items()} for _ in range(2))]


def _batches(model: ir.Model) -> list[int]:
    shape = model.graph.inputs[0].shape
    return [1] if shape is None or isinstance(shape[0], int) else [1, 2]


def _sizes(model: ir.Model, feeds: Mapping[str, Array]) -> dict[str, int]:
    return {
        str(dim.value): size
        for value in model.graph.inputs
        for dim, size in zip(value.shape or (), feeds[str(value.name)].shape, strict=True)
        if not isinstance(dim, int)
    }


def _arch() -> str:
    """The architecture of the GPU at hand."""
    import tvm_ffi

    artifact.runtime.start_cuda()
    return "sm_" + str(tvm_ffi.get_global_func("runtime.GetDeviceAttr")(2, 0, 4)).replace(".", "")
