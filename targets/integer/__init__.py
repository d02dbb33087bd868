"""Integer semantics that targets share: what a quantized operator computes, to the bit."""
