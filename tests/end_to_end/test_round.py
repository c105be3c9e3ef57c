"""Once round on a stack: images change, the alarm goes off, a deployment retrains, and its version answers."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from asking import PNG, as_png, is_ready, load, until
from ruamel.yaml import YAML
from terminal import BIN, terminal

from deploy.stack.__main__ import run
from deploy.stack.place import Place
from deploy.stack.servers import WEBHOOK_SECRET, ask_prefect, pipeline_environment, urls
from flows.commands.start import create
from segmill.data.ingest.builtin import FRAMES, draw_street, write_street
from segmill.workspace import Workspace

pytestmark = pytest.mark.long
SIDE_PX = 64
SEQUENCES, CALIBRATING = 100, 40


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    folder = tmp_path / "stack"
    run("up", folder)
    opened = Place.open(folder)
    assert opened is not None
    yield opened
    run("down", folder)


def segmill(place: Place, workspace: Workspace, *command: str) -> str:
    environment = terminal(pipeline_environment(place))
    done = subprocess.run(
        [str(BIN / "segmill"), *command, "-w", str(workspace.root)], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def streets(folder: Path, first: int, count: int) -> Path:
    """Draw street scenes, one of each sequence, from sequence ``first`` on."""
    folder.mkdir()
    write_street(folder, first=first * FRAMES, count=count * FRAMES, size=(SIDE_PX, SIDE_PX), seed=0)
    for file in [*folder.rglob("*.png")]:
        if not file.stem.endswith("_f00"):
            file.unlink()
    return folder


def settings(place: Place) -> dict[str, Any]:
    """Return the blocks of params.yaml: a tiny member, a gate that lets it pass, a service that hears of that."""
    hint = {"url": f"{urls(place)['service']}/v1/hint", "secret_env": WEBHOOK_SECRET, "events": ["promoted"]}
    return {
        "members": {"fpn": {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003}},
        "promotion": {"floor_miou": 0.01, "rule": "plain", "goal": "noninferiority", "margin": 1.0, "screen": False,
                      "guards": {"class_loss": None}},
        "schedule": {"on_data": False, "on_drift": True},
        "notify": {"webhooks": [hint]},
        "serving": {"drift_every_seconds": 0},
        "data": {"remote": "s3://segmill-data/street"},
    }  # fmt: skip


@pytest.fixture
def workspace(place: Place, tmp_path: Path) -> Workspace:
    workspace = create(tmp_path / "street", streets(tmp_path / "raw", 0, SEQUENCES))
    yaml = YAML()
    params = yaml.load(workspace.params)
    for block, values in settings(place).items():
        params[block] = {**(params.get(block) or {}), **values} if block != "members" else values
    params["train"] |= {"epochs": 2, "val_every": 1}
    # Sequences are of train, val, test, train, train in turn; 40 of the 60 of train calibrate.
    calibrating = [f"street_s{number:04d}" for number in range(SEQUENCES) if number % 5 in (0, 3)][:CALIBRATING]
    params["split"] = {**(params.get("split") or {}), "calibration": calibrating}
    yaml.dump(params, workspace.params)
    return workspace


def runs_of_the_deployment(place: Place) -> list[str]:
    wanted = {"flows": {"name": {"any_": ["nightly"]}}}
    return [
        str(one["state_name"])
        for one in json.loads(ask_prefect(place, "/flow_runs/filter", json.dumps(wanted).encode()))
    ]


def test_changed_images_end_in_a_new_version_that_answers(place: Place, workspace: Workspace, tmp_path: Path) -> None:
    (workspace.root / "trusted_keys").unlink()  # it lists the key that the tests made the workspace with
    segmill(place, workspace, "signing", "setup")
    segmill(place, workspace, "retrain")
    key = segmill(place, workspace, "keys", "create", "test", "--scope", "segment", "--scope", "metrics", "--json")
    header = {"authorization": f"Bearer {json.loads(key)['key']}"}
    said = run("up", place.folder, serve=workspace.root)
    assert "service" in said and "NOT RUNNING" not in said and "no model is served" not in said
    url, log = urls(place)["service"], place.log("service")
    until(lambda: is_ready(url, header), 240, log.read_text)
    assert httpx.get(f"{url}/v1/model", headers=header).json()["version"] == "1"

    segmill(
        place, workspace, "data", "add", str(streets(tmp_path / "more", SEQUENCES, 20)), "-m", "twenty more streets"
    )
    segmill(place, workspace, "deploy")
    assert runs_of_the_deployment(place) == [], "data alone start nothing here"
    usual = as_png(draw_street((SIDE_PX, SIDE_PX), seed=0, sequence=900, frame=0)[0])
    with load(url, usual, header, pause_s=0.5) as asked:
        noise = [np.random.default_rng(seed).integers(0, 256, (SIDE_PX, SIDE_PX, 3), np.uint8) for seed in range(100)]
        for image_HWC in noise:
            httpx.post(f"{url}/v1/segment", content=as_png(image_HWC), headers=header | PNG, timeout=60)
        until(lambda: "the model no longer sees what it learned" in log.read_text(), 60, log.read_text)
        until(lambda: runs_of_the_deployment(place) != [], 120, log.read_text)
        until(lambda: asked.versions[-1] == "2", 900, lambda: log.read_text() + place.log("worker").read_text())
    assert {status for _, status, _ in asked.answers} == {200} and asked.versions == ["1", "2"]
    assert runs_of_the_deployment(place) == ["Completed"]
    assert "promote" in segmill(place, workspace, "history")
