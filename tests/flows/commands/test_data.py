"""`segmill data` as a person uses it, in one workspace from the first version to an old run brought back."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.commands.data import data_app
from flows.commands.start import create
from segmill.data.ingest.builtin import write_street
from segmill.data.schema.manifest import read_manifest
from segmill.data.schema.samples import list_samples
from segmill.data.splitting.splits import read_frozen
from segmill.data.storage import raw_set
from segmill.data.storage.raw_set import is_sharded
from segmill.data.versioning.history import LogEntry, log_path, read_log
from segmill.data.versioning.repository import commit_files
from segmill.data.versioning.versions import bring_data, data_changed, recorded_version
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks.validate import validate


def data(workspace: Workspace, *arguments: str) -> str:
    """Run a command; return what it printed. Errors come through as they are."""
    done = CliRunner(env={"COLUMNS": "200"}).invoke(data_app, [*arguments, "-w", str(workspace.root)])
    if done.exception:
        raise done.exception
    return done.output


def entries(workspace: Workspace) -> list[LogEntry]:
    return read_log(log_path(workspace.root / "data" / "raw"))


def ids(folder: Path) -> list[str]:
    return [entry.id for entry in list_samples(folder)[0]]


@pytest.fixture
def more(tmp_path: Path, street: Path) -> Path:
    """Ten new scenes of one sequence, one known scene as it is, and one with another's mask."""
    folder = tmp_path / "more"
    write_street(folder, count=10, size=(64, 64), seed=0, first=80)
    for kind in ("images", "masks"):
        for name in ("street_s0000_f00.png", "street_s0000_f01.png"):
            shutil.copyfile(street / kind / name, folder / kind / name)
    shutil.copyfile(street / "masks" / "street_s0007_f05.png", folder / "masks" / "street_s0000_f01.png")
    return folder


def test_new_and_corrected_samples_become_a_version(workspace: Workspace, more: Path, tmp_path: Path) -> None:
    (first,) = entries(workspace)
    (tmp_path / "gone.txt").write_text("# no consent\nstreet_s0003_f00\n\nstreet_s0003_f01\n")
    said = data(workspace, "add", str(more), "-m", "a ninth drive", "--remove", str(tmp_path / "gone.txt"))
    assert "10 samples added, 1 replaced, 2 removed, 1 known already: version" in said
    assert "to share it: segmill data push" in said
    _, last = entries(workspace)
    assert (last.message, last.before, last.samples) == ("a ninth drive", first.version, 88)
    assert (last.added, last.removed, last.relabelled, last.reimaged) == (10, 2, 1, 0)
    assert first.class_pixels and last.class_pixels
    assert sum(first.class_pixels.values()) < 80 * 64 * 64  # the bonnet counts for no class
    assert last.version == recorded_version(workspace.root, "data/raw").md5  # type: ignore[union-attr]
    assert len(ids(workspace.root / "data" / "raw")) == 88

    again = data(workspace, "add", str(more), "-m", "once more")
    assert f"nothing new, 12 known already: the data stay at version {last.version[:8]}" in again
    assert len(entries(workspace)) == 2

    log = data(workspace, "log")
    assert "a ninth drive" in log and log.index("a ninth drive") < log.index("layout segmill")
    (head,) = [line for line in log.splitlines() if line.startswith("*")]
    assert last.version[:8] in head

    diff = data(workspace, "diff", first.version[:6])
    assert "80 samples -> 88" in diff
    assert "added 10" in diff and "street_s0008_f03" in diff
    assert "removed 2" in diff and "relabelled 1" in diff and "  street_s0000_f01" in diff
    for name, pixels in first.class_pixels.items():
        (line,) = [line for line in diff.splitlines() if line.startswith(f"{name} ")]
        assert line.split()[1:3] == [f"{pixels:,}", f"{last.class_pixels[name]:,}"]
    assert "are the same version" in data(workspace, "diff", "HEAD", last.version[:8])


