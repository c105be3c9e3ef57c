"""The HTTP interface: images in, masks out; which model it is; figures; and a page to try an image."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from importlib.resources import files
from typing import Annotated, Any, Protocol

import numpy as np
from fastapi import FastAPI, Query, Request, Security
from fastapi.exceptions import RequestValidationError
from fastapi.responses import HTMLResponse, JSONResponse, Response
from fastapi.security import HTTPBearer
from numpy.typing import NDArray
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException

from segmill.data.storage.images import encode_png
from segmill.monitoring.windows import ServedImage, ServedWindows
from segmill.serving.access import KeyRing, Refused
from segmill.serving.answers import Extra, Form, Segmented, Wanted, as_json, as_zip
from segmill.serving.audit import AuditLog
from segmill.serving.decoding import Decoders
from segmill.serving.door import Door, RequestFacts, refuse
from segmill.serving.figures import ServiceFigures
from segmill.serving.hints import WebhookHints
from segmill.serving.limits import RequestLimits
from segmill.serving.model import ModelFacts

Pixels = NDArray[np.uint8]
_PAGE_MAY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; connect-src 'self'; img-src blob: data:"
)
IMAGE_TYPES = ("image/png", "image/jpeg", "image/tiff", "image/bmp", "image/webp", "application/octet-stream")


class Backend(Protocol):
    """Where images are segmented."""

    def facts(self) -> ModelFacts | None:
        """Return which model serves now; None while there is none."""
        ...

    async def segment(self, images: Sequence[Pixels], wanted: Wanted) -> tuple[ModelFacts, list[Segmented]]:
        """Segment images HWC uint8, all by one version. Raises Refused, 503, where none serves."""
        ...


@dataclass(frozen=True)
class Parts:
    """What the interface is made of.

    ``hint`` is called where somebody says that another version may serve; ``webhooks`` verifies who says so without
    a key. ``windows`` take what was served.
    """

    backend: Backend
    ring: KeyRing
    decoders: Decoders
    limits: RequestLimits
    figures: ServiceFigures
    audit: AuditLog | None = None
    hint: Callable[[], Awaitable[None]] | None = None
    webhooks: WebhookHints | None = None
    windows: ServedWindows | None = None


def make_app(parts: Parts, lifespan: Any = None) -> FastAPI:
    """Return the application. ``lifespan``: as FastAPI takes it, what runs while it does."""
    app = FastAPI(
        title="segmill", version=version("segmill"), docs_url=None, redoc_url=None, lifespan=lifespan,
        description="Segments images by the champion. Every route but /healthz needs a key.",
    )  # fmt: skip
    _add_routes(app, parts)
    _add_errors(app)
    app.add_middleware(
        Door, ring=parts.ring, limits=parts.limits, audit=parts.audit, figures=parts.figures, webhooks=parts.webhooks,
    )  # fmt: skip
    return app


def _add_routes(app: FastAPI, parts: Parts) -> None:
    @app.get("/healthz")
    async def alive() -> dict[str, str]:
        """Tell that the process answers; nothing else."""
        return {"status": "alive"}

    @app.get("/readyz", dependencies=_KEY)
    async def ready() -> JSONResponse:
        """Tell whether a model serves: 200 or 503."""
        facts = parts.backend.facts()
        said = {"status": "ready", "version": facts.version} if facts else {"status": "no model serves"}
        return JSONResponse(said, 200 if facts else 503)

    @app.get("/metrics", dependencies=_KEY)
    async def metrics() -> Response:
        """Return this replica's figures for Prometheus."""
        return Response(parts.figures.text(), media_type="text/plain; version=0.0.4")

    @app.get("/v1/model", dependencies=_KEY)
    async def model(request: Request) -> dict[str, Any]:
        """Tell which model answers, and its classes."""
        facts = _serving(parts.backend)
        _noted(request).version = facts.version
        return facts.as_json()

    @app.post("/v1/hint", status_code=202, dependencies=_KEY)
    async def hint() -> dict[str, str]:
        """Look now whether another version serves; the ledger decides."""
        if parts.hint:
            await parts.hint()
        return {"status": "the ledger is looked at"}

    @app.post("/v1/segment", responses=_ANSWERS, openapi_extra={"requestBody": _BODY}, dependencies=_KEY)
    async def segment(
        request: Request,
        form: Annotated[Form, Query(description="How masks come.")] = Form.PNG,
        extra: Annotated[list[Extra] | None, Query(description="What comes besides.")] = None,
        value: Annotated[
            str, Query(max_length=200, description="The images' value of the column that anomalies are calibrated by.")
        ] = "",
    ) -> Response:
        """Segment one image, sent as the body, or several, as the files of a form."""
        extras = set(extra or ())
        contents = await _contents(request, parts.limits)
        if form == Form.PNG and (len(contents) > 1 or extras):
            raise Refused(400, "form=png answers one mask and nothing else; ask for form=zip, rle or json")
        images = await _decoded(contents, parts)
        wanted = Wanted(Extra.PROBABILITIES in extras, Extra.ANOMALY in extras, value)
        facts, found = await parts.backend.segment(images, wanted)
        noted = _noted(request)
        noted.version, noted.images = facts.version, len(found)
        parts.figures.images.labels(facts.version).inc(len(found))
        answer = await asyncio.to_thread(_answer, facts, found, images, form, extras)
        answer.headers["x-model-version"] = facts.version
        if parts.windows:
            _describe(parts, parts.windows, noted.id, facts, images, found)
        return answer

    @app.get("/", include_in_schema=False)
    async def page() -> HTMLResponse:
        """Return the page to try an image."""
        text = files("segmill.serving").joinpath("try.html").read_text()
        return HTMLResponse(text, headers={"content-security-policy": _PAGE_MAY, "x-content-type-options": "nosniff"})


