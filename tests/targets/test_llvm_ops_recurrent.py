"""LSTM, GRU and RNN layers against onnxruntime over generated sizes; what the kernel doesn't cover is refused."""

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from graphopt.base import Context
from graphopt.errors import LoweringError
from graphopt.targets.llvm import Llvm
from graphopt.testing import from_text

# No shrinking: each example compiles a model, and a failure must be told in seconds.
EXAMPLES = settings(
    phases=[Phase.explicit, Phase.generate],
    max_examples=10,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def layer(op: str, t, n, size: int, hidden: int, direction: str, attributes: str = "", state: bool = True):
    """The text of a model of one layer with every output, and its weights."""
    d, g = (2 if direction == "bidirectional" else 1), GATES[op]
    rng = np.random.default_rng(0)
    shapes = {"w": (d, g * hidden, size), "r": (d, g * hidden, hidden), "b": (d, 2 * g * hidden)}
    arrays = {k: (rng.standard_normal(s) / np.sqrt(s[-1])).astype(np.float32) for k, s in shapes.items()}
    sizes = {name: f"float[{','.join(map(str, array.shape))}] {name}" for name, array in arrays.items()}
    states = ["h", "c"] if op == "LSTM" else ["h"]
    inputs = [f"float[{t},{n},{size}] x", *sizes.values()] + [f"float[{d},{n},{hidden}] {s}0" for s in states if state]
    outputs = [f"float[{t},{d},{n},{hidden}] y"] + [f"float[{d},{n},{hidden}] {s}" for s in states]
    given = ["x", "w", "r", "b"] + (["", *(f"{s}0" for s in states)] if state else [])
    options = f'hidden_size = {hidden}, direction = "{direction}"{attributes}'
    text = f"""g ({", ".join(inputs)}) => ({", ".join(outputs)}) {{
        {", ".join(["y", *states])} = {op}<{options}>({", ".join(given)}) }}"""
    return text, arrays


@EXAMPLES
@given(
    st.sampled_from(["LSTM", "LSTM", "GRU", "GRU after", "RNN", "RNN relu"]), st.integers(1, 9), st.integers(1, 9),
    st.integers(1, 20), st.integers(1, 40), st.sampled_from(["forward", "reverse", "bidirectional"]), st.booleans(),
    st.sampled_from(["native", "x86-64-v3"]),
)  # fmt: skip
def test_layers(check, kind: str, t: int, n: int, size: int, hidden: int, direction: str, state: bool, mcpu: str):
    """Every output, from given states or zeros, in each direction."""
    directions = 2 if direction == "bidirectional" else 1
    more = {
        "GRU after": ", linear_before_reset = 1",
        "RNN relu": ", activations = [" + ", ".join(['"Relu"'] * directions) + "]",
    }
    text, arrays = layer(kind.split()[0], t, n, size, hidden, direction, more.get(kind, ""), state)
    check(text, mcpu, None, **arrays)


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("state", [False, True])
def test_open_batch_and_length(check, op: str, state: bool):
    text, arrays = layer(op, "T", "N", 5, 19, "bidirectional", "", state)
    feeds = {"x": np.random.default_rng(1).standard_normal((7, 3, 5)).astype(np.float32)}
    if state:
        states = ("h0", "c0") if op == "LSTM" else ("h0",)
        feeds |= {name: np.random.default_rng(2).standard_normal((2, 3, 19)).astype(np.float32) for name in states}
    check(text, left=None, feeds=feeds, **arrays)


def test_the_output_alone_is_all_kernels(check):
    """A layer between others, as speech models have it."""
    text, arrays = layer("LSTM", 6, 2, 8, 16, "bidirectional", "", False)
    body = text[text.index("{") :].replace("y, h, c =", "z, h, c =").replace("}", "y = Relu(z) }")
    head = "g (float[6,2,8] x, float[2,64,8] w, float[2,64,16] r, float[2,128] b) => (float[6,2,2,16] y)"
    check(f"{head} {body}", left={"Relu"}, **arrays)


@pytest.mark.parametrize(
    "attributes", [", clip = 3.0", ', activations = ["Sigmoid", "Relu", "Tanh"]', ", input_forget = 1"]
)
def test_what_the_kernel_does_not_cover_is_written_out_step_by_step_where_the_steps_are_known(check, attributes: str):
    text, arrays = layer("LSTM", 3, 2, 4, 5, "forward", attributes)
    check(text, left=None, **arrays)
    text, arrays = layer("LSTM", "T", 2, 4, 5, "forward", attributes)
    model = from_text(f'<ir_version: 9, opset_import: ["": 17]>\n{text}', **arrays)
    with pytest.raises(LoweringError, match="LSTM"):
        Llvm().build(model, Context())
