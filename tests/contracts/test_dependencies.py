"""Every library that is imported is declared, so that `pip install segmill` brings it and no cap is missed."""

from __future__ import annotations

import ast
import re
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
OURS = {"segmill", "tasks", "flows", "tests", "benchmarks", "deploy"}
# Extras whose libraries a folder may import beyond the package's own.
EXTRAS = {
    "segmill": ["demo", "openvino"],
    "tasks": [],
    "flows": [],
    "deploy": ["stack", "postgres"],
    "tests": ["demo", "dev", "stack", "postgres"],
    "benchmarks": ["demo", "bench", "stack"],
}
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def plain(name: str) -> str:
    return name.lower().replace("_", "-")


def declared(*extras: str) -> set[str]:
    lines = [*PROJECT["dependencies"], *(line for extra in extras for line in PROJECT["optional-dependencies"][extra])]
    return {plain(re.match(r"[\w.-]+", line)[0]) for line in lines}  # type: ignore[index]


def imports(folder: Path) -> Iterator[tuple[str, Path]]:
    """Yield the top-level name of each absolute import and the file it is in."""
    for path in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module or ""]
            yield from ((name.partition(".")[0], path) for name in names)


@pytest.mark.parametrize("folder", EXTRAS)
def test_every_import_is_declared(folder: str) -> None:
    beside = {path.stem for path in (ROOT / folder).rglob("*.py")}
    distributions, allowed = packages_distributions(), declared(*EXTRAS[folder])
    undeclared = {
        f"{path.relative_to(ROOT)} imports {name}"
        for name, path in imports(ROOT / folder)
        if name not in sys.stdlib_module_names | OURS | beside
        if not allowed & {plain(one) for one in distributions.get(name, [name])}
    }
    assert undeclared == set()


def test_caps_have_a_reason() -> None:
    """A cap hides newer releases from everyone, so its line says why it is there."""
    text = (ROOT / "pyproject.toml").read_text()
    lines = re.findall(r'^  "[^"]*(?:<|~=|==)[^"]*",(.*)$', text, re.M)
    assert len(lines) >= 5
    assert [line for line in lines if not re.search(r"# \w+", line)] == []
