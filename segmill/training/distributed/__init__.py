"""The Ray side of training: launch a member, and what one rank does."""
