"""Students that are trained by their gradients, and what the target's clock says of students."""

import numpy as np
import pytest

from graphopt import models, oracle
from graphopt.api import run_pipeline
from graphopt.base import Context
from graphopt.data import open_data
from graphopt.errors import UsageError
from graphopt.graph import load
from graphopt.graph.cost import cost
from graphopt.measure import speedup
from graphopt.passes.distil import builders
from graphopt.passes.distil.builders import Teacher
from graphopt.passes.distil.measured import Clock
from graphopt.passes.distil.region import of_globs
from graphopt.passes.distil.search import candidates
from graphopt.passes.distil.student import UnsupportedError
from graphopt.passes.substitute_distilled import SubstituteDistilled
from graphopt.pipeline import make_target
from graphopt.testing import apply, from_text, op_types

HEAD = '<ir_version: 9, opset_import: ["": 20]>\n'


def net(body, inputs, out, **shapes):
    rng = np.random.default_rng(0)
    arrays = {name: (rng.standard_normal(shape) / 3).astype(np.float32) for name, shape in shapes.items()}
    declared = [f"float{list(a.shape)} {name}" for name, a in arrays.items()]
    return from_text(f"{HEAD}g ({', '.join([inputs, *declared])}) => ({out}) {{ {body} }}", **arrays)


def images(model, n=96):
    shape = [d for d in model.graph.inputs[0].shape if isinstance(d, int)]
    x = np.random.default_rng(1).standard_normal((n, *shape)).astype(np.float32)
    return open_data({"x": x}, model)


def block(**shapes):
    """Two convolutions with 12 channels between them, of which a layer before makes use of 4 directions."""
    return net(
        "[first] a = Conv<pads=[1,1,1,1]>(x, w, b)\n[act] r = Relu(a)\n[second] c = Conv<pads=[1,1,1,1]>(r, v, d)\n"
        "[last] y = Relu(c)",
        "float[N,3,8,8] x", "float[N,4,8,8] y", w=(12, 3, 3, 3), b=(12,), v=(4, 12, 3, 3), d=(4,), **shapes,
    )  # fmt: skip


def test_a_narrower_block_is_trained_and_takes_its_place() -> None:
    """Half the MACs, on data held out an error that the closed-form refit alone does not reach."""
    model = block()
    options = {"nodes": ("first", "act", "second"), "student": "narrow", "max_macs": 0.6, "max_error": 0.5}
    after, report = apply(SubstituteDistilled(**options, epochs=25, lr=0.01), model, Context(calibration=images(model)))
    (fact,) = report.facts["substitutions"]
    assert fact["macs"]["after"] <= 0.6 * fact["macs"]["before"]
    assert fact["held_out_error"] < 0.5
    assert op_types(after) == ["Conv", "Relu", "Conv", "Relu"]
    assert str(after.graph.outputs[0].name) == "y"
    _, short = apply(SubstituteDistilled(**options, epochs=1, lr=1e-9), model, Context(calibration=images(model)))
    untrained = short.facts["substitutions"][0]["held_out_error"] if short.facts["substitutions"] else 1.0
    assert fact["held_out_error"] < 0.9 * untrained


def test_it_is_rolled_back_above_the_budget() -> None:
    """A student that is too far off leaves the model as it is, with the numbers in the report."""
    model = block()
    after, report = apply(
        SubstituteDistilled(nodes=("first", "act", "second"), student="narrow", max_macs=0.2, max_error=0.01, epochs=2),
        model,
        Context(calibration=images(model)),
    )
    assert not report.facts["substitutions"]
    assert "held-out error" in report.skipped[-1].reason
    assert cost(after).macs == cost(model).macs


def teacher(model, budget=0.5):
    return Teacher(model, images(model), budget, 0)


