"""What stands between convolutions, whole nodes against onnxruntime: epilogues of several steps, pointwise passes..."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import oracle
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.kernels import beside, tile
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Isa
from graphopt.targets.llvm.plan import plan
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import from_text, random_feeds


def operators(model: ir.Model) -> list[str]:
    """What is left of `model` outside kernels."""
    planned = canonicalise(model.clone())
    plan(planned, resolve("native"), parallel=False)
    return sorted(n.op_type for n in planned.graph if n.domain == "")


def check(text: str, left: list[str] | None = None, rtol: float = 1e-5, mcpu: str = "native", **weights) -> None:
    """The model computes what onnxruntime does, and only the operators `left` are outside kernels."""
    model = from_text(f'<ir_version: 8, opset_import: ["": 17]>\n{text}', **weights)
    if left is not None:
        assert operators(model) == left
    feeds = random_feeds(model)
    want = oracle.run(model, feeds)
    with assemble(
        Llvm(mcpu=mcpu, threads=1).build(model, Context()), target="llvm", before=model, after=model, report={}
    ) as executable:
        got = executable.run(feeds)
    for name, expected in want.items():
        error = np.abs(got[name] - expected).max(initial=0) / max(np.abs(expected).max(initial=0), 1e-30)
        assert error <= rtol, f"{name} is off by {error:.2e}"


def weights(*shape: int) -> np.ndarray:
    rng = np.random.default_rng(sum(shape))
    return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)


HARD_SWISH = {
    "gate first": "a = Add(c, three)  r = Clip(a, zero, six)  g = Div(r, six)  y = Mul(c, g)",
    "product first": "a = Add(three, c)  r = Clip(a, zero, six)  p = Mul(r, c)  y = Div(p, six)",
    "by a sixth": "a = Add(c, three)  r = Clip(a, zero, six)  p = Mul(c, r)  y = Mul(sixth, p)",
    "hard sigmoid": "g = HardSigmoid<alpha = 0.16666667, beta = 0.5>(c)  y = Mul(g, c)",
}


@pytest.mark.parametrize("spelling", HARD_SWISH)
def test_hard_swish_however_it_is_written(spelling: str):
    scalars = {"three": 3.0, "zero": 0.0, "six": 6.0, "sixth": 1 / 6}
    check(
        f"""g (float[2,5,7,6] x, float[9,5,3,3] w, float three, float zero, float six, float sixth)
            => (float[2,9,5,4] y) {{ c = Conv(x, w)  {HARD_SWISH[spelling]} }}""",
        ["Transpose", "Transpose"],
        w=weights(9, 5, 3, 3),
        **{name: np.array(value, np.float32) for name, value in scalars.items()},
    )


def test_channel_arithmetic_goes_into_weights_and_scalars_into_epilogues():
    """Batch normalization and a bias after a convolution, an affine map by scalars after its activation."""
    rng = np.random.default_rng(0)
    vectors = {name: rng.uniform(0.5, 2.0, 9).astype(np.float32) for name in ("s", "t", "m", "v")}
    check(
        """g (float[2,5,7,6] x, float[9,5,3,3] w, float[9] s, float[9] t, float[9] m, float[9] v, float[1,9,1,1] b,
             float[1] a, float k, float[2,9,5,4] r) => (float[2,9,5,4] y) {
            c = Conv(x, w)
            n = BatchNormalization(c, s, t, m, v)
            d = Sub(n, b)
            e = Tanh(d)
            f = Mul(a, e)
            h = Add(f, k)
            i = Sub(k, h)
            j = Add(i, r)
            y = Div(j, a)
        }""",
        ["Transpose", "Transpose", "Transpose"],
        w=weights(9, 5, 3, 3),
        b=weights(1, 9, 1, 1),
        a=np.array([1.7], np.float32),
        k=np.array(0.3, np.float32),
        **vectors,
    )


def test_dense_block_reads_its_concatenations_without_writing_them():
    """Concatenation of a concatenation, each through batch normalization and Relu: two passes, no copy."""
    rng = np.random.default_rng(1)
    vectors = {f"{name}{c}": rng.uniform(0.5, 2.0, c).astype(np.float32) for c in (23, 31) for name in "stmv"}
    check(
        """g (float[N,5,7,6] x, float[18,5,1,1] w, float[5,5,1,1] u, float[8,23,1,1] k, float[9,31,3,3] l,
             float[23] s23, float[23] t23, float[23] m23, float[23] v23,
             float[31] s31, float[31] t31, float[31] m31, float[31] v31) => (float[N,9,5,4] y) {
            a = Conv(x, w)
            b = Conv(x, u)
            one = Concat<axis = 1>(a, b)
            n = BatchNormalization(one, s23, t23, m23, v23)
            r = Relu(n)
            c = Conv(r, k)
            two = Concat<axis = -3>(one, c)
            o = BatchNormalization(two, s31, t31, m31, v31)
            q = Relu(o)
            y = Conv(q, l)
        }""",
        ["Transpose", "Transpose"],
        w=weights(18, 5, 1, 1), u=weights(5, 5, 1, 1), k=weights(8, 23, 1, 1), l=weights(9, 31, 3, 3), **vectors,
    )  # fmt: skip


@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
def test_squeeze_and_excite_and_spatial_gates(mcpu: str):
    """A gate for each channel of each image, one for each position, a residual, and a value others read as well."""
    check(
        """g (float[2,5,7,6] x, float[20,5,3,3] w, float[20,20,1,1] s, float[1,20,1,1] p)
            => (float[2,20,5,4] y, float[2,20,5,4] a) {
            c = Conv(x, w)
            a = Relu(c)
            m = GlobalAveragePool(a)
            d = Conv(m, s)
            g = HardSigmoid(d)
            e = Mul(a, g)
            o = Conv(e, p)
            h = Sigmoid(o)
            f = Mul(h, e)
            i = Sub(a, f)
            y = Max(i, e)
        }""",
        ["Transpose", "Transpose", "Transpose"],
        mcpu=mcpu,
        w=weights(20, 5, 3, 3), s=weights(20, 20, 1, 1), p=weights(1, 20, 1, 1),
    )  # fmt: skip


def test_split_slice_and_concat_along_channels():
    check(
        """g (float[2,5,7,6] x, float[24,5,3,3] w, int64[2] sizes, int64[1] i, int64[1] j, int64[1] one,
             float[3,18,1,1] k) => (float[2,3,5,4] y, float[2,4,5,4] z) {
            c = Conv(x, w)
            a, b = Split<axis = 1>(c, sizes)
            t = Slice(b, i, j, one)
            r = Relu(t)
            u = Concat<axis = 1>(r, a, t)
            y = Conv(u, k)
            z = Slice(u, i, j, one, one)
        }""",
        w=weights(24, 5, 3, 3), sizes=np.array([10, 14]), i=np.array([-5]), j=np.array([-1]),
        one=np.array([1]), k=weights(3, 18, 1, 1),
    )  # fmt: skip


LINES = {
    "rank 3": ("float[2,5,40] x", "float[9,5,7] w", "float[9,1,3] v", "[2, 3]", "[2]", "float[2,9,17] y"),
    "height 1":
        ("float[2,5,1,40] x", "float[9,5,1,7] w", "float[9,1,1,3] v", "[0, 2, 0, 3]", "[1, 2]", "float[2,9,1,17] y"),
    "width 1":
        ("float[2,5,40,1] x", "float[9,5,7,1] w", "float[9,1,3,1] v", "[2, 0, 3, 0]", "[2, 1]", "float[2,9,17,1] y"),
}  # fmt: skip


@pytest.mark.parametrize("case", LINES)
def test_one_dimensional_convolutions(case: str):
    """Convolution, depthwise convolution, pooling and arithmetic with a constant that differs along the line."""
    x, w, v, pads, twos, y = LINES[case]
    shape = [int(d) for d in w[w.index("[") + 1 : w.index("]")].split(",")]
    deep = [int(d) for d in v[v.index("[") + 1 : v.index("]")].split(",")]
    along = [1, *([39] if len(shape) == 3 else [1, 39] if case == "height 1" else [39, 1])]
    check(
        f"""g ({x}, {w}, {v}, float[{",".join(map(str, along))}] k) => ({y}) {{
            a = Conv<pads = {pads}>(x, w)
            b = Relu(a)
            m = Mul(b, k)
            d = Conv<group = 9, strides = {twos}>(m, v)
            e = LeakyRelu(d)
            p = MaxPool<kernel_shape = {twos}>(e)
            y = AveragePool<kernel_shape = {twos}>(p)
        }}""",
        ["Mul", "Reshape", "Reshape", "Transpose", "Transpose"] if len(shape) == 3 else None,
        w=weights(*shape), v=weights(*deep), k=weights(*along),
    )  # fmt: skip


@pytest.mark.parametrize(
    "modes",
    [
        'coordinate_transformation_mode = "asymmetric", nearest_mode = "floor"',
        'coordinate_transformation_mode = "half_pixel"',
        'coordinate_transformation_mode = "half_pixel", nearest_mode = "round_prefer_ceil"',
    ],
)
def test_upsampling_is_read_in_place(modes: str):
    """By 2x3, into a concatenation, a sum, once more by 2, and out of the graph."""
    check(
        f"""g (float[2,5,7,6] x, float[18,5,1,1] w, float[7,5,1,1] u, float[4] i, float[4] j, float[2,18,14,18] r,
              float[3,25,1,1] k)
            => (float[2,3,14,18] y, float[2,18,28,36] z, float[2,18,14,18] s) {{
            a = Conv(x, w)
            b = Conv(x, u)
            up = Resize<mode = "nearest", {modes}>(a, , i)
            other = Resize<mode = "nearest", {modes}>(b, , i)
            both = Concat<axis = 1>(other, up)
            y = Conv(both, k)
            s = Add(r, up)
            z = Resize<mode = "nearest", {modes}>(up, , j)
        }}""",
        w=weights(18, 5, 1, 1), u=weights(7, 5, 1, 1), k=weights(3, 25, 1, 1),
        i=np.array([1, 1, 2, 3], np.float32), j=np.array([1, 1, 2, 2], np.float32),
    )  # fmt: skip


@pytest.mark.parametrize("shape", [(5, 24, 2, 2), (24, 1, 2, 2), (7, 19, 3, 2), (3, 40, 1, 4)])
@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
def test_transposed_convolution_without_overlap(shape: tuple[int, int, int, int], mcpu: str):
    ci, co, kh, kw = shape
    check(
        f"""g (float[2,{ci},5,17] x, float[{ci},{co},{kh},{kw}] w, float[1,{co},1,1] b, float k,
              float[2,{co},{5 * kh},{17 * kw}] r) => (float[2,{co},{5 * kh},{17 * kw}] y) {{
            a = ConvTranspose<strides = [{kh}, {kw}]>(x, w)
            s = Mul(a, b)
            c = Add(s, b)
            d = Sigmoid(c)
            y = Add(d, r)
        }}""",
        ["Transpose"] * 3 if co > 1 else ["Reshape", "Reshape", "Transpose"],
        mcpu=mcpu,
        w=weights(*shape),
        b=weights(1, co, 1, 1),
        k=np.array(2.0, np.float32),
    )


@pytest.mark.parametrize(
    ("ci", "co", "kernel", "stride", "pads", "length"),
    [
        (1, 40, 512, 4, (254, 254), 1024),
        (24, 16, 64, 1, (31, 32), 33),
        (3, 7, 17, 3, (0, 5), 40),
        (16, 33, 80, 1, (0, 0), 90),
    ],
)
@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
def test_long_lines(ci: int, co: int, kernel: int, stride: int, pads: tuple[int, int], length: int, mcpu: str):
    """Several blocks of the inner dimension, odd ones, and the epilogue with the last."""
    out = (length + sum(pads) - kernel) // stride + 1
    check(
        f"""g (float[2,{ci},{length},1] x, float[{co},{ci},{kernel},1] w, float[{co}] b, float[2,{co},{out},1] r)
            => (float[2,{co},{out},1] y) {{
            c = Conv<strides = [{stride}, 1], pads = [{pads[0]}, 0, {pads[1]}, 0]>(x, w, b)
            a = Relu(c)
            y = Add(a, r)
        }}""",
        mcpu=mcpu,
        w=weights(co, ci, kernel, 1),
        b=weights(co, 1).reshape(-1),
    )


@pytest.mark.parametrize(
    ("ci", "co", "kernel", "strides", "pads", "size"),
    [
        (8, 8, (3, 39), (1, 1), (1, 19, 1, 19), (5, 43)),
        (1, 3, (5, 11), (2, 3), (2, 5, 2, 4), (9, 37)),
        (2, 1, (1, 15), (1, 2), (0, 7, 0, 0), (3, 30)),
        (1, 1, (1, 256), (1, 2), (0, 3, 0, 0), (1, 350)),
        (3, 5, (1, 300), (1, 1), (0, 0, 0, 9), (1, 330)),
        (5, 24, (2, 21), (1, 1), (1, 0, 0, 3), (4, 25)),
    ],
)
@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
def test_few_channels_several_columns_in_a_vector(ci, co, kernel, strides, pads, size, mcpu: str):
    """Odd numbers of columns leave a part of one; residual, activation and bias go with each."""
    (kh, kw), (h, w) = kernel, size
    oh, ow = (h + pads[0] + pads[2] - kh) // strides[0] + 1, (w + pads[1] + pads[3] - kw) // strides[1] + 1
    problem = Conv(2, h, w, ci, co, kernel, strides, (1, 1), pads)
    assert mcpu != "native" or beside.columns(problem, 16) > 1
    check(
        f"""g (float[2,{ci},{h},{w}] x, float[{co},{ci},{kh},{kw}] w, float[{co}] b, float[2,{co},{oh},{ow}] r)
            => (float[2,{co},{oh},{ow}] y) {{
            c = Conv<strides = {list(strides)}, pads = {list(pads)}>(x, w, b)
            a = Sigmoid(c)
            y = Add(a, r)
        }}""",
        mcpu=mcpu,
        w=weights(co, ci, kh, kw),
        b=weights(co, 1).reshape(-1),
    )


def test_convolutions_of_other_strides_share_weights_and_not_how_they_are_packed():
    assert [beside.columns(Conv(1, 1, 1000, 1, 1, (1, 256), (1, s)), 16) for s in (1, 2)] == [16, 16]
    check(
        """g (float[1,1,1,1000] x, float[1,1,1,256] w) => (float[1,1,1,745] y, float[1,1,1,373] z) {
            y = Conv(x, w)
            z = Conv<strides = [1, 2]>(x, w)
        }""",
        w=weights(1, 1, 1, 256),
    )


def test_channel_shuffle_is_one_kernel():
    check(
        """g (float[N,6,5,4] x, float[30,2,1,1] w, int64[5] apart, int64[4] back, float[30,1,3,3] v)
            => (float[N,30,3,2] y) {
            c = Conv<group = 3>(x, w)
            r = Reshape(c, apart)
            t = Transpose<perm = [0, 2, 1, 3, 4]>(r)
            s = Reshape(t, back)
            y = Conv<group = 30>(s, v)
        }""",
        ["Transpose", "Transpose"],
        w=weights(30, 2, 1, 1), v=weights(30, 1, 3, 3),
        apart=np.array([0, 3, 10, 5, 4]), back=np.array([0, 30, 5, 4]),
    )  # fmt: skip


@pytest.mark.parametrize(("channels", "size", "beta"), [(37, 5, 0.75), (5, 3, 0.5), (64, 3, 1.0), (3, 7, 0.75)])
def test_local_response_normalization(channels: int, size: int, beta: float):
    check(
        f"""g (float[N,5,5,4] x, float[{channels},5,1,1] w) => (float[N,{channels},5,4] y) {{
            c = Conv(x, w)
            y = LRN<size = {size}, alpha = 0.9, beta = {beta}, bias = 2.0>(c)
        }}""",
        ["Transpose", "Transpose"],
        w=weights(channels, 5, 1, 1),
    )


@pytest.mark.parametrize("ci", [1, 5, 6])
@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
def test_narrow_images_sum_in_two_halves(ci: int, mcpu: str):
    """A tile of few accumulators has as many again, for every other step; an odd number of steps leaves one."""
    assert tile.waits(tile.choose(3, 1, Isa(16, 32)), Isa(16, 32))
    assert not tile.waits(tile.Shape(4, 2), Isa(16, 32))
    check(
        f"""g (float[2,{ci},3,3] x, float[13,{ci},3,3] w, float[13] b) => (float[2,13,3,3] y) {{
            c = Conv<pads = [1, 1, 1, 1]>(x, w, b)
            y = Relu(c)
        }}""",
        mcpu=mcpu,
        w=weights(13, ci, 3, 3),
        b=weights(13, 1).reshape(-1),
    )


@pytest.mark.parametrize("ci", [4, 33])
def test_convolution_to_one_channel(ci: int):
    check(
        f"""g (float[N,{ci},9,8] x, float[1,{ci},5,3] w, float[1] b) => (float[N,1,5,8] y) {{
            c = Conv<strides = [2, 1], pads = [2, 1, 2, 1]>(x, w, b)
            y = Relu(c)
        }}""",
        ["Reshape", "Transpose"],
        w=weights(1, ci, 5, 3), b=np.array([0.3], np.float32),
    )  # fmt: skip
