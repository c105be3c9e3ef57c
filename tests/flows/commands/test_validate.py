"""`segmill validate` as a person meets it: the table of issues, the exit code, and a repaired version."""

from __future__ import annotations

import os
import shutil
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from flows.commands.start import create
from flows.commands.validate import issues_list, validate
from segmill.data.schema.issues import issue_of
from segmill.data.schema.samples import list_samples
from segmill.data.storage import raw_set
from segmill.data.storage.images import read_mask
from segmill.data.storage.raw_set import is_sharded
from segmill.data.versioning.versions import recorded_version
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tests.flows.commands.test_cli import segmill


def said_of(issues: object, width: int) -> list[str]:
    text = StringIO()
    Console(file=text, width=width).print(issues)
    return text.getvalue().splitlines()


def raw(workspace: Workspace) -> Path:
    return workspace.root / "data" / "raw"


def masks(workspace: Workspace) -> list[Path]:
    return sorted((raw(workspace) / "masks").glob("*.png"))


def check(workspace: Workspace, *, fix: bool = False) -> tuple[bool, str]:
    text = StringIO()
    sound = validate(workspace, read_params(workspace.params), Console(file=text, width=200), fix=fix)
    return sound, text.getvalue()


def test_the_list_says_what_stops_first_and_what_fix_does_in_any_width() -> None:
    issues = [
        issue_of("empty_mask", "masks/e.png"),
        issue_of("off_by_a_pixel", *(f"masks/{i}.png" for i in range(5))),
        issue_of("size_mismatch", "masks/z.png"),
    ]
    for width in (80, 160):
        lines = said_of(issues_list(issues, accept=["size_mismatch"]), width)
        assert [line for line in lines if not line.startswith("  ")] == [
            "error off_by_a_pixel, 5 files: masks/0.png, masks/1.png, masks/2.png, ...",
            "warning empty_mask, 1 file: masks/e.png",
            "accepted size_mismatch, 1 file: masks/z.png",
        ]
        said = " ".join(line.strip() for line in lines)
        assert all(f"-> {issue.fix}" in said for issue in issues) and said.count("(--fix does)") == 1


def test_a_clean_set_is_said_to_be_clean_with_the_page_to_look_at(workspace: Workspace) -> None:
    sound, said = check(workspace)
    assert sound and "no issues; the page of the checked set: " in said and "warning" not in said
    assert Path(said.split("the page of the checked set: ")[1].split()[0]).is_file()
    assert "the gate can't promote a version over a champion on 2 test groups: the first takes 11" in said


def test_warnings_are_printed_by_a_fresh_stage_too(workspace: Workspace) -> None:
    path = masks(workspace)[0]
    Image.fromarray(np.full((64, 64), 255, np.uint8)).save(path)
    sound, said = check(workspace)
    assert sound
    assert "ignored_mask" in said and path.name in said and "vehicle" in said
    sound, again = check(workspace)
    assert sound
    assert "fresh" in again and "ignored_mask" in again and path.name in again


@pytest.mark.slow
def test_errors_end_with_exit_code_1_and_a_list_of_every_file(workspace: Workspace) -> None:
    names = []
    for path in masks(workspace)[:5]:
        Image.fromarray(np.full((64, 64), 77, np.uint8)).save(path)
        names.append(path.name)
    code, said = segmill("validate", cwd=workspace.root)
    assert code == 1 and "Traceback" not in said
    assert "unknown_ids" in said and names[0] in said and names[4] not in said
    listed = (workspace.scratch / "checks" / "faults.csv").read_text()
    assert all(name in listed for name in names)
    assert names[0] in (workspace.scratch / "checks" / "index.html").read_text()
    assert not workspace.manifest.exists()


@pytest.mark.slow
def test_accepted_kinds_do_not_stop(workspace: Workspace) -> None:
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(masks(workspace)[0])
    assert not check(workspace)[0]
    set_params(workspace.params, ["data.accept=[unknown_ids]"])
    sound, said = check(workspace)
    assert sound and "accepted" in said
    set_params(workspace.params, ["data.accept=[unknown_id]"])
    code, said = segmill("validate", cwd=workspace.root)
    assert code == 1 and "did you mean 'unknown_ids'?" in said


