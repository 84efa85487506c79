"""The functions of the Python API (docs/python.md). `ptq_exp` offers them under their short names."""
