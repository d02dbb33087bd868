"""AdaRound and GPTQ: the sampled rows are the operator's, errors shrink, scales and float twin stay."""

import functools
import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import models, oracle
from graphopt.api import run_pipeline
from graphopt.errors import DataError, PassError
from graphopt.graph import constant_array, save
from graphopt.passes.adaround import AdaRound, adaround
from graphopt.passes.correct.rounding import Problem
from graphopt.passes.correct.rows import from_matrix, sample_rows, to_matrix
from graphopt.passes.correct.twin import float_twin
from graphopt.passes.gptq import Gptq, gptq
from graphopt.pipeline import parse_pipeline
from graphopt.testing import from_text

HEAD = '<ir_version: 8, opset_import: ["": 17]> '


@functools.cache
def digits(pipeline):
    model = models.get("digits")
    return run_pipeline(model.path(), pipeline, calibration=model.calibration)


def noise(pipeline):
    """Signal to noise (dB) of the logits on the held-out images."""
    reference, model = digits("fold-batch-norm").model, digits(pipeline).model
    signal = error = 0.0
    for feeds in models.get("digits").evaluation().feeds():
        want, got = (oracle.run(m, feeds)["logits"].astype(np.float64) for m in (reference, model))
        signal, error = signal + (want**2).sum(), error + ((want - got) ** 2).sum()
    return 10 * np.log10(signal / error)


THREE_BITS = "fold-batch-norm,insert-qdq{weight_bits=3}"


@pytest.mark.parametrize(("pass_", "gain"), [("gptq", 4), ("adaround{steps=400}", 6)])
def test_held_out_logits_come_closer(pass_, gain, tmp_path):
    pipeline = f"{THREE_BITS},{pass_}"
    assert noise(pipeline) > noise(THREE_BITS) + gain
    result = digits(pipeline)
    assert len(result.steps[-1].report.changes) == 6
    for before, after in result.steps[-1].report.facts["signal_to_noise"].values():
        assert after >= before  # no layer gets worse on what it was rounded for
    plain = digits(THREE_BITS).model
    for old, new in zip(plain.graph, result.model.graph, strict=True):
        assert old.name == new.name
        if old.op_type == "DequantizeLinear":
            np.testing.assert_array_equal(constant_array(old.inputs[1]), constant_array(new.inputs[1]))
            q = constant_array(new.inputs[0])
            assert q is None or q.dtype == np.int32 or np.abs(q).max() <= 3
    feeds = models.get("digits").example(4)
    want = oracle.run(digits("fold-batch-norm").model, feeds)["logits"]
    np.testing.assert_array_equal(oracle.run(float_twin(result.model, "x"), feeds)["logits"], want)
    first = save(result.model, tmp_path / "a.onnx").read_bytes()
    digits.cache_clear()
    assert save(digits(pipeline).model, tmp_path / "b.onnx").read_bytes() == first


OPERATORS = {
    "Conv": ("y = Conv <strides: ints = [2, 1], dilations: ints = [1, 2], pads: ints = [1, 0, 2, 3]> (x, w)",
             (4, 6, 3, 2)),
    "Conv, grouped": ("y = Conv <group: int = 3, pads: ints = [1, 1, 1, 1]> (x, w)", (6, 2, 3, 3)),
    "Conv, same upper": ('y = Conv <auto_pad = "SAME_UPPER", strides: ints = [2, 2]> (x, w)', (4, 6, 2, 3)),
    "Conv, same lower": ('y = Conv <auto_pad = "SAME_LOWER"> (x, w)', (4, 6, 2, 2)),
    "Conv, valid": ('y = Conv <auto_pad = "VALID"> (x, w)', (4, 6, 2, 2)),
    "MatMul": ("y = MatMul (x, w)", (7, 5)),
}  # fmt: skip


