"""Channels that go together, what stops them, and what is left afterwards: the traps by name."""

import time

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import models, oracle
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.errors import DataError, UsageError
from graphopt.graph import constant_array, infer_shapes
from graphopt.measure import evaluate
from graphopt.passes.channels.cut import cut, kept_places
from graphopt.passes.channels.groups import find_channels
from graphopt.passes.prune_channels import PruneChannels
from graphopt.pipeline.registry import parse_pipeline
from graphopt.testing import apply, from_text, random_feeds

HEADER = '<ir_version: 9, opset_import: ["": 17]>'


def net(body, inputs="float[2,3,6,6] x", out="float[a,b] y", seed=0, **weights):
    """A model from the body of a graph; weights are arrays, or shapes of random ones."""
    rng = np.random.default_rng(seed)
    arrays = {
        name: w if isinstance(w, np.ndarray) else rng.standard_normal(w).astype(np.float32)
        for name, w in weights.items()
    }
    kinds = {"f": "float", "i": "int64"}
    declared = [f"{kinds[a.dtype.kind]}{list(a.shape) if a.ndim else ''} {name}" for name, a in arrays.items()]
    model = from_text(f"{HEADER}\ng ({', '.join([inputs, *declared])}) => ({out}) {{ {body} }}", **arrays)
    for node in model.graph:
        node.name = node.outputs[0].name
    return model


def array(model, name):
    found = {v.name: v for v in [*model.graph.initializers.values()]}
    return constant_array(found[name])


def pruned_like_masked(model, keep_part=0.5, seed=0):
    """Take random units out; the outputs are those of the model with the same indices of all constants set to zero."""
    infer_shapes(model)
    channels = find_channels(model.graph)
    rng = np.random.default_rng(seed)
    keep = np.ones(channels.count, bool)
    for group in channels.groups:
        count = max(1, round(keep_part * len(group.units)))
        keep[rng.permutation(group.units)[count:]] = False
    masked = model.clone()
    for name, places in kept_places(channels, keep).items():
        value = masked.graph.initializers[name]
        a = constant_array(value)
        if a.dtype.kind != "f":
            continue
        a = a.copy()
        for axis, place in enumerate(places):
            if place is not None:
                gone = np.setdiff1d(np.arange(a.shape[axis]), place)
                np.moveaxis(a, axis, 0)[gone] = 0
        value.const_value = ir.tensor(a, name=name)
    cut(model, channels, keep)
    feeds = random_feeds(model)
    want, got = oracle.run(masked, feeds), oracle.run(model, feeds)
    for name, expected in want.items():
        np.testing.assert_allclose(got[name], expected, rtol=1e-4, atol=1e-4 * np.abs(expected).max())
    return channels, keep


def group_sizes(channels):
    return {g.name: len(g.units) for g in channels.groups}


def shapes(model):
    return {name: v.const_value.shape.numpy() for name, v in model.graph.initializers.items()}


def prune(model, **options):
    return apply(PruneChannels(recover=False, **{"criterion": "l2", "round_to": 1, **options}), model)


RESIDUAL = """
a = Conv <pads = [1,1,1,1]> (x, w1)  b = Relu(a)  c = Conv <pads = [1,1,1,1]> (b, w2)  d = Relu(c)
e = Conv (d, w3)  f = Add(e, b)  h = GlobalAveragePool(f)  i = Flatten(h)  y = Gemm(i, w4)
"""
RESIDUAL_WEIGHTS = {"w1": (8, 3, 3, 3), "w2": (6, 8, 3, 3), "w3": (8, 6, 1, 1), "w4": (8, 5)}


def test_the_sides_of_a_residual_go_together():
    model = net(RESIDUAL, **RESIDUAL_WEIGHTS)
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 8, "c": 6}
    assert shapes(model)["w1"] == (4, 3, 3, 3)
    assert shapes(model)["w2"] == (3, 4, 3, 3)
    assert shapes(model)["w3"] == (4, 3, 1, 1)
    assert shapes(model)["w4"] == (4, 5)


