from judging import judging
from nights import made_nights, nights
from registering import registered

__all__ = ["judging", "made_nights", "nights", "registered"]
