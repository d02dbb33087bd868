"""Weights of 4 and 8 bits under float activations: as in onnxruntime, and as small in the artifact as in the model."""

import ml_dtypes
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.passes.quantize_weights import QuantizeWeights
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
from graphopt.targets.llvm.plan import plan
from graphopt.targets.lowering.canonical import canonicalise
from graphopt.testing import apply, from_text

EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate], max_examples=8, deadline=None, derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)  # fmt: skip
RANGES = {"int4": (-8, 8), "uint4": (0, 16), "int8": (-128, 128), "uint8": (0, 256)}


def dense(dtype, k, n, block, zeros, transposed, rows="N,3", seed=0):
    """Relu(x W + b) with W [K, N] in blocks along K, or by column where `block` is 0; as Gemm with W [N, K] too."""
    rng = np.random.default_rng(seed)
    low, high = RANGES[dtype]
    numpy = np.dtype(getattr(ml_dtypes, dtype)) if "4" in dtype else np.dtype(dtype)
    along = (-(-k // block), n) if block else (n,)
    axis = 0 if block else 1
    w = rng.integers(low, high, (k, n))
    s = rng.uniform(0.01, 0.02, along).astype(np.float32)
    z = rng.integers(low, high, along) if zeros else np.zeros(along)
    if transposed:
        w, axis = w.T, 1 - axis
        s, z = (s.T, z.T) if block else (s, z)
        rows = "N"
    dims = ",".join(map(str, s.shape))
    point = (f", {dtype}[{dims}] z", ", z") if zeros else ("", "")
    product = "p = Gemm<transB=1>(x, d, b)" if transposed else "m = MatMul(x, d) p = Add(m, b)"
    attributes = f"axis={axis}" + (f", block_size={block}" if block else "")
    return from_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[{rows},{k}] x, {dtype}[{w.shape[0]},{w.shape[1]}] w, float[{dims}] s{point[0]}, float[{n}] b)
        => (float[{rows},{n}] y) {{ d = DequantizeLinear<{attributes}>(w, s{point[1]}) {product} y = Relu(p) }}""",
        w=np.ascontiguousarray(w).astype(numpy), s=np.ascontiguousarray(s), b=rng.standard_normal(n).astype(np.float32),
        **({"z": np.ascontiguousarray(z).astype(numpy)} if zeros else {}),
    )  # fmt: skip


def kernels_of(model) -> list[str]:
    canonical = canonicalise(model.clone())
    plan(canonical, resolve("native"), parallel=False)
    found = [str(n.attributes.get_string("symbol")) for n in canonical.graph if n.op_type == "CallPacked"]
    return [symbol.rsplit("_", 1)[0] for symbol in found]


def stored(program) -> int:
    """Bytes of the weights in the artifact."""
    return sum(program.packed.get(name, array).nbytes for name, array in program.weights.items())


def same(model, mcpu, counts=(1, 4, 9)) -> None:
    program = Llvm(mcpu=mcpu, threads=1).build(model, Context())
    rank, k = len(model.graph.inputs[0].shape), model.graph.inputs[0].shape[-1]
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        for n in counts:
            shape = (n, k) if rank == 2 else (n, 3, k)
            feeds = {"x": np.random.default_rng(n).standard_normal(shape).astype(np.float32)}
            want, got = oracle.run(model, feeds)["y"], executable.run(feeds)["y"]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@EXAMPLES
@given(
    st.sampled_from(list(RANGES)), st.integers(1, 150), st.integers(1, 70), st.sampled_from([0, 16, 32]),
    st.booleans(), st.booleans(), st.sampled_from(["native", "x86-64-v3"]),
)  # fmt: skip
def test_products_of_any_shape(dtype, k, n, block, zeros, transposed, mcpu):
    model = dense(dtype, k, n, block, zeros, transposed)
    assert kernels_of(model) == ["few_bits"]
    same(model, mcpu)


@pytest.mark.parametrize("dtype", ["int4", "uint8"])
def test_a_block_larger_than_the_inner_dimension_and_one_that_splits_bytes(dtype):
    same(dense(dtype, 20, 33, 32, True, False), "native")
    odd = dense("int4", 21, 33, 7, True, False)
    assert kernels_of(odd) != ["few_bits"], "two rows of a byte are of different blocks there"
    same(odd, "native")


def test_the_artifact_holds_four_bits():
    model = dense("uint4", 512, 256, 32, True, False)
    program = Llvm(threads=1).build(model, Context())
    assert stored(program) <= 512 * 256 // 2 + 2 * 4 * 16 * 256 + 4 * 256
    assert kernels_of(model) == ["few_bits"]


@pytest.mark.parametrize(("rows", "n", "stay"), [("N,3", 1024, True), ("N,3", 256, False), ("N,16", 1024, False)])
def test_large_weights_stay_few_bits_in_memory_for_few_rows(rows, n, stay):
    model = dense("uint4", 256, n, 32, True, False, rows=rows)
    program = Llvm(threads=1).build(model, Context())
    (account,) = program.report["integer"].values()
    assert ("stay 4 bits" in account) == stay
    assert any(symbol.startswith("few_bits") for symbol in program.report["kernels"]) == stay
    assert (len(program.packed) == 1) == (not stay)
    assert stored(program) <= 256 * n // 2 + 5 * 8 * n + 4 * n


@pytest.mark.parametrize("mcpu", ["native", "x86-64-v3"])
@pytest.mark.parametrize(
    ("weight", "attributes", "x", "y"),
    [
        ((40, 24, 3, 3), "pads=[1,1,1,1]", "1,24,12,13", "1,40,12,13"),  # Winograd
        ((40, 24, 3, 3), "strides=[2,2]", "1,24,13,13", "1,40,6,6"),
        ((36, 12, 3, 2), "group=2", "1,24,8,9", "1,36,6,8"),
        ((40, 24, 64), "strides=[4]", "1,24,104", "1,40,11"),
        ((40, 24, 5), "pads=[2,2]", "1,24,70", "1,40,70"),  # Winograd along lines
        ((128, 1, 3, 3), "group=128, pads=[1,1,1,1]", "1,128,9,9", "1,128,9,9"),
        ((48, 64, 1, 1), "", "1,64,9,9", "1,48,9,9"),
    ],
)
def test_convolutions_are_dequantized_when_loaded(weight, attributes, x, y, mcpu):
    """As fast as float32, and in the file as small as in the model: the very program that float32 weights give."""
    rng = np.random.default_rng(0)
    dims = ",".join(map(str, weight))
    model = from_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[{x}] x, float[{dims}] w) => (float[{y}] y) {{ y = Conv<{attributes}>(x, w) }}""".replace("<>", ""),
        w=rng.standard_normal(weight).astype(np.float32),
    )
    quantized, _ = apply(QuantizeWeights(bits=4), model)
    program = Llvm(mcpu=mcpu, threads=1).build(quantized, Context())
    assert set(program.report["kernels"]) == set(Llvm(mcpu=mcpu, threads=1).build(model, Context()).report["kernels"])
    assert len(program.packed) == 1
    assert stored(program) < (0.55 if weight[1] == 1 else 0.19) * 4 * np.prod(weight) + 4 * 48
    feeds = {"x": rng.standard_normal([int(d) for d in x.split(",")]).astype(np.float32)}
    with assemble(program, target="llvm", before=model, after=quantized, report={}) as executable:
        for name, array in executable.weights.items():
            np.testing.assert_array_equal(array, program.weights[name])
        want, got = oracle.run(quantized, feeds)["y"], executable.run(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4 * np.abs(want).max())


