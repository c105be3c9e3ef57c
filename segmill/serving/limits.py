"""What one key and one request may take of the service: requests per minute, bytes, images, seconds."""

from __future__ import annotations

import time
from dataclasses import dataclass, field

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from segmill.serving.access import Refused
from segmill.serving.decoding import DecodingLimits


@dataclass(frozen=True)
class RequestLimits:
    """What a request may take.

    Attributes:
        per_minute: requests of one key, in any 60 s, at one replica.
        images: in one request.
        pixels: of all images of a request together.
        body_bytes: of a request.
        body_s: from the first to the last byte of the body.
        seconds: until the answer begins; a client may ask for less by the header ``X-Deadline-Seconds``.
        at_once: requests that are being answered; more get 503 with Retry-After.
        decoding: what one image may take.
    """

    per_minute: int = 600
    images: int = 32
    pixels: int = 2**25
    body_bytes: int = 2**26
    body_s: float = 20.0
    seconds: float = 30.0
    at_once: int = 64
    decoding: DecodingLimits = field(default_factory=DecodingLimits)


@dataclass
class Rates:
    """How often each key may ask, by a moving window in this process."""

    per_minute: int
    _limiter: MovingWindowRateLimiter = field(
        default_factory=lambda: MovingWindowRateLimiter(MemoryStorage()), init=False
    )

    def take(self, key_id: str) -> None:
        """Count a request. Raises Refused, 429, where the key had all of its requests in the last minute."""
        item = RateLimitItemPerMinute(self.per_minute)
        if not self._limiter.hit(item, key_id):
            wait_s = max(1.0, self._limiter.get_window_stats(item, key_id).reset_time - time.time())
            sentence = f"this key had its {self.per_minute} requests of a minute; try again in {wait_s:.0f} s"
            raise Refused(429, sentence, key_id=key_id, retry_after_s=wait_s)
