from judging import judging

__all__ = ["judging"]
