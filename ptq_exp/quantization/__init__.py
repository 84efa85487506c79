"""Post-training quantization. Knows torch and nothing else of the package but its error type."""
