"""Measured before training: batch size, torch.compile, speed, and the profile of a step."""
