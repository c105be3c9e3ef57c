"""Members together: their weighted probabilities, and how the weights are chosen."""