def test_a_channel_behind_flatten_is_all_its_columns():
    model = net("a = Conv(x, w1)  b = Relu(a)  c = Flatten(b)  y = Gemm(c, w2)", w1=(4, 3, 3, 3), w2=(64, 5))
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 4}
    assert shapes(model)["w2"] == (32, 5)


def test_flatten_behind_a_transpose_interleaves_the_columns():
    body = "a = Conv(x, w1)  t = Transpose <perm = [0,2,3,1]> (a)  c = Flatten(t)  y = Gemm <transB = 1> (c, w2)"
    pruned_like_masked(net(body, w1=(4, 3, 3, 3), w2=(5, 64)))


def test_concat_also_with_itself():
    body = """
    a = Conv(x, w1)  b = Conv(x, w2)  c = Concat <axis = 1> (a, b, a)  d = Relu(c)  e = Conv(d, w3)
    h = GlobalAveragePool(e)  i = Flatten(h)  y = Gemm(i, w4)
    """
    model = net(body, w1=(4, 3, 1, 1), w2=(6, 3, 1, 1), w3=(8, 14, 3, 3), w4=(8, 5))
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 4, "b": 6, "e": 8}
    assert shapes(model)["w3"] == (4, 7, 3, 3)


def test_squeeze_excite_is_coupled_to_what_it_scales():
    body = """
    a = Conv(x, w1)  s = GlobalAveragePool(a)  t = Conv(s, w2)  u = Relu(t)  v = Conv(u, w3)  z = Sigmoid(v)
    m = Mul(a, z)  e = Conv(m, w4)  h = ReduceMean <axes = [2,3], keepdims = 0> (e)  y = Gemm(h, w5)
    """
    model = net(body, w1=(8, 3, 3, 3), w2=(2, 8, 1, 1), w3=(8, 2, 1, 1), w4=(6, 8, 1, 1), w5=(6, 5))
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 8, "t": 2, "e": 6}


def test_tied_embedding_and_output_matrix():
    """The vocabulary is looked up and put out, so it stays; the width goes from both uses at once."""
    body = """
    e = Gather(w, x)  a = MatMul(e, w1)  b = Relu(a)  c = MatMul(b, w2)  d = Add(e, c)
    t = Transpose <perm = [1,0]> (w)  y = MatMul(d, t)
    """
    model = net(body, "int64[2,7] x", "float[a,b,c] y", w=(11, 8), w1=(8, 12), w2=(12, 8))
    channels, _ = pruned_like_masked(model)
    assert sorted(len(g.units) for g in channels.groups) == [8, 12]
    assert shapes(model)["w"] == (11, 4)
    assert shapes(model)["w1"] == (4, 6)


def test_a_convolution_used_twice_has_one_set_of_channels():
    body = """
    a = Conv(x, w1)  b = Conv(x2, w1)  c = Concat <axis = 0> (a, b)  h = GlobalAveragePool(c)  i = Flatten(h)
    y = Gemm(i, w2)
    """
    model = net(body, "float[2,3,6,6] x, float[1,3,6,6] x2", w1=(8, 3, 3, 3), w2=(8, 4))
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 8}


def test_depthwise_follows_and_groups_go_whole_or_alike():
    body = """
    a = Conv(x, w1)  b = Conv <group = 8> (a, w2)  c = Conv <group = 2> (b, w3)  d = Conv(c, w4)
    e = Conv <group = 6, pads = [1,1,1,1]> (d, w5)  h = GlobalAveragePool(e)  i = Flatten(h)  y = Gemm(i, w6)
    """
    model = net(body, w1=(8, 3, 1, 1), w2=(8, 1, 3, 3), w3=(6, 4, 1, 1), w4=(12, 6, 1, 1), w5=(6, 2, 3, 3), w6=(6, 5))
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 4, "c": 3, "d": 6}  # alike in 2 groups; alike; 6 whole groups of 2
    groups = {n.name: n.attributes.get_int("group", 1) for n in model.graph}
    assert (groups["b"], groups["c"], groups["e"]) == (4, 2, 3)
    assert shapes(model)["w5"] == (3, 2, 3, 3)