def test_matmul_nbits_uses_the_kernel_in_any_opset():
    rng = np.random.default_rng(0)
    model = from_text(
        """<ir_version: 9, opset_import: ["": 17, "com.microsoft": 1]>
        g (float[N,64] x, uint8[48,2,16] b, float[96] s) => (float[N,48] y) {
            y = com.microsoft.MatMulNBits<K=64, N=48, bits=4, block_size=32>(x, b, s) }""",
        b=rng.integers(0, 256, (48, 2, 16)).astype(np.uint8), s=rng.uniform(0.01, 0.02, 96).astype(np.float32),
    )  # fmt: skip
    assert kernels_of(model) == ["few_bits"]
    same(model, "native")


@pytest.mark.parametrize("mcpu", ["neoverse-n1", "x86-64-v2"])
def test_other_cpus_have_it_too(mcpu):
    canonical = canonicalise(dense("int4", 64, 48, 32, False, False))
    assert next(iter(plan(canonical, resolve(mcpu), parallel=False))).startswith("few_bits")


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("residual", [False, True])
def test_convolutions_of_single_positions(bits, residual):
    """As `quantize-weights` writes them; with positions that fill no tile, and a batch that is open."""
    rng = np.random.default_rng(bits)
    add, last = ("s = Add(c, x)", "s") if residual else ("", "c")
    model = from_text(
        f"""<ir_version: 10, opset_import: ["": 21]>
        g (float[N,40,5,7] x, float[40,40,1,1] w, float[40] b) => (float[N,40,5,7] y) {{
            c = Conv(x, w, b) {add} y = Relu({last}) }}""",
        w=rng.standard_normal((40, 40, 1, 1)).astype(np.float32) / 6, b=rng.standard_normal(40).astype(np.float32),
    )  # fmt: skip
    quantized, _ = apply(QuantizeWeights(bits=bits), model)
    assert "few_bits" in kernels_of(quantized)
    program = Llvm(threads=1).build(quantized, Context())
    assert stored(program) < 40 * 40 * 4 * (0.5 if bits == 4 else 0.65)
    with assemble(program, target="llvm", before=model, after=quantized, report={}) as executable:
        for n in (1, 3):
            feeds = {"x": rng.standard_normal((n, 40, 5, 7)).astype(np.float32)}
            want, got = oracle.run(quantized, feeds)["y"], executable.run(feeds)["y"]
            np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


