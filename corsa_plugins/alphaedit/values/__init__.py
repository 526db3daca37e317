"""What should be found there: the search for value vectors v*."""
