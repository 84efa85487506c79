"""Training of a float network: the loop, the captured step, and fused kernels for CIFAR ResNets.

How networks are built, stored or evaluated does not belong here: the loop is given a network and a function that
measures its accuracy.
"""
