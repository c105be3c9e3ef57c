"""What is listed of a folder, a data version and S3, and how it is read."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import boto3
import pytest

from segmill.data.versioning.history import SHORT
from segmill.data.versioning.versions import bring_data
from segmill.errors import InfrastructureError, InputError
from segmill.params import read_params
from segmill.serving.batch.sources import BatchImage, list_folder, list_s3, list_version, without_shared_masks
from segmill.workspace import Workspace


def test_a_folder_is_listed_by_suffix_without_hidden_files_and_its_own_output(tmp_path: Path) -> None:
    for name in ("b/2.JPG", "a.png", "b/3.txt", ".hidden.png", ".folder/4.png", "out/version-1/masks/a.png", "é/5.tif"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(name)
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/bad\xff.png")).write_text("bytes that are no UTF-8")
    found = list_folder(tmp_path, tmp_path / "out")
    assert [one.path for one in found] == ["a.png", "b/2.JPG", "bad\\xff.png", "é/5.tif"]
    assert [one.read().decode() for one in found] == ["a.png", "b/2.JPG", "bytes that are no UTF-8", "é/5.tif"]
    assert [str(one.mask) for one in found] == ["a.png", "b/2.png", "bad\\xff.png", "é/5.png"]
    before = found[0].stamp
    os.utime(tmp_path / "a.png", ns=(0, 0))
    assert list_folder(tmp_path, tmp_path / "out")[0].stamp != before


def test_the_first_of_two_images_with_one_mask_has_it() -> None:
    images = [BatchImage(path, "", 0, "") for path in ("a.jpg", "a.png", "b/a.png", "c.tif")]
    assert [one.fault for one in without_shared_masks(images)] == [
        "",
        "its mask would be that of a.jpg: rename one",
        "",
        "",
    ]


def test_a_data_version_is_read_from_the_cache(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    root, path, remote = workspace.root, params.data.path, params.data.remote
    first = bring_data(root, path, remote).md5
    images = sorted((root / path / "images").rglob("*.png"))
    content = images[0].read_bytes()
    images[0].write_bytes(images[1].read_bytes())
    images[2].unlink()
    (root / path / "masks" / images[2].relative_to(root / path / "images")).unlink()
    second = bring_data(root, path, remote).md5
    shutil.rmtree(root / path)
    assert list_version(root, path, remote, "HEAD")[0] == second
    version, before = list_version(root, path, remote, first[:SHORT])
    assert (version, len(before)) == (first, 80)
    after = list_version(root, path, remote, second[:SHORT])[1]
    assert len(after) == 79
    name = images[0].relative_to(root / path / "images").as_posix()
    (one,), (other,) = ([one for one in found if one.path == name] for found in (before, after))
    assert one.read() == content != other.read() and one.stamp != other.stamp
    assert {one.stamp for one in before if one.path != name} > {one.stamp for one in after if one.path != name}
    with pytest.raises(InputError, match="no version begins with"):
        list_version(root, path, remote, "0" * 8)


@pytest.mark.slow
def test_s3_is_listed_and_read(credentials: None, monkeypatch: pytest.MonkeyPatch) -> None:
    s3, bucket = boto3.client("s3"), "to-score"
    s3.create_bucket(Bucket=bucket)
    for key in ("p/a.png", "p/b/c.JPG", "p/x/../../y.png", "p/.hidden/d.png", "p/text.txt", "pp/e.png"):
        s3.put_object(Bucket=bucket, Key=key, Body=key.encode())
    found = {one.path: one for one in list_s3(f"s3://{bucket}/p")}
    assert set(found) == {"a.png", "b/c.JPG", "x/../../y.png"}
    assert found["x/../../y.png"].fault == "its name is no path below the prefix"
    assert found["b/c.JPG"].read() == b"p/b/c.JPG" and found["b/c.JPG"].size_bytes == 9
    s3.put_object(Bucket=bucket, Key="p/a.png", Body=b"another")
    again = {one.path: one for one in list_s3(f"s3://{bucket}/p/")}
    assert again["a.png"].stamp != found["a.png"].stamp and again["b/c.JPG"] == found["b/c.JPG"]
    assert [one.path for one in list_s3(f"s3://{bucket}/p/a.png")] == ["a.png"]
    assert list_s3(f"s3://{bucket}/nothing") == []
    with pytest.raises(InputError, match="there is nothing at s3://no-such-bucket/p"):
        list_s3("s3://no-such-bucket/p")
    with pytest.raises(InputError, match="names no bucket"):
        list_s3("s3://")
    s3.delete_object(Bucket=bucket, Key="p/a.png")
    with pytest.raises(FileNotFoundError):
        found["a.png"].read()


@pytest.mark.long
def test_s3_that_does_not_answer_is_infrastructure(monkeypatch: pytest.MonkeyPatch) -> None:
    from segmill.serving.batch import sources

    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "key")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    sources._s3.cache_clear()
    monkeypatch.setattr("s3fs.S3FileSystem.cachable", False)
    try:
        with pytest.raises(InfrastructureError, match=r"s3://bucket/p can't be reached .*AWS_ENDPOINT_URL"):
            list_s3("s3://bucket/p")
    finally:
        sources._s3.cache_clear()
