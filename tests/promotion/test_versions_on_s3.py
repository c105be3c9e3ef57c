"""A registry whose files are on S3: fetched, verified, signed and refused as in a folder."""

from __future__ import annotations

from pathlib import Path

import boto3
import pytest
from registering import register_unsigned

from segmill import tracking
from segmill.promotion import passport, registry, signing, versions
from segmill.promotion.keys import SignatureError, TrustedKeys, make_signing_key

MODEL, BUCKET = "segmill-remote", "models"


@pytest.mark.slow
@pytest.mark.long
def test_versions_on_s3_are_verified(judging: Path, tmp_path: Path, credentials: None) -> None:
    key = make_signing_key()
    trusted = TrustedKeys((key.public,), "trusted_keys")
    s3 = boto3.client("s3")
    s3.create_bucket(Bucket=BUCKET)
    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    run_id = tracking.start_run(uri, "street", "retrain", artifacts=f"s3://{BUCKET}/mlflow")
    version = registry.register(uri, run_id, judging / "ensemble", MODEL, key=key)
    (tmp_path / "passport").mkdir()
    for name in ("passport.json", "passport.html", "passport.sig"):
        (tmp_path / "passport" / name).write_text("{}")
    passport.store(uri, tmp_path / "passport", model=MODEL, version=version)
    folder = versions.fetch_verified(uri, MODEL, version, trusted, to=tmp_path / "copy")
    assert (folder / "MLmodel").is_file()
    assert versions.fetch_member(uri, MODEL, version, "small", trusted, to=tmp_path / "small")
    expected = signing.ensemble_digest(judging / "ensemble" / "members" / "small")
    assert signing.ensemble_digest(tmp_path / "small") == expected

    old = register_unsigned(uri, run_id, judging / "ensemble", "before", tmp_path)
    assert versions.sign_registered(uri, "before", old, key, trusted)[1]
    versions.fetch_verified(uri, "before", old, trusted, to=tmp_path / "old")

    names = [one["Key"] for one in s3.list_objects_v2(Bucket=BUCKET, Prefix="mlflow/models/")["Contents"]]
    (weights,) = [name for name in names if name.endswith("members/small/weights.safetensors")]
    (mlmodel,) = [name for name in names if name.endswith("/MLmodel")]
    s3.put_object(Bucket=BUCKET, Key=f"{mlmodel.rpartition('/')[0]}/code/torch.py", Body=b"")
    with pytest.raises(SignatureError, match=r"code/torch\.py was added"):
        versions.fetch_verified(uri, MODEL, version, trusted, to=tmp_path / "added")
    content = bytearray(s3.get_object(Bucket=BUCKET, Key=weights)["Body"].read())
    content[-9] ^= 1
    s3.put_object(Bucket=BUCKET, Key=weights, Body=bytes(content))
    with pytest.raises(SignatureError, match=r"small/weights\.safetensors was changed"):
        versions.fetch_member(uri, MODEL, version, "small", trusted, to=tmp_path / "changed")
