"""How unusual an image is for the model that segments it."""
