"""Dynamic quantization: integers from the range at hand, in onnxruntime, close to float."""

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.graph import constant_array
from graphopt.passes.quantize_dynamic import QuantizeDynamic
from graphopt.testing import apply, from_text, op_types

HEAD = '<ir_version: 8, opset_import: ["": 13]> '


def normal(*shape, seed=0, scale=1.0):
    return (scale * np.random.default_rng(seed).standard_normal(shape)).astype(np.float32)


def assert_close(before, after, feeds, share=0.03):
    want = oracle.run(before, feeds)
    for optimised in (False, True):
        got = oracle.Session(after, optimised=optimised).run(feeds)
        for name, array in want.items():
            assert np.abs(got[name] - array).max() <= share * np.ptp(array) + 1e-6, name


@pytest.mark.parametrize(
    "attributes",
    ["", "pads = [1,0,2,1]", "strides = [2,1], dilations = [1,2]", "group = 2", 'auto_pad = "SAME_UPPER"'],
)
def test_conv(attributes):
    """Padding is with the zero point: a positive input must not see other zeros."""
    groups = 2 if "group" in attributes else 1
    w = normal(6, 4 // groups, 3, 3) * np.geomspace(0.01, 100, 6, dtype=np.float32)[:, None, None, None]
    before = from_text(
        f"{HEAD} g (float[n,4,9,9] x, float[6,{4 // groups},3,3] w, float[6] b) => (float[n,6,p,q] y)"
        f"{{ y = Conv {f'<{attributes}>' if attributes else ''} (x, w, b) }}",
        w=w,
        b=normal(6, seed=1),
    )
    after, report = apply(QuantizeDynamic(), before)
    feeds = {"x": normal(2, 4, 9, 9, seed=2) + 5}
    want, got = oracle.run(before, feeds)["y"], oracle.run(after, feeds)["y"]
    for channel in range(6):
        assert np.abs(want - got)[:, channel].max() < 0.03 * np.ptp(want[:, channel]), channel
    assert_close(before, after, feeds)
    assert "ConvInteger" in op_types(after)
    assert report.facts["quantized"] == 1


@settings(max_examples=20, deadline=None)
@given(
    st.integers(1, 5), st.integers(1, 40), st.integers(1, 9),
    st.booleans(), st.sampled_from([1.0, -0.5]), st.sampled_from([1.0, 3.0]), st.booleans(),
)  # fmt: skip
def test_gemm(m, k, n, transposed, alpha, beta, biased):
    shape = f"{n},{k}" if transposed else f"{k},{n}"
    before = from_text(
        f"{HEAD} g (float[m,{k}] x, float[{shape}] w, float[{n}] b) => (float[m,{n}] y)"
        f"{{ y = Gemm <transB = {int(transposed)}, alpha = {alpha}, beta = {beta}> (x, w{', b' if biased else ''}) }}",
        w=normal(n, k) if transposed else normal(k, n),
        b=normal(n, seed=1),
    )
    after, _ = apply(QuantizeDynamic(), before)
    x = normal(m, k, seed=2)
    bound = 0.02 * np.abs(x).max() * k * np.abs(normal(k, n)).max()
    got = oracle.run(after, {"x": x})["y"]
    np.testing.assert_allclose(got, oracle.run(before, {"x": x})["y"], atol=max(bound, 0.05), rtol=0)


def test_one_quantization_serves_all_readers_and_what_has_no_weight_stays():
    before = from_text(
        HEAD + "g (float[n,3,40] x, float[40,40] w, float[40,40] v, float[3,3] l) => (float[n,3,40] y, float[n,3,3] z)"
        "{ a = MatMul (x, w)\n b = MatMul (x, v)\n c = MatMul (l, a)\n y = Add (b, c)\n"
        "t = Transpose <perm = [0,2,1]> (a)\n z = MatMul (x, t) }",
        w=normal(40, 40), v=normal(40, 40, seed=1), l=normal(3, 3),
    )  # fmt: skip
    after, report = apply(QuantizeDynamic(), before)
    ops = op_types(after)
    assert (ops.count("DynamicQuantizeLinear"), ops.count("MatMulInteger"), ops.count("MatMul")) == (1, 2, 2)
    assert sorted(s.reason for s in report.skipped) == [
        "its weight is computed at run time",
        "its weight is the left operand",
    ]
    assert_close(before, after, {"x": normal(2, 3, 40, seed=3)}, 0.05)


def test_zeros_and_a_shifted_range():
    before = from_text(HEAD + "g (float[n,8] x, float[8,5] w) => (float[n,5] y) { y = MatMul (x, w) }", w=normal(8, 5))
    after, _ = apply(QuantizeDynamic(), before)
    assert not oracle.run(after, {"x": np.zeros((2, 8), np.float32)})["y"].any()
    assert_close(before, after, {"x": normal(2, 8) + 100}, 0.5)


def test_seven_bits_leave_head_room_and_the_file_is_the_same_each_time(tmp_path):
    before = from_text(HEAD + "g (float[n,8] x, float[8,5] w) => (float[n,5] y) { y = MatMul (x, w) }", w=normal(8, 5))
    files = []
    for k in range(2):
        after, _ = apply(QuantizeDynamic(weight_bits=7), before)
        ir.save(after, tmp_path / f"{k}.onnx")
        files.append((tmp_path / f"{k}.onnx").read_bytes())
    assert files[0] == files[1]
    (product,) = [n for n in after.graph if n.op_type == "MatMulInteger"]
    assert np.abs(constant_array(product.inputs[1])).max() == 63
    assert op_types(apply(QuantizeDynamic(), after)[0]) == op_types(after)
