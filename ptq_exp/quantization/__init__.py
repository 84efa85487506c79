"""Post-training quantization: grids, ranges, layers, the steps of a method, the report and its diagnosis.

`quantize.py` runs the list of steps. This package depends only on torch, `base` and `networks.graph`. Files, data sets,
accuracy and configuration files belong elsewhere.
"""
