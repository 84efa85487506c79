"""Jobs and sweeps: the story from a configuration to a reported result, and the only package that imports hydra.

Start with `job.py`. What a step computes belongs to the package that the step is of.
"""
