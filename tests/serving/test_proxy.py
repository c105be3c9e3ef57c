"""Ray Serve's own pages, which no key guards, come to the doors like any other path."""

from __future__ import annotations

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.testclient import TestClient

from segmill.serving.proxy import middlewares


def ray_page(request: Request) -> PlainTextResponse:
    return PlainTextResponse("Ray's")


def door(request: Request) -> PlainTextResponse:
    return PlainTextResponse(request.url.path)


@pytest.mark.parametrize(
    ("asked", "answered"),
    [
        ("/-/routes", "/-"),
        ("/-/healthz", "/-"),
        ("/-/x", "/-"),
        ("/healthz", "/healthz"),
        ("/v1/segment", "/v1/segment"),
    ],
)
def test_a_page_of_rays_is_never_what_answers(asked: str, answered: str) -> None:
    routes = [Route("/-/{page}", ray_page), Route("/{rest:path}", door)]
    with TestClient(Starlette(routes=routes, middleware=middlewares())) as client:
        assert client.get(asked).text == answered
