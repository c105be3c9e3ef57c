"""The files of a version are deleted from a folder and from S3; the record of it stays, and says so to who asks."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from buckets import deletion_denied

from segmill import tracking
from segmill.errors import InfrastructureError, InputError
from segmill.promotion import collected, passport, registry, signing, versions
from segmill.promotion.keys import TrustedKeys, make_signing_key

MODEL, BUCKET = "segmill-collected", "collected"


@pytest.mark.parametrize("place", ["folder", pytest.param("s3", marks=pytest.mark.long)])
def test_the_files_go_and_come_back_and_the_record_stays(
    judging: Path, tmp_path: Path, request: pytest.FixtureRequest, place: str
) -> None:
    artifacts = str(tmp_path / "mlartifacts")
    if place == "s3":
        request.getfixturevalue("credentials")
        boto3.client("s3").create_bucket(Bucket=BUCKET)
        artifacts = f"s3://{BUCKET}/mlflow"
    key = make_signing_key()
    trusted = TrustedKeys((key.public,), "trusted_keys")
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = tracking.start_run(uri, MODEL, "retrain", artifacts=artifacts)
    version = registry.register(uri, run_id, judging / "ensemble", MODEL, key=key)
    (tmp_path / "papers").mkdir()
    for name in (passport.JSON, passport.HTML, passport.SIGNATURE):
        (tmp_path / "papers" / name).write_text("{}")
    passport.store(uri, tmp_path / "papers", model=MODEL, version=version)
    (one,), _ = collected.versions_of(uri, MODEL)
    before = collected.files_of(uri, one.source, record=True)
    assert sum(file.size_bytes for file in before) > 1_000_000
    planned = {file.path for file in collected.files_of(uri, one.source)}

    collected.begin_deletion(uri, MODEL, version)
    (going,), _ = collected.versions_of(uri, MODEL)
    assert (going.going, going.gone) == (True, False)
    with pytest.raises(InputError, match=r"files of version 1 of .* were deleted on 20.* by `segmill gc`"):
        versions.check_signed(uri, MODEL, version, trusted)
    for _ in range(2):
        collected.delete_version_files(uri, MODEL, one)
    left = {file.path for file in collected.files_of(uri, one.source, record=True)}
    assert left == set(collected.RECORD) & {file.path for file in before}
    assert planned == {file.path for file in before} - left
    assert passport.fetch(uri, tmp_path / "papers", model=MODEL, version=version)
    (gone,), _ = collected.versions_of(uri, MODEL)
    assert (gone.going, gone.gone) == (False, True)

    assert registry.register(uri, run_id, judging / "ensemble", MODEL, key=key) == version
    folder = versions.fetch_verified(uri, MODEL, version, trusted, to=tmp_path / "copy")
    assert signing.ensemble_digest(folder / signing.ENSEMBLE) == signing.ensemble_digest(judging / "ensemble")
    (again,), _ = collected.versions_of(uri, MODEL)
    assert (again.going, again.gone) == (False, False)


@pytest.mark.slow
def test_files_that_may_not_be_deleted_are_no_deleted_files(tmp_path: Path, judging: Path, credentials: None) -> None:
    """S3 answers so with 200 and a list of refusals, which MLflow does not read."""
    s3, bucket = boto3.client("s3"), "kept"
    s3.create_bucket(Bucket=bucket)
    uri, key = f"sqlite:///{tmp_path / 'mlflow.db'}", make_signing_key()
    run_id = tracking.start_run(uri, MODEL, "retrain", artifacts=f"s3://{bucket}/mlflow")
    version = registry.register(uri, run_id, judging / "ensemble", MODEL, key=key)
    s3.put_bucket_policy(Bucket=bucket, Policy=deletion_denied(bucket))
    (one,), _ = collected.versions_of(uri, MODEL)
    collected.begin_deletion(uri, MODEL, version)
    with pytest.raises(InfrastructureError, match=r"\d+ files of version 1 of .* still there .* right to delete"):
        collected.delete_version_files(uri, MODEL, one)
    (going,), _ = collected.versions_of(uri, MODEL)
    assert (going.going, going.gone) == (True, False)
    s3.delete_bucket_policy(Bucket=bucket)
    collected.delete_version_files(uri, MODEL, one)
    (gone,), _ = collected.versions_of(uri, MODEL)
    assert gone.gone


def test_a_model_that_there_is_not_has_no_versions(tmp_path: Path) -> None:
    assert collected.versions_of(f"sqlite:///{tmp_path / 'mlflow.db'}", "nothing") == ([], {})
    assert collected.runs_before(f"sqlite:///{tmp_path / 'mlflow.db'}", "nothing", 1e9) == []