def test_split_slice_gather_and_channel_shuffle():
    body = """
    a = Conv(x, w1)  p, q = Split <axis = 1> (a)  r = Mul(p, q)
    s = Slice(a, starts, ends, axes)  t = Gather <axis = 1> (a, turn)
    u = Concat <axis = 1> (r, s, t)  v = Reshape(u, there)  k = Transpose <perm = [0,2,1,3,4]> (v)  l = Reshape(k, back)
    e = Conv(l, w2)  h = GlobalAveragePool(e)  i = Flatten(h)  y = Gemm(i, w3)
    """
    model = net(
        body, w1=(8, 3, 3, 3), w2=(6, 12, 1, 1), w3=(6, 5), starts=np.array([-4]), ends=np.array([2**62]),
        axes=np.array([1]), turn=np.array([7, 0, 3, 0]), there=np.array([0, 2, 6, 4, 4]), back=np.array([2, -1, 4, 4]),
    )  # fmt: skip
    channels, keep = pruned_like_masked(model)
    assert any(len(g.units) > 1 for g in channels.groups)
    assert not keep.all()


def test_heads_of_attention_go_whole():
    body = """
    q = MatMul(x, wq)  k = MatMul(x, wk)  v = MatMul(x, wv)
    q4 = Reshape(q, split)  k4 = Reshape(k, split)  v4 = Reshape(v, split)
    qt = Transpose <perm = [0,2,1,3]> (q4)  kt = Transpose <perm = [0,2,3,1]> (k4)
    vt = Transpose <perm = [0,2,1,3]> (v4)
    s = MatMul(qt, kt)  p = Softmax <axis = -1> (s)  o = MatMul(p, vt)  ot = Transpose <perm = [0,2,1,3]> (o)
    oj = Reshape(ot, join)  y = MatMul(oj, wo)
    """
    weights = dict.fromkeys(("wq", "wk", "wv"), (8, 12))
    model = net(
        body, "float[2,5,8] x", "float[a,b,c] y", **weights, wo=(12, 8), split=np.array([0, 0, 4, 3]),
        join=np.array([0, 0, 12]),
    )  # fmt: skip
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"q": 4}
    assert shapes(model)["wv"] == (8, 6)
    assert shapes(model)["wo"] == (6, 8)


def test_batch_norm_prelu_and_constants_per_channel():
    body = """
    a = Conv(x, w1, c1)  b = BatchNormalization(a, c2, c3, c4, var)  c = PRelu(b, slope)  d = Mul(c, scale)
    e = Add(d, shift)  f = Conv(e, w2)  h = GlobalAveragePool(f)  i = Flatten(h)  y = Gemm(i, w3)
    """
    model = net(
        body, w1=(8, 3, 3, 3), c1=(8,), c2=(8,), c3=(8,), c4=(8,), var=np.ones(8, np.float32), slope=(8, 1, 1),
        scale=(1, 8, 1, 1), shift=np.ones((), np.float32), w2=(4, 8, 1, 1), w3=(4, 5),
    )  # fmt: skip
    channels, _ = pruned_like_masked(model)
    assert group_sizes(channels) == {"a": 8, "f": 4}
    assert shapes(model)["slope"] == (4, 1, 1)


