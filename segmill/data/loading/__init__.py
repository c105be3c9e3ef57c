"""What training reads: augmented batches, extra samples, and exactly what training saw."""
