"""Training of networks: the loop, losses, optimizers and schedules."""
