"""Loss and gradients of whole models: against finite differences, and against numpy."""

import numpy as np
import pytest
import tvm
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.errors import LoweringError
from graphopt.testing import from_text, random_feeds
from graphopt.training.program import TEACHER, Objective, Program
from graphopt.training.stream import LABELS
from graphopt.training.weights import trainable

HEADER = '<ir_version: 9, opset_import: ["": 20]>'


def net(body, inputs="float[4,3,8,8] x", out="float[a,b] y", opset=20, **shapes):
    """A model from the body of a graph, with random weights of these shapes."""
    rng = np.random.default_rng(0)
    arrays = {name: (rng.standard_normal(shape) / 2).astype(np.float32) for name, shape in shapes.items()}
    declared = [f"float{list(a.shape)} {name}" for name, a in arrays.items()]
    header = HEADER.replace("20", str(opset))
    return from_text(f"{header}\ng ({', '.join([inputs, *declared])}) => ({out}) {{ {body} }}", **arrays)


def problem(model, seed=0):
    """A program that follows random targets, its weights, and feeds with the targets."""
    feeds = random_feeds(model, seed)
    names = trainable(model)
    outputs = oracle.run(model, feeds)
    rng = np.random.default_rng(seed)
    for name, value in outputs.items():
        feeds[TEACHER + name] = value + rng.standard_normal(value.shape).astype(np.float32)
    program = Program(model, names, Objective(tuple(outputs)), feeds)
    return program, {n: model.graph.initializers[n].const_value.numpy() for n in program.trained}, feeds


def tensors(weights):
    return {name: tvm.runtime.tensor(np.ascontiguousarray(array, np.float32)) for name, array in weights.items()}


def check(model, tolerance=0.02):
    """The gradient times a direction is the difference of the loss along it; in float32, so roughly."""
    program, weights, feeds = problem(model)
    _, gradients = program.step(tensors(weights), feeds)
    rng = np.random.default_rng(3)
    assert weights
    for name, gradient in zip(program.trained, gradients, strict=True):
        assert np.linalg.norm(gradient) > 0, name
        direction = gradient / np.linalg.norm(gradient) + 0.1 * rng.standard_normal(gradient.shape) / gradient.size**0.5
        slopes = []
        for step in (1e-2, 3e-3, 1e-3, 3e-4):  # kinks want small ones, rounding large ones
            ends = [{**weights, name: weights[name] + sign * step * direction} for sign in (1, -1)]
            high, low = (program.loss(tensors(end), feeds) for end in ends)
            slopes.append((high - low) / (2 * step))
        expected = float(np.vdot(gradient, direction))
        assert min(abs(slope - expected) for slope in slopes) < tolerance * abs(expected) + 1e-5, (
            name,
            slopes,
            expected,
        )


