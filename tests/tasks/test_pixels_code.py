"""What packed shards are named by: a change of what makes no pixel leaves the names, and with them the members."""

from __future__ import annotations

import ast
import inspect

from segmill.data.packing import shards
from segmill.data.schema import manifest
from segmill.fingerprint import fingerprints
from segmill.workspace import Workspace
from tasks.inputs import COMPUTATIONS, MAKES_NO_PIXELS, code_of_pixels, read_code


def test_the_manifests_module_makes_no_pixels() -> None:
    """All that shards take of it is where a file is stored; who changes that takes it out of MAKES_NO_PIXELS."""
    imported = [
        name.name
        for node in ast.walk(ast.parse(inspect.getsource(shards)))
        if isinstance(node, ast.ImportFrom) and node.module == manifest.__name__
        for name in node.names
    ]
    assert set(MAKES_NO_PIXELS) == {manifest.__name__} and imported == ["row_part"]
    (function,) = ast.parse(inspect.getsource(manifest.row_part)).body
    assert isinstance(function, ast.FunctionDef) and ast.unparse(function.body[1]) == (
        "return StoredFile(row[kind], row[f'{kind}_file'], row[f'{kind}_offset'], row[f'{kind}_bytes'])"
    )


def test_its_hash_counts_as_it_was_and_every_other_as_it_is(workspace: Workspace) -> None:
    code = fingerprints(COMPUTATIONS)["shards"]
    written = read_code(workspace, "shards")
    assert written == code_of_pixels(code) != code
    changed = set(written.splitlines()) ^ set(code.splitlines())
    assert {line.split()[0] for line in changed} == set(MAKES_NO_PIXELS)
