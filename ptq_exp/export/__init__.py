"""Quantized networks as files, and back again: one file a format.

What is in a network is decided in `quantization`; here it is only written down, read, and run from what was written.
"""
