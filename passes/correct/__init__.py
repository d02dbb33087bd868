"""What corrections around quantization share: the float twin of a quantized graph, walking it, its weights."""
