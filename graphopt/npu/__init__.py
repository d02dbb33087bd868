"""What a model would cost on a simulated NPU: estimates, reports and sweeps over machines."""

from graphopt.npu.estimate import estimate

__all__ = ["estimate"]
