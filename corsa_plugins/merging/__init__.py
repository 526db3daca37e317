"""Weight deltas: scaled, pruned, and added to a base."""
