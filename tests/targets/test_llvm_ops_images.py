"""Reductions, softmax over channels, resizing and padding against onnxruntime over generated shapes and attributes."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=6,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
CPUS = st.sampled_from(["native", "x86-64-v3"])
REDUCTIONS = ["ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceL1", "ReduceL2", "ReduceSumSquare"]


def shape(dims) -> str:
    return "float[" + ",".join(map(str, dims)) + "]"


def reduced(dims, axes, keep: int) -> tuple[int, ...]:
    return tuple(1 if i in axes else d for i, d in enumerate(dims) if keep or i not in axes)


@EXAMPLES
@given(
    dims=st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(2, 30), st.integers(2, 30)),
    last=st.booleans(), keep=st.sampled_from([0, 1]), mcpu=CPUS,
)  # fmt: skip
def test_reductions(check, dims, last: bool, keep: int, mcpu: str):
    """Over channels, positions and everything, of values in ONNX's order and channels-last, each operator."""
    cases = [(2, 3), (1,), (3,), (1, 2, 3)]
    lines, outputs = [], []
    for index, op in enumerate(REDUCTIONS):
        axes = cases[index % 4]
        lines.append(
            f"a{index} = Constant<value_ints = {list(axes)}>()  y{index} = {op}<keepdims = {keep}>(p, a{index})"
        )
        outputs.append(f"{shape(reduced(dims, axes, keep))} y{index}")
    start = "MaxPool<kernel_shape = [1, 1]>(x)" if last else "Identity(x)"
    check(f"g ({shape(dims)} x) => ({', '.join(outputs)}) {{ p = {start}  {'  '.join(lines)} }}", mcpu, None, opset=18)


@pytest.mark.parametrize("op", ["GlobalMaxPool", "GlobalAveragePool"])
def test_global_pools_and_a_mean_that_is_one(check, op: str):
    """A mean over positions stays channels-last for the convolution that reads it; so does a pool of an input."""
    check(
        f"""g (float[2,9,70,5] x, float[4,9,1,1] k) => (float[2,4,1,1] y, float[2,4,1,1] z) {{
            a = {op}(x)  y = Conv(a, k)  c = MaxPool<kernel_shape = [1, 1]>(x)  m = ReduceMean<axes = [2, -1]>(c)
            z = Conv(m, k) }}""",
        k=np.random.default_rng(0).standard_normal((4, 9, 1, 1)).astype(np.float32),
    )  # fmt: skip


def test_reductions_that_no_kernel_covers(check):
    """Axes apart, and rows of open length, go on to TVM."""
    check(
        "g (float[2,3,4,5] x) => (float[3,5] y) { y = ReduceMax<axes = [0, 2], keepdims = 0>(x) }", left={"ReduceMax"}
    )


@EXAMPLES
@given(
    dims=st.tuples(st.integers(1, 3), st.integers(2, 40), st.integers(1, 9), st.integers(2, 9)),
    op=st.sampled_from(["Softmax", "LogSoftmax"]), mcpu=CPUS,
)  # fmt: skip
def test_softmax_over_channels(check, dims, op: str, mcpu: str):
    """Of pictures and of lines, and over the last axis."""
    flat = shape((dims[0], dims[1], dims[3]))
    check(
        f"""g ({shape(dims)} x, {flat} v) => ({shape(dims)} y, {flat} z, {shape(dims)} u) {{
            y = {op}<axis = 1>(x)  z = {op}<axis = 1>(v)  u = {op}<axis = -1>(x) }}""",
        mcpu,
    )  # fmt: skip


@st.composite
def resizes(draw: st.DrawFn):
    mode = draw(st.sampled_from(["nearest", "linear", "cubic"]))
    places = draw(
        st.sampled_from(["half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric"])
    )
    options = {"mode": f'"{mode}"', "coordinate_transformation_mode": f'"{places}"'}
    if mode == "nearest":
        kinds = ["round_prefer_floor", "round_prefer_ceil", "floor", "ceil"]
        options["nearest_mode"] = f'"{draw(st.sampled_from(kinds))}"'
    if mode == "cubic":
        options["exclude_outside"] = str(draw(st.integers(0, 1)))
        options["cubic_coeff_a"] = draw(st.sampled_from(["-0.75", "-0.5"]))
    return ", ".join(f"{name} = {value}" for name, value in options.items())


SIZES = st.tuples(st.integers(3, 13), st.integers(3, 13))


@settings(EXAMPLES, max_examples=12)
@given(resizes(), SIZES, SIZES, st.integers(1, 40), CPUS)
def test_resize(check, options: str, before, after, channels: int, mcpu: str):
    """Every mode, way of counting places, and rounding; larger and smaller; by sizes and by scales."""
    scales = np.array([1, 1, 2.5, 0.75], np.float32)
    scaled = [int(np.floor(np.float32(d) * s)) for d, s in zip(before, scales[2:], strict=True)]
    check(
        f"""g ({shape((2, channels, *before))} x, int64[4] size, float[4] scales) =>
              ({shape((2, channels, *after))} y, {shape((2, channels, *scaled))} z) {{
            y = Resize<{options}>(x, , , size)  z = Resize<{options}>(x, , scales) }}""",
        mcpu, opset=19, size=np.array([2, channels, *after]), scales=scales,
    )  # fmt: skip