@pytest.mark.slow
def test_fix_writes_a_repaired_version_and_keeps_the_one_before(workspace: Workspace) -> None:
    off, coloured, wrong = masks(workspace)[:3]
    good = {path: np.array(Image.open(path)) for path in (off, coloured, wrong)}
    Image.fromarray(np.repeat(good[coloured][:, :, None], 3, axis=2)).save(coloured)
    Image.fromarray(good[off][:-1]).save(off)
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(wrong)
    broken = {path: path.read_bytes() for path in (off, coloured, wrong)}
    assert not check(workspace)[0]
    sound, said = check(workspace, fix=True)
    assert not sound and "unknown_ids" in said and "off_by_a_pixel" not in said.split("repaired")[1].split("\n", 1)[1]
    assert "1 mask_format, 1 off_by_a_pixel" in said
    np.testing.assert_array_equal(np.array(Image.open(coloured)), good[coloured])
    assert np.array(Image.open(off)).shape == (64, 64)
    assert wrong.read_bytes() == broken[wrong]
    before = said.split("the one before is ")[1][:8]
    now = recorded_version(workspace.root, "data/raw")
    assert now is not None and not now.md5.startswith(before)
    code, log = segmill("data", "log", cwd=workspace.root)
    assert code == 0 and before in log and "repaired" in log
    code, _ = segmill("data", "checkout", before, cwd=workspace.root)
    assert code == 0
    assert {path: path.read_bytes() for path in broken} == broken


@pytest.mark.slow
@pytest.mark.long
def test_fix_of_a_packed_set_adds_a_pack_and_keeps_those_before(
    tmp_path: Path, street: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = tmp_path / "set"
    shutil.copytree(street, source)
    off, coloured, wrong = sorted((source / "masks").glob("*.png"))[:3]
    good = {path.stem: np.array(Image.open(path)) for path in (off, coloured, wrong)}
    Image.fromarray(good[off.stem][:-1]).save(off)
    Image.fromarray(np.repeat(good[coloured.stem][:, :, None], 3, axis=2)).save(coloured)
    Image.fromarray(np.full((64, 64), 77, np.uint8)).save(wrong)
    monkeypatch.setattr(raw_set, "SHARDS_ABOVE", 30)
    workspace = create(tmp_path / "workspace", source)
    assert is_sharded(raw(workspace))
    first = recorded_version(workspace.root, "data/raw")
    old = {path.name: path.read_bytes() for path in (raw(workspace) / "packs").iterdir()}
    index = (raw(workspace) / "index.parquet").read_bytes()
    assert first is not None and not check(workspace)[0]

    sound, said = check(workspace, fix=True)
    assert not sound and "unknown_ids" in said  # what nobody can repair is left as it is, and said
    assert "repaired 1 mask_format, 1 off_by_a_pixel: 2 new masks" in said and f"before is {first.md5[:8]}" in said
    parts = {entry.id: entry for entry in list_samples(raw(workspace))[0]}
    assert len(parts) == 80
    assert {name: read_mask(parts[name].mask.read(raw(workspace))).tolist() for name in good} == {
        off.stem: good[off.stem][[*range(32), 31, *range(32, 63)]].tolist(),  # 63 rows to 64: one comes twice
        coloured.stem: good[coloured.stem].tolist(),
        wrong.stem: [[77] * 64] * 64,
    }
    for name in (off.stem, coloured.stem):
        assert parts[name].image.read(raw(workspace)) == (source / "images" / f"{name}.png").read_bytes()
    packs = {path.name: path.read_bytes() for path in (raw(workspace) / "packs").iterdir()}
    assert old.items() < packs.items() and len(packs) == len(old) + 1

    code, log = segmill("data", "log", cwd=workspace.root)
    assert code == 0 and "repaired" in log and "relabelled 2" in log
    set_params(workspace.params, ["data.accept=[unknown_ids]"])
    sound, said = check(workspace)
    assert sound and "mask_format" not in said and "off_by_a_pixel" not in said
    code, _ = segmill("data", "checkout", first.md5[:8], cwd=workspace.root)
    assert code == 0
    assert {path.name: path.read_bytes() for path in (raw(workspace) / "packs").iterdir()} == old
    assert (raw(workspace) / "index.parquet").read_bytes() == index


@pytest.mark.slow
def test_fix_of_a_sound_set_changes_nothing(workspace: Workspace) -> None:
    contents = {path: path.read_bytes() for path in masks(workspace)}
    sound, said = check(workspace, fix=True)
    assert sound and "nothing can be repaired automatically" in said
    assert {path: path.read_bytes() for path in masks(workspace)} == contents


@pytest.mark.slow
@pytest.mark.parametrize("command", ["validate", "retrain", "status"])
def test_a_pipe_among_the_images_hangs_no_command(workspace: Workspace, command: str) -> None:
    os.mkfifo(raw(workspace) / "images" / "pipe.png")
    code, said = segmill(command, cwd=workspace.root)
    assert code == 1
    assert "not_a_file" in said and "images/pipe.png" in said and "Traceback" not in said
