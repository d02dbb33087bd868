"""What the quantization passes share: the arithmetic, calibration, and where Q/DQ pairs stand."""
