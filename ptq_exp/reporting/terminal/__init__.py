"""The terminal: the result table, what it says, and failures."""
