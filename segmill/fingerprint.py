"""What code a stage can reach, as a hash: a fix in the loss counts, a comment or a docstring does not."""

from __future__ import annotations

import ast
import hashlib
import re
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import grimp

PACKAGES = ("segmill", "tasks")

# The bridge to DVC decides when a stage runs, never what comes out of it; which champion a member begins with is
# written into the member, and how it is fetched changes nothing.
NOT_FOLLOWED = ("tasks.stage", "tasks.champion")

_FUNCTION_NAME = re.compile(r"\w+(\.\w+)+:\w+")


def package_folders() -> dict[str, Path]:
    """Return the folder of each package whose code counts."""
    import importlib

    return {name: Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES}


def fingerprints(entries: Iterable[str]) -> dict[str, str]:
    """Return, for each entry module, one line per module or data file it can reach: ``name sha256``, sorted.

    Reach is the import closure inside ``PACKAGES``, with imports inside functions and the packages above a module,
    and with functions named as ``"module:function"`` (that is how work is sent to Ray). The hash is of the syntax
    tree without docstrings, so layout and comments do not count. A new Python may write a tree differently, and
    then everything counts as changed. Other files in a reached package's folder (templates) count by their bytes.

    Raises:
        KeyError: an entry is no module of the packages.
    """
    folders = package_folders()
    graph = grimp.build_graph(*PACKAGES, cache_dir=None)
    modules = {name: _parsed(_file(name, folders).read_bytes()) for name in graph.modules}
    for name, (_, named) in modules.items():
        for target in named & modules.keys():
            graph.add_import(importer=name, imported=target)
    for name in NOT_FOLLOWED:
        graph.remove_module(name)
    texts = {}
    for entry in entries:
        reached = {entry} | graph.find_upstream_modules(entry)
        reached |= {".".join(name.split(".")[:depth]) for name in reached for depth in range(1, name.count(".") + 1)}
        lines = [f"{name} {modules[name][0]}\n" for name in reached]
        for name in reached:
            lines += _data_lines(name, folders)
        texts[entry] = "".join(sorted(lines))
    return texts


def _file(module: str, folders: dict[str, Path]) -> Path:
    package, *rest = module.split(".")
    stem = folders[package].joinpath(*rest)
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def _data_lines(module: str, folders: dict[str, Path]) -> list[str]:
    code = _file(module, folders)
    if code.name != "__init__.py":
        return []
    data = (path for path in code.parent.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc"))
    return [f"{module}/{path.name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for path in data]


@cache
def _parsed(source: bytes) -> tuple[str, frozenset[str]]:
    """Return the hash of a module's syntax tree without docstrings, and the modules whose functions it names."""
    tree = ast.parse(source)
    nodes = list(ast.walk(tree))
    texts = (node.value for node in nodes if isinstance(node, ast.Constant) and isinstance(node.value, str))
    named = frozenset(text.partition(":")[0] for text in texts if _FUNCTION_NAME.fullmatch(text))
    documented = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef
    for node in nodes:
        if isinstance(node, documented) and ast.get_docstring(node, clean=False) is not None:
            node.body = node.body[1:]
    return hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), named
