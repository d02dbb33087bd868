"""int8 activations run as uint8 inside the plan, and nothing outside notices."""

import numpy as np
import onnx_ir as ir

from graphopt import oracle
from graphopt.graph import normalise
from graphopt.targets.integer.signs import make_unsigned
from graphopt.testing import from_text, random_feeds

MODEL = """<ir_version: 10, opset_import: ["": 20]>
g (float[2,3,8,8] x, float[2,3,8,8] z) => (int8[2,3,4,4] kept, float[2,6,4,4] y, int32[2,3,8,8] n)
<float s = {0.05}, int8 a = {-7}, int8 b = {11}> {
  q = QuantizeLinear(x, s, a)
  r = QuantizeLinear(z, s, b)
  kept = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(q)
  pooled = MaxPool<kernel_shape = [2, 2], strides = [2, 2], pads = [0, 0, 0, 0]>(r)
  both = Concat<axis = 1>(kept, pooled)
  y = DequantizeLinear(both, s, a)
  n = Cast<to = 6>(r)
}"""


def test_unsigned_graph_computes_the_same():
    model = normalise(from_text(MODEL))
    feeds = random_feeds(model)
    want = oracle.run(model, feeds)
    make_unsigned(model)
    quantize = [n for n in model.graph if n.op_type == "QuantizeLinear"]
    assert [n.outputs[0].dtype for n in quantize] == [ir.DataType.UINT8] * 2
    assert [int(n.inputs[2].const_value.numpy()) for n in quantize] == [121, 139]
    assert next(n for n in model.graph if n.op_type == "DequantizeLinear").inputs[0].dtype == ir.DataType.UINT8
    got = oracle.run(model, feeds)
    for name, value in want.items():
        assert got[name].dtype == value.dtype
        np.testing.assert_array_equal(got[name], value)


def test_computed_zero_points_are_left_alone():
    model = normalise(
        from_text("""<ir_version: 10, opset_import: ["": 20]>
        g (float[4] x, int8 zero) => (int8[4] y) <float s = {0.05}> { y = QuantizeLinear(x, s, zero) }""")
    )
    make_unsigned(model)
    assert model.graph.outputs[0].dtype == ir.DataType.INT8
