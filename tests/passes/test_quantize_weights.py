"""Weight-only quantization: valid ONNX that onnxruntime runs, close to float, small, the same every time."""

import collections

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import models, oracle
from graphopt.errors import UsageError
from graphopt.graph import constant_array, load, save
from graphopt.passes.quant.original import original
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.testing import apply, from_text, op_types

HEAD = '<ir_version: 8, opset_import: ["": 13]> '


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def error(before, after, feeds):
    """The largest error as a share of the output's range."""
    want, got = oracle.run(before, feeds), oracle.run(after, feeds)
    return max(np.abs(got[k] - want[k]).max() / np.ptp(want[k]) for k in want)


def integers(model):
    """Bytes of the stored integers by type."""
    sizes = collections.Counter()
    for value in model.graph.initializers.values():
        if value.name.endswith("_quantized"):
            sizes[str(value.dtype)] += value.const_value.nbytes
    return sizes


def matmul(k=70, n=40):
    return from_text(
        f"{HEAD} g (float[m,{k}] x, float[{k},{n}] w) => (float[m,{n}] y) {{ y = MatMul (x, w) }}", w=normal(k, n)
    )


@pytest.mark.parametrize(
    ("options", "dtype", "bound"),
    [
        ({}, "INT8", 0.01),
        ({"symmetric": False}, "UINT8", 0.01),
        ({"block": 16}, "INT8", 0.01),
        ({"float8": True}, "FLOAT8E4M3FN", 0.04),
        ({"bits": 4}, "UINT4", 0.1),
        ({"bits": 4, "symmetric": True}, "INT4", 0.1),
        ({"bits": 4, "block": 16}, "UINT4", 0.08),
    ],
    ids=str,
)
def test_every_kind_runs_in_onnxruntime(options, dtype, bound):
    before, feeds = matmul(), {"x": normal(5, 70, seed=1)}
    after, report = apply(QuantizeWeights(**options), before)
    assert integers(after) == {dtype: 70 * 40 // (2 if "4" in dtype[-1] else 1)}
    assert 0 < error(before, after, feeds) < bound
    assert report.facts["quantized"] == 1
    assert report.facts["bytes"][1] < 0.35 * report.facts["bytes"][0]
    assert original(after.graph.node(0)).array.shape == (70, 40)


@settings(max_examples=15, deadline=None)
@given(st.integers(32, 70), st.integers(32, 50), st.sampled_from([2, 7, 31, 32]), st.booleans())
def test_odd_sizes_and_blocks(k, n, block, symmetric):
    """The stored integers and scales are what onnxruntime makes of them; odd counts of nibbles are packed right."""
    before, feeds = matmul(k, n), {"x": normal(3, k, seed=2)}
    after, _ = apply(QuantizeWeights(bits=4, block=block, symmetric=symmetric), before)
    q, scale, *zero = [constant_array(v).astype(np.float32) for v in after.graph.node(0).inputs]
    zero = zero[0] if zero else np.zeros_like(scale)
    whole = (np.repeat(part, block, 0)[:k] for part in (zero, scale))
    weight = (q - next(whole)) * next(whole)
    np.testing.assert_allclose(oracle.run(after, feeds)["y"], feeds["x"] @ weight, rtol=1e-4, atol=1e-4)


def test_nibbles_survive_the_file(tmp_path):
    after, _ = apply(QuantizeWeights(bits=4), matmul(71, 33))
    save(after, tmp_path / "a.onnx")
    again = load(tmp_path / "a.onnx")
    (name,) = (v.name for v in after.graph.initializers.values() if v.name.endswith("_quantized"))
    stored = again.graph.initializers[name].const_value.numpy()
    assert stored.dtype == ml_dtypes.uint4
    np.testing.assert_array_equal(stored, after.graph.initializers[name].const_value.numpy())


def test_filters_in_blocks_run_through_their_window_and_short_ones_get_eight_bits():
    before = from_text(
        HEAD
        + "g (float[n,16,9,9] x, float[16,16,3,3] w, float[128,1,3,3] d, float[128,16,1,1] u) => (float[n,128,5,5] y)"
        "{ a = Conv (x, w)\n b = Conv (a, u)\n y = Conv <group = 128> (b, d) }",
        w=normal(16, 16, 3, 3),
        d=normal(128, 1, 3, 3),
        u=normal(128, 16, 1, 1),
    )
    after, _ = apply(QuantizeWeights(bits=4), before)
    assert integers(after) == {"UINT4": 16 * 16 * 9 // 2, "INT8": 128 * (16 + 9)}
    assert op_types(after).count("Reshape") == 1
    small = from_text(HEAD + "g (float[n,3] x, float[3,4] w) => (float[n,4] y) { y = MatMul (x, w) }", w=normal(3, 4))
    untouched, report = apply(QuantizeWeights(bits=4), small)
    assert op_types(untouched) == ["MatMul"]
    assert "too few to matter" in report.skipped[0].reason
    assert untouched.graph.opset_imports[""] == 13
    assert error(before, after, {"x": normal(2, 16, 9, 9)}) < 0.15


@pytest.mark.parametrize("options", [{}, {"bits": 4}, {"symmetric": False}, {"float8": True}], ids=str)
def test_embedding_tables(options):
    """In 8 bits only the rows that are asked for are scaled; the graph's output keeps its name."""
    before = from_text(
        HEAD + "g (int64[n,t] ids, float[50,64] w) => (float[n,t,64] y) { y = Gather (w, ids) }",
        w=normal(50, 64) * np.geomspace(0.01, 100, 50, dtype=np.float32)[:, None],
    )
    after, _ = apply(QuantizeWeights(**options), before)
    ids = np.array([[0, 49, -1], [7, 7, 3]])
    want, got = oracle.run(before, {"ids": ids})["y"], oracle.run(after, {"ids": ids})["y"]
    peak = np.abs(want).max(axis=-1, keepdims=True)
    assert np.abs(got - want).max(axis=-1, keepdims=True).max() > 0
    assert np.all(np.abs(got - want) <= (0.2 if "bits" in options else 0.07) * peak)  # each row by its own scale
    assert op_types(after)[0] == ("DequantizeLinear" if "bits" in options or "float8" in options else "Gather")


def test_a_shared_weight_is_stored_once():
    before = from_text(
        HEAD + "g (float[n,40] x, float[40,40] w) => (float[n,40] y) { a = MatMul (x, w)\n y = MatMul (a, w) }",
        w=normal(40, 40),
    )
    after, report = apply(QuantizeWeights(), before)
    assert op_types(after) == ["DequantizeLinear", "MatMul", "MatMul"]
    assert report.facts["bytes"][1] < 0.3 * report.facts["bytes"][0]


def test_include_exclude_and_what_is_no_weight():
    before = from_text(
        HEAD
        + "g (float[n,40] x, float[40,40] w, int64[k] i, int64[2000,2] t, float[2000,2] f) "
        "=> (float[n,40] y, int64[k,2] z, float[2000,k] u) { a = MatMul (x, w)\n y = MatMul (a, x)\n"
        "z = Gather (t, i)\n u = Gather <axis = 1> (f, i) }".replace("MatMul (a, x)", "MatMul (a, w)"),
        w=normal(40, 40),
        t=np.zeros((2000, 2), np.int64),
        f=normal(2000, 2),
    )
    first = before.graph.node(0).name
    after, report = apply(QuantizeWeights(exclude=(first,)), before)
    assert [s.reason for s in report.skipped] == ["excluded"]
    assert op_types(after) == ["MatMul", "DequantizeLinear", "MatMul", "Gather", "Gather"]
    after, _ = apply(QuantizeWeights(include=("Gather",)), before)
    assert op_types(after) == op_types(before)
    with pytest.raises(UsageError, match="float8"):
        QuantizeWeights(float8=True, bits=4)


def test_again_changes_nothing_and_twice_is_the_same_file(tmp_path):
    files = []
    for k in range(2):
        after, _ = apply(QuantizeWeights(bits=4), matmul())
        ir.save(after, tmp_path / f"{k}.onnx")
        files.append((tmp_path / f"{k}.onnx").read_bytes())
    assert files[0] == files[1]
    assert op_types(apply(QuantizeWeights(), after)[0]) == op_types(after)


@pytest.mark.slow
def test_minilm_in_four_bits_still_finds_its_paragraphs():
    model = models.get("minilm-l3")
    before = load(model.path())
    after, report = apply(QuantizeWeights(bits=4), before)
    evaluation = model.evaluation()
    session = oracle.Session(after)
    assert evaluation.score(session.run(f) for f in evaluation.feeds()) >= model.baseline - 0.01
    assert report.facts["bytes"][1] <= 0.18 * report.facts["bytes"][0]
