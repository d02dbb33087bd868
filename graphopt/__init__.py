"""graphopt: ONNX -> ordered passes -> Apache TVM -> llvm, cuda, npu."""
