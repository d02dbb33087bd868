"""How much of a model's arithmetic tensor cores do, counted in the machine code."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import graphopt
from graphopt import graph, models
from graphopt.base import Context
from graphopt.targets.cuda import Cuda
from graphopt.targets.cuda.account.roofline import Work
from graphopt.targets.cuda.machine_code import compiler, sass
from graphopt.testing import from_text

needs_compiler = pytest.mark.skipif(set(compiler.routes()) == {"source"}, reason="neither nvcc nor NVRTC here")

LISTING = """
	.section	.text.softmax_kernel,"ax",@progbits
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   FFMA R4, R5, R6, R7 ;
	.section	.text.conv_kernel_1,"ax",@progbits
        /*0000*/              @!P0 LDGSTS.E.BYPASS.128 [R9], [R4.64] ;
        /*0010*/                   LDGDEPBAR ;
        /*1030*/                   HMMA.16816.F32 R8, R24.reuse, R20, R8 ;
        /*1040*/              @UP1 IMMA.16816.S8.S8 R52, R24.reuse.ROW, R22.COL, R52 ;
	.section	.nv.constant0.conv_kernel,"a",@progbits
"""


def test_a_listing_is_counted_by_kernel():
    found = sass.parse(LISTING)
    assert found == {"softmax_kernel": sass.Instructions(0, 0), "conv_kernel_1": sass.Instructions(2, 1)}
    works = [Work("softmax", 1, 50, 0, 1), Work("conv", 3, 100, 0, 1), Work("dense", 1, 50, 0, 1)]
    assert sass.tensor_core_share(works, found) == 0.75
    assert sass.tensor_core_share([], found) is None


MODEL = """<ir_version: 10, opset_import: ["": 18]>
net (float[N, 16, 8, 8] x, float[32, 16, 1, 1] w, float[32, 1, 3, 3] d) => (float[N, 32, 8, 8] y) {
    [pointwise] c = Conv (x, w)
    [depthwise] y = Conv <group = 32, pads = [1, 1, 1, 1]> (c, d)
}"""


def told(arguments: list[str], folder: Path) -> str:
    command = [sys.executable, "-m", "graphopt", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_command_tells_the_share_and_what_it_was_counted_from(tmp_path):
    """Of 16 + 9 multiply-adds for each element the pointwise convolution's 16 are products of matrices."""
    model = from_text(MODEL, w=np.ones((32, 16, 1, 1), np.float32), d=np.ones((32, 1, 3, 3), np.float32))
    graph.save(model, tmp_path / "net.onnx")
    options = ["-p", "convert-float16", "--target", "cuda{arch=sm_80}", "-o", "net.gopt", "--json"]
    account = json.loads(told(["compile", "net.onnx", *options], tmp_path))["report"]
    assert account["tensor_core_share"] == pytest.approx(16 / 25)
    assert account["macs"] == 25 * 32 * 64
    by_disassembler = account["embedded"] == "cubin" and sass.nvdisasm() is not None
    assert account["counted"].startswith("the machine code" if by_disassembler else "the CUDA C")
    (product,) = [kernel for kernel in account["kernels"] if kernel["tensor_core_instructions"]]
    assert product["nodes"] == ["pointwise"]
    assert product["asynchronous_copies"] > 0
    assert "64.0% of the multiply-adds on tensor cores" in told(["inspect", "net.gopt"], tmp_path)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("arch", ["sm_80", "sm_90"])
@pytest.mark.parametrize("name", ["resnet50", "minilm-l3"])
def test_tensor_cores_carry_the_networks(name, arch):
    """At least 90 % of the multiply-adds, asynchronous copies in each such kernel, and nothing spilled."""
    model = graphopt.optimize(models.get(name).path(), "fold-batch-norm,convert-float16")
    account = Cuda(arch=arch).build(model, Context()).report
    assert account["tensor_core_share"] >= 0.9
    assert account["spilling"] == []
    using = [kernel for kernel in account["kernels"] if kernel["tensor_core_instructions"]]
    assert len(using) >= 6
    assert all(kernel["asynchronous_copies"] for kernel in using)
