"""Versions of the labelled set in DVC and git, and their history."""
