"""How far fitted hands are from the truth: alignment, metrics, coverage, submissions to the servers of data sets."""
