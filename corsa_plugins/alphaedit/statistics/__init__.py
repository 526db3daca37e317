"""Second moments of the keys that should keep their values, collected once for a model."""
