"""Which kernels share their loops out to threads."""

import numpy as np
import pytest

from graphopt import oracle
from graphopt.base import Context
from graphopt.targets.llvm import Llvm
from graphopt.targets.llvm.cpu import native
from graphopt.testing import from_text

HEADER = '<ir_version: 10, opset_import: ["": 20]>'


def parallel_kernels(batch, size, parallel=True):
    from graphopt.targets.llvm.plan import plan
    from graphopt.targets.lowering.canonical import canonicalise

    shape = f"{batch},16,{size},{size}"
    text = f"g (float[{shape}] x, float[16,16,3,3] w) => (float[{shape}] y) {{ y = Conv<pads=[1,1,1,1]>(x, w) }}"
    model = canonicalise(from_text(f"{HEADER} {text}", w=np.ones((16, 16, 3, 3), np.float32)))
    functions = dict(plan(model, native(), parallel))
    assert len(functions) == 1
    return ["T.parallel" in str(function) for function in functions.values()]


@pytest.mark.parametrize(
    ("batch", "size", "shared"),
    [(1, 4, False), (1, 64, True), (64, 8, True), ("N", 4, True)],
    ids=["small", "large", "many", "open batch"],
)
def test_only_work_that_outweighs_the_hand_over_is_shared_out(batch, size, shared):
    assert parallel_kernels(batch, size) == [shared]


def test_one_thread_never_hands_over():
    assert parallel_kernels(1, 64, parallel=False) == [False]


@pytest.mark.parametrize("channels", [48, 384], ids=["many blocks", "steps of one large block"])
def test_winograd_on_two_threads(channels):
    """Large weights make one block of all tiles, whose steps are shared out instead of blocks."""
    from graphopt.artifact import assemble

    rng = np.random.default_rng(0)
    shape = f"1,{channels},30,26"
    inputs = f"float[{shape}] x, float[{channels},{channels},3,3] w"
    text = f"g ({inputs}) => (float[{shape}] y) {{ y = Conv<pads=[1,1,1,1]>(x, w) }}"
    w = rng.standard_normal((channels, channels, 3, 3)).astype(np.float32)
    model = from_text(f"{HEADER} {text}", w=w / np.float32(3 * channels**0.5))
    feeds = {"x": rng.standard_normal((1, channels, 30, 26)).astype(np.float32)}
    want = oracle.run(model, feeds)["y"]
    parts = {"target": "llvm", "before": model, "after": model, "report": {}}
    with assemble(Llvm().build(model, Context()), **parts, threads=2) as executable:
        for _ in range(10):
            np.testing.assert_allclose(executable.run(feeds)["y"], want, rtol=0, atol=2e-5 * np.abs(want).max())


def test_winograd_along_a_line_on_two_threads():
    """Panels of channels are shared out, each thread with products of its own; the last one is narrower."""
    from graphopt.artifact import assemble

    rng = np.random.default_rng(0)
    text = "g (float[2,256,300] x, float[200,256,5] w) => (float[2,200,300] y) { y = Conv<pads=[2,2]>(x, w) }"
    w = rng.standard_normal((200, 256, 5)).astype(np.float32) / np.float32(36)
    model = from_text(f"{HEADER} {text}", w=w)
    feeds = {"x": rng.standard_normal((2, 256, 300)).astype(np.float32)}
    want = oracle.run(model, feeds)["y"]
    parts = {"target": "llvm", "before": model, "after": model, "report": {}}
    program = Llvm().build(model, Context())
    assert any("winograd-line" in made["candidate"] for made in program.report["choices"].values())
    with assemble(program, **parts, threads=2) as executable:
        for _ in range(10):
            np.testing.assert_allclose(executable.run(feeds)["y"], want, rtol=0, atol=2e-5 * np.abs(want).max())
