"""Other libraries are used by their public names; one whose inner parts are used is capped, with a reason."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = ("segmill", "tasks", "flows", "deploy")
# Inner parts that have no public counterpart: the module that uses them, their names, and the library as pyproject.toml
# writes it, where it is capped.
INNER = {
    ("deploy/stack/ray_node.py", "ray._private"): "ray[default,serve,train,tune]",
    ("segmill/cluster/connection.py", "ray._private"): "ray[default,serve,train,tune]",
    ("segmill/data/versioning/dvc_remote.py", "dvc.stage.cache._get_cache_hash"): "dvc",
    ("segmill/data/versioning/dvc_stage.py", "dvc.stage.cache._can_hash"): "dvc",
    ("segmill/data/versioning/dvc_stage.py", "dvc.stage.cache._get_cache_hash"): "dvc",
    ("segmill/data/versioning/dvc_stage.py", "dvc.stage.cache._get_stage_hash"): "dvc",
    (
        "segmill/models/depthwise.py",
        "segmentation_models_pytorch.encoders._efficientnet",
    ): "segmentation-models-pytorch",
}


def inner_imports(source: str) -> Iterator[str]:
    """Yield the dotted names that ``source`` imports of other libraries and that begin with an underscore somewhere."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            public = not _is_inner(node.module)
            names = [f"{node.module}.{alias.name}" if public else node.module for alias in node.names]
        else:
            continue
        for name in names:
            if name.split(".")[0] not in (*OURS, "__future__") and _is_inner(name):
                yield name


def _is_inner(name: str) -> bool:
    return any(part.startswith("_") for part in name.split("."))


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("from ray.train.v2._internal.callbacks import DatasetsCallback", ["ray.train.v2._internal.callbacks"]),
        ("import ray._raylet", ["ray._raylet"]),
        ("def late():\n    from torch import _C", ["torch._C"]),
        ("from __future__ import annotations\nfrom segmill.files import _draft\nfrom ray.train import report", []),
    ],
)
def test_the_check_sees_inner_parts(source: str, found: list[str]) -> None:
    assert list(inner_imports(source)) == found


def test_nothing_imports_the_inner_parts_of_other_libraries() -> None:
    found = {
        (str(path.relative_to(ROOT)), name)
        for room in OURS
        for path in sorted((ROOT / room).rglob("*.py"))
        for name in inner_imports(path.read_text())
    }
    assert found == set(INNER)


@pytest.mark.parametrize("library", [*INNER.values(), "ray[default,serve,train,tune]"])
def test_a_library_of_which_inner_or_moving_parts_are_used_is_capped(library: str) -> None:
    (line,) = re.findall(rf'^  "{re.escape(library)}[=<>~][^"]*".*$', (ROOT / "pyproject.toml").read_text(), re.M)
    assert re.search(r"~=|<|==", line), line