def test_the_log_tells_old_from_new_and_checkout_moves_head(workspace: Workspace, more: Path, tmp_path: Path) -> None:
    data(workspace, "add", str(more), "-m", "more")
    first, second = entries(workspace)
    said = data(workspace, "checkout", "HEAD~1")
    assert f"the data are at version {first.version[:8]} again (80 samples" in said
    assert len(ids(workspace.root / "data" / "raw")) == 80
    assert "are at version" in data(workspace, "checkout", first.version[:8]) and len(entries(workspace)) == 2
    (head,) = [line for line in data(workspace, "log").splitlines() if line.startswith("*")]
    assert first.version[:8] in head

    assert "90 samples of version" in data(workspace, "export", str(tmp_path / "out"), "--version", second.version)
    assert len(ids(tmp_path / "out")) == 90
    data(workspace, "checkout", second.version[:4])
    raw = workspace.root / "data" / "raw"
    assert {path.name: path.read_bytes() for path in raw.rglob("*.png")} == {
        path.name: path.read_bytes() for path in (tmp_path / "out").rglob("*.png")
    }


def test_an_export_starts_a_workspace_with_the_same_samples(workspace: Workspace, tmp_path: Path) -> None:
    data(workspace, "export", str(tmp_path / "out"))
    again = create(tmp_path / "again", tmp_path / "out")
    old, new = workspace.root / "data" / "raw", again.root / "data" / "raw"
    assert {path.relative_to(old): path.read_bytes() for path in old.rglob("*.*")} == {
        path.relative_to(new): path.read_bytes() for path in new.rglob("*.*")
    }
    with pytest.raises(InputError, match="holds something already"):
        data(workspace, "export", str(tmp_path / "out"))


def test_what_was_changed_in_place_is_a_version_of_its_own_before_more_comes(workspace: Workspace, more: Path) -> None:
    raw = workspace.root / "data" / "raw"
    for kind in ("images", "masks"):
        (raw / kind / "street_s0004_f04.png").unlink()
    assert "was changed in place and is version" in data(workspace, "add", str(more), "-m", "more")
    assert [(e.message, e.added, e.removed) for e in entries(workspace)[1:]] == [
        ("changed in place", 0, 1), ("more", 10, 0),
    ]  # fmt: skip


