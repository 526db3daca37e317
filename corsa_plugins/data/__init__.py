"""What goes in: edit requests, probes, answers, preferences, and the published formats."""
