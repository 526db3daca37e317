"""Measurements of edits, callable from Python."""
