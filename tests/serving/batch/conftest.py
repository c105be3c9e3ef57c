from scoring import images, judging, scoring

__all__ = ["images", "judging", "scoring"]
