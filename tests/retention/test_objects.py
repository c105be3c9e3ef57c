"""DVC's cache and remote: what git, versions and recent runs name stays; in the remote nothing of others is touched."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import time
from pathlib import Path

import boto3
import pytest
from buckets import deletion_denied

from segmill.data.versioning.dvc_adapter import repository
from segmill.data.versioning.object_store import LISTING, KnownRun, ObjectStore, StoredObject
from segmill.data.versioning.repository import create_repository
from segmill.data.versioning.versions import REMOTE_NAME
from segmill.errors import InfrastructureError
from segmill.retention import objects
from segmill.retention.plan import DAY_S

SINCE = time.time() + DAY_S  # all that is there now was there before


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A repository with a stage that turns data/raw and word.txt into out; nothing ran yet."""
    root = tmp_path / "work"
    create_repository(root)
    (root / "data" / "raw").mkdir(parents=True)
    (root / "word.txt").write_text("one")
    (root / "dvc.yaml").write_text(
        "stages:\n  make:\n    cmd: mkdir -p out && cat word.txt data/raw/* > out/file\n"
        "    deps: [data/raw, word.txt]\n    outs: [out]\n"
    )
    with repository(root) as repo:
        repo.use_remote(REMOTE_NAME, "remote")
    return root


def git(root: Path, *arguments: str) -> str:
    identity = ["-c", "user.name=a", "-c", "user.email=a@b"]
    return subprocess.run(
        ["git", "-C", str(root), *identity, *arguments], check=True, capture_output=True, text=True
    ).stdout.strip()


def night(root: Path, word: str, image: str | None = None, *, commit: bool = True) -> dict[str, str]:
    """Add an image, run the stage, push all, commit; return md5s of the data version, of the out and of its file."""
    (root / "word.txt").write_text(word)
    if image:
        (root / "data" / "raw" / image).write_text(image)
    with repository(root) as repo:
        repo.add(root / "data" / "raw")
        repo._repo.reproduce()
        repo._repo.push(run_cache=True)
        listing = repo.lock_entries()["make"]["outs"][0]["md5"]
        content = json.loads(repo.cache_path(listing).read_text())[0]["md5"]
        data = repo.lock_entries()["make"]["deps"][0]["md5"]
    if commit:
        git(root, "add", "-A")
        git(root, "commit", "-q", "-m", word)
    return {"data": data, "listing": listing, "file": content}


def collect(root: Path, *locks: bytes, since_s: float = SINCE, private: bool = True) -> list[str]:
    """Delete what nothing needs; return the sentences that were said."""
    names = objects.named(root, "data/raw", locks, [])
    with repository(root) as repo:
        stores = repo.object_stores(remote=True)
        found, said = objects.removals(
            [objects.contents(one) for one in stores], names, private_cache=private, since_s=since_s
        )
        objects.delete(stores, found)
    return said


def present(root: Path, *md5s: str) -> list[tuple[bool, bool]]:
    """Tell of each object whether it is in the cache, and in the remote."""
    with repository(root) as repo:
        cache, remote = ({one.name for one in store.objects()} for store in repo.object_stores(remote=True))
    return [(md5 in cache, md5 in remote) for md5 in md5s]


def test_results_of_former_commits_go_and_every_data_version_stays(root: Path) -> None:
    first, second, third = night(root, "one", "a"), night(root, "two"), night(root, "three", "c")
    kept = git(root, "show", "HEAD~1:dvc.lock").encode()
    collect(root, kept)
    assert present(root, first["listing"], first["file"]) == [(False, False)] * 2
    both = [true for one in (second, third) for true in present(root, *one.values())]
    assert both == [(True, True)] * 6
    assert present(root, first["data"]) == [(True, True)], "git names it"
    shutil.rmtree(root / ".dvc" / "cache")
    with repository(root) as repo:
        store_has = {one.file.name for one in repo.object_stores(remote=True)[1].runs()}
        assert len(store_has) == 2, "of the run that is known no more"
    shutil.rmtree(root / "data" / "raw")
    git(root, "checkout", "-q", "HEAD~2", "--", "data/raw.dvc")
    with repository(root) as repo:
        repo.pull(root / "data" / "raw.dvc")
    assert [path.name for path in (root / "data" / "raw").iterdir()] == ["a"]


def test_a_stage_whose_known_runs_are_deleted_runs_again(root: Path) -> None:
    first = night(root, "one", "a")
    night(root, "two")
    collect(root)
    assert present(root, first["listing"]) == [(False, False)]
    assert night(root, "one")["listing"] == first["listing"]


