"""How often a key may ask, and how many requests are answered at once."""

from __future__ import annotations

import asyncio
import time
from contextlib import suppress
from typing import Any

import numpy as np
import pytest
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter

from segmill.serving.access import KeyRing, Refused
from segmill.serving.door import Door, RequestFacts
from segmill.serving.figures import ServiceFigures
from segmill.serving.keys import ApiKey, ApiKeys, Scope
from segmill.serving.limits import Rates, RequestLimits


def test_a_key_has_its_requests_of_a_minute_and_others_have_theirs() -> None:
    rates = Rates(3)
    for _ in range(3):
        rates.take("one")
    with pytest.raises(Refused) as refused:
        rates.take("one")
    assert (refused.value.status, refused.value.key_id) == (429, "one")
    assert refused.value.retry_after_s is not None and 50 < refused.value.retry_after_s <= 60
    rates.take("another")


@pytest.mark.parametrize("seed", range(5))
def test_it_decides_as_the_moving_window_of_limits(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(seed)
    now_s, per_minute = 1_800_000_000.0, int(rng.integers(1, 9))
    rates, reference = Rates(per_minute, lambda: now_s), MovingWindowRateLimiter(MemoryStorage())
    monkeypatch.setattr(time, "time", lambda: now_s)
    ours, theirs = [], []
    for wait_s in rng.exponential(60 / per_minute / 1.5, 400):
        now_s += float(wait_s)
        theirs.append(reference.hit(RateLimitItemPerMinute(per_minute), "one"))
        ours.append(False)
        with suppress(Refused):
            rates.take("one")
            ours[-1] = True
    assert ours == theirs and 50 < sum(ours) < 350


def test_who_comes_while_all_places_are_taken_is_told_when_to_come_back(tmp_path: Any) -> None:
    keys = ApiKeys(f"sqlite:///{tmp_path / 'ledger.db'}")
    _, text = keys.create("a test", {Scope.SEGMENT}, None)
    ring = KeyRing(keys.all)
    ring.refresh()
    go = asyncio.Event()

    async def slow(scope: Any, receive: Any, send: Any) -> None:
        await go.wait()
        await send({"type": "http.response.start", "status": 204})
        await send({"type": "http.response.body"})

    door = Door(slow, ring=ring, limits=RequestLimits(at_once=2), audit=None, figures=ServiceFigures())

    async def ask() -> tuple[int, dict[bytes, bytes]]:
        said: list[Any] = []

        async def send(message: Any) -> None:
            said.append(message)

        headers = [(b"authorization", f"Bearer {text}".encode())]
        await door({"type": "http", "path": "/v1/model", "headers": headers}, asyncio.Event().wait, send)
        return said[0]["status"], dict(said[0]["headers"])

    async def three() -> list[tuple[int, dict[bytes, bytes]]]:
        waiting = [asyncio.create_task(ask()) for _ in range(2)]
        await asyncio.sleep(0)
        third = await ask()
        go.set()
        return [third, *await asyncio.gather(*waiting)]

    (status, headers), *others = asyncio.run(three())
    assert (status, headers[b"retry-after"]) == (503, b"1")
    assert [status for status, _ in others] == [204, 204]


def test_an_unknown_path_needs_a_key_too() -> None:
    def nobody() -> list[ApiKey]:
        return []

    ring = KeyRing(nobody)
    ring.refresh()
    door = Door(None, ring=ring, limits=RequestLimits(), audit=None, figures=ServiceFigures())  # type: ignore[arg-type]
    for path in ("/v1/segment", "/nothing", "/healthz/", "//healthz", "/HEALTHZ"):
        with pytest.raises(Refused) as refused:
            door.admit(path, None, RequestFacts("1"))
        assert refused.value.status == 401
