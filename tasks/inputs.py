"""What a stage is made with besides data: its code, as hashes, and its settings, as values with their defaults."""

from __future__ import annotations

import hashlib
import importlib
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from segmill.errors import InputError
from segmill.files import write_atomically
from segmill.fingerprint import fingerprints, reached_modules
from segmill.former_pipeline import refuse_former_pipeline
from segmill.params import Params
from segmill.workspace import Workspace

# The packages whose code DVC watches, so that `dvc repro` runs the stage `fingerprint` after a change.
SOURCES = ("segmill", "tasks")

# The modules of the functions that compute a stage's outs: its code is what these reach.
COMPUTATIONS = {
    "validate": ("segmill.data.validation.checks",),
    "prepare": ("segmill.data.packing.pack",),
    "augment": ("segmill.data.loading.recipes", "segmill.data.loading.extras"),
    "finetune-network": ("segmill.training.train",),
    "finetune-svm": ("segmill.training.svm.fitting",),
    "ensemble": ("segmill.ensembling.select",),
    "evaluate": ("segmill.evaluation.scoring",),
    "shards": ("segmill.data.packing.shards",),  # no stage: what makes the pixels of packed splits
}


# What packed shards are named by, so that a change packs and trains everything anew, is the code that makes their
# pixels. The reader of dataset.yaml is reached by it and makes none: it counts there as it was when that began.
MAKES_NO_PIXELS = {"segmill.data.schema.manifest": "91340b876185cf9f1c59c042e9f356eb88f0b4ca26b524efc1bbff445b42bd9d"}


@dataclass(frozen=True)
class Inputs:
    """A stage's code, one line ``module sha256`` per module, and its settings, by the keys of params.yaml."""

    code: str
    settings: dict[str, Any]

    @property
    def code_md5(self) -> str:
        """The hash that DVC gives the file of the code."""
        return hashlib.md5(self.code.encode(), usedforsecurity=False).hexdigest()

    @property
    def modules(self) -> list[str]:
        return reached_modules(self.code)


def stage_inputs(params: Params) -> dict[str, Inputs]:
    """Return the inputs of every stage that computes something, ``finetune`` once per member."""
    code, settings = fingerprints(COMPUTATIONS), all_settings(params)
    return {stage: Inputs(code[computation_of(params, stage)], values) for stage, values in settings.items()}


def computation_of(params: Params, stage: str) -> str:
    """Return which of ``COMPUTATIONS`` the stage (as ``finetune@lite0``) runs."""
    base, _, member = stage.partition("@")
    return f"{base}-{params.members[member].kind}" if member else base


def all_settings(params: Params) -> dict[str, dict[str, Any]]:
    """Return, per stage, the values that can change its outs: resolved, with every default, as plain JSON."""
    split = params.split.model_dump(mode="json", exclude={"sealed", "calibration"})
    members = list(params.members)
    # Where no group is sealed, or none calibrates, the keys are left out, as in records of releases without them.
    sealed = {"sealed": sorted(set(params.split.sealed))} if params.split.sealed else {}
    apart, by, anomaly = {}, {}, {}
    if params.split.calibration:
        apart = {"calibration": sorted(set(params.split.calibration))}
        by = {"split": apart, "anomaly": params.anomaly.model_dump(mode="json", include={"by"})}
        anomaly = {"anomaly": params.anomaly.model_dump(mode="json")}
    return {
        "validate": {"data": {"accept": list(params.data.accept)}, "split": split | sealed | apart},
        "prepare": {"prepare": params.prepare.model_dump(mode="json"), **by},
        "augment": {"augment": params.augment.model_dump(mode="json")},
        **{f"finetune@{name}": member_settings(params, name) for name in members},
        "ensemble": {
            "ensemble": params.ensemble.model_dump(mode="json", exclude={"min_members"}),
            "members": members,
            **anomaly,
        },
        "evaluate": {"evaluate": params.evaluate.model_dump(mode="json"), **({"split": sealed} if sealed else {})},
    }


