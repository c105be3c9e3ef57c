"""Clones that light stages run in; what trains is in tests/end_to_end/test_source.py."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from sources import Stores, git, lasting

from flows.source import open_source, publish_results, run_source
from segmill.data.ingest.intake import NewSample, change_set
from segmill.data.splitting.shares import SplitShares
from segmill.data.versioning.publishing import Overtaken, push_stages
from segmill.data.versioning.repository import commit_contents, commit_files, git_head
from segmill.data.versioning.versions import bring_data, explained, recorded_version
from segmill.errors import InfrastructureError, InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace
from tasks import stage as stages
from tasks.stage import bring_up_to_date
from tasks.version import version

LIGHT = ("fingerprint", "validate", "prepare", "augment")


@pytest.fixture
def stores(workspace: Workspace, tmp_path: Path) -> Stores:
    folder = tmp_path / "stores"
    folder.mkdir()
    return lasting(workspace, folder)


def bring(space: Workspace, *names: str) -> dict[str, str]:
    params = read_params(space.params)
    version(space, params)
    return {name: bring_up_to_date(space, name, params).state for name in names or LIGHT}


def record(space: Workspace, message: str = "a run") -> str:
    """Commit dvc.lock as the step register does, and publish."""
    onto = git_head(space.root)
    assert onto
    lock = (space.root / "dvc.lock").read_bytes()
    commit_contents(space.root, {"dvc.lock": lock}, message, onto=onto)
    return publish_results(space)


def test_what_a_machine_made_that_died_before_its_commit_is_known_to_the_next(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    one = open_source(str(stores.bare), tmp_path / "one")
    assert bring(one) == {name: "ran" for name in LIGHT}
    shutil.rmtree(one.root)  # nothing was pushed to git
    two = open_source(str(stores.bare), tmp_path / "two")
    monkeypatch.setattr("tasks.augment.augment", lambda *_: pytest.fail("it was made before"))
    monkeypatch.setattr("tasks.validate.validate", lambda *_: pytest.fail("it was made before"))
    assert bring(two) == {"fingerprint": "ran", "validate": "restored", "prepare": "ran", "augment": "restored"}
    assert record(two) == git(stores.bare, "rev-parse", "main")
    three = open_source(str(stores.bare), tmp_path / "three")
    assert bring(three) == {"fingerprint": "ran", "validate": "restored", "prepare": "ran", "augment": "restored"}


def test_packed_splits_are_sent_nowhere(stores: Stores, tmp_path: Path) -> None:
    space = open_source(str(stores.bare), tmp_path / "clone")
    bring(space)
    packed = YAML(typ="safe").load(space.root / "dvc.lock")["stages"]["prepare"]["outs"][0]["md5"]
    assert not (Path(stores.remote) / "files" / "md5" / packed[:2] / packed[2:]).exists()
    augmented = YAML(typ="safe").load(space.root / "dvc.lock")["stages"]["augment"]["outs"][0]["md5"]
    assert (Path(stores.remote) / "files" / "md5" / augmented[:2] / augmented[2:]).is_file(), "it was sent when it ran"
    push_stages(space.root)
    assert push_stages(space.root) == 0


def test_a_remote_that_is_away_does_not_stop_a_stage_and_its_outs_are_sent_before_the_commit(
    stores: Stores, tmp_path: Path
) -> None:
    space = open_source(str(stores.bare), tmp_path / "clone")
    bring(space, "fingerprint", "validate", "prepare")
    remote, params = Path(stores.remote), read_params(space.params)
    real = stages.run

    def run_then_lose(*arguments: object) -> None:
        real(*arguments)  # type: ignore[arg-type]
        remote.rename(remote.with_name("away"))
        remote.write_text("no folder")  # every write fails

    stages.run = run_then_lose  # type: ignore[assignment]
    try:
        assert bring_up_to_date(space, "augment", params).state == "ran"
    finally:
        stages.run = real
    with pytest.raises(InfrastructureError, match="does not answer"):
        record(space)
    assert git(stores.bare, "show", "--stat", "main").count("dvc.lock") == 0, "what it names is not there"
    remote.unlink()
    remote.with_name("away").rename(remote)
    publish_results(space)
    out = YAML(typ="safe").load(space.root / "dvc.lock")["stages"]["augment"]["outs"][0]["md5"]
    assert (remote / "files" / "md5" / out[:2] / out[2:]).is_file()
    assert "augment" in git(stores.bare, "show", "main:dvc.lock")


def damaged(stores: Stores, what: str) -> None:
    """Cut every file of this kind short in the remote."""
    found = [path for path in (Path(stores.remote) / what).rglob("*") if path.is_file() and path.stat().st_size > 2]
    assert found
    for path in found:
        path.chmod(0o644)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


@pytest.mark.long
def test_damaged_entries_of_the_remote_are_made_again_and_put_right(stores: Stores, tmp_path: Path) -> None:
    one = open_source(str(stores.bare), tmp_path / "one")
    bring(one)
    damaged(stores, "runs")
    two = open_source(str(stores.bare), tmp_path / "two")
    assert bring(two)["augment"] == "ran"
    three = open_source(str(stores.bare), tmp_path / "three")
    assert bring(three)["augment"] == "restored", "the entries are whole again"


@pytest.mark.long
def test_damaged_outs_of_the_remote_are_made_again_and_put_right(stores: Stores, tmp_path: Path) -> None:
    one = open_source(str(stores.bare), tmp_path / "one")
    bring(one)
    lock = YAML(typ="safe").load(one.root / "dvc.lock")["stages"]
    manifest = lock["validate"]["outs"][0]["md5"]
    there = Path(stores.remote) / "files" / "md5" / manifest[:2] / manifest[2:]
    whole = there.read_bytes()
    there.chmod(0o644)
    there.write_bytes(whole[:100])
    two = open_source(str(stores.bare), tmp_path / "two")
    assert bring(two)["validate"] == "ran"
    assert there.read_bytes() == whole


def test_new_data_of_the_source_is_followed_and_what_is_there_is_no_new_version(stores: Stores, tmp_path: Path) -> None:
    space = open_source(str(stores.bare), tmp_path / "clone")
    bring(space, "fingerprint")
    author, params = stores.author, read_params(stores.author.params)
    raw = author.root / "data" / "raw"
    image, mask = ((raw / kind / "street_s0000_f00.png").read_bytes() for kind in ("images", "masks"))
    with explained(author.root, "data/raw", "one more"):
        new = NewSample("street_s0000_f77", image, ".png", mask)
        change_set(raw, [new], shares=SplitShares(0.2, 0.2, 0))
    added = bring_data(author.root, "data/raw", params.data.remote)
    commit_files(author.root, "one more")
    git(author.root, "push", "-q", str(stores.bare), "HEAD:main")
    for _ in range(2):  # killed after the first: nothing was brought yet
        space = open_source(str(stores.bare), space.root)
    assert version(space, read_params(space.params)).md5 == added.md5
    assert (space.root / "data/raw/images/street_s0000_f77.png").is_file()
    recorded = recorded_version(space.root, "data/raw")
    assert recorded and recorded.md5 == added.md5
    assert git(space.root, "status", "--porcelain", "--", "data") == ""


def test_data_that_no_commit_has_are_kept_by_refusing(stores: Stores, tmp_path: Path) -> None:
    space = open_source(str(stores.bare), tmp_path / "clone")
    bring(space, "fingerprint")
    next((space.root / "data/raw/images").glob("*.png")).unlink()
    bring_data(space.root, "data/raw", stores.remote)
    with pytest.raises(InputError, match=r"has a data version that no commit has \(data/raw\.dvc\)"):
        open_source(str(stores.bare), space.root)


def test_data_killed_while_they_are_brought_become_no_version(
    stores: Stores, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A folder that holds half of the files would be taken for a change of the set."""
    from segmill.data.versioning.dvc_adapter import DvcRepository

    space = open_source(str(stores.bare), tmp_path / "clone")
    params = read_params(space.params)
    before = recorded_version(space.root, "data/raw")
    really = DvcRepository.pull

    def die(self: DvcRepository, record: Path) -> None:
        really(self, record)
        for image in list((space.root / "data/raw/images").glob("*.png"))[:40]:
            image.unlink()
        raise KeyboardInterrupt

    monkeypatch.setattr(DvcRepository, "pull", die)
    with pytest.raises(KeyboardInterrupt):
        version(space, params)
    monkeypatch.undo()
    assert version(space, params).md5 == (before.md5 if before else "")
    assert len(list((space.root / "data/raw/images").glob("*.png"))) == 80


