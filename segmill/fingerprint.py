"""The code that a function can reach, as hashes: a changed statement counts; comments, docstrings, messages do not."""

from __future__ import annotations

import ast
import hashlib
import importlib
import json
import sys
from collections.abc import Iterable, Mapping
from contextlib import suppress
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import NamedTuple

from segmill.errors import near_miss
from segmill.files import write_atomically
from segmill.user_cache import user_cache

PACKAGES = ("segmill",)

KEPT = 8  # states of the code whose fingerprints the user's cache holds

_LOG_METHODS = {"debug", "info", "warning", "error", "exception", "critical", "log"}
_DOCUMENTED = ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


def fingerprints(entries: Mapping[str, Iterable[str]]) -> dict[str, str]:
    """Return, for each name in ``entries``, a line per module or file that its modules reach: ``name sha256``, sorted.

    Reach is the import closure inside ``PACKAGES``: imports inside functions and the packages above a module count,
    imports for type checkers do not. A module's hash is of its syntax tree without docstrings, without the texts of
    ``raise`` and without those of log calls, so layout, comments and messages do not count. Nor does the
    ``__getattr__`` of a whole package, which is for those who import from it by name, as no stage does. Modules without
    any statement have no line. A new Python may write a tree differently, and then everything counts as changed.
    Another file in a reached package's folder (a template) counts by its bytes where a reached module or file names it.

    Args:
        entries: name -> modules where the reach begins.

    What the same files gave before, under the same Python, is taken from the user's cache: parsing takes a second.

    Raises:
        KeyError: an entry is no module of the packages.
    """
    folders = {name: Path(str(importlib.import_module(name).__file__)).parent for name in PACKAGES}
    kept = user_cache("code") / f"{_state(folders, entries)}.json"
    with suppress(OSError, ValueError):
        found: dict[str, str] = json.loads(kept.read_text())
        return found
    texts = _computed(folders, entries)
    with suppress(OSError):  # a home that may not be written
        kept.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(kept, json.dumps(texts))
        for old in sorted(kept.parent.glob("*.json"), key=lambda path: path.stat().st_mtime)[:-KEPT]:
            old.unlink(missing_ok=True)
    return texts


def _state(folders: Mapping[str, Path], entries: Mapping[str, Iterable[str]]) -> str:
    """Return a sha256 over all that ``fingerprints`` depends on: the bytes of every file, and what reads them."""
    asked = {name: list(starts) for name, starts in entries.items()}
    state = hashlib.sha256(json.dumps([sys.version, version("grimp"), asked]).encode() + Path(__file__).read_bytes())
    for name, folder in folders.items():
        for path in sorted(path for path in folder.rglob("*") if path.suffix != ".pyc" and path.is_file()):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            state.update(f"{name}/{path.relative_to(folder)} {content}\n".encode())
    return state.hexdigest()


def _computed(folders: dict[str, Path], entries: Mapping[str, Iterable[str]]) -> dict[str, str]:
    import grimp

    graph = grimp.build_graph(*PACKAGES, cache_dir=None, exclude_type_checking_imports=True)
    texts = {}
    for name, starts in entries.items():
        reached: set[str] = set()
        for start in starts:
            if start not in graph.modules:
                raise KeyError(f"there is no module {start}{near_miss(start, tuple(graph.modules))}")
            reached |= {start} | graph.find_upstream_modules(start)
        parts = [module.split(".") for module in reached]
        reached |= {".".join(names[:depth]) for names in parts for depth in range(1, len(names))}
        modules = {module: _parsed(_file(module, folders).read_bytes(), module in folders) for module in reached}
        lines = [f"{module} {parsed.sha256}\n" for module, parsed in modules.items() if parsed.has_code]
        texts[name] = "".join(sorted([*lines, *_data_lines(modules, folders)]))
    return texts


def reached_modules(text: str) -> list[str]:
    """Return the modules and data files that a text of ``fingerprints`` holds."""
    return [line.split()[0] for line in text.splitlines()]


