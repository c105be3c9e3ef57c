"""What Ray Serve's HTTP proxy hands to the doors: its own pages, which no key guards, are not answered."""

from __future__ import annotations

from starlette.middleware import Middleware
from starlette.types import ASGIApp, Receive, Scope, Send

# Ray Serve's own variable: where a proxy finds the middlewares to run.
VARIABLE, CALLBACK = "RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH", "segmill.serving.proxy:middlewares"


class NoPagesOfRay:
    """Lets the doors answer ``/-/routes`` and ``/-/healthz`` as they answer any path that is none of theirs."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("path", "").startswith("/-/"):
            scope = {**scope, "path": "/-", "raw_path": b"/-"}
        await self._app(scope, receive, send)


def middlewares() -> list[Middleware]:
    """Return what ``VARIABLE`` asks for."""
    return [Middleware(NoPagesOfRay)]