@EXAMPLES
@given(
    st.tuples(*[st.integers(0, 3)] * 4), st.sampled_from(["constant", "edge", "reflect"]), st.integers(1, 40),
    st.sampled_from([0.0, -1.5]), CPUS,
)  # fmt: skip
def test_pad(check, pads, mode: str, channels: int, value: float, mcpu: str):
    """Around pictures that a kernel has left channels-last; the first value stays with TVM."""
    top, left, bottom, right = pads
    check(
        f"""g ({shape((2, channels, 5, 6))} x, int64[8] p, float v) =>
              ({shape((2, channels, 5 + top + bottom, 6 + left + right))} y) {{
            a = MaxPool<kernel_shape = [1, 1]>(x)  b = Pad<mode = "{mode}">(a, p, v)  y = Relu(b) }}""",
        mcpu, p=np.array([0, 0, top, left, 0, 0, bottom, right]), v=np.array(value, np.float32), rtol=0,
    )  # fmt: skip


def output_size(size: int, kernel: int, stride: int, dilation: int, pads: tuple[int, int]) -> int:
    """Windows of a pooling that rounds up, less one that would start in the padding at the end."""
    whole = -(-(size + sum(pads) - dilation * (kernel - 1) - 1) // stride) + 1
    return whole - 1 if (whole - 1) * stride >= size + pads[0] else whole


@EXAMPLES
@given(
    st.integers(7, 15), st.integers(2, 3), st.integers(1, 3), st.integers(1, 2), st.integers(0, 1), st.integers(0, 1),
    st.integers(1, 20), CPUS,
)  # fmt: skip
def test_pools_that_round_up(
    check, size: int, kernel: int, stride: int, dilation: int, pad: int, count: int, c: int, mcpu
):
    """Largest and mean, with windows that end outside."""
    out = output_size(size, kernel, stride, dilation, (pad, pad))
    common = f"ceil_mode = 1, kernel_shape = [{kernel}, {kernel}], strides = [{stride}, {stride}], pads = {[pad] * 4}"
    outside = (out - 1) * stride + dilation * (kernel - 1) + 1 > size + 2 * pad
    check(
        f"""g ({shape((2, c, size, size))} x) => ({shape((2, c, out, out))} y, {shape((2, c, out, out))} z) {{
            y = MaxPool<{common}, dilations = [{dilation}, {dilation}]>(x)
            z = AveragePool<{common}, dilations = [{dilation}, {dilation}], count_include_pad = {count}>(x) }}""",
        mcpu, {"AveragePool"} if outside and count and pad else frozenset(), opset=19,
    )  # fmt: skip


def test_zero_padding_before_a_convolution_is_the_convolutions_own(check):
    """As exporters from TensorFlow write it; a padding by ones stays."""
    rng = np.random.default_rng(0)
    weights = {name: rng.standard_normal((4, 3, 3, 3)).astype(np.float32) for name in ("k", "u")}
    check(
        """g (float[1,3,9,8] x, float[4,3,3,3] k, float[4,3,3,3] u, int64[8] p, float zero) =>
             (float[1,4,5,5] y, float[1,4,10,8] z) {
            a = Pad(x, p, zero)  y = Conv<strides = [2, 2], pads = [0, 0, 0, 1]>(a, k)  b = Pad(x, p)
            z = Conv<auto_pad = "VALID">(b, u) }""",
        p=np.array([0, 0, 1, 0, 0, 0, 2, 2]), zero=np.array(0, np.float32), **weights,
    )  # fmt: skip


@settings(EXAMPLES, max_examples=10)
@given(st.data(), CPUS)
def test_transposed_convolutions(check, data: st.DataObject, mcpu: str):
    """Windows that overlap, or leave gaps; padding, groups, different strides, dilated where the stride is one."""
    stride = data.draw(st.tuples(st.integers(1, 3), st.integers(1, 3)))
    kernel = data.draw(st.tuples(st.integers(1, 5), st.integers(1, 5)))
    dilation = tuple(data.draw(st.integers(1, 2)) if s == 1 else 1 for s in stride)
    more = tuple(data.draw(st.integers(0, s - 1)) for s in stride)
    pads = data.draw(st.tuples(*[st.integers(0, 2)] * 4))
    group, ci, co = data.draw(st.sampled_from([1, 1, 3])), data.draw(st.integers(1, 9)), data.draw(st.integers(1, 20))
    size = (6, 5)
    out = [
        (n - 1) * s + o + d * (k - 1) + 1 - low - high
        for n, s, o, d, k, low, high in zip(size, stride, more, dilation, kernel, pads[:2], pads[2:], strict=True)
    ]
    rng = np.random.default_rng(0)
    check(
        f"""g ({shape((2, ci * group, *size))} x, {shape((ci * group, co, *kernel))} w, {shape((co * group,))} b) =>
              ({shape((2, co * group, *out))} y) {{
            c = ConvTranspose<strides = {list(stride)}, dilations = {list(dilation)}, pads = {list(pads)},
                output_padding = {list(more)}, group = {group}>(x, w, b)
            y = LeakyRelu(c) }}""",
        mcpu, None if 1 in out else frozenset(),
        w=(rng.standard_normal((ci * group, co, *kernel)) / 4).astype(np.float32),
        b=rng.standard_normal(co * group).astype(np.float32),
    )  # fmt: skip


def test_transposed_convolution_of_a_line(check):
    """As vocoders have it."""
    w = np.random.default_rng(0).standard_normal((8, 5, 16)).astype(np.float32) / 8
    check(
        """g (float[1,8,20] x, float[8,5,16] w) => (float[1,5,160] y) {
            y = ConvTranspose<strides = [8], pads = [4, 4]>(x, w) }""",
        w=w,
    )  # fmt: skip
