"""Packed splits: every sample decoded once into memory-mapped shards."""
