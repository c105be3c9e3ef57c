"""Watches what a served model sees: whether it is still what the model learned."""
