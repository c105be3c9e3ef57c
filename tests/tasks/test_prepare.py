from __future__ import annotations

import json
from pathlib import Path

import pytest

import tasks.prepare
from segmill.data.ingest.builtin import write_street
from segmill.data.packing.packed import PackedSplit
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.inputs import write_inputs
from tasks.stage import bring_up_to_date
from tasks.validate import validate
from tasks.version import version
from tests.tasks.test_stage import dvc


def prepare(workspace: Workspace) -> dict[str, int]:
    version(workspace, read_params(workspace.params))
    for stage in ("fingerprint", "validate", "prepare"):
        bring_up_to_date(workspace, stage)
    facts: dict[str, int] = json.loads((workspace.shards / "last.json").read_text())
    return facts


def shards(folder: Path) -> dict[str, tuple[int, int, bytes]]:
    """Return inode, time of change and content of every shard below a folder."""
    found = {}
    for path in folder.rglob("*.bin"):
        facts = path.stat()
        found[path.name] = facts.st_ino, facts.st_mtime_ns, path.read_bytes()
    return found


@pytest.mark.long
@pytest.mark.slow
def test_dvc_records_linked_shards_and_leaves_them_alone(workspace: Workspace) -> None:
    first = prepare(workspace)
    assert first["decoded"] == first["samples"] == 80
    packed = shards(workspace.packed)
    assert packed == shards(workspace.shards)  # linked still, after DVC recorded them
    cached = {path.stat().st_ino for path in (workspace.root / ".dvc" / "cache").rglob("*") if path.is_file()}
    assert {inode for inode, _, _ in packed.values()} <= cached, "its cache holds the same files, no copies"

    write_street(workspace.root / "data" / "raw", count=90, size=(64, 64))
    second = prepare(workspace)
    assert (second["samples"], second["decoded"]) == (90, 10)
    again = shards(workspace.packed)
    kept = packed.items() & again.items()
    assert len(kept) == second["shards"] - second["written"] >= 2
    assert again == shards(workspace.shards)
    assert "didn't change, skipping" in dvc(workspace, "repro", "prepare")


@pytest.mark.long
def test_dvc_repro_takes_over_what_was_decoded_and_changes_no_byte_in_place(workspace: Workspace) -> None:
    prepare(workspace)
    before = shards(workspace.shards)
    set_params(workspace.params, ["prepare.clahe=2.0"])
    dvc(workspace, "repro", "prepare")
    facts = json.loads((workspace.shards / "last.json").read_text())
    assert facts["decoded"] == len(PackedSplit(workspace.packed / "train"))
    kept = before.keys() & shards(workspace.packed).keys()
    assert len(kept) >= 2  # val and test
    for name in kept:
        assert shards(workspace.shards)[name] == before[name]


def test_every_key_of_prepare_reaches_the_pixels(workspace: Workspace) -> None:
    write_inputs(workspace, read_params(workspace.params))
    set_params(workspace.params, ["prepare.size_px=[48, 40]", "prepare.resize=tile"])
    validate(workspace, read_params(workspace.params))
    seen: set[frozenset[str]] = set()
    changes = (
        "prepare.overlap_px=8", "prepare.resize=fit", "prepare.resize=stretch", "prepare.border_crop_px=[0, 8, 0, 0]",
        "prepare.grayscale=true", "prepare.clahe=1.5", "prepare.size_px=null",
    )  # fmt: skip
    for done, change in enumerate(changes, 1):
        set_params(workspace.params, [change])
        tasks.prepare.prepare(workspace, read_params(workspace.params))
        seen.add(frozenset(path.name for path in (workspace.packed / "train").glob("*.bin")))
        assert len(seen) == done, change
