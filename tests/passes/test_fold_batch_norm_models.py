"""fold-batch-norm on the reference models: nothing foldable is left, and onnxruntime agrees."""

import pytest

from graphopt.graph import load, used_once
from graphopt.models import get
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.testing import apply, assert_equivalent, op_types

slow = pytest.mark.slow
# model, BatchNormalization nodes before, after
MODELS = [
    ("digits", 5, 0),
    ("mnist", 6, 0),
    pytest.param("efficientnet-lite0", 49, 0, marks=slow),
    pytest.param("angle-classifier", 35, 0, marks=slow),
    pytest.param("ocr-recogniser", 6, 0, marks=slow),
    pytest.param("resnet50", 53, 0, marks=slow),
    pytest.param("densenet121", 121, 62, marks=slow),
    pytest.param("inception-v2", 69, 0, marks=slow),
    pytest.param("shufflenet", 49, 0, marks=slow),
    pytest.param("mobilenet-v2", 52, 0, marks=slow),
    pytest.param("crepe-tiny", 6, 5, marks=slow),
]


@pytest.mark.parametrize(("name", "before", "left"), MODELS)
def test_nothing_foldable_is_left(name, before, left):
    reference = get(name)
    model = load(reference.path())
    assert op_types(model).count("BatchNormalization") == before
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=1e-4, feeds=reference.example(1))

    norms = {node.name: node for node in after.graph if node.op_type == "BatchNormalization"}
    assert len(norms) == left == report.facts["left"]
    assert {skip.node for skip in report.skipped} == set(norms)
    for norm in norms.values():
        producer = norm.inputs[0].producer()
        assert producer.op_type not in ("Conv", "Gemm") or not used_once(norm.inputs[0])


@slow
def test_reasons_in_densenet():
    """Its norms stand between a Concat that later blocks read too and a Relu: no neighbour can take the map."""
    _, report = apply(FoldBatchNorm(), load(get("densenet121").path()))
    for skip in report.skipped:
        assert "is also read by" in skip.reason


@slow
def test_reasons_in_crepe():
    """Conv, Relu, norm, pool, padded Conv: the shift would have to reach the padding."""
    _, report = apply(FoldBatchNorm(), load(get("crepe-tiny").path()))
    for skip in report.skipped:
        assert "Relu" in skip.reason
        assert "pads with zeros" in skip.reason
