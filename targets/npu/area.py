"""A proxy of silicon area, to weigh machines against each other: multipliers, vector lanes and memories at 45 nm.

Logic: Dally's tutorial at NIPS 2015 (synthesised in TSMC 45 nm): 8-bit multiplier 282 um2, 32-bit adder 137, 32-bit
multiplier 3495. SRAM: Intel's 45 nm cell of 0.346 um2 (IEDM 2007) at an array efficiency of 70 % (our choice). Control,
wires, DMA and pads are left out, so the figure is good for ratios only.
"""

from __future__ import annotations

from graphopt.targets.npu.machine import Machine

MAC_UM2 = 282 + 137
LANE_UM2 = 3495 + 137
BYTE_UM2 = 8 * 0.346 / 0.7


def area_mm2(machine: Machine) -> float:
    """Square millimetres of array, vector unit, scratchpad and accumulators."""
    logic = machine.array.macs_per_cycle * MAC_UM2 + machine.vector.elements_per_cycle * LANE_UM2
    return (logic + (machine.scratchpad_bytes + machine.accumulator_bytes) * BYTE_UM2) / 1e6
