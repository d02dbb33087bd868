"""graphopt.testing: random graphs are valid and varied, and the checks fail where they must."""

from collections import Counter

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings

from graphopt import oracle
from graphopt.base import EXACT, Context, Pass, Report
from graphopt.errors import PassError, UsageError
from graphopt.graph import check
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.pipeline import parse_pipeline
from graphopt.testing import assert_equivalent, assert_preserves, check_on_models, from_text, graphs, random_feeds

FEW = settings(max_examples=40, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
MANY = settings(FEW, max_examples=400)
FLOAT = ["fold-constants", "eliminate-identity", "eliminate-common-subexpressions", "remove-unused", "fold-batch-norm"]
MORE = ["equalize-channels", "smooth-quant", "reestimate-batch-norm"]
MORE += ["insert-qdq", "quantize-dynamic", "quantize-weights", "prune-magnitude"]


def test_random_graphs_are_valid_finite_and_varied():
    seen: Counter[str] = Counter()
    features: Counter[str] = Counter()

    @FEW
    @given(model=graphs())
    def sample(model: ir.Model):
        check(model)
        outputs = oracle.run(model, random_feeds(model))
        assert all(np.isfinite(a.astype(np.float64)).all() for a in outputs.values())
        seen.update({node.op_type for node in model.graph.all_nodes()})
        values = [v for node in model.graph for v in node.outputs]
        features["several readers"] += any(len(v.uses()) > 1 for v in values)
        features["dead"] += any(not v.uses() and not v.is_graph_output() for v in values)
        features["subgraphs"] += any(True for _ in model.graph.subgraphs())
        features["float16"] += model.graph.inputs[0].dtype == ir.DataType.FLOAT16
        features["several outputs"] += len(model.graph.outputs) > 1
        features["open batch"] += not isinstance(model.graph.inputs[0].shape[0], int)

    sample()
    assert {"Conv", "ConvTranspose", "BatchNormalization", "Concat", "If", "Gemm", "Cast", "Reshape"} <= set(seen)
    assert all(features[name] > 2 for name in ("several readers", "dead", "subgraphs", "float16", "several outputs"))
    assert features["open batch"] == max(features.values())


def test_the_same_example_is_the_same_model():
    from graphopt.graph import to_bytes
    from graphopt.testing.random_graphs import build

    steps = [("conv", 1, 3), ("norm", 0, 1), ("branch", 1, 2), ("residual", 0, 1)]
    one, two = (to_bytes(build(steps, 3, "float32", 17, 1, True)) for _ in range(2))
    assert one == two


@pytest.mark.parametrize("name", FLOAT)
def test_shipped_passes_on_random_graphs(name: str):
    (pass_,) = parse_pipeline(name)

    @settings(FEW, max_examples=20)
    @given(model=graphs())
    def keeps(model: ir.Model):
        assert_preserves(pass_, model)

    keeps()


@pytest.mark.slow
@pytest.mark.parametrize("name", [*FLOAT, *MORE, ",".join(FLOAT)])
def test_shipped_passes_on_many_random_graphs(name: str):
    passes = parse_pipeline(name)

    @MANY
    @given(model=graphs())
    def keeps(model: ir.Model):
        from graphopt.data import open_data

        context = Context(open_data([random_feeds(model, k) for k in range(2)], model))
        for pass_ in passes:
            model, _ = assert_preserves(pass_, model, context)

    keeps()


class Broken(Pass):
    """Promises all and drops a bias."""

    name = "broken"
    preserves = EXACT

    def apply(self, model, context):
        report = Report()
        for node in model.graph:
            if node.op_type in ("Gemm", "Conv") and len(node.inputs) > 2:
                node.resize_inputs(2)
                report.change(node.name, "dropped")
        return report


def test_a_broken_pass_does_not_get_through():
    model = from_text(
        '<ir_version: 8, opset_import: ["": 17]> g (float[N,2] x, float[2,2] w, float[2] b) => (float[N,2] y) '
        "{ y = Gemm(x, w, b) }",
        w=np.eye(2, dtype=np.float32), b=np.ones(2, np.float32),
    )  # fmt: skip
    with pytest.raises(PassError, match=r"declares exact and moved output 'y' by 1"):
        assert_preserves(Broken(), model)
    with pytest.raises(PassError, match="on the reference model digits"):
        check_on_models(Broken())

    @settings(FEW, phases=[Phase.generate])
    @given(model=graphs())
    def caught(model: ir.Model):
        assert_preserves(Broken(), model)

    with pytest.raises(PassError):
        caught()


def test_check_on_models_reports_by_model():
    reports = check_on_models(FoldBatchNorm())
    assert set(reports) == {"digits", "mnist"}
    assert reports["digits"].facts["folded"] == 5
    with pytest.raises(UsageError, match="no reference model"):
        check_on_models(FoldBatchNorm(), ["no-such-model"])


@pytest.mark.slow
@pytest.mark.parametrize("name", FLOAT)
def test_shipped_passes_on_all_models(name: str):
    (pass_,) = parse_pipeline(name)
    assert len(check_on_models(pass_, None)) > 10


def test_equivalence_of_sequences_and_lengths():
    head = '<ir_version: 8, opset_import: ["": 17]> g (float[4,2] x) => (seq(float[a,b]) y) '
    one = from_text(head + "{ y = SplitToSequence<axis=0>(x) }")
    two = from_text(head + "{ a = Neg(x) b = Neg(a) y = SplitToSequence<axis=0>(b) }")
    three = from_text(head + "{ y = SplitToSequence<axis=1>(x) }")
    assert_equivalent(one, two, rtol=0)
    with pytest.raises(AssertionError, match="length"):
        assert_equivalent(one, three)
