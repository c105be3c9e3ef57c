from scoring import images, judging, scoring, second

__all__ = ["images", "judging", "scoring", "second"]