def _answer(
    facts: ModelFacts, found: Sequence[Segmented], images: Sequence[Pixels], form: Form, extras: set[Extra]
) -> Response:
    if form == Form.PNG:
        anomaly = found[0].anomaly
        headers = {"x-p-value": f"{anomaly.p_value:.6g}", "x-abstain": str(anomaly.abstain).lower()} if anomaly else {}
        return Response(encode_png(found[0].ids_HW), media_type="image/png", headers=headers)
    said = {
        "model": facts.name,
        "version": facts.version,
        "images": [as_json(one, image, facts.classes, form, extras) for one, image in zip(found, images, strict=True)],
    }
    if form == Form.ZIP:
        content = as_zip(list(zip(found, images, strict=True)), facts.classes, extras, said)
        return Response(content, media_type="application/zip")
    return JSONResponse(said)


def _describe(
    parts: Parts, windows: ServedWindows, request: str, facts: ModelFacts, images: Sequence[Pixels],
    found: Sequence[Segmented],
) -> None:  # fmt: skip
    for image_HWC, one in zip(images, found, strict=True):
        windows.add(ServedImage(
            model=facts.name, version=facts.version, request=request, image_HWC=image_HWC, ids_HW=one.ids_HW,
            class_names=facts.classes.names, confidence=one.confidence, embedding=_embedding(one),
        ))  # fmt: skip
    parts.figures.windows_lost.set(windows.lost)


def _embedding(one: Segmented) -> list[float]:
    embedding_E = one.anomaly.embedding_E if one.anomaly else None
    return [] if embedding_E is None else embedding_E.tolist()


