"""What the method is called."""

__all__ = ["METHOD"]

METHOD = "scaled_pruned_delta"
"""What a recipe calls it: ``merge_method: scaled_pruned_delta``."""
