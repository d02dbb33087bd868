"""The llvm target against onnxruntime: each operator family, whole models, and what an artifact relies on."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.data.random import random_feeds
from graphopt.errors import HostError, UsageError
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import native
from graphopt.targets.llvm.link import linker
from graphopt.testing import from_text

RTOL = 1e-4  # of the largest value of an output
HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def execute(program, feeds, folder):
    import tvm
    from tvm import relax

    path = folder / f"{len(list(folder.iterdir()))}.so"  # a mapped library must not be overwritten
    path.write_bytes(program.library)
    machine = relax.VirtualMachine(tvm.runtime.load_module(str(path)), tvm.cpu())
    arrays = [*(feeds[name] for name in program.inputs), *program.weights.values()]
    result = machine[program.entry](*(tvm.runtime.tensor(np.array(array, order="C")) for array in arrays))
    results = [result] if isinstance(result, tvm.runtime.Tensor) else list(result)
    return dict(zip(program.outputs, (tensor.numpy() for tensor in results), strict=True))


def assert_close(got, expected, rtol=RTOL):
    assert got.keys() == expected.keys()
    for name, value in expected.items():
        assert got[name].dtype == value.dtype, name
        scale = np.abs(value).max(initial=0) if value.dtype.kind == "f" else 1
        np.testing.assert_allclose(got[name], value, rtol=0, atol=rtol * float(scale), err_msg=name)


def check(model, folder, target=None, feeds=None, rtol=RTOL):
    feeds = random_feeds(model) if feeds is None else feeds
    program = (target or Llvm()).build(model, Context())
    assert_close(execute(program, feeds, folder), oracle.run(model, feeds), rtol)
    return program


def weights(**shapes):
    rng = np.random.default_rng(1)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


UNARY = """
Abs Neg Exp Sigmoid Tanh Relu LeakyRelu Elu Selu Gelu Erf HardSigmoid HardSwish Softplus Softsign Floor Ceil Round Sign
Mish Sin Cos Atan Reciprocal
"""


def typed(**outputs):
    """ONNX text of outputs whose shapes inference fills in: name -> data type and rank."""
    return ", ".join(
        f"{dtype}[{','.join(f'{name}{axis}' for axis in range(rank))}] {name}"
        for name, (dtype, rank) in outputs.items()
    )


def floats(names, rank):
    return dict.fromkeys(names.split(), ("float", rank))


def test_elementwise(tmp_path):
    body = " ".join(f"{op}_y = {op}(x)" for op in UNARY.split())
    positive = "p = Abs(x) l = Log(p) r = Sqrt(p) w = Pow(p, z) c = Greater(x, z) s = Where(c, x, z)"
    binary = "a = Add(x, z) b = Sub(x, z) d = Mul(x, z) e = Div(x, p) f = Min(x, z) g = Max(x, z)"
    names = " ".join([*(f"{op}_y" for op in UNARY.split()), *"lrwsabdefg"])
    outputs = typed(**floats(names, 2))
    model = from_text(f"{HEADER} g (float[3,37] x, float[37] z) => ({outputs}) {{ {body} {positive} {binary} }}")
    check(model, tmp_path)


def test_moving_data(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[2,4,5,6] x, int64[4] pads, int64[2] split, int64[3] index, int64[4] ones, int64[4] reps,
           int64[2] start, int64[2] end, int64[2] axes, int64[2] step)
        => ({typed(b=("float", 2), **floats("a c d e f g1 h i j k l m", 4))}) {{
            a = Transpose<perm=[0,2,3,1]>(x)
            b = Flatten<axis=2>(x)
            c, d = Split<axis=1>(x, split)
            e = Gather<axis=2>(x, index)
            f = Expand(x, ones)
            g1 = Tile(x, reps)
            h = Slice(x, start, end, axes, step)
            i = DepthToSpace<blocksize=2>(x)
            j = Concat<axis=3>(x, x)
            two = Constant<value_floats=[1.0, 1.0, 2.0, 2.0]>()
            k = Resize<mode="nearest", coordinate_transformation_mode="asymmetric", nearest_mode="floor">(x, , two)
            l = Resize<mode="linear", coordinate_transformation_mode="half_pixel">(x, , two)
            hw = Constant<value_ints=[2, 3]>()
            m = Pad<mode="reflect">(x, pads, , hw)
        }}""",
        pads=np.array([1, 2, 0, 1]),
        split=np.array([1, 3]),
        index=np.array([4, 0, 2]),
        ones=np.ones(4, np.int64),
        reps=np.array([1, 2, 1, 3]),
        start=np.array([-1, 1]),
        end=np.array([-9, 99]),
        axes=np.array([2, 3]),
        step=np.array([-2, 3]),
    )
    check(model, tmp_path)


