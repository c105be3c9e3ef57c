"""Counts, scores and confidence intervals, which every comparison of models uses."""
