"""No public function takes more than eight parameters without saying why."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST = 8
REASON = "More than eight parameters:"


def public_functions(body: list[ast.stmt], prefix: str = "") -> Iterator[tuple[str, ast.FunctionDef]]:
    """Yield the public functions of a module and the public methods of its public classes, by name."""
    for node in body:
        if isinstance(node, ast.ClassDef) and not node.name.startswith("_"):
            yield from public_functions(node.body, f"{node.name}.")
        elif isinstance(node, ast.FunctionDef) and (node.name == "__init__" or not node.name.startswith("_")):
            yield prefix + node.name, node


def too_many(source: str) -> list[str]:
    """Return the functions of a module with more than MOST parameters and no REASON in their docstring or class's."""
    tree = ast.parse(source)
    said = {node.name: ast.get_docstring(node) or "" for node in tree.body if isinstance(node, ast.ClassDef)}
    found = []
    for name, function in public_functions(tree.body):
        arguments = function.args
        parameters = [
            one.arg
            for one in (
                *arguments.posonlyargs,
                *arguments.args,
                *arguments.kwonlyargs,
                arguments.vararg,
                arguments.kwarg,
            )
            if one is not None and one.arg not in ("self", "cls")
        ]
        reason = " ".join(f"{ast.get_docstring(function)} {said.get(name.partition('.')[0])}".split())
        commands = any("typer" in ast.unparse(one) for one in (*arguments.args, *arguments.kwonlyargs))
        if len(parameters) > MOST and REASON not in reason and not commands:
            found.append(name)
    return found


@pytest.mark.parametrize("package", ["segmill", "tasks", "flows"])
def test_no_public_function_takes_more_than_eight_parameters_without_a_reason(package: str) -> None:
    paths = sorted((ROOT / package).rglob("*.py"))
    assert len(paths) > 5
    assert [f"{path.relative_to(ROOT)}: {name}" for path in paths for name in too_many(path.read_text())] == []


def test_the_check_sees_methods_and_reads_reasons() -> None:
    nine = ", ".join(f"p{number}" for number in range(9))
    assert too_many(
        f"def f({nine}): pass\nclass A:\n    def g(self, {nine[:-4]}): pass\n    def h(self, {nine}): pass"
    ) == [
        "f",
        "A.h",
    ]
    assert (
        too_many(f"def f(*, {nine}):\n    '''Do. {REASON} they are the convolution's own.'''\ndef _g({nine}): pass")
        == []
    )