def test_every_store_that_would_be_lost_is_named(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stores = lasting(workspace, tmp_path)
    stores.push("data.remote=.dvc-remote", "mlflow.tracking_uri=sqlite:///mlflow.db", "promotion.ledger_url=null")
    folder = tmp_path / "clone"
    with pytest.raises(InputError) as refused:
        open_source(str(stores.bare), folder)
    said = str(refused.value)
    for key in ("data.remote", "mlflow.tracking_uri (or MLFLOW_TRACKING_URI)", "MLflow's files", "SEGMILL_LEDGER_URL"):
        assert key in said
    monkeypatch.setenv("SEGMILL_LEDGER_URL", f"sqlite:///{tmp_path}/ledger.db")
    monkeypatch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{folder}/mlflow.db")
    stores.push("data.remote=s3://bucket/prefix")
    with pytest.raises(InputError) as refused:
        open_source(str(stores.bare), folder)
    said = str(refused.value)
    assert "mlflow.tracking_uri" in said and "MLflow's files" in said
    assert "data.remote" not in said and "ledger" not in said
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "postgresql://me:hidden@db/mlflow")
    with pytest.raises(InputError, match=r"lost with it: the place of MLflow's files .*MLFLOW_DEFAULT_ARTIFACT_ROOT"):
        open_source(str(stores.bare), folder)
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:5000")
    assert open_source(str(stores.bare), folder).root == folder
    stores.push("git.commit=false")
    with pytest.raises(InputError, match=r"git\.commit is false"):
        open_source(str(stores.bare), folder)


