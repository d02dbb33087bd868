"""Random valid models: what exporters write, in combinations that nobody would; drawn by hypothesis or by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from graphopt.testing.random_blocks import BLOCKS
from graphopt.testing.random_net import TYPES, Net
from graphopt.testing.random_steps import STEPS, add_tail

if TYPE_CHECKING:
    import onnx_ir as ir
    from hypothesis import strategies as st

OPSETS = (13, 17, 21)
OFTEN = ["norm"] * 6 + ["conv"] * 6 + ["residual"] * 2 + ["resize"] * 2


def graphs(
    *, max_steps: int = 12, dtypes: Sequence[str] = ("float32", "float16"), subgraphs: bool = True
) -> st.SearchStrategy[ir.Model]:
    """Models in normal form with one input ``x`` [N, 4, 6, 6]: convolutions, batch norms everywhere, residuals,
    values with several readers, shared weights, concatenation, reshapes, branches (If) that capture values, constant
    arithmetic, masks and casts, dead nodes, several outputs, in opsets 13 to 21.

    All are continuous in their inputs and of moderate values, so that a rewrite's rounding stays a rounding. The same
    example always gives the same model, and it shrinks to few nodes.

    Args:
        max_steps: a step is one to five nodes.
        dtypes: of the activations and weights: "float32", "float16".
        subgraphs: whether there are If nodes.
    """
    from hypothesis import strategies as st

    names = [name for name in STEPS if subgraphs or name != "branch"]
    step = st.tuples(st.sampled_from([*names, "norm", "norm", "conv"]), st.integers(0, 11), st.integers(0, 11))
    return st.builds(
        build,
        st.lists(step, min_size=1, max_size=max_steps),
        seed=st.integers(0, 7),
        dtype=st.sampled_from(list(dtypes)),
        opset=st.sampled_from(OPSETS),
        returned=st.integers(0, 11),
        tail=st.booleans(),
    )


def random_graph(seed: int, most_steps: int = 40) -> ir.Model:
    """A model as `graphs` gives, larger, and with whole blocks in it: attention, gates, normalisations, loops,
    recurrent layers, quantized weights, changes of the image's size. In some height and width are open too, ``H`` and
    ``W``, to be fed with even numbers. The same seed, with the same `most_steps` (a step is one to a dozen nodes),
    always gives the same model.
    """
    rng = np.random.default_rng(seed)
    names = [*STEPS, *BLOCKS, *OFTEN]
    count = min(most_steps, int(rng.choice([4, 12, 24, 40], p=[0.2, 0.4, 0.3, 0.1])))
    steps = [
        (names[int(rng.integers(len(names)))], int(rng.integers(12)), int(rng.integers(12)))
        for _ in range(rng.integers(1, count + 1))
    ]
    return build(
        steps,
        seed=int(rng.integers(1 << 30)),
        dtype=str(rng.choice(list(TYPES), p=[0.85, 0.15])),
        opset=int(rng.choice([*range(13, 24)])),
        returned=int(rng.integers(12)),
        tail=bool(rng.random() < 0.4),
        open_image=bool(rng.random() < 0.25),
    )


def build(
    steps: Sequence[tuple[str, int, int]],
    seed: int,
    dtype: str,
    opset: int,
    returned: int,
    tail: bool,
    open_image: bool = False,
) -> ir.Model:
    """The model of the steps `steps`: names from `STEPS` and `BLOCKS`, each with two numbers that choose its form."""
    net = Net(seed, dtype, opset, open_image)
    for name, a, b in steps:
        step = STEPS.get(name) or BLOCKS[name]
        step(net, net.values[-1 - (a % 4 == 3) * (b % len(net.values))], a, b)
    if tail:
        add_tail(net, net.values[-1])
    if len(net.values) == 1:
        net.emit("Relu(x)", net.values[0])
    return net.model([net.values[-1], net.values[1 + returned % (len(net.values) - 1)]])
