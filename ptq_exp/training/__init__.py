"""Training of a float network: the loop, the captured step, and fused kernels for CIFAR ResNets.

Building, storing and evaluating networks does not belong here. The loop receives a network and a function that
measures its accuracy.
"""
