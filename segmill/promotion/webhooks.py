"""Webhooks: notices posted over HTTP and signed as the Standard Webhooks specification has it."""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import os
import re
import time
from collections.abc import Mapping
from importlib.metadata import version

from segmill.errors import InputError
from segmill.passwords import public_address
from segmill.promotion.delivery import Target
from segmill.promotion.outbox import Notice

SECRET_BYTES = (24, 64)  # what the specification allows
NEW_FOR_S = 300  # an older request is one that somebody repeats, or a clock is wrong


def webhook(url: str, secret_env: str, kinds: frozenset[str]) -> Target:
    """Return the target that posts notices to ``url``, signed with the secret in the variable ``secret_env``."""
    return Target(
        f"webhook {public_address(url)}",
        kinds,
        lambda notice, timeout_s: _post(url, secret_env, notice, timeout_s),
        imports=("httpx",),
    )


def body_of(notice: Notice) -> bytes:
    """Return the request's body, byte for byte the same over retries."""
    content = {"type": f"segmill.{notice.kind}", "timestamp": notice.time, "data": notice.payload}
    return json.dumps(content, separators=(",", ":")).encode()


def signature(secret: str, id: str, timestamp: int, body: bytes) -> str:
    """Return the header ``webhook-signature``: ``v1,`` and the HMAC-SHA256 of id, timestamp and body in base64.

    Source: https://github.com/standard-webhooks/standard-webhooks, spec/standard-webhooks.md, scheme v1.

    Args:
        secret: ``whsec_`` and 24 to 64 random bytes in base64; or several, with spaces between them, while one
            replaces another: each signs.
        id: the header ``webhook-id``.
        timestamp: the header ``webhook-timestamp``, seconds since 1970.
        body: the request's body.

    Raises:
        InputError: the secret is none.
    """
    signed = b".".join([id.encode(), str(timestamp).encode(), body])
    digests = [hmac.new(_key(one), signed, hashlib.sha256).digest() for one in secret.split()]
    return " ".join(f"v1,{base64.b64encode(digest).decode()}" for digest in digests)


def verify(secret: str, headers: Mapping[str, str], body: bytes, now_s: float) -> None:
    """Check that a request that came is signed with the secret and new, in a time that does not depend on how wrong.

    Args:
        secret: as for ``signature``; each of several is good.
        headers: by names in small letters.
        now_s: seconds since 1970.

    Raises:
        InputError: it is not.
    """
    id, timestamp, given = (headers.get(f"webhook-{name}", "") for name in ("id", "timestamp", "signature"))
    if not re.fullmatch(r"[0-9]{1,12}", timestamp) or abs(now_s - int(timestamp)) > NEW_FOR_S:
        raise InputError(f"the header webhook-timestamp is no time within {NEW_FOR_S} s of now")
    expected = [one.encode() for one in signature(secret, id, int(timestamp), body).split()]
    matches = [hmac.compare_digest(one, other.encode()) for one in expected for other in given.split(" ")]
    if not any(matches):
        raise InputError("the header webhook-signature is not that of this request")


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix("whsec_"), validate=True)
    except binascii.Error:
        key = b""
    least, most = SECRET_BYTES
    if not least <= len(key) <= most:
        raise InputError(
            f"the secret is not whsec_ and {least} to {most} bytes in base64",
            "make one with: echo whsec_$(openssl rand -base64 32)",
        )
    return key


def _post(url: str, secret_env: str, notice: Notice, timeout_s: float) -> None:
    """Post a notice. Only an answer of 200 to 299 counts as delivered; its body is not read.

    Raises:
        InputError: the secret is missing, or the address answered something else or nothing.
    """
    import httpx

    secret = os.environ.get(secret_env, "").strip()
    if not secret:
        raise InputError(f"the environment variable {secret_env} with its secret is not set")
    sent_s, body = int(time.time()), body_of(notice)
    headers = {
        "content-type": "application/json",
        "user-agent": f"segmill/{version('segmill')}",
        "webhook-id": notice.id,
        "webhook-timestamp": str(sent_s),
        "webhook-signature": signature(secret, notice.id, sent_s, body),
    }
    try:
        with httpx.stream("POST", url, content=body, headers=headers, timeout=timeout_s) as answer:
            status = answer.status_code
    except httpx.InvalidURL:  # what it says may hold a part of a password
        raise InputError("is not an address that can be posted to") from None
    except httpx.HTTPError as error:
        raise InputError(f"does not answer ({str(error) or type(error).__name__})") from None
    if 300 <= status < 400:
        raise InputError(f"answered {status}, and redirects are not followed", "name the address itself")
    if not 200 <= status < 300:
        raise InputError(f"answered {status}")
