"""What nodes make of constants, computed by onnxruntime when the model is compiled: the results are theirs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphopt.graph import constant_array

OPSET = 20  # the first in which all unary operators exist


def evaluate(
    nodes: Sequence[ir.Node], given: Mapping[ir.Value, np.ndarray], results: Sequence[ir.Value]
) -> list[np.ndarray]:
    """`results` of `nodes`, which stand in order and read constants and `given` values only."""
    from graphopt import oracle

    inputs = {value: _value(f"x{i}", array) for i, (value, array) in enumerate(given.items())}
    known, clones, constants = dict(inputs), [], []
    for number, node in enumerate(nodes):
        read: list[ir.Value | None] = []
        for value in node.inputs:
            array = constant_array(value)
            if value is not None and value not in known and array is not None:
                known[value] = _value(f"c{len(constants)}", array)
                known[value].const_value = ir.Tensor(array, name=known[value].name)
                constants.append(known[value])
            read.append(None if value is None else known[value])
        outputs = [ir.val(f"y{number}_{i}", v.dtype) for i, v in enumerate(node.outputs)]
        known.update(zip(node.outputs, outputs, strict=True))
        clones.append(ir.node(node.op_type, read, dict(node.attributes), outputs=outputs, name=f"node{number}"))
    wanted = [known[value] for value in results]
    graph = ir.Graph(
        list(inputs.values()), wanted, nodes=clones, initializers=constants, opset_imports={"": OPSET}, name="constants"
    )
    found = oracle.run(ir.Model(graph, ir_version=9), {str(v.name): given[value] for value, v in inputs.items()})
    return [found[str(value.name)] for value in wanted]


def _value(name: str, array: np.ndarray) -> ir.Value:
    return ir.val(name, ir.DataType.from_numpy(array.dtype), array.shape)
