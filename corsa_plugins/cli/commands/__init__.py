"""Commands of ``corsa`` that are a module each; none of them imports torch before it is called."""
