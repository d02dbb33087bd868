"""From CUDA C to machine code in a host library, and what can be read back from it."""
