"""The curve of a training as a CSV file."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

from segmill.files import replacing


def write_curves(path: Path, curves: list[dict[str, Any]]) -> None:
    """Replace the CSV at ``path`` by ``curves``: one row per epoch, a header from the first row's keys."""
    with replacing(path) as draft, draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(curves[0]) if curves else [])
        writer.writeheader()
        writer.writerows(curves)
