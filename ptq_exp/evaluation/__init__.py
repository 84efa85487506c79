"""What a network answers: top-1 with its intervals, paired comparisons, and checks of a float network against itself.

Results and their files belong to `results`, how layers are quantized to `quantization`.
"""
