"""Which types of numbers are compiled, left to onnxruntime or refused: the table in docs/coverage.md, made here."""

import contextlib
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest

import graphopt
from graphopt import oracle
from graphopt.errors import GraphoptError, ModelError
from graphopt.testing import from_text

COLUMNS = ("Add", "MatMul", "Conv", "Gather", "Cast", "DequantizeLinear")
FLOATS, BYTES, INTEGERS = (("Add", "MatMul", "Conv", "Gather", "Cast"), ("Add", "Gather", "Cast", "DequantizeLinear"),
                           ("Add", "MatMul", "Gather", "Cast"))  # fmt: skip
HAS = {
    **dict.fromkeys(("float", "double", "float16", "bfloat16"), FLOATS),
    **dict.fromkeys(("int8", "uint8", "int16", "uint16"), BYTES),
    **dict.fromkeys(("int64", "uint32", "uint64"), INTEGERS),
    "int32": (*INTEGERS, "DequantizeLinear"),
    **dict.fromkeys(("bool", "string"), ("Gather", "Cast")),
    **dict.fromkeys(("int4", "uint4", "float8e4m3fn", "float8e5m2"), ("Cast", "DequantizeLinear")),
    "complex64": ("Gather",),
}
"""The operators of the columns that ONNX defines for a type."""
LINES = {
    "Add": ("{t}[4,8]", "Add = Add(x, x)"),
    "MatMul": ("{t}[4,4]", "t = Transpose(x) MatMul = MatMul(x, t)"),
    "Conv": ("{t}[1,1,3,7]", "u = Unsqueeze(x, axes) w = Slice(u, from, to, along) Conv = Conv(u, w)"),
    "Gather": ("{t}[1,8]", "Gather = Gather(x, rows)"),
    "Cast": ("float[4,8]", "Cast = Cast<to=1>(x)"),
    "DequantizeLinear": ("float[4,8]", "DequantizeLinear = DequantizeLinear(x, scale)"),
}
CONSTANTS = {
    "axes": np.array([0, 1]), "from": np.array([0, 0]), "to": np.array([2, 2]), "along": np.array([2, 3]),
    "rows": np.array([3]), "scale": np.array(0.5, np.float32),
}  # fmt: skip
NUMPY = {
    "float": np.float32,
    "double": np.float64,
    "bfloat16": ml_dtypes.bfloat16,
    "int4": ml_dtypes.int4,
    "uint4": ml_dtypes.uint4,
    "float8e4m3fn": ml_dtypes.float8_e4m3fn,
    "float8e5m2": ml_dtypes.float8_e5m2,
}


def outcome(dtype: str) -> dict[str, str]:
    """What becomes of each operator of the type; what runs is compared with onnxruntime, where that can."""
    lines = [LINES[op] for op in HAS[dtype]]
    outputs = ", ".join(f"{kind.format(t=dtype)} {op}" for op, (kind, _) in zip(HAS[dtype], lines, strict=True))
    text = " ".join(line for _, line in lines)
    used = {name: array for name, array in CONSTANTS.items() if name in text}
    declared = "".join(f", {'float' if array.dtype == np.float32 else 'int64'}{list(array.shape) or ''} {name}"
                       for name, array in used.items())  # fmt: skip
    model = from_text(
        f'<ir_version: 11, opset_import: ["": 23]> g ({dtype}[4,8] x{declared}) => ({outputs}) {{ {text} }}', **used
    )
    try:
        program = graphopt.compile(model, verify=False)
    except GraphoptError:
        return dict.fromkeys(HAS[dtype], "refused")
    x = np.arange(32).reshape(4, 8) % 7
    feeds = {"x": x.astype(str) if dtype == "string" else x.astype(NUMPY.get(dtype, dtype))}
    got = program.run(feeds)
    with contextlib.suppress(ModelError):  # onnxruntime has no Add of int8, Conv of bfloat16, ...
        for name, want in oracle.run(model, feeds).items():
            assert got[name].dtype == want.dtype
            np.testing.assert_array_equal(got[name].astype(str), want.astype(str), err_msg=name)
    left = program.report["target"].get("onnxruntime", {"reasons": {}})["reasons"]
    return {op: "onnxruntime" if any(why.startswith(op) for why in left) else "compiled" for op in HAS[dtype]}


@pytest.mark.parametrize("dtype", HAS)
def test_the_table_of_types_in_the_docs(dtype: str):
    text = (Path(__file__).parents[2] / "docs" / "coverage.md").read_text(encoding="utf-8")
    cells = outcome(dtype)
    row = f"| {dtype} | {' | '.join(cells.get(column, '') for column in COLUMNS)} |"
    assert row in text, row
