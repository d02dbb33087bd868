"""The CUDA target: Relax through CUDA C to machine code for an NVIDIA GPU, without needing one.

`graphopt.targets.cuda.serial` checks its schedules on the CPU; it is a test tool, not a way to run models.
"""

from graphopt.targets.cuda.target import Cuda

__all__ = ["Cuda"]
