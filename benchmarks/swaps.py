"""Swaps of the served version under an open load: what fails, which version answers, and what a swap costs the p99.

    python benchmarks/swaps.py [--swaps 100] [--minutes 15] [--load 0.3] [--size 192 160]

Requests come at random times (a Poisson process) at a share of what the service answers at most, whether or not earlier
ones were answered. Meanwhile versions are promoted one after the other; every fifth one was changed after it was signed
or predicts other classes than when it was registered, in turn, and must never answer. The versions weigh their members
differently, so that a mask shows which of them made it: each is compared with what the version in the reply's header
predicts. It stops after so many minutes, and says how many swaps there were.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import re
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import numpy as np
from PIL import Image
from served_versions import Place, Version, make_place, resident_mb, served
from serving_speed import Contestant, ask

from segmill.ensembling.predict import Ensemble

VERSIONS = (
    Version((0.8, 0.1, 0.1)), Version((0.1, 0.8, 0.1)), Version((0.1, 0.1, 0.8)), Version(fault="changed"),
    Version(fault="golden"),
)  # fmt: skip
BROKEN_EVERY = 5
SAME = 0.999  # of a mask's pixels; batches of other sizes round otherwise
AFTER_S = 1.0  # what is asked so long after a swap still counts as during it


@dataclass
class Reply:
    """When it was asked, after how many seconds it came, its status and version, and whether the mask is this one's."""

    asked: float
    seconds: float
    status: int
    version: str
    own: bool


@dataclass
class Load:
    """The open load, and what came of it. ``masks``: by version, what it predicts of each image."""

    url: str
    headers: dict[str, str]
    rate: float
    bodies: list[bytes]
    masks: dict[str, list[np.ndarray]]
    replies: list[Reply] = field(default_factory=list)

    async def run(self, over: asyncio.Event) -> None:
        """Ask at random times until ``over``."""
        rng, tasks, number = np.random.default_rng(0), set(), 0
        async with httpx.AsyncClient(timeout=120, limits=httpx.Limits(max_connections=None)) as http:
            while not over.is_set():
                await asyncio.sleep(rng.exponential(1 / self.rate))
                number = (number + 1) % len(self.bodies)
                tasks.add(asyncio.create_task(self._ask(http, number)))
            await asyncio.gather(*tasks)

    async def _ask(self, http: httpx.AsyncClient, number: int) -> None:
        began = time.perf_counter()
        try:
            answer = await http.post(f"{self.url}/v1/segment", content=self.bodies[number], headers=self.headers)
        except httpx.HTTPError:
            self.replies.append(Reply(began, time.perf_counter() - began, 0, "", False))
            return
        took, version = time.perf_counter() - began, answer.headers.get("x-model-version", "")
        own = False
        if answer.status_code == 200 and version in self.masks:
            ids_HW = np.asarray(Image.open(io.BytesIO(answer.content)))
            own = bool(np.mean(ids_HW == self.masks[version][number]) >= SAME)
        self.replies.append(Reply(began, took, answer.status_code, version, own))


@dataclass
class Swaps:
    """Seconds that each good version needed to take over, how many were refused, and when each swap was."""

    took_s: list[float] = field(default_factory=list)
    refused: int = 0
    spans: list[tuple[float, float]] = field(default_factory=list)


