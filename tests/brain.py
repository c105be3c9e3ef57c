"""A workspace around the atlas, with members as small as they come: a fixture for the conftest.py of a folder."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML

from flows.commands.start import create
from segmill.data.ingest.builtin import write_brain
from segmill.workspace import Workspace

SMALL: dict[str, Any] = {
    "prepare": {"size_px": [96, 96]},
    "members": {
        "fpn": {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003},
        "unet": {
            "backbone": "resnet10t",
            "decoder": "unet",
            "decoder_width": 0.25,
            "weights": "none",
            "lr": 0.003,
        },
    },
    "promotion": {"floor_miou": 0.05, "min_gain": 0.0, "confidence": 0.95, "rule": "plain"},  # six test groups
}


@pytest.fixture(scope="session")
def brain_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workspace]:
    """Return what gives a new workspace around the atlas."""
    folder = tmp_path_factory.mktemp("template")
    write_brain(folder / "atlas", every=4)
    template = create(folder / "workspace", folder / "atlas")

    def copy(folder: Path, *members: str, epochs: int = 2) -> Workspace:
        shutil.copytree(template.root, folder / "workspace", symlinks=True)
        workspace = Workspace.open(folder / "workspace")
        yaml = YAML()
        params = yaml.load(workspace.params)
        params["train"] |= {"epochs": epochs, "val_every": 1}
        chosen = {name: SMALL["members"][name] for name in members or SMALL["members"]}
        yaml.dump({**params, **SMALL, "members": chosen}, workspace.params)
        return workspace

    return copy
