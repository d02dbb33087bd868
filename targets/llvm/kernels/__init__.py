"""Hand-written kernels in TIR: small generators, one family a file.

Activations are channels-last (N, H, W, C): a vector register holds consecutive channels, whatever their number, a
1x1 convolution is a matrix product, and a concatenation along the channels is a strided write. Weights are packed
when the model is compiled.

Every generator writes out one register tile (see `tile`) and the loops around it, and takes an `Epilogue` that is
applied to the accumulators before they are stored. The functions it makes are opaque to TVM's fusion and carry
``tirx.is_scheduled``: no further schedule touches them.
"""
