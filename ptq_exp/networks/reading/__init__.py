"""Checkpoint files from any source: the weights in them, and how they fit a network.

Nothing inside a file is executed. `pickled` interprets pickles, `unwrapping` finds the weights, `fitting` assigns them
to a network, and `identification` finds the known network of a file. Building networks belongs to the package above.
"""

from ptq_exp.networks.reading.checkpoint import Checkpoint, load_weights, read_checkpoint, read_weights

__all__ = ["Checkpoint", "load_weights", "read_checkpoint", "read_weights"]
