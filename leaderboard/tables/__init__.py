"""Rows of a run made into tables."""
