"""Targets: one folder each, and `lowering`, the ONNX -> Relax stage they share. Named as strings in the registry."""
