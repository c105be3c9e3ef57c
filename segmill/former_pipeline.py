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


def refuse_former_pipeline(workspace: Workspace) -> None:
    """Raise InputError where dvc.yaml lists the settings of stages as an earlier release did."""
    if _is_former(_load(workspace)):
        raise InputError(
            "dvc.yaml is that of an earlier release", "run `segmill doctor --fix`; trained members are kept"
        )


def replace_former_pipeline(workspace: Workspace) -> list[str]:
    """Replace the dvc.yaml of an earlier release by this one's; return a line that says so, none where it is not one.

    Raises InputError for a dvc.yaml that somebody changed and that lacks what this release needs.
    """
    found, now = _load(workspace), template("dvc.yaml")
    if _is_former(found):
        write_atomically(workspace.pipeline, now.read_text())
        return ["stages list their settings as this release does; members are taken over where nothing else changed"]
    if ".segmill/settings/" not in json.dumps(found):
        raise InputError(
            "dvc.yaml was changed by hand and lists the settings of stages as an earlier release did",
            f"bring your changes into a copy of {now}",
        )
    return []


def _is_former(values: Any) -> bool:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest() in FORMER


def _load(workspace: Workspace) -> Any:
    try:
        return YAML(typ="safe").load(workspace.pipeline.read_text())
    except YAMLError:
        return None  # whoever asks DVC learns what is wrong with it