@pytest.mark.slow
def test_a_remote_in_object_storage(root: Path, credentials: None) -> None:
    boto3.client("s3").create_bucket(Bucket="retention")
    with repository(root) as repo:
        repo.use_remote(REMOTE_NAME, "s3://retention/prefix")
    first = night(root, "one", "a")
    second = night(root, "two")
    collect(root, since_s=time.time() - DAY_S)
    assert present(root, *first.values()) == [(True, True)] * 3, "it is young"
    collect(root)
    assert present(root, first["listing"], first["file"]) == [(False, False)] * 2
    assert present(root, first["data"], *second.values()) == [(True, True)] * 4
    with repository(root) as repo:
        assert len(repo.object_stores(remote=True)[1].runs()) == 1
    assert night(root, "one")["listing"] == first["listing"], "it is made and pushed again"
    assert present(root, first["listing"], first["file"]) == [(True, True)] * 2


@pytest.mark.long
def test_a_remote_whose_key_may_not_delete_says_so(root: Path, credentials: None) -> None:
    """S3 answers so with 200 and a list of refusals, which s3fs does not read."""
    s3, bucket = boto3.client("s3"), "retention-kept"
    s3.create_bucket(Bucket=bucket)
    with repository(root) as repo:
        repo.use_remote(REMOTE_NAME, f"s3://{bucket}/prefix")
    first = night(root, "one", "a")
    night(root, "two")
    s3.put_bucket_policy(Bucket=bucket, Policy=deletion_denied(bucket))
    with pytest.raises(InfrastructureError, match=r"files of the remote are still there .* keep\.remote to false"):
        collect(root)
    s3.delete_bucket_policy(Bucket=bucket)
    collect(root)
    assert present(root, first["listing"], first["file"]) == [(False, False)] * 2


class Project:
    """A git repository with a cache and a remote as DVC lays them out, written by hand: a night costs no second."""

    def __init__(self, root: Path, remote: Path) -> None:
        self.root = root
        root.mkdir()
        git(root, "init", "-q", "-b", "main")
        (root / ".gitignore").write_text("/cache\n")
        (root / "data").mkdir()
        self.places = {"dvc_cache": root / "cache", "remote": remote}

    def put(self, text: str) -> str:
        """Store a file in cache and remote; return its md5."""
        md5 = hashlib.md5(text.encode(), usedforsecurity=False).hexdigest()
        for place in self.places.values():
            path = place / "files" / "md5" / md5[:2] / md5[2:]
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text)
        return md5

    def put_folder(self, *texts: str) -> str:
        """Store a folder of one file per text; return the hash of its listing."""
        rows = [{"md5": self.put(text), "relpath": text} for text in texts]
        name = self.put(json.dumps(rows))
        for place in self.places.values():
            path = place / "files" / "md5" / name[:2] / name[2:]
            path.rename(f"{path}{LISTING}")
        return f"{name}{LISTING}"

    def night(self, word: str, *images: str, commit: bool = True) -> dict[str, str]:
        """Record a data version and what a stage made of it; return the hashes of data, listing of the out and file."""
        data, listing = self.put_folder(*images), self.put_folder(f"{word} of {images}")
        entry = f"cmd: make\ndeps:\n- path: data/raw\n  md5: {data}\nouts:\n- path: out\n  md5: {listing}\n"
        (self.root / "data" / "raw.dvc").write_text(f"outs:\n- md5: {data}\n  path: raw\n")
        (self.root / "dvc.lock").write_text(entry)
        key = hashlib.sha256(entry.encode()).hexdigest()
        for place in self.places.values():
            path = place / "runs" / key[:2] / key / key
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(entry)
        if commit:
            git(self.root, "add", "-A")
            git(self.root, "commit", "-q", "-m", word)
        return {"data": data, "listing": listing, "file": self.put(f"{word} of {images}")}

    def stores(self) -> list[ObjectStore]:
        from dvc.fs import LocalFileSystem

        return [
            ObjectStore(name, LocalFileSystem(), str(place / "files" / "md5"), str(place / "runs"))
            for name, place in self.places.items()
        ]

    def collect(self, *, since_s: float = SINCE, private: bool = True) -> list[str]:
        """Delete what nothing needs; return the sentences that were said."""
        names, stores = objects.named(self.root, "data/raw", [], []), self.stores()
        found, said = objects.removals(
            [objects.contents(one) for one in stores], names, private_cache=private, since_s=since_s
        )
        objects.delete(stores, found)
        return said

    def has(self, *names: str) -> list[tuple[bool, bool]]:
        """Tell of each object whether it is in the cache, and in the remote."""
        cache, remote = ({one.name for one in store.objects()} for store in self.stores())
        return [(name in cache, name in remote) for name in names]

    def runs(self) -> list[int]:
        """Return how many runs the cache and the remote know."""
        return [len(store.runs()) for store in self.stores()]


BOTH, NEITHER = (True, True), (False, False)


@pytest.fixture
def project(tmp_path: Path) -> Project:
    return Project(tmp_path / "work", tmp_path / "remote")


