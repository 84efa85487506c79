"""Measured results as frozen dataclasses, the files that store them, and conclusions from several of them.

This package holds records, the one writer and reader of their JSON, series and verdicts. Drawing, printing and
uploading, and the bookkeeping of it, belong to `reporting`; measuring belongs to `evaluation` and `quantization`.
"""
