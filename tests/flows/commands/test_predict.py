"""`segmill predict` writes beside no image and over no result; the end-to-end tests predict."""

from __future__ import annotations

from pathlib import Path

import pytest
import typer

from flows.commands.predict import _refuse_to_overwrite, one_source
from segmill.errors import InputError


def test_no_result_replaces_an_image_or_another_result(tmp_path: Path) -> None:
    images = [tmp_path / folder / "1.png" for folder in ("a", "b")]
    for path in images:
        path.parent.mkdir()
        path.touch()
    with pytest.raises(InputError, match=r"a/1\.png and .*b/1\.png would both be written to .*out/1\.png"):
        _refuse_to_overwrite(images, tmp_path / "out")
    with pytest.raises(InputError, match=r"a/1\.png would be replaced by its mask; name another folder with --to"):
        _refuse_to_overwrite(images[:1], tmp_path / "a")
    _refuse_to_overwrite([images[0], images[0]], tmp_path / "out")
    _refuse_to_overwrite(images[:1], tmp_path / "b" / "other")


def test_a_folder_a_prefix_or_a_data_version_is_scored_as_a_whole_and_alone(tmp_path: Path) -> None:
    folder, image = str(tmp_path), str(tmp_path / "a.png")
    assert one_source([image, image], None) is None
    assert one_source([folder], None) == folder
    assert one_source(["s3://bucket/p"], None) == "s3://bucket/p"
    assert one_source([], "HEAD") == "data:HEAD"
    for sources, data in (([folder, image], None), ([folder, folder], None), ([image], "HEAD")):
        with pytest.raises(InputError, match=r"is scored as a whole, alone"):
            one_source(sources, data)
    with pytest.raises(typer.BadParameter, match="name image files, a folder"):
        one_source([], None)
