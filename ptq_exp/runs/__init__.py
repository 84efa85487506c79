"""Jobs and sweeps: the path from a configuration to a reported result. Only this package imports hydra.

Start with `job.py`. The computation of each step belongs to the package of that step.
"""
