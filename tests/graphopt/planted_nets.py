"""Networks in which each of the passes of planted_bugs.py is right in all blocks but one."""

import numpy as np
import onnx_ir as ir

from graphopt.testing import from_text

C = 4


def net(kind: str, blocks: int, bad: int, fillers: int = 0) -> ir.Model:
    """`blocks` blocks of [N,4,4,4], the bug showing in block `bad`; each ends with a Relu and `fillers` other nodes."""
    rng = np.random.default_rng(0)
    weights: dict[str, np.ndarray] = {}
    lines: list[str] = []

    def weight(name: str, *shape: int, low: float = -0.5) -> str:
        weights[name] = rng.uniform(low, 1, shape).astype(np.float32)
        if name[0] == "f":
            weights[name] *= np.float32(0.6)
        if name[0] == "w":  # a matrix that keeps lengths: the bug stays visible at the end
            weights[name] = np.linalg.qr(weights[name].reshape(C, C))[0].reshape(shape)
        return name

    x = "x"
    for k in range(blocks):
        y = f"y{k}"
        wrong = k == bad
        conv = f"Conv({x}, {weight(f'w{k}', C, C, 1, 1)}"
        match kind:
            case "wrong-axis":
                p, q = ("0,2,3,1", "0,2,1,3") if wrong else ("0,2,1,3", "0,2,1,3")
                lines.append(f"[first{k}] a{k} = Transpose<perm=[{p}]>({x})")
                lines.append(f"[second{k}] {y} = Transpose<perm=[{q}]>(a{k})")
            case "dropped-bias":
                bias = f", {weight(f'b{k}', C)}" if wrong else ""
                lines.append(f"[conv{k}] a{k} = {conv}{bias})")
                lines.append(f"[mul{k}] {y} = Mul(a{k}, {weight(f'f{k}', 1, low=0.5)})")
            case "shared-value":
                lines.append(f"[conv{k}] a{k} = {conv}, {weight(f'b{k}', C)})")
                lines.append(f"[mul{k}] {y if not wrong else f'm{k}'} = Mul(a{k}, {weight(f'f{k}', 1, low=0.5)})")
                if wrong:
                    lines.append(f"[also{k}] {y} = Sub(m{k}, a{k})")
            case "wrong-epsilon":
                lines.append(f"[conv{k}] a{k} = {conv})")
                names = ", ".join(weight(f"{p}{k}", C, low=0.2) for p in "gbmv")
                epsilon = "<epsilon=0.1>" if wrong else ""
                lines.append(f"[norm{k}] {y} = BatchNormalization{epsilon}(a{k}, {names})")
            case "captured-name":
                stem = f"c_{'x' if wrong else k}_"
                lines.append(f"[conv{k}] a{k} = {conv})")
                lines.append(f"[add{k}] {y} = Add(a{k}, {weight(stem, 1, C, 1, 1)})")
                if wrong:
                    lines.append(f"[trap{k}] t{k} = Mul({x}, {weight(stem + 'other', 1, C, 1, 1)})")
                    lines.append(f"[join{k}] j{k} = Add({y}, t{k})")
                    y = f"j{k}"
        lines.append(f"[relu{k}] r{k} = LeakyRelu({y})")
        x = f"r{k}"
        for j in range(fillers):
            op = ("Sigmoid", "Softsign", "Tanh", "Sin")[j % 4]
            lines.append(f"[{op.lower()}{k}_{j}] q{k}_{j} = {op}({x})")
            lines.append(f"[keep{k}_{j}] p{k}_{j} = Add({x}, q{k}_{j})")
            x = f"p{k}_{j}"
    lines.append(f"[last] out = Neg({x})")
    declared = [f"float[{','.join(map(str, a.shape))}] {n}" for n, a in weights.items()]
    inputs = ", ".join([f"float[N,{C},4,4] x", *declared])
    text = f'<ir_version: 8, opset_import: ["": 17]>\nnet ({inputs}) => (float[N,{C},4,4] out) {{\n'
    return from_text(text + "\n".join(lines) + "\n}", **weights)


WHERE = {
    "wrong-axis": "second{k}",
    "dropped-bias": "mul{k}",
    "shared-value": "mul{k}",
    "wrong-epsilon": "norm{k}",
    "captured-name": "add{k}",
}
"""The node at which the wrong application of each pass is, of block k."""
