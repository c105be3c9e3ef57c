"""The dvc.yaml of earlier releases: recognised, and replaced by that of this one."""

from __future__ import annotations

import hashlib
import json
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segmill.errors import InputError
from segmill.files import write_atomically
from segmill.workspace import Workspace, template

# sha256 of what the file said, as JSON with sorted keys: comments and layout do not count.
FORMER = (
    "9856bfeabe915f18bf446af4633af56f5ab27cd161d1e3d136f10a18f2129121",  # 2d2f2c2
    "b0e3e8a2f7be7c904870910cf2fb6d3d2c5eadb2eb82f0be5d6516c82d9507be",
)
# The same of what this release still runs, and only `segmill doctor --fix` replaces.
STILL_RUNS = (
    "54ad0a575bf117277e6201e9e00b7537f0aa5408afbd4a0fdadb8a38542b75cc",  # packed splits were pushed
)


def refuse_former_pipeline(workspace: Workspace) -> None:
    """Raise InputError where dvc.yaml lists the settings of stages as an earlier release did."""
    if _digest(_load(workspace)) in FORMER:
        raise InputError(
            "dvc.yaml is that of an earlier release", "run `segmill doctor --fix`; trained members are kept"
        )


def replace_former_pipeline(workspace: Workspace) -> list[str]:
    """Replace the dvc.yaml of an earlier release by this one's; return a line that says so, none where it is not one.

    Raises InputError for a dvc.yaml that somebody changed and that lacks what this release needs.
    """
    found, now = _load(workspace), template("dvc.yaml")
    if _digest(found) in STILL_RUNS:
        write_atomically(workspace.pipeline, now.read_text())
        return ["`dvc push` leaves out the packed splits, which are made again where they are missing"]
    if _digest(found) in FORMER:
        write_atomically(workspace.pipeline, now.read_text())
        return ["stages list their settings as this release does; members are taken over where nothing else changed"]
    if ".segmill/settings/" not in json.dumps(found):
        raise InputError(
            "dvc.yaml was changed by hand and lists the settings of stages as an earlier release did",
            f"bring your changes into a copy of {now}",
        )
    return []


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _load(workspace: Workspace) -> Any:
    try:
        return YAML(typ="safe").load(workspace.pipeline.read_text())
    except YAMLError:
        return None  # whoever asks DVC learns what is wrong with it
