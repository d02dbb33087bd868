"""The simulated NPU: partition an ONNX graph, compile regions to command streams, interpret and time them."""

from graphopt.targets.npu.target import Npu

__all__ = ["Npu"]
