"""Source-level exports: kernels for GPUs other than NVIDIA's, as TVM writes them; graphopt neither runs nor checks them."""

from graphopt.targets.export.target import Metal, Opencl, Rocm, Webgpu

__all__ = ["Metal", "Opencl", "Rocm", "Webgpu"]