class _Parsed(NamedTuple):
    """A module's hash, whether it holds any statement, and the short texts in it, which may name files."""

    sha256: str
    has_code: bool
    texts: frozenset[str]


def _file(module: str, folders: dict[str, Path]) -> Path:
    package, *rest = module.split(".")
    stem = folders[package].joinpath(*rest)
    return stem / "__init__.py" if stem.is_dir() else stem.with_suffix(".py")


def _data_lines(modules: dict[str, _Parsed], folders: dict[str, Path]) -> list[str]:
    """Return a line per file beside a reached package's ``__init__`` that a reached module or such a file names."""
    beside: dict[str, Path] = {}
    for module in modules:
        code = _file(module, folders)
        if code.name == "__init__.py":
            others = (path for path in code.parent.iterdir() if path.is_file() and path.suffix not in (".py", ".pyc"))
            beside |= {f"{module}/{path.name}": path for path in others}
    named = set().union(*(parsed.texts for parsed in modules.values()))
    counted = {name: path for name, path in beside.items() if path.name in named}
    while more := {
        name: path
        for name, path in beside.items()
        if name not in counted and any(path.name.encode() in one.read_bytes() for one in counted.values())
    }:
        counted |= more
    return [f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n" for name, path in counted.items()]


@cache
def _parsed(source: bytes, is_package: bool) -> _Parsed:
    tree = ast.parse(source)
    constants = (node.value for node in ast.walk(tree) if isinstance(node, ast.Constant))
    texts = frozenset(value for value in constants if isinstance(value, str) and len(value) < 100)
    loggers = _loggers(tree)
    for node in ast.walk(tree):
        if isinstance(node, _DOCUMENTED):
            node.body = [statement for statement in node.body if not _is_text(statement)]
        elif isinstance(node, ast.Raise):
            node.exc, node.cause = _without_texts(node.exc), _without_texts(node.cause)
        elif isinstance(node, ast.Call) and _logs(node.func, loggers):
            node.args = [_WithoutTexts().visit(argument) for argument in node.args]
    if is_package:
        tree.body = [node for node in tree.body if not _offers(node)]
    has_code = any(not _is_future(node) for node in tree.body)
    return _Parsed(hashlib.sha256(ast.unparse(tree).encode()).hexdigest(), has_code, texts)


class _WithoutTexts(ast.NodeTransformer):
    """Leaves of a message what is no text: f-strings go with what they show."""

    def visit_Constant(self, node: ast.Constant) -> ast.Constant:
        return ast.Constant("") if isinstance(node.value, str) else node

    def visit_JoinedStr(self, node: ast.JoinedStr) -> ast.Constant:
        return ast.Constant("")


def _without_texts(expression: ast.expr | None) -> ast.expr | None:
    stripped: ast.expr | None = _WithoutTexts().visit(expression) if expression else None
    return stripped


def _loggers(tree: ast.Module) -> set[str]:
    """Return the names in a module that ``logging.getLogger`` gave their value."""
    return {
        target.id
        for node in ast.walk(tree)
        if isinstance(node, ast.Assign) and _is_get_logger(node.value)
        for target in node.targets
        if isinstance(target, ast.Name)
    }


def _is_get_logger(node: ast.expr) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "logging.getLogger"


def _logs(function: ast.expr, loggers: set[str]) -> bool:
    """Tell whether a call of ``function`` writes to a log, or warns."""
    if not isinstance(function, ast.Attribute):
        return False
    owner = ast.unparse(function.value)
    if function.attr == "warn":
        return owner == "warnings"
    return function.attr in _LOG_METHODS and (owner == "logging" or owner in loggers or _is_get_logger(function.value))


def _is_text(node: ast.stmt) -> bool:
    """Tell whether a statement is a docstring, or a text below a field, which documents it likewise."""
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _offers(node: ast.stmt) -> bool:
    """Tell whether a statement is a module's ``__getattr__`` (PEP 562)."""
    return isinstance(node, ast.FunctionDef) and node.name == "__getattr__"


def _is_future(node: ast.stmt) -> bool:
    return isinstance(node, ast.ImportFrom) and node.module == "__future__"
