"""What MLflow could not be sent while it did not answer: kept in files until a later command sends it."""

from __future__ import annotations

import json
import secrets
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from segmill.files import write_atomically
from segmill.passwords import without_password

# A value of a metric: its name, the value, when (ms since 1970), the step, and the id of a logged model or None.
Value = tuple[str, float, int, int, str | None]


@dataclass(frozen=True)
class Update:
    """What is to be said of one MLflow run: values of metrics, and how it ended and when (ms since 1970).

    Sending it twice is as good as once: a value holds its own time.
    """

    run_id: str
    metrics: Sequence[Value] = ()
    status: str | None = None
    ended_ms: int | None = None


def keep(folder: Path, uri: str, update: Update) -> None:
    """Write an update for the server at ``uri`` to a file of its own, without the address's password."""
    name = f"{time.time_ns():020d}-{secrets.token_hex(4)}.json"
    write_atomically(folder / name, json.dumps({"at": without_password(uri), **asdict(update)}))


def kept(folder: Path, uri: str) -> list[tuple[Path, Update]]:
    """Return the updates that wait for the server at ``uri``, oldest first, each with its file."""
    found = []
    for path in sorted(folder.glob("*.json")):
        facts = json.loads(path.read_text())
        if facts.pop("at") == without_password(uri):
            found.append((path, Update(**facts | {"metrics": [tuple(value) for value in facts["metrics"]]})))
    return found
