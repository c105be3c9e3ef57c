"""What is kept in a run folder, damaged in every way: the last whole one is used, and what was passed over is named."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from segmill.training.distributed import run_folder


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def without_its_end(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_byte(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def remove(path: Path) -> None:
    path.unlink()


DAMAGE = (empty, cut, without_its_end, flip_a_byte)


def write_epoch(run: Path, epoch: int) -> None:
    run_folder.keep_former_checkpoint(run)
    draft = run / "draft"
    torch.save({"epoch": epoch, "weights": torch.arange(1000.0)}, draft)
    draft.rename(run / run_folder.STATE)


def epoch_of(folder: Path | None) -> int | None:
    return folder and torch.load(folder / run_folder.STATE)["epoch"]


def test_importing_it_is_light() -> None:
    heavy = "('torch', 'ray', 'numpy')"
    code = f"import sys, segmill.training.distributed.run_folder; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_the_last_two_checkpoints_are_kept(tmp_path: Path) -> None:
    assert run_folder.last_whole_checkpoint(tmp_path) == (None, "")
    for epoch in (1, 2, 3):
        write_epoch(tmp_path, epoch)
        assert epoch_of(run_folder.last_whole_checkpoint(tmp_path)[0]) == epoch
    assert epoch_of(tmp_path / run_folder.FORMER) == 2
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["former", "state.pt", "state.pt"]


@pytest.mark.parametrize("damage", [*DAMAGE, remove])
def test_a_damaged_checkpoint_gives_way_to_the_one_before(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_epoch(tmp_path, 1)
    write_epoch(tmp_path, 2)
    damage(tmp_path / run_folder.STATE)
    found, said = run_folder.last_whole_checkpoint(tmp_path)
    assert epoch_of(found) == 1
    if damage is remove:
        assert said == ""
    else:
        assert said.startswith(f"checkpoint {tmp_path}/state.pt was damaged and is not used; it resumes from the epoch")
    write_epoch(tmp_path, 2)
    assert epoch_of(run_folder.last_whole_checkpoint(tmp_path)[0]) == 2


@pytest.mark.parametrize("damage", DAMAGE)
def test_where_both_are_damaged_it_begins_again(tmp_path: Path, damage: Callable[[Path], None]) -> None:
    write_epoch(tmp_path, 1)
    write_epoch(tmp_path, 2)
    for folder in (tmp_path, tmp_path / run_folder.FORMER):
        damage(folder / run_folder.STATE)
    found, said = run_folder.last_whole_checkpoint(tmp_path)
    assert found is None and said.endswith("former/state.pt was damaged and is not used; its training begins again")


def test_a_damaged_checkpoint_is_never_kept_in_place_of_a_whole_one(tmp_path: Path) -> None:
    write_epoch(tmp_path, 1)
    write_epoch(tmp_path, 2)
    cut(tmp_path / run_folder.STATE)
    assert epoch_of(run_folder.last_whole_checkpoint(tmp_path)[0]) == 1
    write_epoch(tmp_path, 2)
    cut(tmp_path / run_folder.STATE)
    assert epoch_of(run_folder.last_whole_checkpoint(tmp_path)[0]) == 1


@pytest.mark.parametrize("damage", [*DAMAGE, remove])
@pytest.mark.parametrize("name", ["member/a", "member/inner/b", "sha256.json"])
def test_a_finished_member_is_whole_or_not_there(tmp_path: Path, name: str, damage: Callable[[Path], None]) -> None:
    finished = tmp_path / "run" / run_folder.FINISHED
    assert not run_folder.has_finished(finished)
    with run_folder.finishing(finished) as draft:
        (draft / "inner").mkdir()
        (draft / "a").write_bytes(bytes(100))
        (draft / "inner" / "b").write_bytes(bytes(100))
    assert run_folder.has_finished(finished)
    run_folder.copy_finished(finished, tmp_path / "out")
    assert (tmp_path / "out" / "inner" / "b").read_bytes() == bytes(100)
    damage(finished / name)
    assert not run_folder.has_finished(finished)
    assert not finished.exists()


def test_a_run_folder_is_dropped_once_its_member_is_the_recorded_one(tmp_path: Path) -> None:
    run, member = tmp_path / "run", tmp_path / "member"
    run.mkdir()
    run_folder.drop_if_recorded(run, member)
    with run_folder.finishing(run / run_folder.FINISHED) as draft:
        (draft / "weights").write_text("new")
    run_folder.drop_if_recorded(run, member)
    member.mkdir()
    (member / "weights").write_text("old")
    run_folder.drop_if_recorded(run, member)
    assert run_folder.has_finished(run / run_folder.FINISHED), "none, or another, is recorded"
    (member / "weights").write_text("new")
    run_folder.drop_if_recorded(run, member)
    assert not run.exists()