def test_smaller_kernels() -> None:
    """The middle of the kernel with margins to match: what the taps left out would add is all that differs."""
    model = net(
        "y = Conv<pads=[2,1,2,1],dilations=[1,1],strides=[2,1]>(x, w)",
        "float[N,3,9,8] x", "float[N,4,5,8] y", w=(4, 3, 5, 3),
    )  # fmt: skip
    weight = model.graph.initializers["w"]
    array = weight.const_value.numpy().copy()
    array[:, :, [0, 4]] = 0
    array[:, :, :, [0, 2]] = 0
    weight.const_value = type(weight.const_value)(array, name="w")
    small = builders.small_kernel(teacher(model))
    assert list(small.graph.initializers["w"].shape) == [4, 3, 3, 1]
    feeds = {"x": np.random.default_rng(0).standard_normal((2, 3, 9, 8)).astype(np.float32)}
    np.testing.assert_allclose(oracle.run(small, feeds)["y"], oracle.run(model, feeds)["y"], rtol=1e-5, atol=1e-6)
    with pytest.raises(UnsupportedError, match="kernel"):
        builders.small_kernel(teacher(net("y = Conv(x, w)", "float[N,3,4,4] x", "float[N,4,4,4] y", w=(4, 3, 1, 1))))


def test_fewer_layers() -> None:
    """Of two residual blocks the one that changes less goes."""
    body = "".join(
        f"c{i} = Conv<pads=[1,1,1,1]>({x}, w{i})\nr{i} = Relu(c{i})\n{y} = Add({x}, r{i})\n"
        for i, (x, y) in enumerate([("x", "m"), ("m", "y")])
    )
    model = net(body, "float[N,3,6,6] x", "float[N,3,6,6] y", w0=(3, 3, 3, 3), w1=(3, 3, 3, 3))
    weight = model.graph.initializers["w1"]
    weight.const_value = type(weight.const_value)(weight.const_value.numpy() * 0.01, name="w1")
    short = builders.fewer_layers(teacher(model))
    assert "w0" in short.graph.initializers
    assert "w1" not in short.graph.initializers
    assert cost(short).macs * 2 == cost(model).macs
    with pytest.raises(UnsupportedError):
        builders.fewer_layers(teacher(block()))


def test_cheaper_activations() -> None:
    """Exponentials go; where there are none, that is said, and without a target's clock nobody would know a gain."""
    model = net("a = Gemm(x, w)\ns = Sigmoid(a)\ny = Gelu(s)", "float[N,4] x", "float[N,5] y", w=(4, 5))
    assert op_types(builders.cheap_activations(teacher(model))) == ["Gemm", "HardSigmoid", "HardSwish"]
    with pytest.raises(UnsupportedError):
        builders.cheap_activations(teacher(block()))
    with pytest.raises(UsageError, match="target"):
        SubstituteDistilled(student="cheap-activations")


def attention(heads=2, channels=8, length=32, mask="", sharpness=0.5):
    """Self-attention and its residual connection over sequences of some length."""
    width, rows = heads * channels, f"[0, {length}, {heads}, {channels}]"
    turned = "\n".join(
        f"[{n}] {n} = MatMul(x, w{n})\n[{n}s] {n}s = Reshape({n}, sizes)\n[{n}t] {n}t = Transpose<perm=[{p}]>({n}s)"
        for n, p in (("q", "0,2,1,3"), ("k", "0,2,3,1"), ("v", "0,2,1,3"))
    )
    ends = f"float[N,{length},{width}]"
    model = net(
        f"sizes = Constant<value_ints = {rows}>()\nback = Constant<value_ints = [0, {length}, {width}]>()\n"
        f"root = Constant<value_float = {channels**0.5}>()\n{turned}\n[score] s = MatMul(qt, kt)\n"
        f"[scale] d = Div(s, root)\n{mask}[soft] p = Softmax(d)\n[mix] m = MatMul(p, vt)\n"
        "[heads] h = Transpose<perm=[0,2,1,3]>(m)\n[join] j = Reshape(h, back)\n[out] o = MatMul(j, wo)\n"
        "[residual] y = Add(x, o)",
        f"{ends} x", f"{ends} y", **dict.fromkeys(("wq", "wk", "wv", "wo"), (width, width)),
    )  # fmt: skip
    for name in ("wq", "wk"):  # scores of some 0.5
        weight = model.graph.initializers[name]
        weight.const_value = type(weight.const_value)(weight.const_value.numpy() * sharpness, name=name)
    return model


