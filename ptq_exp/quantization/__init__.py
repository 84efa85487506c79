"""Post-training quantization. Knows torch and, of the rest of the package, `base` and `networks.graph` alone."""
