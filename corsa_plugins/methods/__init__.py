"""Ways to update a model, as values."""
