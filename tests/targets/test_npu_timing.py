"""Cycles: the formulas against their references, and bounds no schedule may beat."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from graphopt.targets.npu import cycles
from graphopt.targets.npu.codegen import compile_layer
from graphopt.targets.npu.isa import Exec, Load
from graphopt.targets.npu.layer import Geometry, Layer, Requantise
from graphopt.targets.npu.machine import DotProduct, Machine, Systolic, load_machine
from graphopt.targets.npu.timing import Timing, time_stream
from graphopt.targets.npu.weights import least_bytes

EDGE, GEMMINI = load_machine("edge"), load_machine("gemmini-16")


def resnet(blocks: list[int], bottleneck: bool) -> list[tuple[int, int, int]]:
    """(m, n, k) of every convolution of a ResNet at 224 x 224, stride in the 3 x 3 convolution, and its classifier."""
    layers = [(112 * 112, 64, 147)]
    cin, size = 64, 56
    for stage, count in enumerate(blocks):
        width = 64 << stage
        for block in range(count):
            stride = 2 if block == 0 and stage > 0 else 1
            before, size = size, size // stride
            cout = 4 * width if bottleneck else width
            if bottleneck:
                layers += [(before**2, width, cin), (size**2, width, 9 * width), (size**2, cout, width)]
            else:
                layers += [(size**2, width, 9 * cin), (size**2, width, 9 * width)]
            if cin != cout:
                layers.append((size**2, cout, cin))
            cin = cout
    return [*layers, (1, 1000, cin)]


@pytest.mark.parametrize(
    ("layers", "side", "dataflow", "total"),
    [
        (resnet([2, 2, 2, 2], False), 32, "weight-stationary", 2_855_052),
        (resnet([2, 2, 2, 2], False), 32, "output-stationary", 2_133_336),
        (resnet([3, 4, 6, 3], True), 32, "weight-stationary", 6_349_260),
        (resnet([3, 4, 6, 3], True), 256, "weight-stationary", 452_056),
    ],
)
def test_totals_equal_what_scale_sim_reports(layers: list, side: int, dataflow: str, total: int) -> None:
    """SCALE-Sim's totals for these networks; its ResNet-50 has the stride in the 3 x 3 convolution."""
    array = Systolic(kind="systolic", dataflows=(dataflow,), rows=side, columns=side)
    assert sum(cycles.systolic_cycles(array, m, n, k) for m, n, k in layers) == total


def test_an_array_with_several_dataflows_takes_the_quickest() -> None:
    def array(*dataflows: Any) -> Systolic:
        return Systolic(kind="systolic", dataflows=dataflows, rows=16, columns=16)

    for m, n, k in [(3136, 64, 576), (49, 512, 4608), (1, 1000, 2048)]:
        apart = [cycles.systolic_cycles(array(way), m, n, k) for way in ("weight-stationary", "output-stationary")]
        assert len(set(apart)) == 2
        assert cycles.systolic_cycles(array("weight-stationary", "output-stationary"), m, n, k) == min(apart)


def window(**sizes: int) -> Exec:
    zeros = {field.name: 0 for field in dataclasses.fields(Exec)}
    return Exec(**{**zeros, "groups": 1, "kh": 1, "kw": 1, **sizes})


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        # 16 x 16 outputs are 64 blocks; 64 of 32 channels: 2 steps of 4 cycles per tap; 8 channels per block.
        ({"oh": 16, "ow": 16, "oc": 8, "cin": 64, "kh": 3, "kw": 3}, 64 * 4 * 2 * 9),
        ({"oh": 16, "ow": 16, "oc": 9, "cin": 64, "kh": 3, "kw": 3}, 2 * 64 * 4 * 2 * 9),
        # 3 channels: 49 taps in groups of 4 of 8 channels, not 49 steps.
        ({"oh": 16, "ow": 16, "oc": 8, "cin": 3, "kh": 7, "kw": 7}, 64 * 4 * 13),
        # one output position: 32 cycles for the weights of a step outlast the 4 of its products.
        ({"oh": 1, "ow": 1, "oc": 8, "cin": 32}, 32),
        # height 1: blocks of 1 x 4.
        ({"oh": 1, "ow": 64, "oc": 8, "cin": 32}, 16 * 4),
        # depthwise: 9 taps in 3 groups of 4, 8 channels at once.
        ({"oh": 16, "ow": 16, "groups": 16, "oc": 1, "cin": 1, "kh": 3, "kw": 3}, 2 * 64 * 4 * 3),
    ],
)
def test_block_formula_by_hand(sizes: dict[str, int], expected: int) -> None:
    assert isinstance(EDGE.array, DotProduct)
    assert cycles.dot_product_cycles(EDGE.array, window(**sizes)) == expected


