"""What the service's door costs a request, apart from the route behind it: key, rate limit, counting, log line, audit.

    python benchmarks/access_speed.py [--calls 10000] [--keys 100]

The same requests go through the door to a route that answers at once, and to that route alone, in alternating blocks.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from segmill.serving.access import KeyRing
from segmill.serving.audit import audit_log
from segmill.serving.door import Door, RequestFacts
from segmill.serving.figures import ServiceFigures
from segmill.serving.keys import ApiKeys, Scope
from segmill.serving.limits import RequestLimits

BLOCK = 100


async def route(scope: Any, receive: Any, send: Any) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"{}"})


async def send(message: Any) -> None:
    pass


async def timed(app: Any, texts: list[str]) -> list[float]:
    seconds = []
    for text in texts:
        headers = [(b"authorization", f"Bearer {text}".encode()), (b"x-request-id", b"benchmark")]
        scope = {"type": "http", "path": "/v1/model", "headers": headers, "state": {"facts": RequestFacts("")}}
        began = time.perf_counter()
        await app(scope, asyncio.Event().wait, send)
        seconds.append(time.perf_counter() - began)
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--calls", type=int, default=10_000)
    parser.add_argument("--keys", type=int, default=100)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, open(Path(folder) / "log", "w") as log:
        logging.basicConfig(stream=log, level=logging.INFO)
        url = f"sqlite:///{folder}/ledger.db"
        keys = ApiKeys(url)
        texts = [keys.create(f"key {number}", {Scope.SEGMENT}, None)[1] for number in range(options.keys)]
        ring = KeyRing(keys.all)
        ring.refresh()
        found: dict[str, list[float]] = {"door": [], "bare": []}
        with audit_log(url) as audit:
            limits = RequestLimits(per_minute=options.calls)
            door = Door(route, ring=ring, limits=limits, audit=audit, figures=ServiceFigures())
            for start in range(0, options.calls, BLOCK):
                block = [texts[number % len(texts)] for number in range(start, start + BLOCK)]
                found["door"] += asyncio.run(timed(door, block))
                found["bare"] += asyncio.run(timed(route, block))
    for name, seconds in found.items():
        median, p99, most = (1e6 * float(np.quantile(seconds, q)) for q in (0.5, 0.99, 1.0))
        print(f"{name}: median {median:7.1f} us, p99 {p99:7.1f} us, most {most:8.1f} us over {len(seconds)} calls")
    p99 = 1e3 * float(np.quantile(found["door"], 0.99) - np.median(found["bare"]))
    print(f"the door costs {p99:.3f} ms at p99 (limit 1 ms): {'kept' if p99 <= 1 else 'MISSED'}")


if __name__ == "__main__":
    main()
