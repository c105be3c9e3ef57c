from databases import server, url

__all__ = ["server", "url"]
