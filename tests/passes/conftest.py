"""What the tests of the passes share. The folder is on the path so that they can import `qdq`."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from graphopt.testing import from_text

sys.path.insert(0, str(Path(__file__).parent))

BATCH_NORM = "BatchNormalization({x}, g{n}, b{n}, m{n}, v{n})"


def random_weight(name: str, shape: list[int], dtype: np.dtype, rng: np.random.Generator) -> np.ndarray:
    """Variances (v...) and divisors (d...) are positive; all else is normal."""
    if dtype.kind in "iu":
        return rng.integers(-100, 100, shape).astype(dtype)
    if name.startswith(("v", "d")):
        return rng.uniform(0.5, 2.0, shape).astype(dtype)
    return rng.standard_normal(shape).astype(dtype)


@pytest.fixture(autouse=True)
def _same_numbers_whatever_ran_before(monkeypatch):
    monkeypatch.setattr("qdq.RNG", np.random.default_rng(0))


@pytest.fixture
def build() -> Callable[..., ir.Model]:
    """``build(body, x="float[2,3,8,8]", w="float[4,3,3,3]", ..., out="float[...]")``: a model from a graph's body.

    Inputs named x... stay inputs, the others become seeded random weights; ``norms={1: 4}`` declares g1, b1, m1,
    v1 of 4 channels. ``values`` gives weights by name.
    """

    def build(
        body: str,
        *,
        norms: dict[int, int] | None = None,
        opset: int = 17,
        out: str = "float[a,b,c,d] y",
        seed: int = 0,
        values: dict[str, np.ndarray] | None = None,
        extra: str = "",
        **declared: str,
    ) -> ir.Model:
        for n, channels in (norms or {}).items():
            declared |= {f"{p}{n}": f"float[{channels}]" for p in "gbmv"}
        inputs = ", ".join(f"{kind} {name}" for name, kind in declared.items())
        header = f'<ir_version: 9, opset_import: ["": {opset}, "local": 1]>'
        text = f"{header}\nmain ({inputs}) => ({out}) {{ {body} }}\n{extra}"
        rng = np.random.default_rng(seed)
        kinds = {
            "float": np.float32,
            "float16": np.float16,
            "int8": np.int8,
            "int32": np.int32,
            "int64": np.int64,
            "double": np.float64,
        }
        weights = {}
        for name, kind in declared.items():
            if not name.startswith("x"):
                base, dims = re.fullmatch(r"(\w+)\[(.*)\]", kind).groups()
                shape = [int(d) for d in dims.split(",") if d]
                weights[name] = random_weight(name, shape, np.dtype(kinds[base]), rng)
        return from_text(text, **weights | (values or {}))

    return build
