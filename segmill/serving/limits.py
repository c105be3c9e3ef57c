"""What one key and one request may take of the service: requests per minute, bytes, images, seconds."""

from __future__ import annotations

import time
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass, field

from segmill.serving.access import Refused
from segmill.serving.decoding import DecodingLimits

MINUTE_S = 60.0


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
    """How often each key may ask, by a moving window in this process.

    It decides as the library limits does, whose memory storage starts a thread every 10 ms: that was most of what the
    service's door cost at p99.

    Args:
        per_minute: requests in any 60 s, at least 1.
        clock: returns seconds that never go back.
    """

    per_minute: int
    clock: Callable[[], float] = time.monotonic
    _taken: defaultdict[str, deque[float]] = field(init=False)  # by key: when its last requests came

    def __post_init__(self) -> None:
        self._taken = defaultdict(lambda: deque(maxlen=self.per_minute))

    def take(self, key_id: str) -> None:
        """Count a request. Raises Refused, 429, where the key had all of its requests in the last minute."""
        taken, now = self._taken[key_id], self.clock()
        if len(taken) == self.per_minute and now - taken[0] <= MINUTE_S:
            wait_s = max(1.0, taken[0] + MINUTE_S - now)
            sentence = f"this key had its {self.per_minute} requests of a minute; try again in {wait_s:.0f} s"
            raise Refused(429, sentence, key_id=key_id, retry_after_s=wait_s)
        taken.append(now)  # the oldest falls out
