"""From ONNX to Relax as the GPU wants it: types of products and sums, integers, layouts."""
