"""Random networks around BatchNormalization: the numbers stay, and no plain candidate is left."""

import numpy as np
import onnx_ir as ir
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from graphopt.graph import used_once
from graphopt.passes.fold_batch_norm import FoldBatchNorm
from graphopt.testing import apply, assert_equivalent, from_text

SIZE = 6
WEIGHTED = ["conv", "conv_transpose"]
PLAIN = ["relu", "identity", "mul", "add", "positions", "max_pool", "average_pool", "swap", "concat", "residual"]
OPS = st.sampled_from([*WEIGHTED, "norm", "norm", "norm", *PLAIN])
STEP = st.tuples(OPS, st.integers(0, 7), st.integers(0, 7))


class Net:
    """Text of a graph that grows step by step; every value is [2, channels, SIZE, SIZE]."""

    def __init__(self, seed: int) -> None:
        self.rng = np.random.default_rng(seed)
        self.lines: list[str] = []
        self.weights: dict[str, np.ndarray] = {}
        self.values = [("x", 4)]
        self.shared: dict[tuple[int, ...], str] = {}

    def weight(self, *shape: int, positive: bool = False, scale: float = 1.0) -> str:
        name = f"w{len(self.weights)}"
        array = self.rng.uniform(0.5, 2, shape) if positive else self.rng.standard_normal(shape) * scale
        self.weights[name] = array.astype(np.float32)
        return name

    def kernel(self, share: bool, *shape: int) -> str:
        if share and shape in self.shared:
            return self.shared[shape]
        self.shared[shape] = self.weight(*shape, scale=float(np.prod(shape[1:])) ** -0.5)
        return self.shared[shape]

    def emit(self, channels: int, expression: str) -> None:
        name = f"t{len(self.values)}"
        self.lines.append(f"{name} = {expression}")
        self.values.append((name, channels))

    def step(self, op: str, a: int, b: int) -> None:
        x, c = self.values[-1]
        other, other_c = self.values[-1 - a % len(self.values)]
        match op:
            case "conv":
                k, groups, out = (1, 3)[b & 1], (1, 2, c)[a % 3], c if a % 3 == 2 else 4
                groups = groups if c % groups == 0 and out % groups == 0 else 1
                bias = f", {self.weight(out)}" if b & 2 else ""
                w = self.kernel(bool(b & 4), out, c // groups, k, k)
                self.emit(out, f"Conv<group={groups}, pads=[{k // 2},{k // 2},{k // 2},{k // 2}]>({x}, {w}{bias})")
            case "conv_transpose":
                groups = 2 if a & 1 and c % 2 == 0 else 1
                w = self.kernel(bool(b & 4), c, 4 // groups, 3, 3)
                self.emit(4, f"ConvTranspose<group={groups}, pads=[1,1,1,1]>({x}, {w})")
            case "norm":
                g, beta, mean, var = self.weight(c), self.weight(c), self.weight(c), self.weight(c, positive=True)
                self.emit(c, f"BatchNormalization({x}, {g}, {beta}, {mean}, {var})")
            case "relu" | "identity":
                self.emit(c, f"{op.title()}({x})")
            case "mul" | "add":
                w = self.weight(*((c, 1, 1), (1,), (1, c, 1, 1))[a % 3])
                self.emit(c, f"{op.title()}({w}, {x})" if b & 1 else f"{op.title()}({x}, {w})")
            case "positions":
                self.emit(c, f"{('Add', 'Sub', 'Mul')[a % 3]}({x}, {self.weight(SIZE, SIZE)})")
            case "max_pool" | "average_pool":
                kind = "MaxPool" if op == "max_pool" else "AveragePool"
                self.emit(c, f"{kind}<kernel_shape=[3,3], pads=[1,1,1,1]>({x})")
            case "swap":
                self.emit(c, f"Transpose<perm=[0,1,3,2]>({x})")
            case "concat":
                self.emit(c + other_c, f"Concat<axis={1 if b & 1 else -3}>({x}, {other})")
            case "residual":
                if c == other_c:
                    self.emit(c, f"Add({x}, {other})")

    def model(self, returned: int) -> ir.Model:
        outputs = {self.values[-1], self.values[1 + returned % (len(self.values) - 1)]}
        declared = [f"float[{','.join(map(str, a.shape))}] {n}" for n, a in self.weights.items()]
        inputs = ", ".join([f"float[2,4,{SIZE},{SIZE}] x", *declared])
        returns = ", ".join(f"float[a{i},b{i},c{i},d{i}] {name}" for i, (name, _) in enumerate(sorted(outputs)))
        text = f'<ir_version: 9, opset_import: ["": 17]>\nmain ({inputs}) => ({returns}) {{ {" ".join(self.lines)} }}'
        return from_text(text, **self.weights)


@settings(max_examples=60, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
@given(steps=st.lists(STEP, min_size=2, max_size=14), seed=st.integers(0, 5), returned=st.integers(0, 13))
def test_random_networks_keep_their_numbers(steps, seed, returned):
    net = Net(seed)
    net.step("conv", 0, 2)
    for step in steps:
        net.step(*step)
    model = net.model(returned)
    after, report = apply(FoldBatchNorm(), model)
    assert_equivalent(model, after, rtol=1e-4)
    norms = [node for node in after.graph if node.op_type == "BatchNormalization"]
    assert len(norms) == report.facts["left"] == len(report.skipped)
    assert len({s.node for s in report.skipped} & {n.name for n in norms}) == len(norms)
    for norm in norms:
        producer = norm.inputs[0].producer()
        weighted = producer is not None and producer.op_type in ("Conv", "ConvTranspose", "BatchNormalization")
        assert not (weighted and used_once(norm.inputs[0])), f"{norm.name} could be folded into {producer}"
