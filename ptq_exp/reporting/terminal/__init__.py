"""The terminal output: the result table, its conclusions, and failures."""