def test_errors_change_nothing(workspace: Workspace, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        data(workspace, "add", str(tmp_path / "nowhere"), "-m", "x")
    with pytest.raises(InputError, match="no version begins with ffff"):
        data(workspace, "checkout", "ffff")
    (tmp_path / "gone.txt").write_text("nobody\n")
    (tmp_path / "none" / "images").mkdir(parents=True)
    with pytest.raises(InputError):
        data(workspace, "add", str(tmp_path / "none"), "-m", "x", "--remove", str(tmp_path / "gone.txt"))
    assert len(entries(workspace)) == 1
    assert not any(path.name.startswith(".raw") for path in (workspace.root / "data").iterdir())


def test_a_large_set_comes_in_packed(tmp_path: Path, more: Path, monkeypatch: pytest.MonkeyPatch) -> None:

    write_street(tmp_path / "set", count=40, size=(64, 64), seed=3)
    monkeypatch.setattr(raw_set, "SHARDS_ABOVE", 30)
    workspace = create(tmp_path / "workspace", tmp_path / "set")
    raw = workspace.root / "data" / "raw"
    assert is_sharded(raw) and ids(raw) == ids(tmp_path / "set")
    packs = set((raw / "packs").iterdir())
    data(workspace, "add", str(more), "-m", "more")
    assert packs < set((raw / "packs").iterdir())
    diff = data(workspace, "diff", "HEAD~1")
    assert "40 samples -> 50" in diff and "added 10" in diff and "relabelled 2" in diff
    data(workspace, "checkout", "HEAD~1")
    assert ids(raw) == ids(tmp_path / "set")
    data(workspace, "export", str(tmp_path / "out"))
    assert ids(tmp_path / "out") == ids(raw) and not is_sharded(tmp_path / "out")


def camvid(folder: Path, street: Path, first: int, frames: dict[str, range]) -> Path:
    """Write frames of one sequence as CamVid lists them, drawn from scenes ``first`` and up of the street."""
    for split, numbers in frames.items():
        lines = []
        for number in numbers:
            name = f"seq_{number:02d}.png"
            for kind, at in (("images", split), ("masks", f"{split}annot")):
                (folder / at).mkdir(parents=True, exist_ok=True)
                shutil.copyfile(street / kind / f"street_s000{first + number}_f00.png", folder / at / name)
            lines.append(f"/CamVid/{split}/{name} /CamVid/{split}annot/{name}\n")
        (folder / f"{split}.txt").write_text("".join(lines))
    return folder


def test_new_frames_of_a_cut_sequence_join_its_part_in_train_and_it_is_said(tmp_path: Path, street: Path) -> None:
    frames = {"train": range(2), "val": range(2, 3), "test": range(3, 4)}
    workspace = create(tmp_path / "workspace", camvid(tmp_path / "set", street, 0, frames))
    more = camvid(tmp_path / "more", street, 0, {"test": range(4, 6)})
    said = data(workspace, "add", str(more), "-m", "the drive goes on")
    assert "2 new samples joined seq@train in train, where the set has these groups" in said
    frozen = read_frozen(workspace.root / "data" / "raw")
    assert frozen == {"seq@train": "train", "seq@val": "val", "seq@test": "test"}


def test_layouts_are_listed(workspace: Workspace) -> None:
    from segmill.data.ingest.formats import LAYOUTS

    said = CliRunner(env={"COLUMNS": "200"}).invoke(data_app, ["layouts"]).output
    assert all(name in said for name in LAYOUTS)


@pytest.mark.slow
def test_an_old_version_restores_its_old_results(workspace: Workspace, more: Path) -> None:
    """Stages validate and prepare of the first version come back from DVC's run-cache, byte for byte."""
    from tasks.stage import bring_up_to_date

    def run() -> tuple[dict[str, str], bytes]:
        outcomes = {name: bring_up_to_date(workspace, name).state for name in ("fingerprint", "validate", "prepare")}
        return outcomes, workspace.manifest.read_bytes()

    run()
    old = workspace.manifest.read_bytes()
    packed = {path.name: path.read_bytes() for path in workspace.packed.rglob("*") if path.is_file()}
    data(workspace, "add", str(more), "-m", "more")
    outcomes, new = run()
    assert outcomes["validate"] == outcomes["prepare"] == "ran" and new != old
    data(workspace, "checkout", "HEAD~1")
    outcomes, back = run()
    assert outcomes["validate"] == outcomes["prepare"] == "restored" and back == old
    assert {path.name: path.read_bytes() for path in workspace.packed.rglob("*") if path.is_file()} == packed


@pytest.mark.slow
def test_the_log_survives_a_clone_with_the_remote_alone(workspace: Workspace, more: Path, tmp_path: Path) -> None:
    data(workspace, "add", str(more), "-m", "more")
    subprocess.run(["git", "add", "-A"], cwd=workspace.root, check=True)
    identity = ["-c", "user.name=me", "-c", "user.email=me@localhost"]
    subprocess.run(["git", *identity, "commit", "-qm", "more"], cwd=workspace.root, check=True)
    subprocess.run(["git", "clone", "-q", str(workspace.root), str(tmp_path / "clone")], check=True)
    shutil.copytree(workspace.root / ".dvc-remote", tmp_path / "clone" / ".dvc-remote")
    clone = Workspace.open(tmp_path / "clone")
    assert [entry.message for entry in entries(clone)] == [entry.message for entry in entries(workspace)]
    assert "added 10" in data(clone, "diff", "HEAD~1")
    data(clone, "checkout", "HEAD~1")
    assert len(ids(clone.root / "data" / "raw")) == 80


@pytest.mark.slow
def test_an_add_that_is_killed_keeps_its_message(workspace: Workspace, more: Path) -> None:
    program = (
        "import os, signal, sys\nfrom segmill.data.storage import journal\n"
        "def apply(folder):\n    if journal.interrupted(folder):\n        os.kill(os.getpid(), signal.SIGKILL)\n"
        "journal._apply = apply\n"
        "from flows.commands.cli import main\nmain()"
    )
    command = [sys.executable, "-c", program, "data", "add", str(more), "-m", "cut short", "-w", str(workspace.root)]
    assert subprocess.run(command, env=dict(os.environ), check=False, capture_output=True).returncode == -9
    assert len(entries(workspace)) == 1
    assert data_changed(workspace.root, "data/raw").startswith("a change was interrupted")
    validate(workspace, read_params(workspace.params))  # looks at a whole set, never at half of one
    assert read_manifest(workspace.manifest).num_rows == 90
    assert data_changed(workspace.root, "data/raw") == "files changed"
    said = data(workspace, "add", str(more), "-m", "again")
    assert "was changed in place and is version" in said and "nothing new" in said
    assert [entry.message for entry in entries(workspace)][1:] == ["cut short"]
    assert json.loads(log_path(workspace.root / "data/raw").read_text().splitlines()[-1])["added"] == 10


KILLED_IN_A_PUSH = """
import os, signal, sys
import s3fs
really, left = s3fs.S3FileSystem._put_file, 8
async def put_file(*arguments, **options):
    global left
    await really(*arguments, **options)
    left -= 1
    if left == 0:  # others are on their way
        os.kill(os.getpid(), signal.SIGKILL)
s3fs.S3FileSystem._put_file = put_file
from flows.commands.cli import main
main()
"""


@pytest.mark.long
@pytest.mark.slow
def test_an_add_that_is_killed_while_it_pushes_to_s3_is_completed_by_the_next(
    workspace: Workspace, more: Path, tmp_path: Path, credentials: None
) -> None:
    import boto3

    s3, bucket = boto3.client("s3"), "killed-push"
    s3.create_bucket(Bucket=bucket)

    def pushed() -> set[str]:
        return {found["Key"] for found in s3.list_objects_v2(Bucket=bucket).get("Contents", ())}

    def clone(name: str) -> dict[str, bytes]:
        """Bring the set that is committed back in a clone that has nothing but the bucket."""
        subprocess.run(["git", "clone", "-q", str(workspace.root), str(tmp_path / name)], check=True)
        assert bring_data(tmp_path / name, "data/raw", f"s3://{bucket}/sets").state == "restored"
        return contents(tmp_path / name / "data" / "raw")

    def contents(folder: Path) -> dict[str, bytes]:
        return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}

    raw = workspace.root / "data" / "raw"
    for path in raw.glob("*/street_s000[2-7]_*"):  # each file takes a request
        path.unlink()
    set_params(workspace.params, [f"data.remote=s3://{bucket}/sets"])
    bring_data(workspace.root, "data/raw", f"s3://{bucket}/sets")
    commit_files(workspace.root, "fewer")
    before = len(entries(workspace))
    old, first = contents(raw), pushed()
    command = [sys.executable, "-c", KILLED_IN_A_PUSH, "data", "add", str(more), "-m", "cut short"]
    done = subprocess.run([*command, "-w", str(workspace.root)], capture_output=True, check=False)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()
    half = pushed()
    assert first < half
    assert [entry.message for entry in entries(workspace)][before:] == ["cut short"]
    assert clone("old") == old

    assert "nothing new, 12 known already" in data(workspace, "add", str(more), "-m", "again")
    assert half < pushed()
    assert len(entries(workspace)) == before + 1
    commit_files(workspace.root, "more")
    assert clone("new") == contents(raw) and len(ids(raw)) == 30
