"""Random networks of residuals, concatenations, splits and gates, pruned: valid, runnable, and equal to masking."""

import numpy as np
import onnx_ir as ir
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt import oracle
from graphopt.base import Context
from graphopt.data import Batches
from graphopt.graph import check, constant_array
from graphopt.passes.channels.cut import cut, kept_places
from graphopt.passes.channels.groups import find_channels
from graphopt.passes.prune_channels import PruneChannels
from graphopt.testing import apply, from_text

BATCH, SIZE = 2, 5


class Net:
    """Lines of ONNX text over images [BATCH, channels, SIZE, SIZE], with their weights."""

    def __init__(self, draw):
        self.draw, self.lines, self.weights, self.rng = draw, [], {}, np.random.default_rng(draw(st.integers(0, 99)))
        self.images = [("x", 3)]

    def weight(self, *shape):
        name = f"w{len(self.weights)}"
        self.weights[name] = self.rng.standard_normal(shape).astype(np.float32)
        return name

    def integers(self, values):
        name = f"n{len(self.weights)}"
        self.weights[name] = np.array(values, np.int64)
        return name

    def add(self, expression, channels=None):
        name = f"v{len(self.lines)}"
        self.lines.append(f"{name} = {expression}")
        if channels is not None:
            self.images.append((name, channels))
        return name

    def pick(self, wanted=lambda channels: True):
        found = [image for image in self.images if wanted(image[1])]
        return self.draw(st.sampled_from(found)) if found else None

    def step(self):
        getattr(self, self.draw(st.sampled_from(STEPS)))()

    def conv(self):
        (x, c), out = self.pick(), self.draw(st.sampled_from([2, 3, 4, 6]))
        k = self.draw(st.sampled_from([1, 3]))
        self.add(f"Conv <pads = {[k // 2] * 4}> ({x}, {self.weight(out, c, k, k)}, {self.weight(out)})", out)

    def depthwise(self):
        x, c = self.pick()
        self.add(f"Conv <pads = [1,1,1,1], group = {c}> ({x}, {self.weight(2 * c, 1, 3, 3)})", 2 * c)

    def grouped(self):
        image = self.pick(lambda c: c % 2 == 0)
        if image is not None:
            x, c = image
            self.add(f"Conv <group = 2> ({x}, {self.weight(4, c // 2, 1, 1)})", 4)

    def unary(self):
        x, c = self.pick()
        self.add(f"{self.draw(st.sampled_from(['Relu', 'Sigmoid', 'HardSwish']))}({x})", c)

    def constants(self):
        x, c = self.pick()
        op = self.draw(st.sampled_from(["Mul", "Add", "PRelu"]))
        self.add(f"{op}({x}, {self.weight(c, 1, 1)})", c)

    def meet(self):
        (x, c), op = self.pick(), self.draw(st.sampled_from(["Add", "Mul"]))
        y, _ = self.pick(lambda other: other == c)
        self.add(f"{op}({x}, {y})", c)

    def concat(self):
        (x, c), (y, d) = self.pick(), self.pick()
        self.add(f"Concat <axis = 1> ({x}, {y})", c + d)

    def split(self):
        image = self.pick(lambda c: c >= 3)
        if image is not None:
            x, c = image
            first, second = f"v{len(self.lines)}a", f"v{len(self.lines)}b"
            self.lines.append(f"{first}, {second} = Split <axis = 1> ({x}, {self.integers([1, c - 1])})")
            self.images += [(first, 1), (second, c - 1)]

    def slice(self):
        x, c = self.pick()
        start = self.draw(st.integers(0, c - 1))
        names = [self.integers([n]) for n in (start, 2**62, 1)]
        self.add(f"Slice({x}, {', '.join(names)})", c - start)

    def gate(self):
        x, c = self.pick()
        pooled = self.add(f"GlobalAveragePool({x})")
        inner = self.add(f"Conv({pooled}, {self.weight(2, c, 1, 1)})")
        outer = self.add(f"Conv({inner}, {self.weight(c, 2, 1, 1)})")
        scale = self.add(f"Sigmoid({outer})")
        self.add(f"Mul({x}, {scale})", c)

    def shuffle(self):
        image = self.pick(lambda c: c % 2 == 0)
        if image is not None:
            x, c = image
            a = self.add(f"Reshape({x}, {self.integers([0, 2, c // 2, SIZE, SIZE])})")
            b = self.add(f"Transpose <perm = [0,2,1,3,4]> ({a})")
            self.add(f"Reshape({b}, {self.integers([BATCH, c, SIZE, -1])})", c)

    def model(self):
        used = self.images[-3:]
        channels = sum(c for _, c in used)
        joined = self.add(f"Concat <axis = 1> ({', '.join(name for name, _ in used)})")
        if self.draw(st.booleans()):
            joined, columns = self.add(f"GlobalAveragePool({joined})"), channels
        else:
            columns = channels * SIZE * SIZE
        flat = self.add(f"Flatten({joined})")
        hidden = self.add(f"Gemm({flat}, {self.weight(columns, 6)})")
        relu = self.add(f"Relu({hidden})")
        self.lines.append(f"y = Gemm <transB = 1> ({relu}, {self.weight(4, 6)})")
        kinds = {"f": "float", "i": "int64"}
        inputs = ", ".join(f"{kinds[w.dtype.kind]}{list(w.shape)} {n}" for n, w in self.weights.items())
        text = f"float[{BATCH},3,{SIZE},{SIZE}] x, {inputs}"
        body = "\n".join(self.lines)
        return from_text(
            f'<ir_version: 9, opset_import: ["": 17]>\ng ({text}) => (float[a,b] y) {{ {body} }}', **self.weights
        )


