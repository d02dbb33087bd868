"""The networks converted from torch state dicts: BatchNorm stays as it was trained, and the batch is free."""

from collections import Counter

import onnx
import pytest

from graphopt.models import get

SIZES = [("efficientnet-lite0", 49, 4_694_024), ("crepe-tiny", 6, 488_000), ("crepe-full", 6, 22_245_000)]


@pytest.mark.slow
@pytest.mark.parametrize(("name", "norms", "parameters"), SIZES)
def test_conversion_is_valid_onnx_with_unfused_batch_norm(name, norms, parameters):
    path = get(name).path()
    onnx.checker.check_model(path, full_check=True)
    model = onnx.load(path)
    assert Counter(node.op_type for node in model.graph.node)["BatchNormalization"] == norms
    sizes = [onnx.numpy_helper.to_array(tensor).size for tensor in model.graph.initializer]
    assert sum(sizes) == pytest.approx(parameters, rel=1e-2)
    assert model.graph.input[0].type.tensor_type.shape.dim[0].dim_param == "N"
