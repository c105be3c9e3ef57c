"""No byte lies on the disk more often than it must, and what is shared is not harmed by who may write."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest
from terminal import run, terminal

from segmill.errors import InputError
from segmill.former_pipeline import replace_former_pipeline
from segmill.params import read_params
from segmill.stores import store_sizes
from segmill.workspace import Workspace, template
from tasks.stage import bring_up_to_date, recorded_md5, share_recorded, survey
from tasks.version import version

LIGHT = ("fingerprint", "validate", "prepare", "augment")


@pytest.fixture(scope="module")
def _made(tmp_path_factory: pytest.TempPathFactory, _street_workspace: Workspace) -> Workspace:
    root = tmp_path_factory.mktemp("made") / "workspace"
    shutil.copytree(_street_workspace.root, root, symlinks=True)
    workspace = Workspace.open(root)
    version(workspace, read_params(workspace.params))
    for name in LIGHT:
        bring_up_to_date(workspace, name)
    return workspace


@pytest.fixture
def made(tmp_path: Path, _made: Workspace) -> Workspace:
    """A workspace of its own whose light stages ran, with the links of the one that it is a copy of."""
    root = tmp_path / "workspace"
    subprocess.run(["cp", "-a", str(_made.root), str(root)], check=True)
    workspace = Workspace.open(root)
    version(workspace, read_params(workspace.params))  # DVC has the remote by its full path
    return workspace


def files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]


def inodes(*folders: Path) -> set[int]:
    return {path.stat().st_ino for folder in folders for path in files(folder)}


def cache(workspace: Workspace) -> Path:
    return workspace.root / ".dvc" / "cache" / "files"


def remote(workspace: Workspace) -> Path:
    return workspace.root / read_params(workspace.params).data.remote


def in_common(*folders: Path) -> int:
    """Return how many bytes of ``folders`` are the same files on the disk."""
    sizes = [{path.stat().st_ino: path.stat().st_size for path in files(folder)} for folder in folders]
    return sum(size for inode, size in sizes[0].items() if all(inode in other for other in sizes[1:]))


def shards(workspace: Workspace) -> int:
    return sum(path.stat().st_size for path in files(workspace.packed) if path.suffix == ".bin")


@pytest.mark.long
def test_packed_pixels_lie_once_and_the_data_twice(made: Workspace) -> None:
    assert in_common(made.packed, made.shards, cache(made)) == shards(made)
    data = made.root / read_params(made.params).data.path
    size = sum(path.stat().st_size for path in files(data))
    assert in_common(cache(made), remote(made)) == size
    assert not inodes(data) & inodes(cache(made)), "whoever edits a mask in place must not reach its version"
    sizes = store_sizes(made, read_params(made.params))
    assert sizes["packed"] < shards(made) + 200_000
    assert sizes["dvc_cache"] + sizes["remote"] < size + 200_000


def test_an_edit_in_place_reaches_no_version(made: Workspace) -> None:
    params = read_params(made.params)
    first = version(made, params)
    mask = next((made.root / params.data.path / "masks").rglob("*.png"))
    sound = mask.read_bytes()
    mask.write_bytes(b"scribble")
    assert sound in [path.read_bytes() for path in files(cache(made))]
    mask.write_bytes(sound)
    assert version(made, params).md5 == first.md5


@pytest.mark.parametrize(
    "copied", ["as a copy", "restored", pytest.param("by an earlier release", marks=pytest.mark.long)]
)
def test_copies_are_shared_again(made: Workspace, copied: str) -> None:
    """`cp -r`, `dvc checkout` and earlier releases make copies."""
    params = read_params(made.params)
    if copied == "restored":
        shutil.rmtree(made.packed)
        assert bring_up_to_date(made, "prepare").state == "restored"
    else:
        former = [path for path in files(cache(made)) if path.stat().st_ino in inodes(made.packed)]
        for path in [*(files(made.packed) if copied == "as a copy" else former), *files(remote(made))]:
            content, mode = path.read_bytes(), path.stat().st_mode
            path.unlink()
            path.write_bytes(content)
            path.chmod(mode)
        assert in_common(made.packed, cache(made)) == in_common(remote(made), cache(made)) == 0
        share_recorded(made, params)
        data = made.root / params.data.path
        assert in_common(remote(made), cache(made)) == sum(path.stat().st_size for path in files(data))
    assert in_common(made.packed, cache(made)) == shards(made)
    if copied == "by an earlier release":
        assert in_common(made.packed, made.shards) == shards(made), "its shards had the store's names already"
    assert {outcome.state for name, outcome in survey(made).items() if name in LIGHT} == {"fresh"}
    assert "changed" not in run(made, "dvc", "status", "prepare")


def test_a_damaged_copy_is_not_put_in_the_place_of_a_sound_one(made: Workspace) -> None:
    shard = next((made.packed / "train").glob("*.bin"))
    sound = shard.read_bytes()
    (cached,) = [path for path in files(cache(made)) if path.samefile(shard)]
    cached.unlink()
    cached.write_bytes(b"x" * len(sound))
    cached.chmod(0o444)
    share_recorded(made, read_params(made.params))
    assert shard.read_bytes() == sound


@pytest.mark.long
def test_a_clone_that_pulls_makes_the_packed_splits_again(made: Workspace, tmp_path: Path) -> None:
    for command in (["git", "add", "-A"], ["git", "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "all"]):
        subprocess.run(command, cwd=made.root, check=True, env=terminal())
    run(made, "dvc", "push")
    assert in_common(remote(made), made.packed) == 0
    pushed = {path.read_bytes() for path in files(remote(made))}
    assert not [path for path in files(made.packed) if path.suffix == ".bin" and path.read_bytes() in pushed]
    assert (made.augmented / "recipe.json").read_bytes() in pushed

    subprocess.run(["git", "clone", "-q", str(made.root), str(tmp_path / "clone")], check=True)
    clone = Workspace(tmp_path / "clone")
    assert os.path.exists(made.root / ".dvc" / "config.local")
    shutil.copy(made.root / ".dvc" / "config.local", clone.root / ".dvc" / "config.local")
    subprocess.run(["dvc", "pull", "--allow-missing"], cwd=clone.root, env=terminal(), capture_output=True)
    assert (clone.augmented / "recipe.json").is_file() and not clone.packed.exists()
    version(clone, read_params(clone.params))
    states = {name: bring_up_to_date(clone, name).state for name in LIGHT}
    assert (states["prepare"], states["augment"]) == ("ran", "fresh")
    assert recorded_md5(clone, "prepare") == recorded_md5(made, "prepare")


def test_doctor_replaces_the_pipeline_file_of_before_and_no_stage_before_evaluate_runs_again(made: Workspace) -> None:
    now = template("dvc.yaml").read_text()
    former = now.replace("data/packed:\n          push: false    # what lacks it makes it again\n", "data/packed\n")
    begin, evaluate, end = former.partition("  evaluate:\n")
    end = end.replace("- data/packed\n", "- data/packed\n      - data/augmented\n")
    names = (f"      - reports/{name}\n" for name in ("metrics.json", "counts.npz", "examples.npz"))
    made.pipeline.write_text(begin + evaluate + end.replace("".join(names), "      - reports\n"))
    with pytest.raises(InputError, match="run `segmill doctor --fix`"):
        survey(made)
    (said,) = replace_former_pipeline(made)
    assert "stages are those of this release" in said and made.pipeline.read_text() == now
    assert {outcome.state for name, outcome in survey(made).items() if name in LIGHT} == {"fresh"}