def test_many_rows_of_a_known_number():
    """Weights are dequantized once for them; the last rows fill no tile."""
    model = dense("uint4", 70, 50, 32, True, False, rows="37")
    program = Llvm(threads=1).build(model, Context())
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        feeds = {"x": np.random.default_rng(0).standard_normal((37, 70)).astype(np.float32)}
        want, got = oracle.run(model, feeds)["y"], executable.run(feeds)["y"]
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5 * np.abs(want).max())


@pytest.mark.parametrize(("channels", "kept"), [(400, True), (100, False)])
@pytest.mark.parametrize("each", [True, False])
def test_depthwise_weights_stay_bytes_where_that_counts(channels, kept, each):
    """Made float at each run; small ones when the model is compiled. A scale for each channel, or one."""
    rng = np.random.default_rng(0)
    size = channels if each else 1
    scale = f"[{size}]" if each else ""
    model = from_text(
        f"""<ir_version: 8, opset_import: ["": 17]>
        g (float[1,{channels},7,9] x, int8[{channels},1,5,5] w, float{scale} s) => (float[1,{channels},7,9] y) {{
            d = DequantizeLinear<axis=0>(w, s) c = Conv<group={channels}, pads=[2,2,2,2]>(x, d) y = Relu(c) }}""",
        w=rng.integers(-128, 128, (channels, 1, 5, 5)).astype(np.int8),
        s=rng.uniform(0.01, 0.02, size).astype(np.float32).reshape((size,) if each else ()),
    )  # fmt: skip
    program = Llvm(threads=1).build(model, Context())
    dtypes = {str(array.dtype) for array in program.weights.values() if array.size == 25 * channels}
    assert dtypes == ({"int8"} if kept else {"float32"})
    feeds = {"x": rng.standard_normal((1, channels, 7, 9)).astype(np.float32)}
    with assemble(program, target="llvm", before=model, after=model, report={}) as executable:
        (got,) = executable.run(feeds).values()
    np.testing.assert_allclose(got, oracle.run(model, feeds)["y"], rtol=1e-5, atol=1e-4)