def test_linear_attention_is_what_its_formula_says_and_is_trained() -> None:
    """Of the products with T^2 entries none is left; where scores are small it is nearly the teacher."""
    model = attention()
    student = builders.linear_attention(teacher(model))
    assert "Softmax" not in op_types(student)
    assert cost(student).macs < cost(model).macs
    x = images(model, 4)
    feeds = next(iter(x))
    names = ["qt", "kt", "vt", "m"]
    q, k, v = (oracle.run(model, feeds, names)[name].astype(np.float64) for name in names[:3])
    halves = [(a * 8**0.25, -a * 8**0.25) for a in (q, k)]  # sqrt(8 / sqrt(8))
    phi = [
        np.concatenate([np.maximum(1 + a, 0) + 1e-3 for a in half], axis)
        for half, axis in zip(halves, (-1, -2), strict=True)
    ]
    wanted = (phi[0] @ (phi[1] @ v)) / (phi[0] @ phi[1].sum(axis=-1, keepdims=True))
    made = next(node for node in student.graph if node.op_type == "Div").outputs[0].name
    np.testing.assert_allclose(oracle.run(student, feeds, [made])[made], wanted, rtol=1e-3, atol=1e-5)
    small, even = attention(sharpness=0.1), attention(sharpness=0.0)
    nets = builders.linear_attention(teacher(small)), small, even
    close, exact, mean = (oracle.run(m, feeds, ["o"])["o"] for m in nets)
    assert np.linalg.norm(close - exact) < 0.05 * np.linalg.norm(mean - exact)
    options = {
        "inputs": ("x",),
        "outputs": ("o",),
        "student": "linear-attention",
        "max_error": 0.9,
        "lr": 0.01,
        "epochs": 10,
    }
    context = Context(calibration=images(model))
    _, short = apply(SubstituteDistilled(**options | {"epochs": 1, "lr": 1e-9}), model, context)
    after, report = apply(SubstituteDistilled(**options), model, context)
    assert report.facts["substitutions"], report.skipped
    (fact,), (before,) = report.facts["substitutions"], short.facts["substitutions"]
    assert fact["held_out_error"] < 0.9 * before["held_out_error"]
    assert op_types(after)[-1] == "Add"
    assert "Softmax" not in op_types(after)


def test_attention_with_a_mask_stays_and_a_long_head_gains_nothing() -> None:
    """A mask inside the Softmax has no place in the linear form."""
    masked = attention(mask="[masked] d2 = Add(d, root)\n").clone()
    softmax = next(node for node in masked.graph if node.op_type == "Softmax")
    softmax.replace_input_with(0, next(node for node in masked.graph if node.name == "masked").outputs[0])
    with pytest.raises(UnsupportedError, match="mask"):
        builders.linear_attention(teacher(masked))
    wide = attention(heads=1, channels=32, length=16)
    context = Context(calibration=images(wide))
    options = {"student": "linear-attention", "max_error": 0.9, "max_macs": 0.99, "epochs": 1}
    _, report = apply(SubstituteDistilled(inputs=("x",), outputs=("o",), **options), wide, context)
    assert "too many" in report.skipped[-1].reason


def test_a_narrower_attention_has_fewer_heads() -> None:
    """What is left are whole heads, refitted and trained."""
    model = attention(heads=4)
    options = {"inputs": ("x",), "outputs": ("o",), "student": "narrow", "max_macs": 0.55, "max_error": 0.9}
    after, report = apply(SubstituteDistilled(**options, epochs=2), model, Context(calibration=images(model)))
    assert report.facts["substitutions"], report.skipped
    feeds = next(iter(images(model, 2)))
    assert oracle.run(after, feeds)["y"].shape == (2, 32, 32)
    scores = next(node for node in after.graph if node.op_type == "Softmax").outputs[0]
    assert oracle.run(after, feeds, [str(scores.name)])[str(scores.name)].shape[1] in (1, 2)


BUILDER = '''
import numpy as np
import onnx_ir as ir
from graphopt.testing import from_text

def make(region):
    """A Gemm for the two."""
    return from_text(
        '<ir_version: 9, opset_import: ["": 20]> g (float[N,6] a, float[6,4] w, float[4] b) => (float[N,4] z)'
        '{ z = Gemm(a, w, b) }', w=np.zeros((6, 4), np.float32), b=np.zeros(4, np.float32) + 0.1)

def wrong(region):
    return 3
'''