def test_reductions_and_normalisations(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[3,5,17] x, int64[1] last, int64[2] both, float[17] s, float[17] t, float[5] u, int64[1] three)
        => ({typed(b=("float", 1), e=("int64", 3), k=("int64", 3), **floats("a c d f g1 h i j l m", 3))}) {{
            a = ReduceMean(x, last)
            b = ReduceSum<keepdims=0>(x, both)
            c = ReduceMax(x, last)
            d = ReduceL2(x, last)
            e = ArgMax<axis=1>(x)
            f = Softmax(x)
            g1 = LogSoftmax<axis=1>(x)
            h = LayerNormalization(x, s, t)
            i = InstanceNormalization(x, u, u)
            j, k = TopK(x, three)
            one = Constant<value_int=1>()
            l = CumSum(x, one)
            m = ReduceLogSumExp(x, last)
        }}""",
        last=np.array([-1]),
        both=np.array([0, 2]),
        three=np.array([3]),
        **weights(s=17, t=17, u=5),
    )
    check(model, tmp_path)


def test_the_largest_of_all_minus_infinity_is_minus_infinity(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[2,4] x, int64[1] axes) => (float[2,1] y, float[2,1] z) {{
            y = ReduceMax(x, axes)
            n = Neg(x)
            z = ReduceMin(n, axes)
        }}""",
        axes=np.array([1]),
    )
    x = np.array([[-np.inf] * 4, [1, -np.inf, 3, 2]], np.float32)
    program = Llvm().build(model, Context())
    got = execute(program, {"x": x}, tmp_path)
    np.testing.assert_array_equal(got["y"], [[-np.inf], [3]])
    np.testing.assert_array_equal(got["z"], [[np.inf], [-3]])


def test_pooling(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[2,3,9,11] x) => ({typed(**floats("a b c d e", 4))}) {{
            a = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(x)
            b = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(x)
            c = AveragePool<kernel_shape=[3,3], strides=[1,2], pads=[1,0,1,0]>(x)
            d = AveragePool<kernel_shape=[2,3], count_include_pad=1, pads=[1,1,0,1]>(x)
            e = GlobalAveragePool(x)
        }}"""
    )
    check(model, tmp_path)


def test_products(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[5,24] x, float[2,3,7,8] q, float[2,3,9,8] k, float[24,13] w, float[16,24] v, float[16] b, float[5] t)
        => ({typed(c=("float", 4), e=("float", 1), **floats("a b1 d", 2))}) {{
            a = MatMul(x, w)
            b1 = Gemm<transB=1, alpha=0.5, beta=2.0>(x, v, b)
            kt = Transpose<perm=[0,1,3,2]>(k)
            c = MatMul(q, kt)
            d = Gemm<transA=1>(x, x)
            e = MatMul(t, x)
        }}""",
        **weights(w=(24, 13), v=(16, 24), b=16),
    )
    check(model, tmp_path)


CONVOLUTIONS = {
    "1-d": ("2,3,19", "5,3,4", "strides=[2], pads=[1,2]"),
    "3x3": ("2,3,8,8", "8,3,3,3", "pads=[1,1,1,1]"),
    "odd channels": ("1,5,7,13", "7,5,3,3", "pads=[0,1,2,1]"),
    "strided": ("1,4,15,15", "16,4,5,5", "strides=[2,2], pads=[2,2,2,2]"),
    "dilated": ("1,4,12,12", "6,4,3,3", "dilations=[2,3]"),
    "1x1": ("1,16,7,7", "24,16,1,1", "group=1"),
    "1x1 on one pixel": ("1,16,1,1", "24,16,1,1", "group=1"),
    "1x1 of one channel": ("1,1,5,5", "3,1,1,1", "group=1"),
    "grouped": ("1,8,6,6", "12,2,3,3", "group=4, pads=[1,1,1,1]"),
    "depthwise": ("2,6,10,10", "6,1,3,3", "group=6, strides=[2,2], pads=[1,1,1,1]"),
    "same upper": ("1,3,9,10", "4,3,4,4", 'auto_pad="SAME_UPPER", strides=[2,2]'),
    "3-d": ("1,2,5,6,7", "4,2,3,2,3", "pads=[1,0,1,1,1,1]"),
}


@pytest.mark.parametrize("case", CONVOLUTIONS)
def test_convolutions_with_bias_batch_norm_residual_and_relu(case, tmp_path):
    x, w, attributes = CONVOLUTIONS[case]
    out = w.split(",")[0]
    model = from_text(
        f"""{HEADER}
        g (float[{x}] x, float[{w}] w, float[{out}] b, float[{out}] s, float[{out}] t, float[{out}] m, float[{out}] v)
        => ({typed(**floats("y", x.count(",") + 1))}) {{
            c = Conv<{attributes}>(x, w, b)
            n = BatchNormalization(c, s, t, m, v)
            r = Relu(n)
            y = Add(r, c)
        }}""",
        **weights(w=tuple(map(int, w.split(","))), **dict.fromkeys("bstm", int(out))),
        v=np.linspace(0.5, 2, int(out), dtype=np.float32),
    )
    program = check(model, tmp_path)
    assert program.report["unscheduled"] == []


