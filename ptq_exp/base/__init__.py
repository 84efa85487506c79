"""What every other package may use: user errors, console, text and files, background work, the machine.

Nothing here imports torch or hydra when it is imported, so that `--help` stays quick, and nothing here knows a network.
"""