NETS = {
    "conv, pool, gemm": (
        "c = Conv<pads=[1,1,1,1]>(x, w, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2],strides=[2,2]>(r) "
        "f = Flatten(p) y = Gemm<transB=1>(f, v, d)",
        {"w": (5, 3, 3, 3), "b": (5,), "v": (2, 80), "d": (2,)},
    ),
    "depthwise, clip": (
        "e = Conv(x, w, b) k0 = Constant<value=float {-1.0}>() k1 = Constant<value=float {1.5}>() c = Clip(e, k0, k1) "
        "d = Conv<group=6,pads=[1,1,1,1],strides=[2,2]>(c, v) c2 = Clip(d, k0, k1) g = GlobalAveragePool(c2) "
        "y = Flatten(g)",
        {"w": (6, 3, 1, 1), "b": (6,), "v": (6, 1, 3, 3)},
    ),
    "stem, inverted residual": (
        "k0 = Constant<value=float {0.0}>() k6 = Constant<value=float {6.0}>() "
        "s = Conv<strides=[2,2],pads=[0,0,1,1]>(x, w, b) c0 = Clip(s, k0, k6) e = Conv(c0, u) c1 = Clip(e, k0, k6) "
        "d = Conv<group=8,pads=[2,2,2,2]>(c1, v) c2 = Clip(d, k0, k6) p = Conv(c2, q, r) z = Add(p, c0) "
        "l = Conv<group=4,strides=[2,2],pads=[0,0,1,1]>(z, t) f = Flatten(l) y = Gemm<transB=1>(f, o)",
        {
            "w": (4, 3, 3, 3),
            "b": (4,),
            "u": (8, 4, 1, 1),
            "v": (8, 1, 5, 5),
            "q": (4, 8, 1, 1),
            "r": (4,),
            "t": (4, 1, 3, 3),
            "o": (5, 16),
        },
    ),
    "grouped, transposed, average": (
        "e = Conv<group=3>(x, w) t = ConvTranspose<strides=[2,2],output_padding=[1,1]>(e, v, b) s = Tanh(t) "
        "p = AveragePool<kernel_shape=[3,3],strides=[2,2],pads=[1,1,1,1]>(s) y = Flatten(p)",
        {"w": (6, 1, 3, 3), "v": (6, 2, 3, 3), "b": (2,)},
    ),
    "norm, swish, residual": (
        "c = Conv<pads=[1,1,1,1]>(x, w) n = BatchNormalization(c, s, b, m, q) g = Sigmoid(n) h = Mul(n, g) "
        "k = Add(h, x) a = HardSwish(k) z = PRelu(a, l) g2 = GlobalAveragePool(z) y = Flatten(g2)",
        {"w": (3, 3, 3, 3), "s": (3,), "b": (3,), "m": (3,), "q": (3,), "l": (3, 1, 1)},
    ),
    "gate": (
        "g = GlobalAveragePool(x) c = Conv(g, w, b) h = HardSigmoid<alpha=0.2,beta=0.5>(c) m = Mul(x, h) "
        "u = LeakyRelu<alpha=0.1>(m) y = Flatten(u)",
        {"w": (3, 3, 1, 1), "b": (3,)},
    ),
}


@pytest.mark.parametrize("name", NETS)
def test_gradients_of_images(name):
    """Each operator's gradient, alone and in company, is the slope of the loss."""
    body, shapes = NETS[name]
    model = net(body, **shapes)
    if "m" in shapes:
        value = model.graph.initializers["q"]
        value.const_value = type(value.const_value)(np.abs(value.const_value.numpy()) + 0.5, name="q")
    check(model)


ATTENTION = (
    "n = LayerNormalization(x, s, b) q = MatMul(n, wq) k = MatMul(n, wk) v = MatMul(n, wv) "
    "kt = Transpose<perm=[0,2,1]>(k) "
    "l = MatMul(q, kt) p = Softmax<axis=-1>(l) o = MatMul(p, v) r = Add(o, x) e = MatMul(r, wu) h = Gelu(e) "
    "d = MatMul(h, wd) y = Add(d, bd)"
)
SHAPES = {"s": (6,), "b": (6,), "wq": (6, 4), "wk": (6, 4), "wv": (6, 6), "wu": (6, 9), "wd": (9, 6), "bd": (6,)}


@pytest.mark.parametrize("opset", [17, 20])
def test_gradients_of_attention(opset):
    """Layer norms, attention, Gelu, products of batches; ReduceMean's axes moved at opset 18."""
    body = ATTENTION if opset == 20 else ATTENTION.replace("Gelu", "Tanh")
    check(net(body, inputs="float[2,5,6] x", out="float[a,b,c] y", opset=opset, **SHAPES))


def test_gradients_of_shuffles():
    """Slices, splits, concatenations, extrema, squeezes."""
    body = (
        "m = MatMul(x, w) i0 = Constant<value_ints=[1]>() i1 = Constant<value_ints=[4]>() s = Slice(m, i0, i1, i0) "
        "a, b = Split<axis=2,num_outputs=2>(m) c = Max(a, b) d = Concat<axis=2>(c, a) t = ReduceMax<keepdims=0>(d, i0) "
        "u = Unsqueeze(t, i0) v = Squeeze(u, i0) e = Erf(v) k = Exp(e) q = Sqrt(k) z = ReduceSum<keepdims=0>(s, i0) "
        "f = MatMul(z, w2) y = Add(f, q)"
    )
    check(net(body, inputs="float[2,5,6] x", out="float[a,b] y", w=(6, 8), w2=(8, 8)))