@pytest.mark.parametrize("name", OPERATORS)
def test_rows_times_matrix_is_the_operator(name):
    """Every row is drawn here: their products with the weight's matrix are the operator's results, in some order."""
    text, shape = OPERATORS[name]
    rng = np.random.default_rng(0)
    w, x = (rng.standard_normal(s).astype(np.float32) for s in (shape, (2, 6, 8, 7)))
    dims = ",".join(map(str, shape))
    body = f"g (float[2,6,8,7] x, float[{dims}] w) => (float[a,b,c,d] y) {{ {text} }}"
    model = from_text(HEAD + body, w=w)
    node = next(n for n in model.graph if n.op_type in ("Conv", "MatMul"))
    (rows,) = sample_rows(node, shape, [[x]], 10**6, 0)
    matrix = to_matrix(node, w)
    np.testing.assert_array_equal(from_matrix(node, matrix, shape), w)
    got = np.einsum("gnk,grk->grn", matrix.astype(np.float64), rows)
    want = oracle.run(model, {"x": x})["y"]
    want = np.moveaxis(want, 1, -1) if node.op_type == "Conv" else want
    want = want.reshape(-1, len(matrix), matrix.shape[1]).transpose(1, 0, 2)
    np.testing.assert_allclose(got, want, atol=1e-4)


def problem(rng, n, k, levels=3, correlated=True):
    w = rng.standard_normal((n, k))
    x = rng.standard_normal((200, k)) @ (rng.standard_normal((k, k)) if correlated else np.eye(k)) + 0.5
    scale = np.broadcast_to(np.abs(w).max(axis=1, keepdims=True) / levels, w.shape)
    gram = x.T @ x / len(x)
    return Problem(w, scale, np.zeros_like(w), -levels, levels, gram, w @ gram, np.square(x @ w.T).mean(axis=0))


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 4), st.integers(1, 40), st.integers(0, 10**6))
def test_gptq_gives_integers_in_range(n, k, seed):
    """Whatever the shape. (That it beats rounding to nearest holds over many outputs, not on each: see below.)"""
    q = gptq(problem(np.random.default_rng(seed), n, k), 0.01)
    assert q.shape == (n, k)
    assert np.array_equal(q, np.rint(q))
    assert np.abs(q).max() <= 3


def test_errors_on_correlated_inputs():
    """The margin that both must keep over rounding to nearest."""
    rng = np.random.default_rng(3)
    problems = [problem(rng, 4, 64) for _ in range(3)]
    nearest = sum(p.error(p.nearest()).sum() for p in problems)
    assert sum(p.error(gptq(p, 0.01)).sum() for p in problems) < 0.6 * nearest
    assert sum(p.error(adaround(p, 800)).sum() for p in problems) < 0.6 * nearest


def test_adaround_is_near_the_best_of_all():
    """Layers so small that every choice of up and down can be tried."""
    rng = np.random.default_rng(3)
    found = best = 0.0
    every = np.array(list(itertools.product([0, 1], repeat=8)))
    for _ in range(12):
        p = problem(rng, 1, 8)
        floor = np.floor(p.weight / p.scale)
        found += p.error(adaround(p, 400))[0]
        best += min(p.error(np.clip(floor + up, -3, 3))[0] for up in every)
    assert best <= found < 1.6 * best


def test_gptq_with_dead_inputs_and_many_columns():
    """Inputs that are always zero, and more columns than one block holds."""
    p = problem(np.random.default_rng(0), 3, 150)
    gram = p.gram.copy()
    gram[5], gram[:, 5] = 0, 0
    p = Problem(p.weight, p.scale, p.zero, -3, 3, gram, p.weight @ gram, p.power)
    assert np.isfinite(gptq(p, 0.01)).all()


def test_adaround_refuses_what_takes_too_long():
    p = problem(np.random.default_rng(0), 1, 4)
    wide = np.zeros((1 << 15, 1 << 8))
    assert "gptq" in adaround(Problem(wide, wide, wide, -3, 3, p.gram, wide, wide), 1000)


@pytest.mark.parametrize("pass_", [Gptq(), AdaRound()])
def test_bad_inputs(pass_, tmp_path):
    float_model = digits("fold-batch-norm").model
    with pytest.raises(DataError, match="calibration"):
        run_pipeline(float_model, [pass_])
    calibration = models.get("digits").calibration
    assert not run_pipeline(float_model, [pass_], calibration=calibration).steps[0].changed
    path = save(digits(THREE_BITS).model, tmp_path / "q.onnx")
    with pytest.raises(PassError, match="same pipeline"):
        run_pipeline(path, [pass_], calibration=calibration)
    passes = [*parse_pipeline(THREE_BITS), type(pass_)(exclude=("conv*", "classifier"))]
    result = run_pipeline(models.get("digits").path(), passes, calibration=calibration)
    assert not result.steps[-1].changed
