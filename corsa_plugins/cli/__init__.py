"""The console script ``corsa``."""
