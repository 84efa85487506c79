"""What was measured, as frozen dataclasses from measurement to drawing; their files; what several of them say together.

Here belong records, the one writer and reader of their JSON, series and verdicts. What is drawn, printed or uploaded,
and whether it has been, belongs to `reporting`; what is measured to `evaluation` and `quantization`.
"""
