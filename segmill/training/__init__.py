"""Training: the losses, the straight loop, the Ray worker and the launch of members."""