@pytest.mark.parametrize(
    ("x", "w", "attributes"),
    [
        ("1,4,6,6", "4,3,3,3", "strides=[2,2], pads=[1,1,1,1], output_padding=[1,1]"),
        ("1,4,6,6", "4,2,2,2", "strides=[2,2], group=2"),
        ("1,3,9", "3,5,4", "strides=[3]"),
    ],
)
def test_transposed_convolutions(x, w, attributes, tmp_path):
    outputs = typed(**floats("y", x.count(",") + 1))
    model = from_text(
        f"{HEADER} g (float[{x}] x, float[{w}] w) => ({outputs}) {{ y = ConvTranspose<{attributes}>(x, w) }}",
        **weights(w=tuple(map(int, w.split(",")))),
    )
    check(model, tmp_path)


QDQ = f"""{HEADER}
    g (float[1,3,8,8] x, int8[8,3,3,3] w, float[8] ws, int8[8] wz, float s, uint8 z, float s2, int8 z2)
    => (float[1,8,8,8] y) {{
        xq = QuantizeLinear(x, s, z)
        xd = DequantizeLinear(xq, s, z)
        wd = DequantizeLinear<axis=0>(w, ws, wz)
        c = Conv<pads=[1,1,1,1]>(xd, wd)
        r = Relu(c)
        rq = QuantizeLinear(r, s2, z2)
        y = DequantizeLinear(rq, s2, z2)
    }}"""


def test_quantised_convolution_is_exact_to_one_step(tmp_path):
    rng = np.random.default_rng(0)
    model = from_text(
        QDQ,
        w=rng.integers(-127, 128, (8, 3, 3, 3)).astype(np.int8),
        ws=rng.uniform(0.005, 0.02, 8).astype(np.float32),
        wz=np.zeros(8, np.int8),
        s=np.float32(0.03),
        z=np.uint8(128),
        s2=np.float32(0.05),
        z2=np.int8(-128),
    )
    feeds = random_feeds(model)
    program = Llvm().build(model, Context())
    got, expected = execute(program, feeds, tmp_path)["y"], oracle.run(model, feeds)["y"]
    steps = np.abs(got - expected) / 0.05
    assert steps.max() < 1.01  # a tie may round the other way after a sum in another order
    assert (steps > 0.01).mean() < 0.01
    assert not [name for name, weight in program.weights.items() if name.startswith("w") and weight.dtype != np.int8]
    assert program.report["integer"]


def test_rounding_ties_and_saturation_of_quantize_linear(tmp_path):
    model = from_text(
        f"{HEADER} g (float[8] x, float s, int8 z) => (int8[8] y) {{ y = QuantizeLinear(x, s, z) }}",
        s=np.float32(2.0),
        z=np.int8(3),
    )
    x = np.array([1.0, 3.0, -1.0, -3.0, 5.0, 1e9, -1e9, 250.9], np.float32)
    check(model, tmp_path, feeds={"x": x}, rtol=0)


def test_branches(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[4] x, bool flag) => (float[4] y) {{
            y = If(flag) <then_branch = t () => (float[4] a) {{ a = Relu(x) }},
                          else_branch = e () => (float[4] b) {{ b = Neg(x) }}>
        }}"""
    )
    for flag in (True, False):
        check(model, tmp_path, feeds={"x": np.array([1, -2, 3, -4], np.float32), "flag": np.array(flag)})


def test_batch_norm_as_the_result_of_a_branch(tmp_path):
    """Found by fuzzing: the branch gave a tuple, and the model's output was no array."""
    ones = np.ones(2, np.float32)
    model = from_text(
        f"""{HEADER}
        g (float[N,2] x, bool flag, float[2] a) => (float[N,2] y, float[N,2] z) {{
            y = If(flag) <then_branch = t () => (float[N,2] b) {{ b = BatchNormalization(x, a, a, a, a) }},
                          else_branch = e () => (float[N,2] c) {{ c = Neg(x) }}>
            z = Relu(x)
        }}""",
        a=ones,
    )
    for flag in (True, False):
        check(model, tmp_path, feeds={"x": np.array([[1, -2]], np.float32), "flag": np.array(flag)})


