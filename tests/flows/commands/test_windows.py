"""`segmill windows`: what the service was sent, against its own first windows where a version brings no reference."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pytest
from terminal import run, run_json

from segmill.monitoring.windows import ServedImage, served_windows
from segmill.params import read_params
from segmill.promotion.ledger_url import ledger_url
from segmill.workspace import Workspace
from tasks.register import model_name

JSON = Path(__file__).parents[3] / "docs" / "json.md"


def serve(workspace: Workspace, hours: int, brighter_since: int) -> int:
    """Write windows as a door does, of the hours before now; return when the first of them began."""
    params, rng = read_params(workspace.params), np.random.default_rng(16)
    begin = int(time.time() // 3600 - hours) * 3600
    with served_windows(ledger_url(workspace.root, params.promotion.ledger_url)) as windows:
        for hour in range(hours):
            for level in rng.integers(60, 120, 12) + 90 * (hour >= brighter_since):
                windows.add(ServedImage(
                    model=model_name(workspace, params), version="2", request="r", time_s=begin + 3600 * hour + 1,
                    image_HWC=rng.integers(level - 20, level + 20, (24, 32, 3)).astype(np.uint8),
                    ids_HW=np.zeros((24, 32), np.uint8), class_names=("road", "sky"), confidence=float(rng.beta(9, 1)),
                ))  # fmt: skip
    return begin


def test_a_model_that_was_not_served_has_no_windows(workspace: Workspace) -> None:
    assert "nothing was served by segmill-" in run(workspace, "segmill", "windows", code=1)


@pytest.mark.long
def test_what_moved_is_said_with_the_hour_since(workspace: Workspace) -> None:
    begin = serve(workspace, 40, brighter_since=30)
    said = run_json(workspace, "segmill", "windows", "--html", "windows.html")
    (keys,) = re.findall(r"^\| `windows` \| (.+) \|$", JSON.read_text(), re.MULTILINE)
    assert set(said) == set(re.findall(r"`(\w+)`", re.sub(r"\((?!how).*?\)", "", keys)))
    assert (said["version"], said["windows"], said["images"], said["reference_images"]) == ("2", 20, 240, 240)
    since = f"{datetime.fromtimestamp(begin + 30 * 3600, UTC):%Y-%m-%d %H:00} UTC"
    moved = {one["name"]: one for one in said["statistics"] if one["moved"]}
    assert said["compared_with"] == "first windows" and {"brightness", "colours"} <= set(moved) == set(said["moved"])
    assert {"confidence", "size", "area.road"}.isdisjoint(moved)
    assert {one["p_value"] for one in said["statistics"] if one["name"] in ("size", "aspect", "area.road")} == {1.0}
    assert moved["brightness"]["since"] == since and moved["brightness"]["says"] == "far higher"
    page = (workspace.root / said["page"]).read_text()
    assert "statistics moved against the first windows" in page and page.count("<svg") == len(said["statistics"])

    shown = run(workspace, "segmill", "windows", "--days", "1")
    assert "is compared with its own first windows: " in shown
    assert re.search(rf"brightness .* far higher +{since}", shown) and re.search(r"confidence .* - +-", shown)
    assert "those that have: 2" in run(workspace, "segmill", "windows", "--version", "7", code=1)
