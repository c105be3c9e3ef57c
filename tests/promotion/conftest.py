from judging import judging, varied
from registering import registered

__all__ = ["judging", "registered", "varied"]
