"""Outs, caches and notes of DVC that are damaged: noticed, named, brought back or made again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from segmill.data.packing.packed import read_pack
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.stage import Outcome, bring_up_to_date, recorded_md5, survey
from tasks.version import version

LIGHT = ("fingerprint", "validate", "prepare", "augment")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, _street_workspace: Workspace) -> Workspace:
    """A workspace whose light stages ran with two sizes: the first one is known to DVC's run-cache."""
    root = tmp_path_factory.mktemp("made") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    version(workspace, read_params(workspace.params))
    for size in ("[32, 32]", "[64, 64]"):
        set_params(workspace.params, [f"prepare.size_px={size}"])
        for name in LIGHT:
            bring_up_to_date(workspace, name)
    return workspace


@pytest.fixture
def ran(tmp_path: Path, made: Workspace) -> Workspace:
    root = tmp_path / "workspace"
    shutil.copytree(made.root, root, symlinks=True)
    return Workspace.open(root)


def a_shard(workspace: Workspace) -> Path:
    return max((workspace.packed / "train").glob("*.bin"), key=lambda path: path.stat().st_size)


def flip_a_byte(path: Path) -> None:
    """Change one byte in the middle; as another file, so that no hard link of it changes."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 0xFF
    path.unlink()
    path.write_bytes(content)


def cut_to_half(path: Path) -> None:
    content = path.read_bytes()
    path.unlink()
    path.write_bytes(content[: len(content) // 2])


def again(workspace: Workspace) -> dict[str, Outcome]:
    return {name: bring_up_to_date(workspace, name) for name in LIGHT}


@pytest.mark.parametrize("damage", [flip_a_byte, cut_to_half])
def test_a_damaged_out_is_named_and_restored(ran: Workspace, damage: Callable[[Path], None]) -> None:
    shard = a_shard(ran)
    sound, name = shard.read_bytes(), shard.relative_to(ran.root).as_posix()
    damage(shard)
    assert survey(ran)["prepare"].why == f"{name} is damaged, or was changed by hand"
    outcomes = again(ran)
    assert outcomes["prepare"].state == "restored" and name in outcomes["prepare"].why
    assert outcomes["augment"].state == "fresh"
    assert shard.read_bytes() == sound


def test_a_damaged_out_that_no_cache_has_is_made_again(ran: Workspace) -> None:
    shard = a_shard(ran)
    sound = shard.read_bytes()
    cut_to_half(shard)
    shutil.rmtree(ran.root / ".dvc" / "cache" / "files")
    version(ran, read_params(ran.params))
    assert bring_up_to_date(ran, "prepare").state == "ran"
    assert shard.read_bytes() == sound


def test_damage_in_the_cache_itself_is_not_brought_back(ran: Workspace) -> None:
    """DVC trusts whatever its cache holds write-protected."""
    shard = a_shard(ran)
    sound = shard.read_bytes()
    cache = [path for path in (ran.root / ".dvc" / "cache" / "files").rglob("*") if path.is_file()]
    (cached,) = [path for path in cache if path.read_bytes() == sound]
    for path in (shard, cached):
        mode = path.stat().st_mode
        flip_a_byte(path)
        path.chmod(mode)
    outcomes = again(ran)
    assert outcomes["prepare"].state == "ran"
    assert shard.read_bytes() == cached.read_bytes() == sound


def test_a_damaged_out_does_not_bar_the_way_back_to_an_earlier_result(ran: Workspace) -> None:
    recorded = recorded_md5(ran, "prepare")
    cut_to_half(a_shard(ran))
    set_params(ran.params, ["prepare.size_px=[32, 32]"])
    outcomes = again(ran)
    assert outcomes["prepare"].state == "restored"
    assert outcomes["prepare"].why.startswith("prepare.size_px [64, 64] -> [32, 32]; ")
    assert recorded_md5(ran, "prepare") != recorded
    assert read_pack(ran.packed).size == (32, 32)


@pytest.mark.parametrize("content", ["", "{", '{"write": {"data/packed": {"pi'])
def test_a_torn_rwlock_of_a_killed_process_stops_nobody(ran: Workspace, content: str) -> None:
    (ran.root / ".dvc" / "tmp" / "rwlock").write_text(content)
    assert {outcome.state for outcome in again(ran).values()} == {"fresh"}


def test_an_empty_lock_file_costs_no_result(ran: Workspace) -> None:
    (ran.root / "dvc.lock").write_text("")
    assert recorded_md5(ran, "prepare") == ""
    assert survey(ran)["prepare"].why == "never ran here"
    states = {name: outcome.state for name, outcome in again(ran).items()}
    assert states == {"fingerprint": "ran", **dict.fromkeys(("validate", "prepare", "augment"), "restored")}


def test_a_torn_lock_file_is_named_with_what_to_do(ran: Workspace) -> None:
    lock = ran.root / "dvc.lock"
    lock.write_text(lock.read_text()[: lock.stat().st_size // 2] + "\n  : [")
    for ask in (survey, lambda space: recorded_md5(space, "prepare")):
        with pytest.raises(InputError, match=r"dvc\.lock.*git checkout dvc\.lock"):
            ask(ran)
