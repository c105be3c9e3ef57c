"""What a running step says of itself: one small JSON file per step, replaced atomically, read by whoever watches."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from segmill.files import write_atomically

COUNT_EVERY_S = 0.5


def report(path: Path, **facts: Any) -> None:
    """Replace the JSON object at ``path`` by ``facts``; a reader sees the old one or the new one, never half."""
    write_atomically(path, json.dumps(facts), durable=False)


def add_incident(path: Path, sentence: str) -> None:
    """Add to ``path`` what went wrong in a step and was mended by itself: a line, on the disk before this returns."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a") as file:
        file.write(sentence.replace("\n", " ") + "\n")
        file.flush()
        os.fsync(file.fileno())


def incidents(path: Path) -> list[str]:
    """Return what was added to ``path``, in its order."""
    return path.read_text().splitlines() if path.is_file() else []


def report_failure(path: Path, **facts: Any) -> None:
    """As ``report``, for use while an error is on its way: a disk too full for a note must not hide why."""
    with contextlib.suppress(OSError):
        report(path, **facts)


def counter(path: Path) -> Callable[[int, int], None]:
    """Return a function that reports how many of how many a step has done, twice a second at most and at the end."""
    said_at = 0.0

    def count(done: int, total: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if done == total or now - said_at >= COUNT_EVERY_S:
            said_at = now
            report(path, done=done, total=total)

    return count


def read(path: Path) -> dict[str, Any] | None:
    """Return the facts at ``path``, or None where nothing was reported yet, or a failing disk tore the report."""
    try:
        facts = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
