"""What changed between two runs, from two real dvc.lock files; no training: its stages are entered as DVC would."""

from __future__ import annotations

import hashlib
from io import StringIO
from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.data.versioning.dvc_adapter import repository
from segmill.data.versioning.history import LogEntry, append_log, log_path
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.reports.run_facts import Changes
from segmill.workspace import Workspace
from tasks.changes import changes_since
from tasks.inputs import all_settings, code_path, settings_path
from tasks.stage import bring_up_to_date

OLD, MIDDLE, NEW = ("1" * 32, "2" * 32, "3" * 32)
NOTHING = Changes(data=[], settings=[], code=[])
CODE = "segmill.training.losses aaaa\nsegmill.training.loop bbbb\n"


def cached(workspace: Workspace, text: str) -> str:
    """Put a list of modules where DVC's cache has it; return its md5."""
    md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
    with repository(workspace.root) as repo:
        path = repo.cache_path(md5)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return md5


def ran(workspace: Workspace, *, data: str = OLD, code: dict[str, str] | None = None) -> bytes:
    """Write dvc.lock as a run with today's params.yaml leaves it; return its bytes. ``code``: stage to an md5."""
    stages: dict[str, Any] = {}
    for stage, values in all_settings(read_params(workspace.params)).items():
        paths = (str(path(workspace, stage).relative_to(workspace.root)) for path in (code_path, settings_path))
        code_file, settings_file = paths
        deps = [{"path": code_file, "md5": (code or {}).get(stage, "0" * 32)}]
        if stage == "prepare":
            deps.append({"path": "data/raw", "md5": f"{data}.dir"})
        stages[stage] = {"cmd": "-", "deps": deps, "params": {settings_file: values}}
    text = StringIO()
    YAML().dump({"schema": "2.0", "stages": stages}, text)
    (workspace.root / "dvc.lock").write_text(text.getvalue())
    return text.getvalue().encode()


def found(workspace: Workspace, then: bytes) -> Changes:
    return changes_since(workspace, read_params(workspace.params), then)


@pytest.fixture
def begun(workspace: Workspace) -> Workspace:
    """A workspace with two members of the same settings, whose code was hashed."""
    net = "{backbone: resnet18, decoder: fpn, weights: none, lr: 0.01}"
    for name in read_params(workspace.params).members:
        set_params(workspace.params, [f"members.{name}={net}"])
    bring_up_to_date(workspace, "fingerprint")
    return workspace


def test_the_same_again_changed_nothing(begun: Workspace) -> None:
    assert found(begun, ran(begun)) == NOTHING


def test_settings_are_said_once_for_all_members_and_by_name_for_one(begun: Workspace) -> None:
    then, names = ran(begun), list(read_params(begun.params).members)
    set_params(begun.params, ["train.epochs=3", "prepare.clahe=2.0", f"members.{names[0]}.batch_size=16"])
    set_params(begun.params, ["members.added={kind: svm}"])
    ran(begun)
    changed = found(begun, then)
    assert (changed.data, changed.code) == ([], [])
    epochs = [line for line in changed.settings if "train.epochs" in line]
    assert len(epochs) == 1 and epochs[0].endswith("-> 3") and epochs[0].startswith("train.epochs")
    assert any(line.startswith(f"{names[0]}: train.batch_size") and line.endswith("-> 16") for line in changed.settings)
    assert "member added is new" in changed.settings and any("prepare.clahe" in line for line in changed.settings)
    assert len(changed.settings) == 4
    back = changes_since(begun, read_params(begun.params), (begun.root / "dvc.lock").read_bytes())
    assert back == NOTHING


def test_data_are_said_with_the_log_of_what_is_between(begun: Workspace) -> None:
    then = ran(begun, data=OLD)
    for version, before, message, added in ((MIDDLE, OLD, "rain", 12), (NEW, MIDDLE, "night", 3)):
        entry = LogEntry(
            version=version, before=before, when=f"2026-01-0{added % 9 + 1}", who="a", message=message, files=1,
            size_bytes=1, samples=80 + added, added=added, removed=0, relabelled=2, reimaged=0, class_pixels=None,
        )  # fmt: skip
        append_log(log_path(begun.root / "data" / "raw"), entry)
    ran(begun, data=NEW)
    assert found(begun, then).data == [
        "version 11111111 -> 33333333",
        "rain: 12 added, 2 relabelled (92 samples in all)",
        "night: 3 added, 2 relabelled (83 samples in all)",
    ]
    now = ran(begun, data=OLD)
    assert found(begun, now).data == [] and found(begun, ran(begun, data="4" * 32)).data == []
    unknown = ran(begun, data="6" * 32)
    ran(begun, data=NEW)
    assert found(begun, unknown).data == ["version 66666666 -> 33333333"]


def test_code_is_said_by_module_where_the_cache_has_both_lists(begun: Workspace) -> None:
    name = next(iter(read_params(begun.params).members))
    stage = f"finetune@{name}"
    then = ran(begun, code={stage: cached(begun, CODE), "evaluate": "e" * 32})
    ran(begun, code={stage: cached(begun, CODE.replace("aaaa", "cccc"))})
    assert found(begun, then).code == [f"{stage}: segmill.training.losses", "evaluate"]


def test_what_an_earlier_release_recorded_is_not_compared(begun: Workspace) -> None:
    ran(begun)
    former = b"schema: '2.0'\nstages:\n  prepare:\n    cmd: x\n    params:\n      params.yaml:\n        split: {}\n"
    assert "an earlier release made it" in found(begun, former).unknown
    assert "an earlier release made it" in found(begun, b"").unknown