async def _contents(request: Request, limits: RequestLimits) -> list[bytes]:
    """Return the image files of a request, in their order. Raises Refused."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind == "multipart/form-data":
        async with request.form(max_files=limits.images, max_fields=0, max_part_size=0) as form:
            contents = [await part.read() for _, part in form.multi_items() if isinstance(part, UploadFile)]
    elif kind in IMAGE_TYPES:
        contents = [await request.body()]
    else:
        raise Refused(415, f"the body is no image and no form: send {', '.join(IMAGE_TYPES)}, or multipart/form-data")
    if not any(contents):
        raise Refused(400, "no image came")
    return contents


async def _decoded(contents: Sequence[bytes], parts: Parts) -> list[Pixels]:
    """Decode one image after the other, so that a request has at most so many pixels in memory as it may."""
    images: list[Pixels] = []
    for number, content in enumerate(contents):
        which = f"image {number}: " if len(contents) > 1 else ""
        try:
            image_HWC = await asyncio.to_thread(parts.decoders.decode, content)
        except Refused as error:
            raise Refused(error.status, which + error.sentence, retry_after_s=error.retry_after_s) from None
        images.append(np.broadcast_to(image_HWC, (*image_HWC.shape[:2], 3)))
        if sum(image.shape[0] * image.shape[1] for image in images) > parts.limits.pixels:
            raise Refused(413, f"{which}the images have more than {parts.limits.pixels} pixels together")
    return images


def _serving(backend: Backend) -> ModelFacts:
    facts = backend.facts()
    if facts is None:
        raise Refused(503, "no model serves yet", retry_after_s=5)
    return facts


def _noted(request: Request) -> RequestFacts:
    facts: RequestFacts = request.state.facts
    return facts


def _add_errors(app: FastAPI) -> None:
    """Answer everything that goes wrong in one sentence, in the door's form."""

    @app.exception_handler(Refused)
    async def refused(request: Request, error: Refused) -> Response:
        return _Sentence(error, _noted(request))

    @app.exception_handler(RequestValidationError)
    async def invalid(request: Request, error: RequestValidationError) -> Response:
        first = error.errors()[0]
        name = ".".join(str(part) for part in first["loc"][1:])
        return _Sentence(Refused(422, f"{name}: {first['msg']}"), _noted(request))

    @app.exception_handler(HTTPException)
    async def http(request: Request, error: HTTPException) -> Response:
        return _Sentence(Refused(error.status_code, str(error.detail)), _noted(request), dict(error.headers or {}))


class _Sentence(Response):
    """A refusal as the door writes it."""

    def __init__(self, error: Refused, facts: RequestFacts, headers: dict[str, str] | None = None) -> None:
        super().__init__(headers=headers)
        self._error, self._facts = error, facts

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await refuse(self._error, self._facts, send)


# What the document says of keys; the door checks them.
_KEY = [Security(HTTPBearer(auto_error=False, description="A key, as `segmill keys create` shows it."))]
_BODY = {
    "required": True,
    "content": {
        **{kind: {"schema": {"type": "string", "format": "binary"}} for kind in IMAGE_TYPES},
        "multipart/form-data": {
            "schema": {
                "type": "object",
                "properties": {"image": {"type": "array", "items": {"type": "string", "format": "binary"}}},
            }
        },
    },
}
_EXAMPLE = {
    "model": "segmill-street",
    "version": "12",
    "images": [
        {"height": 2, "width": 3, "class_shares": {"road": 0.5, "car": 0.5}, "confidence": 0.97,
         "anomaly": {"score": 1.3, "p_value": 0.41, "abstain": False},
         "ids": [[0, 0, 1], [0, 1, 1]]},
    ],
}  # fmt: skip
_SENTENCE = {
    "content": {"application/json": {"example": {"error": "this key is not known here", "request": "8f14e45f"}}}
}
_ANSWERS: dict[int | str, dict[str, Any]] = {
    200: {
        "description": "The masks: class ids at the images' own sizes.",
        "content": {
            "image/png": {"schema": {"type": "string", "format": "binary"}},
            "application/json": {"example": _EXAMPLE},
            "application/zip": {"schema": {"type": "string", "format": "binary"}},
        },
        "headers": {"X-Model-Version": {"schema": {"type": "string"}}, "X-Request-Id": {"schema": {"type": "string"}}},
    },
    **{
        status: {"description": what, **_SENTENCE}
        for status, what in {
            400: "The request says something that can't be.", 401: "No valid key.",
            403: "The key is not good for this.", 408: "The body came too slowly.",
            413: "Too many bytes or pixels.", 415: "No image type.",
            422: "An image that can't be read, or an unknown parameter's value.", 429: "Too many requests of this key.",
            503: "Busy, or no model serves; Retry-After says when to come back.", 504: "It took too long.",
        }.items()
    },
}  # fmt: skip