def test_quantize_pairs_pass_channels_on():
    body = """
    xq = QuantizeLinear(x, s, z)  xd = DequantizeLinear(xq, s, z)  wd = DequantizeLinear <axis = 0> (w1, ws)
    a = Conv(xd, wd)  aq = QuantizeLinear(a, s, z)  ad = DequantizeLinear(aq, s, z)  h = GlobalAveragePool(ad)
    i = Flatten(h)  y = Gemm(i, w2)
    """
    rng = np.random.default_rng(0)
    model = from_text(
        f"{HEADER} g (float[2,3,6,6] x, float s, uint8 z, int8[8,3,3,3] w1, float[8] ws, float[8,5] w2)"
        f" => (float[a,b] y) {{ {body} }}",
        s=np.float32(0.05), z=np.uint8(128), w1=rng.integers(-99, 99, (8, 3, 3, 3)).astype(np.int8),
        ws=rng.uniform(0.01, 0.02, 8).astype(np.float32), w2=rng.standard_normal((8, 5)).astype(np.float32),
    )  # fmt: skip
    after, report = prune(model, ratio=0.5)
    assert shapes(after)["w1"] == (4, 3, 3, 3)
    assert shapes(after)["ws"] == (4,)
    assert [s.reason for s in report.skipped if "output of the graph" in s.reason]


@pytest.mark.parametrize(
    ("body", "why"),
    [
        ("a = Conv(x, w1)  b = Softmax <axis = 1> (a)  c = GlobalMaxPool(b)  y = Flatten(c)", "Softmax `b` mixes them"),
        ("a = Conv(x, w1)  b = DepthToSpace <blocksize = 2> (a)  y = Flatten(b)", "nothing is known"),
        ("a = Conv(x, w1)  y = Flatten(a)", "output of the graph"),
        ("a = Conv(x, w1)  b = Add(a, x2)  h = GlobalAveragePool(b)  i = Flatten(h)  y = Gemm(i, w2)", "Add `b` meets"),
        ("a = Conv(x, w1)  s = Shape(a)  f = Cast <to = 1> (s)  z = ReduceSum(f)  b = Mul(a, z)  "
         "i = GlobalAveragePool(b)  j = Flatten(i)  y = Gemm(j, w2)", "computes with the sizes"),
    ],
)  # fmt: skip
def test_what_is_not_understood_stays_and_says_why(body, why):
    model = net(body, "float[2,3,6,6] x, float[2,8,4,4] x2", w1=(8, 3, 3, 3), w2=(8, 5))
    after, report = prune(model, ratio=0.5)
    assert shapes(after)["w1"] == (8, 3, 3, 3)
    assert any(why in s.reason for s in report.skipped), report.skipped


def test_equal_magnitudes_still_give_the_exact_count():
    model = net(RESIDUAL, **{name: np.ones(shape, np.float32) for name, shape in RESIDUAL_WEIGHTS.items()})
    for allocation in ("uniform", "global"):
        after, report = prune(model, ratio=0.5, allocation=allocation)
        assert report.facts["groups"] == {"a": [8, 4], "c": [6, 3]}
    assert shapes(after)["w2"] == (3, 4, 3, 3)


@pytest.mark.parametrize("ratio", [0.1, 0.01])
def test_extreme_ratios_never_empty_a_layer_and_say_so(ratio):
    after, report = prune(net(RESIDUAL, **RESIDUAL_WEIGHTS), ratio=ratio, allocation="uniform")
    assert report.facts["groups"] == {"a": [8, 1], "c": [6, 1]}
    assert any("never emptied" in s.reason for s in report.skipped) == (ratio == 0.01)
    after, _ = prune(net(RESIDUAL, **RESIDUAL_WEIGHTS), ratio=ratio, min_channels=3)
    assert shapes(after)["w2"] == (3, 3, 3, 3)


def test_numbers_of_channels_are_multiples_where_one_is_near():
    model = net(RESIDUAL, w1=(32, 3, 3, 3), w2=(40, 32, 3, 3), w3=(32, 40, 1, 1), w4=(32, 5))
    _, report = prune(model, ratio=0.45, allocation="uniform", round_to=8)
    assert report.facts["groups"] == {"a": [32, 16], "c": [40, 16]}
    _, report = prune(model, ratio=0.1, allocation="uniform", round_to=8)
    assert report.facts["groups"] == {"a": [32, 3], "c": [40, 4]}  # 8 would be far more than asked for


