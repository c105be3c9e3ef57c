from __future__ import annotations

import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from terminal import shown

from segmill.data.ingest.intake import NewSample, change_set
from segmill.data.splitting.shares import SplitShares
from segmill.data.versioning.history import compare, log_path, read_contents, read_log
from segmill.data.versioning.repository import create_repository
from segmill.data.versioning.versions import (
    DataVersion,
    bring_data,
    checkout_data,
    data_changed,
    explained,
    recorded_version,
    store,
)
from segmill.errors import InfrastructureError, InputError


def raw(root: Path) -> Path:
    return root / "data" / "raw"


@pytest.fixture
def root(tmp_path: Path, street: Path) -> Path:
    """A repository with 80 street scenes in data/raw, never added."""
    folder = tmp_path / "repository"
    create_repository(folder)
    shutil.copytree(street, folder / "data" / "raw")
    return folder


def test_new_data_becomes_a_version_and_stays_one(root: Path) -> None:
    assert recorded_version(root, "data/raw") is None
    assert data_changed(root, "data/raw") == "never added"
    first = bring_data(root, "data/raw", ".dvc-remote")
    assert (first.state, first.files, len(first.md5)) == ("added", 161, 32)
    again = bring_data(root, "data/raw", ".dvc-remote")
    assert (again.state, again.md5) == ("unchanged", first.md5)
    assert data_changed(root, "data/raw") == ""


def test_a_terminal_shows_nothing_of_dvc(root: Path) -> None:
    """Its bars and cursor movements scrolled through the live table of a run."""
    bring = (
        "import sys, shutil; from pathlib import Path; from segmill.data.versioning.versions import bring_data\n"
        "root = Path(sys.argv[1])\n"
        "bring_data(root, 'data/raw', '.dvc-remote'); shutil.rmtree(root / 'data' / 'raw')\n"
        "shutil.rmtree(root / '.dvc' / 'cache')\n"
        "assert sys.stderr.isatty(); print(bring_data(root, 'data/raw', '.dvc-remote').state)"
    )
    said, code = shown(sys.executable, "-c", bring, str(root))
    assert (said.removesuffix("\x1b[0m"), code) == ("restored\r\n", 0)  # colorama sets colours back as it ends


def test_changed_data_becomes_another_version(root: Path) -> None:
    first = bring_data(root, "data/raw", ".dvc-remote")
    next((raw(root) / "images").glob("*.png")).unlink()
    assert data_changed(root, "data/raw") == "files changed"
    second = bring_data(root, "data/raw", ".dvc-remote")
    assert second.state == "changed"
    assert (second.files, second.md5 != first.md5) == (160, True)


def test_a_change_that_fails_leaves_its_message_to_no_later_one(root: Path) -> None:
    bring_data(root, "data/raw", ".dvc-remote")
    with pytest.raises(ZeroDivisionError), explained(root, "data/raw", "never came about"):
        raise ZeroDivisionError
    next((raw(root) / "images").glob("*.png")).unlink()
    bring_data(root, "data/raw", ".dvc-remote")
    assert read_log(log_path(raw(root)))[-1].message == "changed in place"


def test_lost_data_comes_back_from_the_remote_alone(root: Path) -> None:
    first = bring_data(root, "data/raw", ".dvc-remote")
    shutil.rmtree(raw(root))
    shutil.rmtree(root / ".dvc" / "cache")
    assert data_changed(root, "data/raw") == "files are missing"
    back = bring_data(root, "data/raw", ".dvc-remote")
    assert (back.state, back.md5) == ("restored", first.md5)
    assert len(list((raw(root) / "masks").iterdir())) == 80
    shutil.rmtree(raw(root))
    shutil.rmtree(root / ".dvc-remote")
    assert bring_data(root, "data/raw", ".dvc-remote").state == "restored", "the cache alone is enough"


def test_data_that_is_nowhere_is_said_with_what_to_do(root: Path) -> None:
    bring_data(root, "data/raw", ".dvc-remote")
    for lost in (raw(root), root / ".dvc" / "cache", root / ".dvc-remote"):
        shutil.rmtree(lost)
    with pytest.raises(InfrastructureError, match=r"neither the cache nor the remote .dvc-remote"):
        bring_data(root, "data/raw", ".dvc-remote")


def test_an_empty_workspace_says_where_the_data_goes(tmp_path: Path) -> None:
    create_repository(tmp_path)
    with pytest.raises(InputError, match=r"put the labelled set there"):
        bring_data(tmp_path, "data/raw", None)


def add_one(root: Path) -> DataVersion:
    """Take one more sample in, as `segmill data add` does."""
    image, mask = ((raw(root) / kind / "street_s0000_f00.png").read_bytes() for kind in ("images", "masks"))
    new = NewSample("street_s0000_f77", image, ".png", mask)
    with explained(root, "data/raw", "one more"):
        change_set(raw(root), [new], shares=SplitShares(0.2, 0.2, 0))
    return bring_data(root, "data/raw", ".dvc-remote")


