"""The loop that fits its own predictions: the memory of the best fits, and what trains on it."""
