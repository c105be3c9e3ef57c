"""Counts, scores and intervals: the ground floor that all judging stands on."""