def test_a_source_that_is_no_workspace_is_said_to_be_none(tmp_path: Path, workspace: Workspace) -> None:
    stores = lasting(workspace, tmp_path)
    git(workspace.root, "rm", "-q", "--cached", "dvc.yaml")
    git(workspace.root, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "no pipeline")
    git(workspace.root, "push", "-q", str(stores.bare), "HEAD:main")
    with pytest.raises(InputError, match=r"has (no|lost its) dvc\.yaml"):
        open_source(str(stores.bare), tmp_path / "clone")


@pytest.mark.long
def test_two_clones_that_record_the_same_stage_the_slower_runs_again_on_the_newest_commit(
    stores: Stores, tmp_path: Path
) -> None:
    said: list[str] = []
    runs: list[str] = []

    def faster() -> None:
        space = open_source(str(stores.bare), tmp_path / "faster")
        set_params(space.params, ["augment.seed=7"])
        bring(space)
        record(space, "the faster run")

    def run(space: Workspace) -> str:
        runs.append(git(space.root, "log", "-1", "--format=%s"))
        bring(space)
        if len(runs) == 1:
            faster()
        return record(space)

    commit = run_source(str(stores.bare), tmp_path / "slower", run, said.append)
    assert runs == ["lasting stores", "the faster run"]
    assert commit == git(stores.bare, "rev-parse", "main")
    assert any("the stage augment was changed" in line for line in said)


def test_a_run_that_is_overtaken_each_time_ends(stores: Stores, tmp_path: Path) -> None:
    runs: list[Workspace] = []

    def run(space: Workspace) -> None:
        runs.append(space)
        raise Overtaken("again")

    with pytest.raises(Overtaken):
        run_source(str(stores.bare), tmp_path / "clone", run)
    assert len(runs) == 3


def test_commits_that_could_not_be_pushed_are_pushed_by_the_next_run(stores: Stores, tmp_path: Path) -> None:
    space = open_source(str(stores.bare), tmp_path / "clone")
    bring(space, "fingerprint", "validate")
    hidden = stores.bare.with_name("hidden.git")
    stores.bare.rename(hidden)
    with pytest.raises(InfrastructureError, match="does not answer"):
        record(space, "not pushed")
    hidden.rename(stores.bare)
    stores.push("augment.seed=3")
    open_source(str(stores.bare), space.root)
    assert "not pushed" in git(stores.bare, "log", "--format=%s", "main")
    assert "seed: 3" in (space.root / "params.yaml").read_text()


@pytest.mark.long
def test_a_bucket_keeps_outs_and_runs(
    workspace: Workspace, tmp_path: Path, credentials: None, s3: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import boto3

    boto3.client("s3", endpoint_url=s3).create_bucket(Bucket="outs")
    stores = lasting(workspace, tmp_path, "s3://outs/segmill")
    one = open_source(str(stores.bare), tmp_path / "one")
    assert bring(one)["augment"] == "ran"
    shutil.rmtree(one.root)
    two = open_source(str(stores.bare), tmp_path / "two")
    assert bring(two) == {"fingerprint": "ran", "validate": "restored", "prepare": "ran", "augment": "restored"}
    record(two)
    kept = [path for path in two.root.rglob("*") if path.is_file() and not path.is_symlink()]
    assert not [path for path in kept if b"secret\n" in path.read_bytes()]
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    three = open_source(str(stores.bare), tmp_path / "three")
    shutil.copytree(two.root / "data" / "raw", three.root / "data" / "raw")
    params = read_params(three.params)
    bring_up_to_date(three, "fingerprint", params)
    from segmill.data.versioning.versions import record_data

    record_data(three.root, "data/raw", params.data.remote)
    with pytest.raises(InfrastructureError, match=r"the remote s3://outs/segmill does not answer"):
        bring_up_to_date(three, "validate", params)
