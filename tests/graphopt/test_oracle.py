"""onnxruntime as the oracle: any value can be asked for, and errors are ours."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import oracle
from graphopt.errors import DataError, ModelError
from graphopt.testing import random_feeds


def test_intermediate_values_and_inputs_can_be_named(small: ir.Model):
    feeds = random_feeds(small)
    values = oracle.run(small, feeds, ["x", "a", "b"])
    np.testing.assert_array_equal(values["x"], feeds["x"])
    np.testing.assert_array_equal(values["b"], np.maximum(values["a"], 0))
    assert [v.name for v in small.graph.outputs] == ["y"], "the model is left as it was"


def test_unknown_values_and_wrong_feeds_are_named(small: ir.Model):
    with pytest.raises(ModelError, match="'nope'"):
        oracle.run(small, random_feeds(small), ["nope"])
    with pytest.raises(DataError, match="x"):
        oracle.run(small, {"x": np.zeros((1, 3, 6, 6), np.float32)})