def test_include_exclude_and_a_ratio_of_one():
    model = net(RESIDUAL, **RESIDUAL_WEIGHTS)
    _, report = prune(model, include=("c",))
    assert report.facts["groups"] == {"c": [6, 3]}
    _, report = prune(model, exclude=("e",))  # makes the residual's channels too
    assert report.facts["groups"] == {"c": [6, 3]}
    after, report = prune(model, ratio=1.0)
    assert not report.changes
    assert shapes(after) == shapes(model)


def test_a_shared_vector_does_not_tie_layers():
    body = (
        "a = Conv(x, w1, z)  b = Relu(a)  c = Conv(b, w2, z)  h = GlobalAveragePool(c)  i = Flatten(h)  y = Gemm(i, w3)"
    )
    model = net(body, w1=(8, 3, 3, 3), w2=(8, 8, 3, 3), w3=(8, 5), z=np.zeros(8, np.float32))
    _, report = prune(model, ratio=0.5)
    assert set(report.facts["groups"]) == {"a", "c"}


def test_channels_that_are_zero_go_first_and_nothing_is_lost():
    weights = {k: np.random.default_rng(1).standard_normal(s).astype(np.float32) for k, s in RESIDUAL_WEIGHTS.items()}
    weights["w1"][[1, 4, 5, 7]] = 0
    weights["w3"][[1, 4, 5, 7]] = 0
    weights["w2"][[0, 2, 3]] = 0
    model = net(RESIDUAL, **weights)
    for criterion in ("l1", "l2", "activation", "reconstruction"):
        feeds = [random_feeds(model, seed) for seed in range(8)]
        context = Context(calibration=Batches(lambda feeds=feeds: feeds))
        options = {"ratio": 0.5, "allocation": "uniform", "round_to": 1, "criterion": criterion}
        after, report = apply(PruneChannels(recover=False, **options), model, context)
        assert report.facts["groups"] == {"a": [8, 4], "c": [6, 3]}
        for name, want in oracle.run(model, feeds[0]).items():
            np.testing.assert_allclose(oracle.run(after, feeds[0])[name], want, rtol=1e-4, atol=1e-4)


def test_without_data_it_says_what_to_do():
    model = net(RESIDUAL, **RESIDUAL_WEIGHTS)
    with pytest.raises(DataError, match="recover=false,criterion=l2"):
        apply(PruneChannels(ratio=0.5), model)
    with pytest.raises(DataError, match="prune-channels needs calibration data"):
        apply(PruneChannels(ratio=0.5, recover=False), model)
    with pytest.raises(UsageError, match="give either ratio"):
        PruneChannels(ratio=0.5, macs=0.5)
    with pytest.raises(UsageError, match="ratio"):
        parse_pipeline("prune-channels{ratio=0}")


# ---- recovery ------------------------------------------------------------------------------------------------


def redundant(seed=0):
    """Of 8 channels 4 are combinations of the others; data to tell."""
    rng = np.random.default_rng(seed)
    w1 = rng.standard_normal((8, 3, 3, 3)).astype(np.float32)
    mix = rng.standard_normal((4, 4)).astype(np.float32)
    w1[4:] = np.einsum("ij,jklm->iklm", mix, w1[:4])
    body = """
    a = Conv(x, w1, b1)  b = Conv <pads = [1,1,1,1]> (a, w2)  h = Relu(b)  i = GlobalAveragePool(h)  j = Flatten(i)
    y = Gemm(j, w3)
    """
    model = net(body, w1=w1, b1=(8,), w2=(6, 8, 3, 3), w3=(6, 5))
    feeds = [{"x": rng.standard_normal((2, 3, 6, 6)).astype(np.float32)} for _ in range(64)]
    return model, feeds


def difference(model, other, feeds):
    want, got = (np.concatenate([oracle.run(m, f)["y"] for f in feeds]) for m in (model, other))
    return float(np.abs(want - got).max() / np.abs(want).max())


