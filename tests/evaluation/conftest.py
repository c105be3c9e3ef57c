from judging import judging, varied

__all__ = ["judging", "varied"]
