"""Every barrier, wait and index of tensor-core kernels in CUDA C, gone or off, shows in the emulation."""

from __future__ import annotations

import collections
import shutil
import sys

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import artifact, oracle
from graphopt.base import Context
from graphopt.targets.cuda import Cuda
from graphopt.testing import from_text
from graphopt.testing.cuda_emulation import EmulationError, emulate
from graphopt.testing.cuda_source_mutants import source_mutants

pytestmark = pytest.mark.skipif(sys.platform != "linux" or not shutil.which("g++"), reason="needs Linux and g++")

MATMUL = """<ir_version: 10, opset_import: ["": 18]>
net (float16[N, 200] x, float16[200, 96] w, float16[96] b) => (float16[N, 96] y) {
    c = MatMul(x, w)
    d = Add(c, b)
    y = Relu(d)
}"""
CONV = """<ir_version: 10, opset_import: ["": 18]>
net (float16[N, 16, 11, 13] x, float16[24, 16, 3, 3] w, float16[24] b) => (float16[N, 24, 11, 13] y) {
    c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
    y = Relu(c)
}"""
SHAPES = {MATMUL: ((33, 200), (200, 96), (96,)), CONV: ((2, 16, 11, 13), (24, 16, 3, 3), (24,))}


def _net(text: str) -> tuple[ir.Model, dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    x, w, b = (rng.normal(size=shape).astype(np.float16) for shape in SHAPES[text])
    return from_text(text, w=w, b=b), {"x": x}


def test_each_place_is_changed_once_and_nothing_else():
    source = Cuda(arch="sm_80", compiler="source").build(_net(CONV)[0], Context()).files["kernels.cu"].decode()
    made = list(source_mutants(source))
    count = collections.Counter(kind for kind, _, _ in made)
    assert count["barrier"] >= 5
    assert count["wait"] >= 3
    assert count["short wait"] == count["wait"] - 1, "there is no kind of wait for more groups than are pending"
    assert count["index"] > 30
    assert len({mutant for _, _, mutant in made}) == len(made)
    for _, line, mutant in made:
        changed = [(a, b) for a, b in zip(source.splitlines(), mutant.splitlines(), strict=True) if a != b]
        assert [after.strip() for _, after in changed] == [line]


@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_75"])
@pytest.mark.parametrize("text", [MATMUL, CONV], ids=["matmul", "conv"])
def test_every_mutant_of_the_source_is_seen(text, arch, tmp_path):
    """By a fault or by wrong numbers."""
    net, feeds = _net(text)
    program = Cuda(arch=arch, compiler="source").build(net, Context())
    path = artifact.write(
        tmp_path / "net.gopt", program, target=f"cuda{{arch={arch}}}", before=net, after=net, report={}
    )
    (expected,) = oracle.run(net, feeds).values()
    unseen: list[tuple[str, str]] = []
    for kind, line, mutant in source_mutants(program.files["kernels.cu"].decode()):
        try:
            (found,) = emulate(path, feeds, edit=lambda _, source=mutant: source).values()
        except EmulationError as error:
            if "refused" in str(error):  # by the host's compiler: no mutant at all
                raise
            continue
        if np.abs(found.astype(np.float32) - expected).max() < 1e-2 * np.abs(expected).max():
            unseen.append((kind, line))
    assert unseen == []
