"""Fitting millions of hands in shards, on one machine or a cluster: `handloop fit --engine ray`."""
