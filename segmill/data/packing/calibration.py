"""The packed split ``calibration``: groups that are in no split, for nothing but calibrating the anomaly detector."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

CALIBRATION = "calibration"  # its folder
VALUES = "values.json"  # in it


def write_values(packed_dir: Path, values: Mapping[str, str]) -> None:
    """Keep sample id -> its value of the column that calibration goes by."""
    (packed_dir / CALIBRATION / VALUES).write_text(json.dumps(dict(values), indent=1) + "\n")


def read_values(packed_dir: Path) -> dict[str, str]:
    """Return what ``write_values`` kept; empty where there is none."""
    path = packed_dir / CALIBRATION / VALUES
    return dict(json.loads(path.read_text())) if path.is_file() else {}
