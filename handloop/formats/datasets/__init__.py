"""Readers of published picture data sets, each in its own folder layout; `open_pictures` finds out which one it is."""
