"""The search for the smallest network within a stated loss: what to try next, and when to stop.

It knows widths and intervals. `runs/search.py` runs its trials.
"""
