"""Images per second and latencies of `segmill serve`, against `mlflow models serve` and a plain FastAPI route.

    python benchmarks/serving_speed.py [--clients 1 8 64] [--rounds 3] [--seconds 8] [--size 192 160]

All three answer for the same version of the same ensemble, the three members of a new workspace, trained for seconds.
Clients send one image after the other over HTTP: as PNG to `segmill serve` and to the plain route, which both answer a
PNG mask; as JSON to MLflow, which takes nothing else. The plain route is what one writes in an afternoon: PIL decodes,
the ensemble predicts in fp32 without compiling, one request at a time. All run at once, and take turns to be asked; the
medians over the rounds are compared, with the least and the most in brackets.
"""

from __future__ import annotations

import argparse
import asyncio
import io
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import torch
import uvicorn
from fastapi import FastAPI, Request, Response
from PIL import Image
from served_versions import BIN, Place, as_png, free_port, make_place, running
from starlette.concurrency import run_in_threadpool

from segmill.ensembling.predict import Ensemble

WARM_UP_S = 3.0


@dataclass(frozen=True)
class Contestant:
    """A server: where it is asked, the bodies of the images in turn, and how a mask is read from its answer."""

    name: str
    url: str
    headers: dict[str, str]
    bodies: Sequence[bytes]
    mask: Callable[[bytes], Any]


@dataclass(frozen=True)
class Figures:
    images_s: float
    p50_ms: float
    p99_ms: float


async def ask(one: Contestant, clients: int, seconds: float) -> Figures:
    """Let so many clients ask, each again as soon as it has its answer. Raises where an answer is not 200."""
    took: list[float] = []
    until = time.perf_counter() + seconds

    async def client(number: int) -> None:
        async with httpx.AsyncClient(timeout=120, headers=one.headers) as http:
            while time.perf_counter() < until:
                number += 1
                began = time.perf_counter()
                answer = await http.post(one.url, content=one.bodies[number % len(one.bodies)])
                answer.raise_for_status()
                took.append(time.perf_counter() - began)

    began = time.perf_counter()
    await asyncio.gather(*(client(number) for number in range(clients)))
    rate = len(took) / (time.perf_counter() - began)
    return Figures(rate, 1000 * float(np.quantile(took, 0.5)), 1000 * float(np.quantile(took, 0.99)))


def plain(folder: str, port: str) -> None:
    """Be the plain FastAPI route, in a process of its own."""
    ensemble = Ensemble.load(Path(folder))
    for member in ensemble.members.values():
        member.dtype = None  # type: ignore[attr-defined]
        member.module.to(memory_format=torch.contiguous_format)  # type: ignore[attr-defined]
    app, alone = FastAPI(), asyncio.Lock()

    def answer(content: bytes) -> bytes:
        image_HWC = np.asarray(Image.open(io.BytesIO(content)).convert("RGB"))
        return as_png(ensemble.predict(image_HWC[None])[0])

    @app.post("/segment")
    async def segment(request: Request) -> Response:
        content = await request.body()
        async with alone:
            return Response(await run_in_threadpool(answer, content), media_type="image/png")

    uvicorn.run(app, host="127.0.0.1", port=int(port), log_level="warning")


