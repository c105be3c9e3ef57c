from databases import server, url
from judging import judging, varied
from registering import registered

__all__ = ["judging", "registered", "server", "url", "varied"]