def test_transfers_take_whole_bursts() -> None:
    memory = EDGE.memory("activations")  # bursts of 32 bytes, 8 bytes per cycle
    assert cycles.transfer_cycles(memory, Load(1, 0, 0, 1, 4, 33, 0, 100, 0, 33)) == 4 * 2 * 4
    assert cycles.transfer_cycles(memory, Load(1, 0, 0, 1, 4, 33, 0, 33, 0, 33)) == 5 * 4


@st.composite
def shapes(draw: st.DrawFn) -> Geometry:
    kernel, stride = draw(st.sampled_from([1, 3, 5])), draw(st.integers(1, 2))
    size = draw(st.integers(kernel, 40))
    out = (size + 2 * (kernel // 2) - kernel) // stride + 1
    groups = draw(st.sampled_from([1, 1, 16, 48]))
    cin, oc = (1, 1) if groups > 1 else (draw(st.integers(1, 200)), draw(st.integers(1, 200)))
    pad = (kernel // 2, kernel // 2)
    return Geometry(1, groups, cin, oc, size, size, out, out, kernel, kernel, (stride, stride), pad=pad)


def timed(geometry: Geometry, machine: Machine) -> tuple[Timing, int]:
    channels = geometry.groups * geometry.oc
    layer = Layer(
        name="layer",
        op="Conv",
        geometry=geometry,
        weights=np.random.default_rng(channels)
        .normal(0, 20, (channels, geometry.cin * geometry.kh * geometry.kw))
        .astype(np.int8),
        bias=np.zeros(channels, np.int32),
        input_signed=True,
        input_zero=0,
        weight_zero=0,
        requantise=Requantise(np.full(channels, 0.01, np.float32), signed=True, zero=0, low=-128, high=127),
    )
    stream, constants = compile_layer(layer, machine)
    weights = geometry.weight_bytes if machine.decoder is None else least_bytes(layer.weights, layer.weight_zero)
    assert constants.nbytes >= weights + 12 * channels
    return time_stream(stream, machine), weights + 12 * channels


@settings(max_examples=40, deadline=None)
@given(shapes(), st.sampled_from([EDGE, GEMMINI]))
def test_no_layer_beats_the_bounds(geometry: Geometry, machine: Machine) -> None:
    timing, constants = timed(geometry, machine)
    assert timing.macs == geometry.macs
    assert timing.read["constants"] >= constants
    assert timing.read["activations"] >= geometry.touched_bytes
    assert timing.written == geometry.output_bytes
    assert timing.cycles >= geometry.macs / machine.array.macs_per_cycle
    traffic = {"constants": timing.read["constants"], "activations": timing.read["activations"] + timing.written}
    for memory in machine.memories:
        assert timing.cycles >= sum(traffic[space] for space in memory.holds) / memory.bytes_per_cycle
    assert max(timing.busy.values()) <= timing.cycles


def test_engines_work_beside_each_other() -> None:
    """A layer of many tiles takes little longer than its busiest engine, and much less than all in turn."""
    timing, _ = timed(Geometry(1, 1, 64, 64, 56, 56, 56, 56, 3, 3, pad=(1, 1)), EDGE)
    engines = {name: busy for name, busy in timing.busy.items() if not name.startswith("port")}
    assert timing.cycles < 1.15 * max(engines.values())
    assert timing.cycles < 0.8 * sum(engines.values())


def test_a_slower_memory_slows_what_it_bounds_only() -> None:
    """Halving the flash's bandwidth doubles a dense layer; a convolution with few weights hardly notices."""
    half = {memory.name: memory.bytes_per_cycle / (2 if memory.name == "flash" else 1) for memory in EDGE.memories}
    memories = tuple(memory.model_copy(update={"bytes_per_cycle": half[memory.name]}) for memory in EDGE.memories)
    slow = EDGE.model_copy(update={"memories": memories})
    dense = Geometry(1, 1, 2048, 1000, 1, 1, 1, 1, channels_last=True)
    conv = Geometry(1, 1, 64, 64, 56, 56, 56, 56, 3, 3, pad=(1, 1))
    assert timed(dense, slow)[0].cycles == pytest.approx(2 * timed(dense, EDGE)[0].cycles, rel=0.01)
    assert timed(conv, slow)[0].cycles < 1.15 * timed(conv, EDGE)[0].cycles
