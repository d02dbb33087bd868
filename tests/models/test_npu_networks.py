"""Whole quantized networks: not one value differs between the npu target and the integer llvm build."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

import graphopt
from graphopt import api, models
from graphopt.graph import bind_dims
from graphopt.pipeline import PRESETS


@pytest.mark.slow
@pytest.mark.parametrize("machine", ["edge", "gemmini-16"])
@pytest.mark.parametrize("name", ["mobilenet-v2", "efficientnet-lite0", "resnet50", "yolox", "ocr-detector"])
def test_equal_to_the_integer_build_bit_for_bit(name: str, machine: str) -> None:
    reference = models.get(name)
    example = reference.example(1)
    batches = [example] if reference.calibration is None else list(itertools.islice(reference.calibration(), 4))
    model = api.run_pipeline(reference.path(), PRESETS["int8"], calibration=batches, verify=False).model
    free = {
        str(dim.value): example[str(value.name)].shape[axis]
        for value in model.graph.inputs
        for axis, dim in enumerate(value.shape or ())
        if not isinstance(dim, int)
    }
    bind_dims(model, free)
    on_npu = graphopt.compile(model, f"npu{{machine={machine}}}")
    on_cpu = graphopt.compile(model, "llvm")
    assert on_npu.report["target"]["npu"]["macs"] > 0
    for _ in range(2):
        expected = on_cpu.run(example)
        for key, value in on_npu.run(example).items():
            np.testing.assert_array_equal(value, expected[key])
