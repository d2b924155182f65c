"""The fused CPU engine: the standard recipe as one compiled solve per hand, working set in cache.

`math`, `points`, `energy` and `solve` are compiled by numba; `engine` prepares their arrays and calls them.
"""
