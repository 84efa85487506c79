"""Evaluation of networks: top-1 with intervals, paired comparisons, and consistency checks of a float network.

Results and their files belong to `results`. The quantization of layers belongs to `quantization`.
"""
