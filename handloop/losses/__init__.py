"""Torch losses on a network's predictions."""
