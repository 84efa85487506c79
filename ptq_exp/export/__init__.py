"""Saving and loading quantized networks, with one file per format.

The content of a network belongs to `quantization`. This package only writes, reads and runs it.
"""