STEPS = [
    "conv",
    "conv",
    "depthwise",
    "grouped",
    "unary",
    "constants",
    "meet",
    "concat",
    "split",
    "slice",
    "gate",
    "shuffle",
]


@st.composite
def nets(draw):
    net = Net(draw)
    net.conv()
    for _ in range(draw(st.integers(2, 8))):
        net.step()
    return net.model()


def feeds(seed):
    return {"x": np.random.default_rng(seed).standard_normal((BATCH, 3, SIZE, SIZE)).astype(np.float32)}


def masked(model, channels, keep):
    """The model with the indices that go set to zero in every constant."""
    copy = model.clone()
    for name, places in kept_places(channels, keep).items():
        value = copy.graph.initializers[name]
        array = constant_array(value)
        if array.dtype.kind != "f":
            continue
        array = array.copy()
        for axis, place in enumerate(places):
            if place is not None:
                np.moveaxis(array, axis, 0)[np.setdiff1d(np.arange(array.shape[axis]), place)] = 0
        value.const_value = ir.tensor(array, name=name)
    return copy


@settings(max_examples=40, deadline=None)
@given(nets(), st.integers(0, 999))
def test_cutting_is_masking(model, seed):
    """Whichever units go, the smaller graph is valid and gives what the old one gives with their weights at zero."""
    channels = find_channels(model.graph)
    rng = np.random.default_rng(seed)
    keep = np.ones(channels.count, bool)
    for group in channels.groups:
        count = int(rng.integers(1, len(group.units) + 1))
        keep[rng.permutation(group.units)[count:]] = False
    want = oracle.run(masked(model, channels, keep), feeds(seed))["y"]
    small = model.clone()
    channels = find_channels(small.graph)
    cut(small, channels, keep)
    check(small)
    got = oracle.run(small, feeds(seed))["y"]
    np.testing.assert_allclose(got, want, rtol=1e-3, atol=1e-3 * np.abs(want).max())


@settings(max_examples=10, deadline=None)
@given(nets(), st.sampled_from([0.7, 0.3]))
def test_the_whole_pass_leaves_a_valid_graph(model, ratio):
    context = Context(calibration=Batches(lambda: [feeds(seed) for seed in range(3)]))
    after, report = apply(PruneChannels(ratio=ratio, round_to=1), model, context)
    assert report.facts["macs"][1] <= report.facts["macs"][0]
    assert np.isfinite(oracle.run(after, feeds(7))["y"]).all()
