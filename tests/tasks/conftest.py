from judging import judging
from registering import registered

__all__ = ["judging", "registered"]
