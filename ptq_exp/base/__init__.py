"""Shared by all other packages: user errors, console, text and files, background work, the machine.

Importing this package does not import torch or hydra, so that `--help` stays fast. It contains nothing about networks.
"""
