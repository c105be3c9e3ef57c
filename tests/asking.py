"""Asks a served model, once or again and again, and waits for what it says."""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx
import numpy as np
from PIL import Image

PNG = {"content-type": "image/png"}


@dataclass
class Load:
    """What came of the requests of a client that asks again and again."""

    answers: list[tuple[float, int, str]] = field(default_factory=list)  # seconds, status, version

    @property
    def versions(self) -> list[str]:
        """Versions in the order they answered, each once until another did."""
        found: list[str] = []
        for _, _, version in self.answers:
            if not found or found[-1] != version:
                found.append(version)
        return found


@contextmanager
def load(url: str, image: bytes, header: dict[str, str], pause_s: float = 0.05) -> Iterator[Load]:
    """Ask the service at ``url`` for one PNG after the other while the block runs."""
    found, over = Load(), threading.Event()

    def ask() -> None:
        with httpx.Client(base_url=url, timeout=60) as client:
            while not over.is_set():
                began = time.monotonic()
                answer = client.post("/v1/segment", content=image, headers=header | PNG)
                version = answer.headers.get("x-model-version", answer.text)
                found.answers.append((time.monotonic() - began, answer.status_code, version))
                time.sleep(pause_s)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        yield found
    finally:
        over.set()
        thread.join()


def until(condition: Callable[[], bool], within_s: float, what: Callable[[], str]) -> float:
    """Wait until a condition holds and return how long that took; ``what`` says why it did not."""
    began = time.monotonic()
    while time.monotonic() - began < within_s:
        if condition():
            return time.monotonic() - began
        time.sleep(0.1)
    raise AssertionError(f"not within {within_s} s: {what()}")


def is_ready(url: str, header: dict[str, str]) -> bool:
    """Tell whether a model serves at ``url``."""
    try:
        return httpx.get(f"{url}/readyz", headers=header, timeout=60).status_code == 200
    except httpx.TransportError:
        return False


def as_png(image_HWC: np.ndarray) -> bytes:
    content = io.BytesIO()
    Image.fromarray(image_HWC).save(content, "PNG")
    return content.getvalue()
