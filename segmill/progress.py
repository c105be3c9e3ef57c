"""What a running step says of itself: one small JSON file per step, replaced atomically, read by whoever watches."""

from __future__ import annotations

import contextlib
import json
import os
import time
from collections.abc import Callable, Sequence
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


def counter(path: Path | None) -> Callable[[int, int], None]:
    """Return a function that reports how many of how many a step has done, twice a second at most and at the end.

    None: one that reports nothing.
    """
    if path is None:
        return lambda done, total: None
    said_at = 0.0

    def count(done: int, total: int) -> None:
        nonlocal said_at
        now = time.monotonic()
        if done == total or now - said_at >= COUNT_EVERY_S:
            said_at = now
            report(path, done=done, total=total)

    return count


def notes_of_parts(path: Path, totals: Sequence[int]) -> list[Path]:
    """Return a file per part of a step, for the ``counter`` of each; ``read_count`` of ``path`` adds them up."""
    for old in (path, *path.parent.glob(f"{path.stem}.*.json")):
        old.unlink(missing_ok=True)
    notes = [path.with_suffix(f".{number}.json") for number in range(len(totals))]
    for note, total in zip(notes, totals, strict=True):
        report(note, done=0, total=total)
    return notes


def read_count(path: Path) -> dict[str, Any] | None:
    """Return the ``done`` and ``total`` of a step that counts in ``path`` or in the files of its parts, or None."""
    counts = [facts for one in (path, *path.parent.glob(f"{path.stem}.*.json")) if (facts := read(one))]
    return {key: sum(facts[key] for facts in counts) for key in ("done", "total")} if counts else None


def read(path: Path) -> dict[str, Any] | None:
    """Return the facts at ``path``, or None where nothing was reported yet, or a failing disk tore the report."""
    try:
        facts = json.loads(path.read_text())
    except (FileNotFoundError, ValueError):
        return None
    return facts if isinstance(facts, dict) else None
