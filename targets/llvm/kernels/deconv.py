"""Transposed convolution whose kernel is as large as its stride: every output belongs to one input position.

For kernel row kh, ``y[n, h*KH + kh, w*KW + kw, :] = x[n, h, w, :] @ weight[:, :, kh, kw]``: a matrix product whose row
(n, h, w) of KW * CO columns lies in one piece in the output.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from tvm import tirx
from tvm.script.ir_builder import tirx as T  # noqa: N812  # TVM calls it so everywhere

from graphopt.targets.llvm.kernels import tile
from graphopt.targets.llvm.kernels.conv import Conv
from graphopt.targets.llvm.kernels.emit import Expr, Isa, function, i64, load, loop
from graphopt.targets.llvm.kernels.epilogue import Epilogue


def pack(weight: np.ndarray[Any, Any], lanes: int) -> np.ndarray[Any, Any]:
    """[CI, CO, KH, KW] -> [KH, blocks, CI, lanes], blocks of the KW * CO columns, zeros past them."""
    ci, co, kh, kw = weight.shape
    blocks = -(-kw * co // lanes)
    padded = np.zeros((kh, ci, blocks * lanes), np.float32)
    padded[:, :, : kw * co] = weight.transpose(2, 0, 3, 1).reshape(kh, ci, kw * co)
    return np.ascontiguousarray(padded.reshape(kh, ci, blocks, lanes).transpose(0, 2, 1, 3))


def make(c: Conv, isa: Isa, epilogue: Epilogue, parallel: bool, name: str = "deconv") -> tirx.PrimFunc:
    """``f(x, weights, bias[, residual], y)``; x [n, h, w, ci], y [n, h*KH, w*KW, co], bias [blocks * lanes]."""
    (kh, kw), columns = c.kernel, c.kernel[1] * c.co
    blocks = -(-columns // isa.lanes)
    shape = tile.choose(c.w, blocks, isa)
    with function(name) as (f, made):
        x = f.argument("x", [c.n, c.h, c.w, c.ci])
        w = f.argument("w", [kh, blocks, c.ci, isa.lanes])
        b = f.argument("b", [blocks * isa.lanes])
        outside = [c.n, c.h * kh, c.w * kw, c.co]
        residual = f.argument("r", outside) if epilogue.residual else None
        y = f.argument("y", outside)
        rows = f.dim(c.n) * c.h
        view = [rows, i64(kh), i64(c.w), i64(columns)]
        x = f.matrix(x, [c.n, c.h, c.w, c.ci])
        y = T.decl_buffer(view, "float32", data=y.data)
        residual = None if residual is None else T.decl_buffer(view, "float32", data=residual.data)

        def one(row: Expr, k: Expr, start: Expr, first: int, size: tile.Shape) -> None:
            acc = tile.Accumulators(size, isa, lambda j: load(b, [(first + j) * isa.lanes], isa.lanes))
            with loop(c.ci) as i:
                acc.step(
                    range(size.rows),
                    lambda r: x[row * c.w + start + r, i],
                    lambda j: load(w, [k, first + j, i, 0], isa.lanes),
                )
            acc.write(
                [min(isa.lanes, columns - (first + j) * isa.lanes) for j in range(size.cols)],
                lambda r, j, offset: [row, k, start + r, (first + j) * isa.lanes + offset],
                lambda value, at, width: epilogue.finish(residual, value, at, width),
                y,
                apart=epilogue.long,
            )

        with loop(rows * kh, parallel=parallel) as p:
            for first in range(0, blocks, shape.cols):
                cols = min(shape.cols, blocks - first)
                with loop(c.w // shape.rows) as t:
                    one(p // kh, p % kh, t * shape.rows, first, tile.Shape(shape.rows, cols))
                if c.w % shape.rows:
                    rest = c.w % shape.rows
                    one(p // kh, p % kh, c.w - rest, first, tile.Shape(rest, cols))
    return made[0]
