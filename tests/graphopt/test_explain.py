"""`explain`: the condition that failed, on which node, and what lies around it."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.errors import UsageError
from graphopt.explain import explain
from graphopt.graph import save
from graphopt.pipeline import parse_pipeline
from graphopt.testing import from_text


@pytest.fixture
def residual() -> ir.Model:
    """bn1 folds; bn2 can't, for its Conv is read by the Add too."""
    ones = np.ones(2, np.float32)
    return from_text(
        """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,2,4,4] x, float[2,2,3,3] w, float[2] s) => (float[N,2,4,4] y) {
            [conv1] a = Conv<pads=[1,1,1,1]>(x, w)
            [bn1] b = BatchNormalization(a, s, s, s, s)
            [relu] c = Relu(b)
            [conv2] d = Conv<pads=[1,1,1,1]>(c, w)
            [bn2] e = BatchNormalization(d, s, s, s, s)
            [relu2] f = Relu(e)
            [add] y = Add(d, f)
        }
        """,
        w=np.ones((2, 2, 3, 3), np.float32),
        s=ones,
    )


def one(model, pipeline, node):
    (account,) = explain(model, parse_pipeline(pipeline), node)
    return account


def test_a_failed_condition_with_its_culprit(residual):
    account = one(residual, "fold-batch-norm", "bn2")
    assert account.outcome == "left"
    assert "also read by Add" in account.reasons[0]
    assert any(line.startswith("> [bn2]") for line in account.neighbourhood)
    names = [line.split("[")[1].split("]")[0] for line in account.neighbourhood]
    assert names == ["conv2", "bn2", "relu2", "add"]


def test_what_was_done(residual):
    account = one(residual, "fold-batch-norm", "bn1")
    assert account.outcome == "applied"
    assert account.reasons == ["folded into Conv 'conv1'; copied w, which other nodes read too"]


def test_a_node_the_pass_never_looked_at(residual):
    account = one(residual, "fold-batch-norm", "conv1")
    assert account.outcome == "not considered"
    assert "2 BatchNormalization" in account.reasons[0]
    assert account.reasons[1].startswith("of 'bn1' it says: folded into Conv 'conv1'")


def test_a_node_is_followed_through_the_pipeline(residual):
    accounts = explain(residual, parse_pipeline("eliminate-identity,fold-batch-norm,remove-unused"), "bn1")
    assert [a.outcome for a in accounts[:2]] == ["not considered", "applied"]
    assert accounts[2].outcome in ("gone", "not considered")


def test_patterns_and_unknown_names(residual):
    assert [a.node for a in explain(residual, parse_pipeline("fold-batch-norm"), "bn*")] == ["bn1", "bn2"]
    with pytest.raises(UsageError, match=r"did you mean 'bn\d' or 'bn\d'"):
        explain(residual, parse_pipeline("fold-batch-norm"), "bn3")
    with pytest.raises(UsageError, match="did you mean 'relu2'"):
        explain(residual, parse_pipeline("fold-batch-norm"), "f")


def test_the_command(residual, tmp_path, graphopt):
    path = save(residual, tmp_path / "m.onnx")
    done = graphopt("explain", "-p", "fold-batch-norm", "--node", "bn2", path)
    assert done.code == 0, done.err
    assert done.out.startswith("bn2 (BatchNormalization)  fold-batch-norm: left")
    done = graphopt("explain", "-p", "fold-batch-norm", "--node", "bn2", path, "--json")
    assert done.json["accounts"][0]["pass"] == "fold-batch-norm"
    assert done.json["accounts"][0]["outcome"] == "left"