async def swap(place: Place, url: str, headers: dict[str, str], swaps: int, until: float) -> Swaps:
    """Promote one version after the other, each when the one before answers or was refused."""
    done = Swaps()
    good = [str(number) for number, version in enumerate(VERSIONS, 1) if not version.fault]
    broken = [str(number) for number, version in enumerate(VERSIONS, 1) if version.fault]
    async with httpx.AsyncClient(base_url=url, headers=headers, timeout=120) as http:

        async def refused() -> int:
            text = (await http.get("/metrics")).text
            return int(float(re.findall(r"^segmill_versions_refused (\S+)", text, re.MULTILINE)[0]))

        async def serving() -> str:
            return str((await http.get("/v1/model")).json()["version"])

        for number in range(swaps):
            if time.perf_counter() > until:
                break
            is_broken = number % BROKEN_EVERY == BROKEN_EVERY - 1
            others = [version for version in good if version != await serving()]
            version = broken[number // BROKEN_EVERY % len(broken)] if is_broken else others[number % len(others)]
            before, began = await refused(), time.perf_counter()
            await asyncio.to_thread(place.promote, version)
            await http.post("/v1/hint")
            while (await refused() == before) if is_broken else (await serving() != version):
                await asyncio.sleep(0.2)
                if time.perf_counter() - began > 300:
                    raise SystemExit(f"version {version} neither answers nor was refused after 300 s")
            done.spans.append((began, time.perf_counter() + AFTER_S))
            if is_broken:
                done.refused += 1
            else:
                done.took_s.append(time.perf_counter() - began)
            await asyncio.sleep(AFTER_S)
    return done


async def measure(place: Place, url: str, headers: dict[str, str], options: argparse.Namespace) -> None:
    one = Contestant("segmill", f"{url}/v1/segment", headers, place.pngs, bytes)
    await ask(one, 8, 5)
    capacity = (await ask(one, 8, 10)).images_s
    rate = options.load * capacity
    print(f"capacity {capacity:.1f} images/s at 8 clients; the load is {rate:.1f} images/s", flush=True)
    masks = {
        version: [Ensemble.load(folder).predict(image_HWC[None])[0] for image_HWC in place.images]
        for version, folder in place.ensembles.items()
        if not VERSIONS[int(version) - 1].fault
    }
    load, over = Load(url, headers, rate, place.pngs, masks), asyncio.Event()
    asking = asyncio.create_task(load.run(over))
    await asyncio.sleep(options.steady)
    before = resident_mb()
    done = await swap(place, url, headers, options.swaps, time.perf_counter() + 60 * options.minutes)
    await asyncio.sleep(options.steady)
    over.set()
    after = resident_mb()
    await asking
    tell(load.replies, done)
    for kind, size_mb in before.items():
        print(f"memory of {kind}: {size_mb:,.0f} MB before the swaps, {after[kind]:,.0f} MB after them")


def tell(replies: list[Reply], done: Swaps) -> None:
    during = [any(begin <= one.asked <= end for begin, end in done.spans) for one in replies]
    print(
        f"{len(done.spans)} swaps, {done.refused} of them to versions that were refused; {len(replies)} requests, "
        f"{sum(one.status != 200 for one in replies)} failed, "
        f"{sum(not one.own for one in replies if one.status == 200)} with a mask of another version than they say"
    )
    print(f"versions that answered: {', '.join(sorted({one.version for one in replies if one.status == 200}))}")
    for name, wanted in (("steady", False), ("during swaps", True)):
        took = [1000 * one.seconds for one, swapping in zip(replies, during, strict=True) if swapping == wanted]
        p50, p99 = np.quantile(took, [0.5, 0.99])
        print(f"{name}: {len(took)} requests, p50 {p50:.0f} ms, p99 {p99:.0f} ms")
    quick, median, slow = np.quantile(done.took_s, [0, 0.5, 1])
    print(f"a version takes over after {median:.1f} s [{quick:.1f}-{slow:.1f}]")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--swaps", type=int, default=100)
    parser.add_argument("--minutes", type=float, default=15.0)
    parser.add_argument("--load", type=float, default=0.3)
    parser.add_argument("--steady", type=float, default=30.0, help="seconds without a swap, before and after")
    parser.add_argument("--size", type=int, nargs=2, default=[192, 160], metavar=("HEIGHT", "WIDTH"))
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="swaps-") as name:
        folder = Path(name)
        limits = {"per_minute": 10**6, "at_once": 256}
        place = make_place(folder, size_px=tuple(options.size), versions=VERSIONS, serving={"limits": limits})
        place.promote("1")
        with served(place, folder / "serve.log") as (url, headers):
            asyncio.run(measure(place, url, headers, options))


if __name__ == "__main__":
    main()
