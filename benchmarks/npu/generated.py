"""A made-up network that no one tuned anything on: seeded random choices of everything a layer may be."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from onnx_ir.tape import Tape

from graphopt.graph import normalise


def generated(seed: int = 20261122) -> ir.Model:
    """24 layers on a 160 x 192 image: convolutions of 1, 3 and 5, depthwise ones, strides, residuals, a classifier."""
    rng = np.random.default_rng(seed)
    image = ir.val("image", dtype=ir.DataType.FLOAT, shape=ir.Shape([1, 3, 160, 192]))
    tape = Tape()
    x, channels, size = image, 3, np.array([160, 192])
    for index in range(24):
        kind = rng.choice(["full", "pointwise", "depthwise"]) if index else "full"
        kernel = 1 if kind == "pointwise" else int(rng.choice([3, 3, 5]))
        stride = 2 if index in (0, 4, 9, 15) else 1
        out = channels if kind == "depthwise" else int(rng.choice([24, 40, 56, 72, 96, 136, 200]))
        groups = channels if kind == "depthwise" else 1
        weight = rng.normal(0, 0.05, (out, channels // groups, kernel, kernel)).astype(np.float32)
        pad = kernel // 2
        y = tape.op(
            "Conv",
            [
                x,
                tape.initializer(ir.tensor(weight, name=f"w{index}")),
                tape.initializer(ir.tensor(np.zeros(out, np.float32), name=f"b{index}")),
            ],
            {"kernel_shape": [kernel, kernel], "strides": [stride, stride], "pads": [pad] * 4, "group": groups},
            name=f"conv{index}_{kind}",
        )
        if out == channels and stride == 1 and index % 3 == 2:
            y = tape.op("Add", [x, y], name=f"add{index}")
        x, channels = tape.op("Relu", [y], name=f"relu{index}"), out
        size = -(-size // stride)
    pooled = tape.op("GlobalAveragePool", [x], name="pool")
    flat = tape.op("Flatten", [pooled], {"axis": 1}, name="flatten")
    weight = tape.initializer(ir.tensor(rng.normal(0, 0.05, (100, channels)).astype(np.float32), name="classifier_w"))
    bias = tape.initializer(ir.tensor(np.zeros(100, np.float32), name="classifier_b"))
    scores = tape.op("Gemm", [flat, weight, bias], {"transB": 1}, name="classifier")
    for node in tape.nodes:
        node.outputs[0].dtype = ir.DataType.FLOAT
    graph = ir.Graph(
        [image], [scores], nodes=tape.nodes, initializers=tape.initializers, opset_imports={"": 17}, name="generated"
    )
    return normalise(ir.Model(graph, ir_version=8))
