"""What stands between convolutions, whole nodes against onnxruntime: epilogues of several steps, pointwise passes..."""

import numpy as np
import onnx_ir as ir
import pytest

from graphopt import oracle
from graphopt.artifact import assemble
from graphopt.base import Context
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import resolve
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
