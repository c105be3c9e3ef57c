"""Decides about each request: is there a key, is it valid, is it good for this? Without asking a database each time."""

from __future__ import annotations

import base64
import contextlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field

from segmill.errors import SegmillError
from segmill.serving.keys import ApiKey, Scope, hash_of, id_of, is_of

REFRESH_S = 2.0  # a revoked key is good for nothing within 5 s, on every replica
PATIENCE_S = 60.0  # so long the keys last read are believed while the database does not answer
_NOBODY = "a key that does not exist"


class Refused(Exception):
    """A request that gets no answer: the HTTP ``status`` and one ``sentence``.

    ``key_id``: where the key is known. ``retry_after_s``: when it may be tried again, where that helps.
    """

    def __init__(self, status: int, sentence: str, *, key_id: str = "", retry_after_s: float | None = None) -> None:
        super().__init__(sentence)
        self.status = status
        self.sentence = sentence
        self.key_id = key_id
        self.retry_after_s = retry_after_s


@dataclass
class KeyRing:
    """The keys as this replica knows them; ``watch`` reads them again and again.

    Args:
        read: returns every key, or raises InfrastructureError (``ApiKeys.all``).
    """

    read: Callable[[], list[ApiKey]]
    refresh_s: float = REFRESH_S
    patience_s: float = PATIENCE_S
    _known: dict[str, ApiKey] = field(default_factory=dict, init=False)
    _read_at: float | None = field(default=None, init=False)

    def refresh(self) -> None:
        """Read the keys once; InfrastructureError where the database does not answer."""
        began = time.monotonic()
        self._known = {key.id: key for key in self.read()}
        self._read_at = began

    def watch(self, over: threading.Event) -> None:
        """Read the keys every ``refresh_s`` seconds until ``over``, also after a database did not give them."""
        while not over.wait(self.refresh_s):
            try:
                self.refresh()
            except (SegmillError, OSError):  # away, or rights that are missing for a while
                continue

    def admit(self, authorization: str | None, scope: Scope) -> ApiKey:
        """Return whose request it is.

        Args:
            authorization: the header of this name: ``Bearer KEY``, or ``Basic``, as browsers ask a person for it, with
                the key as the password of any user. None where there is none.
            scope: what the request is for.

        Raises Refused: 401 without a valid key, 403 where it is good for other things, 503 where keys are not known.
        """
        if self._read_at is None or time.monotonic() - self._read_at > self.patience_s:
            raise Refused(503, "keys can't be checked now; try again", retry_after_s=self.refresh_s)
        text = _text_of(authorization or "")
        if not text:
            raise Refused(401, "this needs a key, as in `Authorization: Bearer segmill_...`")
        key = self._known.get(id_of(text))
        if key is None:
            hash_of(_NOBODY)  # as long as it takes where there is one
        if key is None or not is_of(text, key):
            raise Refused(401, "this key is not known here")
        if (state := key.state()) != "valid":
            raise Refused(401, f"this key is {state}", key_id=key.id)
        if scope not in key.scopes:
            good_for = ", ".join(sorted(key.scopes))
            raise Refused(403, f"this key is not good for {scope}, only for {good_for}", key_id=key.id)
        return key


def _text_of(authorization: str) -> str:
    """Return the key in a header; "" where there is none."""
    kind, _, text = authorization.partition(" ")
    if kind.lower() == "bearer":
        return text.strip()
    if kind.lower() == "basic":
        with contextlib.suppress(ValueError):
            return base64.b64decode(text.strip(), validate=True).decode().partition(":")[2]
    return ""