def test_what_another_branch_or_a_tag_has_last_stays(project: Project) -> None:
    first = project.night("one", "a")
    git(project.root, "tag", "released")
    git(project.root, "checkout", "-q", "-b", "other")
    second = project.night("two", "a")
    git(project.root, "checkout", "-q", "main")
    third = project.night("three", "a")
    project.collect()
    for one in (first, second, third):
        assert project.has(*one.values()) == [BOTH] * 3
    git(project.root, "tag", "-d", "released")
    project.collect()
    assert project.has(first["listing"], first["file"], second["listing"]) == [NEITHER, NEITHER, BOTH]
    assert project.runs() == [2, 2]


def test_what_is_young_stays_with_all_that_it_names(project: Project) -> None:
    """A run on another machine has just stored a listing that names a file of long ago."""
    first = project.night("one", "a")
    project.night("two", "a")
    long_ago = time.time() - 30 * DAY_S
    for place in project.places.values():
        for path in (path for path in place.rglob("*") if path.is_file()):
            young = f"{path.parent.name}{path.name}" == first["listing"]
            os.utime(path, None if young else (long_ago, long_ago))
    project.collect(since_s=time.time() - DAY_S)
    assert project.has(first["listing"], first["file"]) == [BOTH] * 2
    project.collect()
    assert project.has(first["listing"], first["file"]) == [NEITHER] * 2


def test_files_of_other_projects_in_the_remote_stay(project: Project, tmp_path: Path) -> None:
    other = Project(tmp_path / "other", tmp_path / "remote")
    theirs, theirs_before = other.night("theirs", "z"), other.night("theirs later", "z")
    ours = project.night("ours", "a")
    project.night("ours later", "b")
    project.collect()
    assert project.has(ours["listing"], ours["file"]) == [NEITHER] * 2
    assert [there for _, there in project.has(*theirs.values(), *theirs_before.values())] == [True] * 6
    assert project.runs() == [1, 3]


def test_results_that_no_commit_ever_named_are_found_by_what_they_were_made_from(project: Project) -> None:
    """A run that died before its commit has pushed its outs; only the run-cache names them."""
    project.night("one", "a")
    died = project.night("two", "a", commit=False)
    project.night("three", "a")
    shutil.rmtree(project.places["dvc_cache"])
    project.collect()
    assert project.has(died["listing"], died["file"]) == [NEITHER] * 2


def test_a_cache_that_others_use_loses_only_what_is_ours(project: Project) -> None:
    first = project.night("one", "a")
    project.night("two", "a")
    stranger = project.put("of somebody")
    project.collect(private=False)
    assert project.has(stranger, first["listing"]) == [BOTH, NEITHER]
    project.collect()
    assert project.has(stranger) == [(False, True)]


def test_a_lost_listing_of_data_is_said_and_makes_careful(project: Project) -> None:
    first = project.night("one", "a")
    project.night("two", "b")
    perhaps_of_it = project.put("it may be a file of the lost version")
    for store in project.stores():
        store.delete([first["data"]])
    (said,) = project.collect()
    assert first["data"][:8] in said and project.has(perhaps_of_it) == [BOTH]
    assert project.has(first["listing"]) == [NEITHER]


def test_a_listing_that_only_the_remote_has_is_read_there(project: Project) -> None:
    """A clone has neither the files nor the listings of former data versions."""
    first = project.night("one", "a", "b")
    project.night("two", "b")
    shutil.rmtree(project.places["dvc_cache"])
    kept = project.put("a")
    assert project.collect() == []
    assert project.has(first["data"], kept) == [(False, True), BOTH]


def test_the_log_keeps_data_versions_that_no_commit_has(project: Project) -> None:
    logged, lost = project.night("one", "a", commit=False), project.night("one", "b", commit=False)
    project.night("one", "c")
    log = project.root / "data" / "history.jsonl"
    log.write_text(json.dumps({"version": logged["data"].removesuffix(LISTING)}) + "\n")
    project.collect()
    assert project.has(logged["data"], lost["data"]) == [BOTH, (False, True)], "nothing says whose it is in the remote"


def test_of_a_pipeline_in_another_folder_everything_stays(project: Project) -> None:
    former = project.put_folder("a result of colleagues")
    place = project.root / "theirs"
    place.mkdir()
    for name in (former, project.put_folder("their last result")):
        (place / "dvc.lock").write_text(f"outs:\n- md5: {name}\n")
        project.night("one", "a")
    project.collect()
    assert project.has(former) == [BOTH]


def test_settings_and_code_in_common_do_not_make_a_run_ours() -> None:
    def made(data: str, out: str) -> KnownRun:
        text = (
            f"cmd: x\ndeps:\n- path: .segmill/code/validate\n  md5: {'c' * 32}\n- path: data/raw\n  md5: {data}\n"
            f"outs:\n- path: o\n  md5: {out}\n"
        )
        return KnownRun(StoredObject("", 0, 0.0, None, 1), text.encode())

    ours, next_one, theirs = made("a" * 32, "b" * 32), made("b" * 32, "d" * 32), made("e" * 32, "f" * 32)
    known = {"a" * 32, "c" * 32}
    assert objects.made_from(known, [next_one, theirs, ours]) == {"b" * 32, "d" * 32}
