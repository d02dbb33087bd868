"""Source-level exports: kernels for other GPUs than NVIDIA's, as TVM writes them, neither run nor checked."""

from graphopt.targets.export.target import Metal, Opencl, Rocm, Webgpu

__all__ = ["Metal", "Opencl", "Rocm", "Webgpu"]