@settings(max_examples=6, deadline=None)
@given(
    turn=st.booleans(),
    batch=st.sampled_from([(), (2,), (2, 3)]),
    weight=st.sampled_from(["w", "1w"]),
    sizes=st.tuples(*[st.integers(2, 5)] * 3),
)
def test_gradients_of_products(turn, batch, weight, sizes):
    """Products with matrices and with stacks that are broadcast, on either side."""
    m, k, n = sizes
    lead = (1,) * (len(batch) > 0 and weight == "1w")
    shape = (*lead, n, m) if turn else (*lead, k, n)
    body = "y = MatMul(w, x)" if turn else "y = MatMul(x, w)"
    dims = ",".join(map(str, (*batch, m, k)))
    out = ",".join("abcde"[: max(len(batch), len(lead)) + 2])
    check(net(body, inputs=f"float[{dims}] x", out=f"float[{out}] y", w=shape))


def values(kind, student, teacher, temperature=1.0):
    """The loss by its formula in float64."""
    s, t = student.astype(np.float64), teacher.astype(np.float64)
    if kind == "l1":
        return np.abs(s - t).mean()
    if kind == "l2":
        return ((s - t) ** 2).mean()
    if kind == "cosine":
        return np.mean([1 - np.vdot(a, b) / np.linalg.norm(a) / np.linalg.norm(b) for a, b in zip(s, t, strict=True)])
    p, q = (np.exp(x / temperature) / np.exp(x / temperature).sum(-1, keepdims=True) for x in (t, s))
    return temperature**2 * (p * np.log(p / q)).sum(-1).mean()


@pytest.mark.parametrize("kind", ["l1", "l2", "cosine", "kl"])
def test_losses(kind):
    """Each distance is its formula, and so is its gradient."""
    model = net("y = Gemm(x, w, b)", inputs="float[5,4] x", w=(4, 3), b=(3,))
    feeds = random_feeds(model, 0)
    output, teacher = oracle.run(model, feeds)["y"], np.random.default_rng(0).standard_normal((5, 3)).astype("f")
    feeds[TEACHER + "y"] = teacher
    program = Program(model, ["w", "b"], Objective(("y",), kind, 3.0, weight=0.7), feeds)
    weights = {name: model.graph.initializers[name].const_value.numpy() for name in ("w", "b")}
    loss, gradients = program.step(tensors(weights), feeds)
    assert loss == pytest.approx(0.7 * values(kind, output, teacher, 3.0), rel=1e-4)
    step = np.zeros((4, 3))
    step[1, 2] = 1e-4
    ends = [feeds["x"].astype(np.float64) @ (weights["w"] + s * step) + weights["b"] for s in (1, -1)]
    slope = 0.7 * (values(kind, ends[0], teacher, 3.0) - values(kind, ends[1], teacher, 3.0)) / 2e-4
    assert gradients[program.trained.index("w")][1, 2] == pytest.approx(slope, rel=1e-3)


@pytest.mark.parametrize(("last", "form"), [("Identity", "logits"), ("Softmax", "softmax"), ("Sigmoid", "sigmoid")])
def test_losses_of_probabilities(last, form):
    """Behind a Softmax or a Sigmoid the outputs are the distributions, and labels are compared by cross entropy."""
    model = net(f"l = Gemm(x, w, b) y = {last}(l)", inputs="float[5,4] x", w=(4, 3), b=(3,))
    feeds = random_feeds(model, 0)
    y = oracle.run(model, feeds)["y"].astype(np.float64)
    labels = np.eye(3, dtype=np.float32)[[0, 2, 1, 1, 0]]
    feeds[TEACHER + "y"], feeds[LABELS] = y.astype(np.float32), labels
    weights = tensors({name: model.graph.initializers[name].const_value.numpy() for name in ("w", "b")})
    program = Program(model, ["w", "b"], Objective(("y",), "kl", labelled="y"), feeds)
    if form == "logits":
        y = np.exp(y) / np.exp(y).sum(-1, keepdims=True)
    expected = -(labels * np.log(y)).sum(-1).mean()
    if form == "sigmoid":
        expected = -(labels * np.log(y) + (1 - labels) * np.log(1 - y)).mean()
    assert program.loss(weights, feeds) == pytest.approx(expected, rel=1e-4)  # the teacher agrees: its part is 0


def test_no_gradient():
    """What can't be differentiated is said, not computed wrongly."""
    model = net("m = MatMul(x, w) y = CumSum(m, k)", inputs="float[4,3] x, int64 k", w=(3, 3))
    with pytest.raises(LoweringError):
        problem(model)
