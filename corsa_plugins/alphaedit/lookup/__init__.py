"""Where a fact is looked up: subjects, contexts, the rows of text, and the keys."""
