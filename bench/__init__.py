"""Commands that reproduce the claims of speed and accuracy."""
