from __future__ import annotations

from pathlib import Path

import pytest

from flows.start import create, create_demo
from segmill.data.versions import git_commit
from segmill.errors import InputError
from segmill.params import read_params


def images(root: Path) -> set[str]:
    return {path.name for path in (root / "data" / "raw" / "images").rglob("*.png")}


def test_the_demo_is_a_workspace_with_a_commit_of_its_own_and_grows(tmp_path: Path) -> None:
    workspace = create_demo(tmp_path / "demo", sample="brain", more=False)
    assert len(git_commit(workspace.root)) == 40
    assert len(read_params(workspace.params).members) == 3
    first = images(workspace.root)
    assert images(create_demo(tmp_path / "demo", sample="brain", more=False).root) == first
    grown = images(create_demo(tmp_path / "demo", sample="brain", more=True).root)
    assert (len(first), len(grown)) == (65, 100)
    assert first < grown


def test_the_street_demo_has_its_own_size_and_recipe_and_grows(tmp_path: Path) -> None:
    workspace = create_demo(tmp_path / "demo", sample="street", more=False)
    params = read_params(workspace.params)
    assert (params.prepare.size_px, params.augment.recipe) == ((128, 128), "driving")
    first = images(workspace.root)
    assert len(first) == 200
    grown = images(create_demo(tmp_path / "demo", sample="brain", more=True).root)  # it stays what it is
    assert len(grown) == 300 and first < grown


def test_what_lies_in_the_folder_is_never_touched(tmp_path: Path, street: Path) -> None:
    (tmp_path / "letters.txt").write_text("mine")
    for make in (lambda: create_demo(tmp_path, sample="brain", more=False), lambda: create(tmp_path, street)):
        with pytest.raises(InputError, match="holds something else already"):
            make()
    assert [path.name for path in tmp_path.iterdir()] == ["letters.txt"]