@pytest.mark.parametrize("steps", [1, 2])
def test_channels_that_are_combinations_of_others_cost_nothing(steps):
    """An affine combination of channels is taken up by the next weights and bias; padding makes it inexact at edges."""
    model, feeds = redundant()
    held = [{"x": np.random.default_rng(9).standard_normal((2, 3, 6, 6)).astype(np.float32)}]
    context = Context(calibration=Batches(lambda: feeds))
    options = {"ratio": 0.5, "allocation": "uniform", "round_to": 1, "steps": steps, "include": ("a",)}
    after, report = apply(PruneChannels(**options), model, context)
    assert shapes(after)["w1"] == (4, 3, 3, 3)
    assert report.facts["error"]["b"][1] < 0.02
    lost = difference(model, after, held)
    bare, _ = apply(PruneChannels(**options, recover=False), model, context)
    assert lost < 0.1
    assert lost < 0.2 * difference(model, bare, held)
    again, _ = apply(PruneChannels(**options), model, context)
    assert difference(after, again, held) == 0  # the same seed, the same result


def test_a_budget_of_macs_is_kept():
    model, feeds = redundant()
    for macs in (0.7, 0.4, 0.2):
        for allocation in ("global", "uniform"):
            options = {"macs": macs, "allocation": allocation, "round_to": 1}
            _, report = apply(PruneChannels(**options), model, Context(calibration=Batches(lambda: feeds)))
            before, after = report.facts["macs"]
            assert 0.6 * macs <= after / before <= macs


def test_budgets_of_macs_and_parameters_hold_together():
    _, report = prune(net(RESIDUAL, **RESIDUAL_WEIGHTS), macs=0.8, parameters=0.4)
    assert report.facts["parameters"][1] <= 0.4 * report.facts["parameters"][0]
    assert report.facts["macs"][1] <= 0.8 * report.facts["macs"][0]


def test_digits_at_half_the_macs_loses_at_most_a_point():
    reference = models.get("digits")
    context = Context(calibration=Batches(reference.calibration))
    from graphopt.graph import load

    model = load(reference.path())
    after, report = apply(PruneChannels(macs=0.5), model, context)
    scores = [evaluate(oracle.Session(m).run, reference.evaluation()) for m in (model, after)]
    assert scores[1] >= scores[0] - 0.01
    assert report.facts["macs"][1] <= 0.5 * report.facts["macs"][0]
    bare, _ = apply(PruneChannels(macs=0.5, criterion="random", recover=False), model)
    assert evaluate(oracle.Session(bare).run, reference.evaluation()) < scores[1] - 0.1


@pytest.mark.slow
@pytest.mark.parametrize("criterion", ["l2", "geometric-median"])
def test_a_hundred_million_parameters_are_pruned_within_two_minutes(criterion):
    """Six pairs of a convolution and a residual one, and a wide head; without recovery."""
    blocks = [f"h{k} = Conv<pads=[1,1,1,1]>(r{k}, v{k}) a{k} = Relu(h{k}) u{k} = Conv(a{k}, w{k}) "
              f"r{k + 1} = Add(u{k}, r{k})" for k in range(6)]  # fmt: skip
    body = f"r0 = Conv(x, w) {' '.join(blocks)} g = GlobalAveragePool(r6) f = Flatten(g) y = Gemm(f, head)"
    shapes_ = {"w": (1024, 3, 1, 1), "head": (1024, 1000)}
    for k in range(6):
        shapes_ |= {f"v{k}": (1664, 1024, 3, 3), f"w{k}": (1024, 1664, 1, 1)}
    model = net(body, inputs="float[1,3,8,8] x", **shapes_)
    before = sum(int(np.prod(shape)) for shape in shapes(model).values())
    assert before > 1e8
    start = time.perf_counter()
    model, _ = prune(model, ratio=0.5, criterion=criterion, round_to=8)
    assert time.perf_counter() - start < 120
    assert sum(int(np.prod(shape)) for shape in shapes(model).values()) < 0.35 * before