def member_settings(params: Params, name: str) -> dict[str, Any]:
    """Return the settings of one member: its own keys and, for a network, all of ``train`` as it counts for it."""
    member = params.members[name]
    own = {"members": {name: member.model_dump(mode="json", include=set(type(member).model_fields))}}
    return own if member.kind == "svm" else {"train": json.loads(json.dumps(asdict(params.training_of(name)))), **own}


def code_path(workspace: Workspace, stage: str) -> Path:
    """Return where the hashes of the stage's code are written."""
    return workspace.code / stage.replace("@", "/")


def settings_path(workspace: Workspace, stage: str) -> Path:
    """Return where the stage's settings are written."""
    return workspace.settings / f"{stage.replace('@', '/')}.json"


def read_code(workspace: Workspace, stage: str) -> str:
    """Return what ``write_inputs`` wrote of the stage's code. InputError where it never did."""
    try:
        return code_path(workspace, stage).read_text()
    except FileNotFoundError:
        raise InputError(f"the code of {stage} was not hashed yet; run `segmill stage fingerprint` first") from None


def write_inputs(workspace: Workspace, params: Params) -> None:
    """Link the installed code into the workspace and write every stage's code and settings there.

    Files are touched only where they change, so DVC keeps what it knows of them. Raises InputError where dvc.yaml is an
    earlier release's.
    """
    refuse_former_pipeline(workspace)
    for name in SOURCES:
        folder, link = Path(str(importlib.import_module(name).__file__)).parent, workspace.sources / name
        if not link.is_symlink() or link.resolve() != folder.resolve():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder, link.parent.resolve()))
    code, settings = fingerprints(COMPUTATIONS), all_settings(params)
    texts = {code_path(workspace, stage): code[computation_of(params, stage)] for stage in settings}
    texts[code_path(workspace, "shards")] = code_of_pixels(code["shards"])
    texts |= {settings_path(workspace, stage): _as_text(values) for stage, values in settings.items()}
    for folder in (workspace.code, workspace.settings):
        for path in [path for path in folder.rglob("*") if path.is_file() and path not in texts]:
            path.unlink()
    for path, text in texts.items():
        _write(path, text)


def code_of_pixels(code: str) -> str:
    """Return the code of ``shards`` with what MAKES_NO_PIXELS has in place of today's hashes."""
    lines = (line.split() for line in code.splitlines())
    return "".join(f"{module} {MAKES_NO_PIXELS.get(module, sha256)}\n" for module, sha256 in lines)


def write_settings(workspace: Workspace, params: Params, stage: str) -> None:
    """Write the settings of one stage, as a run has them: who looks at the workspace never changes them."""
    if stage in (settings := all_settings(params)):
        _write(settings_path(workspace, stage), _as_text(settings[stage]))


def refuse_other_settings(workspace: Workspace, params: Params, stage: str) -> None:
    """Raise InputError where params.yaml asks for another result than the one that DVC is about to record."""
    wanted, path = all_settings(params).get(stage), settings_path(workspace, stage)
    if wanted is None:
        return
    written = json.loads(path.read_text()) if path.is_file() else None
    if written != wanted:
        changed = "; ".join(value_changes(written or {}, wanted))
        raise InputError(
            f"params.yaml has other settings for {stage} than those that were written down for it ({changed}); "
            "run `segmill retrain` or `dvc repro`, which begin with writing them down"
        )


def value_changes(old: Any, new: Any, key: str = "") -> list[str]:
    """Return a text such as ``train.lr 0.1 -> 0.2`` for each value that differs."""
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for part in dict.fromkeys([*old, *new])
            if old.get(part) != new.get(part)
            for change in value_changes(old.get(part), new.get(part), f"{key}.{part}".lstrip("."))
        ]
    return [f"{key} {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _as_text(values: dict[str, Any]) -> str:
    return json.dumps(values, indent=1, sort_keys=True) + "\n"


def _write(path: Path, text: str) -> None:
    if not path.is_file() or path.read_text() != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, text)
