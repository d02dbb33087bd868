"""What tests of passes need: small graphs from text, random graphs, equivalence through onnxruntime, golden text.

::

    def test_folds_conv_bn():
        before = from_text(
            '''
            <ir_version: 8, opset_import: ["": 17]>
            g (float[1,1,4,4] x, float[2,1,3,3] w) => (float[1,2,2,2] y) { y = Conv(x, w) }
            ''',
            w=np.ones((2, 1, 3, 3), np.float32),
        )
        after, report = apply(MyPass(), before)
        assert_equivalent(before, after, rtol=1e-5)


    @given(model=graphs())                      # hypothesis
    def test_random_graphs_keep_their_numbers(model):
        assert_preserves(MyPass(), model)


    def test_reference_models_keep_their_numbers():
        check_on_models(MyPass())

The names below are stable: see docs/writing-passes.md.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from graphopt.data.random import random_feeds
from graphopt.graph.listing import listing
from graphopt.testing.equivalence import apply, assert_equivalent, assert_preserves
from graphopt.testing.golden import assert_golden
from graphopt.testing.reference import check_on_models
from graphopt.testing.text import from_text, op_types

if TYPE_CHECKING:
    from graphopt.testing.random_graphs import graphs

__all__ = [
    "apply",
    "assert_equivalent",
    "assert_golden",
    "assert_preserves",
    "check_on_models",
    "from_text",
    "graphs",
    "listing",
    "op_types",
    "random_feeds",
]


def __getattr__(name: str) -> Any:
    if name != "graphs":
        raise AttributeError(f"module 'graphopt.testing' has no attribute {name!r}")
    from graphopt.testing.random_graphs import graphs  # hypothesis is imported only by those who ask for graphs

    return graphs