def names(root: Path) -> set[str]:
    return {path.relative_to(raw(root)).as_posix() for path in raw(root).rglob("*") if path.is_file()}


def test_an_older_version_comes_back_and_the_newer_one_after_it(root: Path) -> None:
    first = bring_data(root, "data/raw", ".dvc-remote")
    old = names(root)
    second = add_one(root)
    new = names(root)
    assert new - old == {"images/street_s0000_f77.png", "masks/street_s0000_f77.png", "splits.csv"}
    shutil.rmtree(root / ".dvc" / "cache")  # then from the remote
    assert data_changed(root, "data/raw") == "its copy in the cache is lost"
    checkout_data(root, "data/raw", ".dvc-remote", first)
    assert (names(root), data_changed(root, "data/raw")) == (old, "")
    assert recorded_version(root, "data/raw") == DataVersion(first.md5, first.files, first.size_bytes, "unchanged")
    shutil.rmtree(raw(root))
    checkout_data(root, "data/raw", ".dvc-remote", second)
    assert names(root) == new
    assert not any(path.name.startswith(".raw") for path in raw(root).parent.iterdir())


def test_an_older_version_is_written_elsewhere_from_the_remote_and_the_set_stays_as_it_is(
    root: Path, tmp_path: Path
) -> None:
    first = bring_data(root, "data/raw", ".dvc-remote")
    old = {path.relative_to(raw(root)): path.read_bytes() for path in raw(root).rglob("*") if path.is_file()}
    add_one(root)
    new = names(root)
    shutil.rmtree(root / ".dvc" / "cache")
    with store(root, ".dvc-remote") as files:
        files.write(first.md5, tmp_path / "elsewhere")
    written = [path for path in (tmp_path / "elsewhere").rglob("*") if not path.is_dir()]
    assert {path.relative_to(tmp_path / "elsewhere"): path.read_bytes() for path in written} == old
    assert not any(path.is_symlink() for path in written), "validation refuses links that lead out of the set"
    assert names(root) == new


def test_a_checkout_loses_nothing_that_is_in_no_version(root: Path) -> None:
    first = bring_data(root, "data/raw", None)
    add_one(root)
    (raw(root) / "images" / "street_s0000_f77.png").unlink()
    with pytest.raises(InputError, match=r"holds what is in no version \(files changed\)"):
        checkout_data(root, "data/raw", None, first)
    assert len(names(root)) == 163


def test_a_version_that_is_nowhere_leaves_the_set_as_it_is(root: Path) -> None:
    first = bring_data(root, "data/raw", ".dvc-remote")
    second = add_one(root)
    before = names(root)
    for lost in (root / ".dvc" / "cache", root / ".dvc-remote"):
        shutil.rmtree(lost)
    with pytest.raises(InfrastructureError, match=r"not in the cache and could not be fetched from \.dvc-remote"):
        checkout_data(root, "data/raw", ".dvc-remote", first)
    assert names(root) == before
    assert recorded_version(root, "data/raw") == DataVersion(second.md5, second.files, second.size_bytes, "unchanged")


KILLED = """
import os, signal, sys
from pathlib import Path
from dvc_objects.fs import local
from segmill.data.versioning import dvc_adapter
from segmill.data.versioning.versions import DataVersion, bring_data, checkout_data
root, what, files = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
def dying(really):
    def write(source, target, **options):
        global files
        inside = "/data/raw/" in str(target) if what == "checkout" else "/.dvc-remote/" in str(target)
        if inside and files == 0:
            path = Path(target).with_name("draft") if what == "share" else Path(target)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(Path(source).read_bytes()[:10])
            os.kill(os.getpid(), signal.SIGKILL)
        files -= inside
        return really(source, target, **options)
    return write
if what == "share":
    dvc_adapter.share = dying(dvc_adapter.share)
else:
    dvc_adapter.share = lambda *paths: False  # as where the remote is on another disk: DVC copies
    local.copyfile = dying(local.copyfile)
if what != "checkout":
    bring_data(root, "data/raw", ".dvc-remote")
else:
    checkout_data(root, "data/raw", None, DataVersion(sys.argv[4], int(sys.argv[5]), int(sys.argv[6]), "restored"))
"""


def kill(root: Path, *arguments: object) -> None:
    """Run a command in a process that kills itself in the middle of writing a file."""
    done = subprocess.run([sys.executable, "-c", KILLED, str(root), *map(str, arguments)], stderr=subprocess.PIPE)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()


