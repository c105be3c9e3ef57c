"""Writes the file tree of docs/architecture.md from the first lines of the modules' docstrings (`make docs-tree`)."""

from __future__ import annotations

import argparse
import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

ROOT = Path(__file__).parents[1]
PAGE = ROOT / "docs" / "architecture.md"
FOLDERS = ("flows", "tasks", "segmill", "deploy", "benchmarks", "docs")
SUFFIXES = (".py", ".jinja", ".css", ".typed")
BEGIN, END = "<!-- tree: made by `make docs-tree`, do not edit -->", "<!-- end of tree -->"
COLUMN = 36


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true", help="write nothing; exit code 1 where the page is out of date")
    options = parser.parse_args()
    page = PAGE.read_text()
    before, _, rest = page.partition(BEGIN)
    _, _, after = rest.partition(END)
    new = f"{before}{BEGIN}\n```\n{tree()}\n```\n{END}{after}"
    if options.check:
        if new != page:
            print("docs/architecture.md is out of date; run `make docs-tree`", file=sys.stderr)
        return int(new != page)
    PAGE.write_text(new)
    return 0


def tree() -> str:
    """Return a line per folder and file of FOLDERS that git knows or would add, with what its docstring says."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *FOLDERS],
        cwd=ROOT, capture_output=True, text=True, check=True,
    )  # fmt: skip
    files = [PurePosixPath(name) for name in sorted(set(listed.stdout.splitlines())) if (ROOT / name).is_file()]
    shown = [file for file in files if file.suffix in SUFFIXES]
    return "\n".join(line for name in FOLDERS for line in _lines(PurePosixPath(name), shown))


def _lines(folder: PurePosixPath, files: list[PurePosixPath]) -> Iterator[str]:
    inside = [file for file in files if folder in file.parents]
    yield _line(folder.name + "/", len(folder.parts) - 1, _says(folder / "__init__.py"))
    for subfolder in sorted({file.parents[-len(folder.parts) - 2] for file in inside if file.parent != folder}):
        yield from _lines(subfolder, inside)
    for file in inside:
        if file.parent == folder and file.name != "__init__.py":
            yield _line(file.name, len(folder.parts), _says(file))


def _line(name: str, depth: int, says: str) -> str:
    return f"{'  ' * depth + name:{COLUMN}} {says}".rstrip()


def _says(file: PurePosixPath) -> str:
    """Return the first paragraph of a module's docstring as one line; nothing of another file or an absent one."""
    path = ROOT / file
    if file.suffix != ".py" or not path.is_file():
        return ""
    docstring = ast.get_docstring(ast.parse(path.read_text())) or ""
    return " ".join(docstring.partition("\n\n")[0].split()).removesuffix(".")


if __name__ == "__main__":
    sys.exit(main())
