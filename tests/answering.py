"""The service's application at uvicorn, on a port of loopback, with a backend in this process."""

from __future__ import annotations

import asyncio
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, Protocol

import httpx
import numpy as np
import uvicorn
from numpy.typing import NDArray

from segmill.serving.access import KeyRing, Refused
from segmill.serving.answers import Classes, Segmented, Wanted
from segmill.serving.app import Parts, make_app
from segmill.serving.audit import AuditLog, audit_log
from segmill.serving.decoding import DecodingLimits, decoders
from segmill.serving.figures import ServiceFigures
from segmill.serving.hints import WebhookHints
from segmill.serving.keys import ApiKeys, Scope
from segmill.serving.limits import RequestLimits
from segmill.serving.model import ModelFacts

LIMITS = RequestLimits(
    images=3, pixels=200_000, body_bytes=300_000, body_s=2.0, seconds=20.0,
    decoding=DecodingLimits(pixels=150_000, bytes=200_000, seconds=5.0),
)  # fmt: skip


class Model(Protocol):
    facts: ModelFacts

    def segment(self, images: Sequence[NDArray[np.uint8]], wanted: Sequence[Wanted]) -> list[Segmented]: ...


FACTS = ModelFacts(
    "segmill-brightness", "1", "0" * 64, Classes(("dark", "bright"), np.array([[0] * 3, [255] * 3], np.uint8), 255)
)


@dataclass
class Brightness:
    """A model of two classes: dark pixels and bright ones."""

    facts: ModelFacts = FACTS

    def segment(self, images: Sequence[NDArray[np.uint8]], wanted: Sequence[Wanted]) -> list[Segmented]:
        bright = [image_HWC.mean(axis=2) / 255 for image_HWC in images]
        kept = [np.stack([1 - one_HW, one_HW]).astype(np.float16) for one_HW in bright]
        return [
            Segmented((one_HW > 0.5).astype(np.uint8), probs_KHW if one.probabilities else None, 0.5)
            for one_HW, probs_KHW, one in zip(bright, kept, wanted, strict=True)
        ]


@dataclass
class Here:
    """A backend in this process. ``hold_s``: it answers so much later. ``asked``: how often it segmented."""

    model: Model | None
    hold_s: float = 0.0
    asked: int = 0

    def facts(self) -> ModelFacts | None:
        return self.model.facts if self.model else None

    async def segment(self, images: Sequence[NDArray[np.uint8]], wanted: Wanted) -> tuple[ModelFacts, list[Segmented]]:
        self.asked += 1
        await asyncio.sleep(self.hold_s)
        if self.model is None:
            raise Refused(503, "no model serves yet", retry_after_s=5)
        return self.model.facts, await asyncio.to_thread(self.model.segment, images, [wanted] * len(images))


@dataclass
class Service:
    client: httpx.Client
    address: tuple[str, int]
    backend: Here
    keys: ApiKeys
    audit: AuditLog
    hints: list[float]  # when each came, time.monotonic
    key: Callable[..., dict[str, str]]


@contextmanager
def answering(
    model: Model | None, folder: Path, *, limits: RequestLimits = LIMITS, secret: str | None = None, tls: Any = None
) -> Iterator[Service]:
    """Serve while the block runs.

    Args:
        folder: for the database of keys and the audit log.
        secret: of webhooks that may hint.
        tls: options of uvicorn, ``ssl_certfile`` and ``ssl_keyfile``, and the client's ``verify``.
    """
    url, tls = f"sqlite:///{folder}/ledger.db", dict(tls or {})
    verify = tls.pop("verify", True)
    keys, hints = ApiKeys(url), []
    ring, backend = KeyRing(keys.all), Here(model)

    async def hint() -> None:
        hints.append(time.monotonic())

    def key(*scopes: Scope, lifetime: timedelta | None = None) -> dict[str, str]:
        _, text = keys.create("a test", scopes or {Scope.SEGMENT}, lifetime)
        ring.refresh()
        return {"authorization": f"Bearer {text}"}

    with audit_log(url) as audit, decoders(1, limits.decoding) as processes, socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        webhooks = WebhookHints(secret) if secret else None
        app = make_app(Parts(backend, ring, processes, limits, ServiceFigures(), audit, hint, webhooks))
        server = uvicorn.Server(uvicorn.Config(app, log_level="warning", **tls))
        thread = threading.Thread(target=server.run, args=([listening],), daemon=True)
        thread.start()
        ring.refresh()
        address = listening.getsockname()
        kind = "https" if tls else "http"
        with httpx.Client(base_url=f"{kind}://127.0.0.1:{address[1]}", timeout=30, verify=verify) as client:
            until = time.monotonic() + 20
            while not server.started and time.monotonic() < until:
                time.sleep(0.01)
            yield Service(client, address, backend, keys, audit, hints, key)
        server.should_exit = True
        thread.join()
