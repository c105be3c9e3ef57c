"""The documentation agrees with the tree: every file has its line, links lead somewhere."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_file_tree_is_up_to_date() -> None:
    check = subprocess.run([sys.executable, "docs/tree.py", "--check"], cwd=ROOT, capture_output=True, text=True)
    assert check.returncode == 0, check.stderr


def test_every_python_file_outside_tests_is_in_the_tree_with_a_sentence() -> None:
    listed = subprocess.run(["git", "ls-files", "*.py"], cwd=ROOT, capture_output=True, text=True, check=True)
    expected = {name for name in listed.stdout.split() if not name.startswith("tests/") and (ROOT / name).is_file()}
    folders: list[str] = []
    found = set()
    page = (ROOT / "docs" / "architecture.md").read_text()
    for line in page.partition("<!-- tree")[2].splitlines():
        entry = re.match(r"( *)([\w.]+)(/?)( +\S.*)?$", line)
        if entry:
            depth, name = len(entry[1]) // 2, entry[2]
            folders[depth:] = [name]
            if entry[3]:
                name = "__init__.py"
                folders[depth + 1 :] = [name]
            if entry[4]:
                found.add("/".join(folders))
    assert expected - found == set()


def test_the_readme_stays_short() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_links_between_pages_lead_to_files() -> None:
    pages = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    links = [(page, link) for page in pages for link in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", page.read_text())]
    assert links and [f"{page.name}: {link}" for page, link in links if not (page.parent / link).exists()] == []