def contestants(place: Place, folder: Path, stack: ExitStack) -> list[Contestant]:
    """Start the three servers; they end with ``stack``."""
    ports = {name: free_port() for name in ("segmill", "mlflow", "plain")}
    urls = {name: f"http://127.0.0.1:{port}" for name, port in ports.items()}
    key = place.key()
    jsons = [json.dumps({"inputs": image_HWC[None].tolist()}).encode() for image_HWC in place.images]

    def read_png(content: bytes) -> Any:
        return np.asarray(Image.open(io.BytesIO(content)))

    def read_json(content: bytes) -> Any:
        return np.asarray(json.loads(content)["predictions"][0])

    found = [
        Contestant("segmill", f"{urls['segmill']}/v1/segment", key | {"content-type": "image/png"}, place.pngs,
                   read_png),
        Contestant("mlflow", f"{urls['mlflow']}/invocations", {"content-type": "application/json"}, jsons, read_json),
        Contestant("plain", f"{urls['plain']}/segment", {"content-type": "image/png"}, place.pngs, read_png),
    ]  # fmt: skip
    commands = {
        "segmill": [str(BIN / "segmill"), "serve", "--port", str(ports["segmill"]), "-w", str(place.workspace.root)],
        "mlflow": [str(BIN / "mlflow"), "models", "serve", "-m", f"models:/{place.model}/1", "-p", str(ports["mlflow"]),
                   "-h", "127.0.0.1", "--env-manager", "local"],
        "plain": [sys.executable, __file__, "--plain", str(place.ensembles["1"]), str(ports["plain"])],
    }  # fmt: skip
    for one in found:

        def ready(one: Contestant = one) -> bool:
            try:
                return httpx.post(one.url, content=one.bodies[0], headers=one.headers, timeout=60).status_code == 200
            except httpx.TransportError:
                return False

        stack.enter_context(running(commands[one.name], folder / f"{one.name}.log", ready))
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=8.0)
    parser.add_argument("--size", type=int, nargs=2, default=[192, 160], metavar=("HEIGHT", "WIDTH"))
    parser.add_argument("--replicas", type=int, default=1)
    parser.add_argument("--cpus", type=float, default=2.0, help="cores, and threads, of a replica")
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--plain", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.plain:
        return plain(*options.plain)
    serving = {
        "replicas": options.replicas, "cpus_per_replica": options.cpus, "batch": options.batch,
        "limits": {"per_minute": 10**6, "at_once": 256},
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="serving-speed-") as name, ExitStack() as stack:
        folder = Path(name)
        place = make_place(folder, size_px=tuple(options.size), serving=serving)
        place.promote("1")
        os.environ["MLFLOW_TRACKING_URI"] = place.uri
        os.environ["PATH"] = f"{BIN}{os.pathsep}{os.environ['PATH']}"
        compared = contestants(place, folder, stack)
        masks = {}
        for one in compared:
            answer = httpx.post(one.url, content=one.bodies[0], headers=one.headers, timeout=120)
            masks[one.name] = one.mask(answer.content)
            asyncio.run(ask(one, 8, WARM_UP_S))
        for name, mask_HW in masks.items():
            print(f"{name}: {100 * np.mean(mask_HW == masks['plain']):.3f} % of pixels as the plain route has them")
        for clients in options.clients:
            found: dict[str, list[Figures]] = {one.name: [] for one in compared}
            for turn in range(options.rounds):
                for one in compared[turn % 3 :] + compared[: turn % 3]:
                    found[one.name].append(asyncio.run(ask(one, clients, options.seconds)))
            tell(clients, found)


def tell(clients: int, found: dict[str, list[Figures]]) -> None:
    """Print the medians, the spread, and how often as many images segmill answers."""
    rates = {name: [one.images_s for one in every] for name, every in found.items()}
    for name, every in found.items():
        p50, p99 = (statistics.median(getattr(one, key) for one in every) for key in ("p50_ms", "p99_ms"))
        rate = f"{statistics.median(rates[name]):6.1f} images/s [{min(rates[name]):.1f}-{max(rates[name]):.1f}]"
        print(f"{clients:3} clients  {name:8} {rate}  p50 {p50:6.0f} ms  p99 {p99:6.0f} ms", flush=True)
    for other in ("mlflow", "plain"):
        each = [ours / theirs for ours, theirs in zip(rates["segmill"], rates[other], strict=True)]
        print(
            f"{clients:3} clients  segmill / {other}: {statistics.median(each):.2f} [{min(each):.2f}-{max(each):.2f}]"
        )


if __name__ == "__main__":
    main()
