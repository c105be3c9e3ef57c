"""Which split each group is assigned to."""
