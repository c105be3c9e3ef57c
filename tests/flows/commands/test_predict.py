"""`segmill predict` writes beside no image and over no result; the end-to-end tests predict."""

from __future__ import annotations

from pathlib import Path

import pytest

from flows.commands.predict import _refuse_to_overwrite
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
