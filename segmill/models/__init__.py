"""Members: a backbone with a decoder, their initial weights, their folder."""
