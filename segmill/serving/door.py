"""The door in front of the routes: a request's id, who asks, how often and how much, and a line about what came of it.

Plain ASGI, so that a body is counted while it arrives and an answer passes through untouched.
"""

from __future__ import annotations

import asyncio
import json
import logging
import math
import re
import time
import uuid
from collections.abc import Mapping
from dataclasses import dataclass

from starlette.types import ASGIApp, Message, Receive, Send
from starlette.types import Scope as AsgiScope

from segmill.serving.access import KeyRing, Refused
from segmill.serving.audit import AuditLog, AuditRow
from segmill.serving.figures import ServiceFigures
from segmill.serving.hints import MOST_BYTES, SENDER, WebhookHints, is_webhook
from segmill.serving.keys import Scope
from segmill.serving.limits import Rates, RequestLimits

HEALTH, HINT = "/healthz", "/v1/hint"
ROUTES: Mapping[str, Scope | None] = {  # what a key must be good for; None: nobody needs one
    HEALTH: None,
    "/": Scope.SEGMENT,
    "/v1/segment": Scope.SEGMENT,
    "/v1/model": Scope.SEGMENT,
    "/openapi.json": Scope.SEGMENT,
    "/readyz": Scope.METRICS,
    "/metrics": Scope.METRICS,
    HINT: Scope.ADMIN,
}
_ID = re.compile(r"[\w.-]{1,64}", re.ASCII)
_log = logging.getLogger("segmill.serving")


@dataclass
class RequestFacts:
    """What is noted of a request while it is answered; routes fill in ``version`` and ``images``."""

    id: str
    key_id: str = ""
    version: str = ""
    images: int = 0
    bytes_in: int = 0
    bytes_out: int = 0
    status: int = 0


