"""Claims of speed and accuracy as commands that anyone can run."""