def test_a_builder_of_ones_own(tmp_path) -> None:
    """The user's function makes the student; from zeros it learns what is linear in the teacher."""
    (tmp_path / "mine.py").write_text(BUILDER)
    model = net("[one] h = Gemm(x, w)\n[two] y = Gemm(h, v)", "float[N,6] x", "float[N,4] y", w=(6, 20), v=(20, 4))
    options = {"inputs": ("x",), "outputs": ("y",), "max_error": 0.1, "epochs": 60, "lr": 0.1}
    after, report = apply(
        SubstituteDistilled(student=f"{tmp_path}/mine.py:make", **options), model, Context(calibration=images(model))
    )
    assert op_types(after) == ["Gemm"], report.skipped
    assert report.facts["substitutions"][0]["held_out_error"] < 0.1
    for text, why in (("mine.py:wrong", "must return"), ("mine.py:none", "no function"), ("no.py:make", "no Python")):
        with pytest.raises(UsageError, match=why):
            apply(SubstituteDistilled(student=f"{tmp_path}/{text}", **options), model, Context(images(model)))
    with pytest.raises(UsageError, match="no student 'narow'"):
        SubstituteDistilled(student="narow")


@pytest.mark.parametrize(("measured", "kept"), [(0.8, True), (1.3, False)])
def test_the_clock_decides(monkeypatch, measured, kept) -> None:
    """A student within the error stays only if the target runs the model faster with it."""
    seen = []

    def speed(self, candidate):
        seen.append(op_types(candidate))
        return speedup.Speed(None, measured, 1.0)

    monkeypatch.setattr(speedup.Beside, "speed", speed)
    model = net("[one] h = Gemm(x, w)\n[two] y = Gemm(h, v)", "float[N,6] x", "float[N,4] y", w=(6, 20), v=(20, 4))
    pass_ = SubstituteDistilled(inputs=("x",), outputs=("y",), target="llvm{threads=1}")
    after, report = apply(pass_, model, Context(calibration=images(model)))
    assert seen == [["Gemm"]]
    assert (op_types(after) == ["Gemm"]) is kept
    if kept:
        assert report.facts["substitutions"][0]["time"] == measured
    else:
        assert "1.30 of its time" in report.skipped[-1].reason


def test_ranking_by_time() -> None:
    """Of two layers that cost alike, the one whose weight is of low rank comes first."""
    model = net(
        "[full] h = Gemm(x, w)\n[thin] y = Gemm(h, v)", "float[N,64] x", "float[N,64] y", w=(64, 64), v=(64, 64)
    )
    rng = np.random.default_rng(0)
    low = (rng.standard_normal((64, 2)) @ rng.standard_normal((2, 64))).astype(np.float32)
    value = model.graph.initializers["v"]
    value.const_value = type(value.const_value)(low, name="v")
    one = {"x": np.zeros((1, 64), np.float32)}
    layers = [region for region in candidates(model.graph) if len(region.nodes) == 1]
    order = Clock(make_target("llvm{threads=1}"), one).ranked(model, layers)
    assert [region.name for region in order] == ["thin", "full"]


def test_digits_narrower_by_a_glob_then_end_to_end() -> None:
    """A trained network, held-out labels: a block at half its MACs, then the whole model toward the original."""
    entry = models.get("digits")
    model = load(entry.path())
    convs = [node.name for node in model.graph if node.op_type == "Conv"]
    assert of_globs(model.graph, [convs[1]])
    passes = (
        "fold-batch-norm,substitute-distilled{inputs=[image],outputs=[%s],student=narrow,max_macs=0.5,max_error=0.4,"
        "epochs=10},fine-tune{epochs=10}"
    )
    folded = run_pipeline(model, "fold-batch-norm").model
    flat = next(node for node in folded.graph if node.op_type == "GlobalAveragePool").outputs[0].name
    result = run_pipeline(model, passes % flat, calibration=entry.calibration)
    assert result.steps[1].report.facts["substitutions"]
    assert cost(result.model).macs < 0.55 * cost(folded).macs
    evaluation = entry.evaluation()
    session = oracle.Session(result.model)
    assert evaluation.score(session.run(feeds) for feeds in evaluation.feeds()) > 0.975