def test_one_compilation_runs_every_batch_size(tmp_path):
    model = from_text(
        f"""{HEADER}
        g (float[N,1,8,8] x, float[4,1,3,3] w, float[5,64] v) => (float[N,5] y) {{
            c = Conv<pads=[1,1,1,1]>(x, w)
            p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(c)
            f = Flatten(p)
            y = Gemm<transB=1>(f, v)
        }}""",
        **weights(w=(4, 1, 3, 3), v=(5, 64)),
    )
    program = Llvm().build(model, Context())
    for batch in (1, 3, 8):
        feeds = random_feeds(model, dims={"N": batch})
        assert_close(execute(program, feeds, tmp_path), oracle.run(model, feeds))


@pytest.fixture(scope="module")
def linear():
    return from_text(
        f"{HEADER} g (float[1,1024] x, float[1024,1024] w) => (float[1,1024] y) {{ m = MatMul(x, w) y = Relu(m) }}",
        **weights(w=(1024, 1024)),
    )


def test_weights_lie_outside_the_library(linear):
    program = Llvm().build(linear, Context())
    assert sum(w.nbytes for w in program.weights.values()) >= 4 << 20
    assert len(program.library) < 1 << 20


def test_the_same_model_gives_the_same_bytes(linear):
    assert Llvm().build(linear, Context()).library == Llvm().build(linear, Context()).library


def test_an_old_cpu_gets_code_without_new_instructions(linear, tmp_path):
    program = check(linear, tmp_path, Llvm(mcpu="x86-64-v2"))
    assert "sse4.2" in program.cpu_features
    assert not {"avx", "avx2", "fma", "avx512f"} & set(program.cpu_features)


def test_one_thread_and_many_agree(linear, tmp_path):
    feeds = random_feeds(linear)
    one, many = (execute(Llvm(threads=n).build(linear, Context()), feeds, tmp_path) for n in (1, 0))
    np.testing.assert_array_equal(one["y"], many["y"])


def test_native_uses_only_what_this_machine_has():
    from graphopt.artifact.host import missing

    assert missing(native().features) == []


def test_unknown_cpu_lists_close_names(linear):
    with pytest.raises(UsageError, match=r"no CPU 'znver33'\. Did you mean .*znver3"):
        Llvm(mcpu="znver33").build(linear, Context())


def test_no_linker_is_said_with_the_way_out(linear, monkeypatch):
    monkeypatch.setattr("tvm.support.cc.get_cc", lambda: None)
    assert Llvm.status()["ready"] is False
    with pytest.raises(HostError, match=r"No linker .* install g\+\+"):
        Llvm().build(linear, Context())


@pytest.mark.skipif(linker("aarch64-linux-gnu") is not None, reason="there is a cross compiler")
def test_cross_compilation_without_a_cross_linker_is_refused(linear):
    with pytest.raises(HostError, match="No linker for aarch64-linux-gnu"):
        Llvm(mcpu="neoverse-n1").build(linear, Context())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["resnet18", "mobilenet-v2", "squeezenet", "efficientnet-lite0", "crepe-tiny"])
def test_whole_models(name, tmp_path):
    from graphopt import models
    from graphopt.graph import load

    reference = models.get(name)
    program = check(load(reference.path()), tmp_path, feeds=reference.example(1))
    assert program.report["unscheduled"] == []


def test_two_threads_agree_on_open_image_sizes():
    """Loops over symbolic extents in parallel gave wrong values now and then; see `schedule._parallel`."""
    from graphopt.artifact import assemble

    rng = np.random.default_rng(0)
    text = """
        <ir_version: 8, opset_import: ["": 17]>
        g (float[N,3,H,W] x, float[32,3,3,3] w1, float[32,1,5,5] w2, float[16,32,1,1] w3) => (float[N,16,P,Q] y) {
            a = Conv<pads=[1,1,1,1], strides=[2,1]>(x, w1)
            b = HardSwish(a)
            c = Conv<pads=[2,2,2,2], group=32>(b, w2)
            d = HardSwish(c)
            y = Conv(d, w3)
        }
    """
    weights = {n: rng.standard_normal(s).astype(np.float32) for n, s in
               (("w1", (32, 3, 3, 3)), ("w2", (32, 1, 5, 5)), ("w3", (16, 32, 1, 1)))}  # fmt: skip
    model = from_text(text, **weights)
    program = Llvm().build(model, Context())
    feeds = [{"x": rng.standard_normal((1, 3, 48, 96 + 32 * i)).astype(np.float32)} for i in range(4)]
    parts = {"target": "llvm", "before": model, "after": model, "report": {}}
    with assemble(program, **parts, threads=1) as one, assemble(program, **parts, threads=2) as two:
        want = [one.run(f)["y"] for f in feeds]
        for _ in range(25):
            for f, expected in zip(feeds, want, strict=True):
                np.testing.assert_array_equal(two.run(f)["y"], expected)
