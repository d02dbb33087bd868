"""Which kernels share their loops out to threads."""

import numpy as np
import pytest

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
