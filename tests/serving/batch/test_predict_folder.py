"""`segmill predict` of whole sources on a real Ray: each image once, whatever is killed meanwhile."""

from __future__ import annotations

import json
import re
import subprocess
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scoring import ScoringSite
from terminal import BIN, run, run_json, terminal

pytestmark = pytest.mark.slow

DOCS = Path(__file__).parents[3] / "docs" / "json.md"


def rows(folder: Path) -> dict[str, dict[str, Any]]:
    """Return the rows of a table by path; each path has one."""
    every = pq.read_table(folder / "scores.parquet").to_pylist()
    assert len({row["path"] for row in every}) == len(every)
    return {row["path"]: row for row in every}


def written(folder: Path) -> dict[str, int]:
    """Return when each mask was written."""
    masks = folder / "masks"
    return {path.relative_to(masks).as_posix(): path.stat().st_mtime_ns for path in masks.rglob("*.png")}


def test_a_folder_is_scored_once_and_what_cant_be_read_is_said(
    scoring: ScoringSite, images: Path, tmp_path: Path, servers: dict[str, str]
) -> None:
    (images / "torn.png").write_bytes(next(images.rglob("*.png")).read_bytes()[:200])
    command = ("segmill", "predict", str(images), "--to", str(tmp_path / "out"))
    said = run(scoring.workspace, *command, code=1, servers=servers)
    assert re.search(r"13 images by version 1 of segmill-\w+: 12 predicted, 0 known before", said)
    assert "1 of 13 images have no mask (torn.png: its pixels can't be decoded" in said
    folder = tmp_path / "out" / "version-1"
    found = rows(folder)
    assert {path for path, row in found.items() if row["status"] != "ok"} == {"torn.png"}
    for path in sorted(images.rglob("*.png"))[:3]:
        ids_HW = np.asarray(Image.open(folder / "masks" / path.relative_to(images)))
        assert (ids_HW == scoring.expected(path)).mean() > 0.999
    masks = written(folder)
    (images / "torn.png").unlink()
    said_json = run_json(scoring.workspace, *command)
    (line,) = re.findall(r"^\| `predict` \| .*; of a folder.*?: (.*) \|$", DOCS.read_text(), re.MULTILINE)
    assert set(said_json) == set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", line)))
    assert (said_json["predicted"], said_json["known"], said_json["workers"]) == (0, 12, 0)
    assert written(folder) == masks and len(rows(folder)) == 12
    assert sorted(path.name for path in folder.iterdir()) == [".lock", "masks", "run.json", "scores.parquet"]


@pytest.mark.long
def test_what_fails_is_said_with_json(scoring: ScoringSite) -> None:
    done = subprocess.run(
        [BIN / "segmill", "predict", "--data", "0" * 8, "--json"], cwd=scoring.workspace.root, capture_output=True,
        env=terminal(), text=True,
    )  # fmt: skip
    assert done.returncode == 1 and set(json.loads(done.stdout)) == {"error"}
