"""Searching good settings: the plan for a data set and machine, search spaces, trials and the search."""
