"""A dvc.yaml that is not as this release needs it: an earlier one, which is replaced, or one that lacks stages."""

from __future__ import annotations

import hashlib
import json
import shutil
from shlex import quote
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
    "54ad0a575bf117277e6201e9e00b7537f0aa5408afbd4a0fdadb8a38542b75cc",
    "f452e2ee687f2e7544037017e4b744f60469a91c334073da5e410ab74b1617c2",
)


def refuse_former_pipeline(workspace: Workspace) -> None:
    """Raise InputError where dvc.yaml is that of an earlier release, or lists the outs of ``evaluate`` as one did."""
    found = _load(workspace)
    if _is_former(found):
        raise InputError(
            "dvc.yaml is that of an earlier release", "run `segmill doctor --fix`; trained members are kept"
        )
    _refuse_former_outs(found)


def replace_former_pipeline(workspace: Workspace) -> list[str]:
    """Replace the dvc.yaml of an earlier release by this one's; return a line that says so, none where it is not one.

    Raises InputError for a dvc.yaml that somebody changed and that lacks what this release needs.
    """
    found, now = _load(workspace), template("dvc.yaml")
    if _is_former(found):
        write_atomically(workspace.pipeline, now.read_text())
        shutil.rmtree(workspace.reports / "figures", ignore_errors=True)  # the page has its pictures in it
        return ["stages are those of this release; members are taken over where nothing else changed"]
    if ".segmill/settings/" not in json.dumps(found):
        raise InputError(
            "dvc.yaml was changed by hand and lists the settings of stages as an earlier release did",
            f"bring your changes into a copy of {now}",
        )
    _refuse_former_outs(found)
    return []


def refuse_incomplete_pipeline(workspace: Workspace) -> None:
    """Raise InputError where dvc.yaml lacks a stage, dependency or out of this release's; it may have more of each.

    A run would otherwise come as far as the gap, perhaps hours later.
    """
    refuse_former_pipeline(workspace)
    found, whole = _load(workspace), YAML(typ="safe").load(template("dvc.yaml").read_text())
    if found is None:
        return
    stages = found.get("stages") if isinstance(found, dict) else None
    lacking = []
    for name, stage in whole["stages"].items():
        own = stages.get(name) if isinstance(stages, dict) else None
        if not isinstance(own, dict):
            lacking.append(f"the stage {name}")
            continue
        own, stage = own.get("do") or own, stage.get("do") or stage
        for kind, what in (("deps", "dependency"), ("outs", "out")):
            there = _paths(own, kind)
            lacking += [f"the {what} {path} of {name}" for path in _paths(stage, kind) if path not in there]
    if lacking:
        raise InputError(
            f"dvc.yaml lacks {', '.join(lacking)}",
            f"`git -C {quote(str(workspace.root))} checkout HEAD -- dvc.yaml` brings back the committed one, and "
            f"{template('dvc.yaml')} is a whole one to copy from",
        )


def _paths(stage: dict[str, Any], kind: str) -> list[str]:
    """Return the paths of a stage's ``deps`` or ``outs``; each is a path, or a mapping of one to its options."""
    return [str(next(iter(entry)) if isinstance(entry, dict) else entry) for entry in stage.get(kind) or []]


def _refuse_former_outs(found: Any) -> None:
    """Raise InputError where ``evaluate`` writes the whole folder reports: the page is written there after the verdict.

    What is wrong with a file that says no such thing, DVC tells whoever asks it.
    """
    stages = found.get("stages") if isinstance(found, dict) else None
    outs = ((stages or {}).get("evaluate") or {}).get("outs") or []
    if any(str(next(iter(out)) if isinstance(out, dict) else out).rstrip("/") == "reports" for out in outs):
        raise InputError(
            "dvc.yaml lists the folder reports as what the stage evaluate writes, as an earlier release did",
            "list reports/metrics.json, reports/counts.npz and reports/examples.npz there instead",
        )


def _is_former(values: Any) -> bool:
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest() in FORMER


def _load(workspace: Workspace) -> Any:
    try:
        return YAML(typ="safe").load(workspace.pipeline.read_text())
    except YAMLError:
        return None  # whoever asks DVC learns what is wrong with it