class Door:
    """ASGI middleware in front of ``app``. ``webhooks``: who verifies hints without a key; None refuses them."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        ring: KeyRing,
        limits: RequestLimits,
        audit: AuditLog | None,
        figures: ServiceFigures,
        webhooks: WebhookHints | None = None,
    ) -> None:
        self._app, self._ring, self._limits, self._audit, self._figures = app, ring, limits, audit, figures
        self._webhooks = webhooks
        self._rates = Rates(limits.per_minute)
        self._at_once = 0

    async def __call__(self, scope: AsgiScope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        headers = {name.decode("latin-1").lower(): value.decode("latin-1") for name, value in scope["headers"]}
        asked = headers.get("x-request-id", "")
        facts = RequestFacts(asked if _ID.fullmatch(asked) else uuid.uuid4().hex)
        scope.setdefault("state", {})["facts"] = facts
        began = time.perf_counter()
        path = scope["path"].removeprefix(scope.get("root_path", "")) or "/"
        route = path if path in ROUTES else "other"
        self._figures.in_flight.inc()
        try:
            await self._answer(path, scope, headers, facts, receive, self._counted(facts, send))
        finally:
            self._figures.in_flight.dec()
            self._note(facts, route, time.perf_counter() - began)

    async def _answer(
        self,
        path: str,
        scope: AsgiScope,
        headers: Mapping[str, str],
        facts: RequestFacts,
        receive: Receive,
        send: Send,
    ) -> None:
        try:
            receive = await self._admitted(path, headers, facts, receive)
            if path == HEALTH:
                await self._app(scope, receive, send)
                return
            if self._at_once >= self._limits.at_once:
                raise Refused(503, "too many requests are being answered; try again", retry_after_s=1)
            self._at_once += 1
            try:
                async with asyncio.timeout(self._seconds(headers)):
                    await self._app(scope, receive, send)
            finally:
                self._at_once -= 1
        except Refused as error:
            await refuse(error, facts, send)
        except TimeoutError:
            await refuse(Refused(504, "the answer took longer than it may"), facts, send)
        except Exception:
            _log.exception("request %s failed", facts.id)
            await refuse(Refused(500, "the service failed; its log says why under this request's id"), facts, send)

    async def _admitted(self, path: str, headers: Mapping[str, str], facts: RequestFacts, receive: Receive) -> Receive:
        """Let a request in, by its key or as a webhook; return what receives its body. Raises Refused."""
        if path == HINT and self._webhooks and is_webhook(headers):
            await self._webhooks.body(headers, self._limited(facts, headers, receive, MOST_BYTES))
            facts.key_id = SENDER
            self._rates.take(SENDER)
            return receive  # the route asks for no body
        self.admit(path, headers.get("authorization"), facts)
        return self._limited(facts, headers, receive, self._limits.body_bytes)

    def admit(self, path: str, authorization: str | None, facts: RequestFacts) -> None:
        """Let a request in, or raise Refused. An unknown path needs a key too: who has none learns no routes."""
        needed = ROUTES.get(path, Scope.SEGMENT)
        if needed is None:
            return
        try:
            key = self._ring.admit(authorization, needed)
            facts.key_id = key.id
            self._rates.take(key.id)
        except Refused as error:
            facts.key_id = error.key_id
            raise

    def _seconds(self, headers: Mapping[str, str]) -> float:
        asked = headers.get("x-deadline-seconds")
        if asked is None:
            return self._limits.seconds
        try:
            seconds = float(asked)
        except ValueError:
            seconds = math.nan
        if not seconds > 0:
            raise Refused(400, "X-Deadline-Seconds is no number above 0")
        return min(seconds, self._limits.seconds)

    def _limited(self, facts: RequestFacts, headers: Mapping[str, str], receive: Receive, most: int) -> Receive:
        """Return what receives the body, and raises Refused where it has more than ``most`` bytes or is too slow."""
        until = time.monotonic() + self._limits.body_s
        said = headers.get("content-length", "")
        too_large = Refused(413, f"the body has more than {most} bytes")
        if said.isascii() and said.isdigit() and int(said) > most:
            raise too_large
        whole = False

        async def take() -> Message:
            nonlocal whole
            if whole:  # what comes later is that the client has gone
                return await receive()
            try:
                async with asyncio.timeout(until - time.monotonic()):
                    message = await receive()
            except TimeoutError:
                raise Refused(408, f"the body took longer than {self._limits.body_s:g} s") from None
            facts.bytes_in += len(message.get("body", b""))
            if facts.bytes_in > most:
                raise too_large
            whole = not message.get("more_body", False)
            return message

        return take

    def _counted(self, facts: RequestFacts, send: Send) -> Send:
        async def give(message: Message) -> None:
            if message["type"] == "http.response.start":
                facts.status = message["status"]
                message = {**message, "headers": [*message.get("headers", ()), (b"x-request-id", facts.id.encode())]}
            facts.bytes_out += len(message.get("body", b""))
            await send(message)

        return give

    def _note(self, facts: RequestFacts, route: str, seconds: float) -> None:
        status = facts.status or 499  # the client went before it was answered
        self._figures.requests.labels(route, str(status)).inc()
        self._figures.seconds.labels(route).observe(seconds)
        row = AuditRow(
            request=facts.id, key=facts.key_id, route=route, version=facts.version, status=status, images=facts.images,
            bytes_in=facts.bytes_in, bytes_out=facts.bytes_out, milliseconds=round(1000 * seconds),
        )  # fmt: skip
        _log.info(json.dumps(vars(row)))
        if self._audit and route != HEALTH:
            self._audit.add(row)
            self._figures.audit_lost.set(self._audit.lost)


async def refuse(error: Refused, facts: RequestFacts, send: Send) -> None:
    """Answer with the sentence; nothing where an answer has begun."""
    if facts.status:
        return
    body = json.dumps({"error": error.sentence, "request": facts.id}).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    if error.status == 401:
        headers += [(b"www-authenticate", b"Bearer"), (b"www-authenticate", b'Basic realm="segmill", charset="UTF-8"')]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", str(math.ceil(error.retry_after_s)).encode()))
    if error.status in (408, 413):
        headers.append((b"connection", b"close"))  # what is left of the body is not read
    await send({"type": "http.response.start", "status": error.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