@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("how", ["share", "copy"])
def test_a_push_that_is_killed_leaves_the_old_version_and_the_next_completes_it(
    root: Path, tmp_path: Path, how: str
) -> None:
    first = bring_data(root, "data/raw", ".dvc-remote")
    image, mask = ((raw(root) / kind / "street_s0001_f00.png").read_bytes() for kind in ("images", "masks"))
    for number in range(20):
        (raw(root) / "images" / f"street_s0001_f9{number:02d}.png").write_bytes(image + bytes([number]))
        (raw(root) / "masks" / f"street_s0001_f9{number:02d}.png").write_bytes(mask + bytes([number]))
    kill(root, how, 10)
    remote = root / ".dvc-remote"
    pushed = sum(path.is_file() for path in remote.rglob("*"))

    def clone(name: str, version: DataVersion) -> set[str]:
        """Bring a version back in a repository that has the remote alone."""
        folder = tmp_path / name
        create_repository(folder)
        shutil.copytree(remote, folder / ".dvc-remote")
        (folder / "data").mkdir()
        record = (root / "data" / "raw.dvc").read_text()
        now = recorded_version(root, "data/raw")
        assert now is not None
        for old, new in ((now.md5, version.md5), (f"size: {now.size_bytes}", f"size: {version.size_bytes}")):
            record = record.replace(old, new)
        (folder / "data" / "raw.dvc").write_text(record.replace(f"nfiles: {now.files}", f"nfiles: {version.files}"))
        bring_data(folder, "data/raw", ".dvc-remote")
        return names(folder)

    assert len(clone("old", first)) == 161
    second = bring_data(root, "data/raw", ".dvc-remote")
    assert second.state == "unchanged" and second.files == 201
    assert sum(path.is_file() for path in remote.rglob("*")) > pushed
    assert len(clone("new", second)) == 201


@pytest.mark.slow
@pytest.mark.parametrize("finished_by", [pytest.param("bring_data", marks=pytest.mark.long), "checkout_data"])
def test_a_checkout_that_is_killed_is_completed_by_the_next_try(root: Path, finished_by: str) -> None:
    first = bring_data(root, "data/raw", None)
    old = {name: (raw(root) / name).read_bytes() for name in names(root)}
    for number in range(20):
        (raw(root) / "masks" / f"street_s0001_f0{number % 10}.png").write_bytes(b"changed")
        (raw(root) / "images" / f"street_s0002_f0{number % 10}.png").write_bytes(b"changed")
    bring_data(root, "data/raw", None)
    kill(root, "checkout", 5, first.md5, first.files, first.size_bytes)
    assert data_changed(root, "data/raw").startswith("a change was interrupted")
    if finished_by == "bring_data":
        back = bring_data(root, "data/raw", None)
        assert (back.md5, back.state) == (first.md5, "unchanged")
    else:
        checkout_data(root, "data/raw", None, first)
    assert {name: (raw(root) / name).read_bytes() for name in names(root)} == old
    assert data_changed(root, "data/raw") == ""


@pytest.mark.long
def test_versions_live_on_s3_with_credentials_from_the_environment(root: Path, credentials: None) -> None:
    import boto3

    boto3.client("s3").create_bucket(Bucket="labels")
    for path in raw(root).glob("*/street_s000[14-7]_*"):  # each file takes a request
        path.unlink()
    first = bring_data(root, "data/raw", "s3://labels/street")
    shutil.rmtree(raw(root))
    shutil.rmtree(root / ".dvc" / "cache")
    assert bring_data(root, "data/raw", "s3://labels/street").md5 == first.md5
    (raw(root) / "masks" / "street_s0000_f00.png").write_bytes(
        (raw(root) / "masks" / "street_s0003_f07.png").read_bytes()
    )
    second = bring_data(root, "data/raw", "s3://labels/street")
    for lost in (root / ".dvc" / "cache", root / ".dvc-remote"):
        shutil.rmtree(lost, ignore_errors=True)
    with store(root, "s3://labels/street") as files:
        found = compare(files, *(read_contents(files, version.md5) for version in (first, second)))
    assert (found.added, found.removed, found.relabelled) == ((), (), ("street_s0000_f00",))
    checkout_data(root, "data/raw", "s3://labels/street", first)
    assert bring_data(root, "data/raw", "s3://labels/street").md5 == first.md5
    assert not any(b"secret" in path.read_bytes() for path in (root / ".dvc").glob("config*"))


@pytest.mark.slow
def test_a_remote_that_does_not_answer_is_said_and_the_version_is_kept(root: Path, credentials: None) -> None:
    with pytest.raises(InfrastructureError, match="safe in the local cache but could not be pushed to s3://absent"):
        bring_data(root, "data/raw", "s3://absent/street")
    assert recorded_version(root, "data/raw") is not None
    assert (root / ".dvc" / "cache").is_dir()
