"""Several adapters, and a question sent to the one that knows."""
