"""Post-training quantization: grids, ranges, layers, the steps of a method, the report and its diagnosis.

`quantize.py` walks the list of steps. This package knows torch, `base` and `networks.graph`. Files, data sets, accuracy
and configuration files belong elsewhere.
"""
