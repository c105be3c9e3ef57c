"""Hints by webhook: a request without a key that is signed as segmill's notices are, and says that a champion changed.

It is believed in nothing but that: the ledger says which version serves.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping

from starlette.types import Receive

from segmill.errors import InputError
from segmill.promotion.webhooks import signature, verify
from segmill.serving.access import Refused

SENDER = "webhook"  # in the log, in place of a key's id
MOST_BYTES = 2**18  # of a body that is read before it is known whose it is; a notice has some 2,000
AT_ONCE = 8  # such bodies


class WebhookHints:
    """Verifies hints. Made by ``webhook_hints``.

    Args:
        secret: as for ``webhooks.signature``; InputError where it is none.
    """

    def __init__(self, secret: str) -> None:
        signature(secret, "", 0, b"")
        self._secret = secret
        self._reading = 0

    async def body(self, headers: Mapping[str, str], receive: Receive) -> bytes:
        """Return the body of a request that is genuine and new.

        Raises Refused: 400 where the body does not come whole, 401 where it is not signed or is old, 503 where too
        many are read already; what ``receive`` raises.
        """
        if self._reading >= AT_ONCE:
            raise Refused(503, "too many webhooks are being read; try again", retry_after_s=1)
        self._reading += 1
        try:
            body = await _whole(receive)
        finally:
            self._reading -= 1
        try:
            verify(self._secret, headers, body, time.time())
        except InputError as error:
            raise Refused(401, str(error)) from None
        return body


def is_webhook(headers: Mapping[str, str]) -> bool:
    """Tell whether a request wants to be let in by its signature; who sends a key is asked for that."""
    return "webhook-signature" in headers and "authorization" not in headers


def webhook_hints(variables: Iterable[str]) -> WebhookHints | None:
    """Return what verifies hints by the secrets in these environment variables; None where none is named.

    Raises InputError where a variable is not set or holds no secret.
    """
    secrets = []
    for name in variables:
        if not (secret := os.environ.get(name, "").strip()):
            raise InputError(f"hints by webhook are refused: the environment variable {name} is not set")
        secrets.append(secret)
    return WebhookHints(" ".join(secrets)) if secrets else None


async def _whole(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        if message["type"] != "http.request":
            raise Refused(400, "the body did not come whole")
        body += message.get("body", b"")
        more = message.get("more_body", False)
    return body
