"""Files and folders are replaced in one way: what renames something does so through segmill.files, or says why not."""

from __future__ import annotations

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
ALLOWED = {
    "segmill/files.py": "it is the one way",
    "segmill/data/storage/journal.py": "a whole plan of renames, carried on after a crash",
    "segmill/data/storage/raw_set.py": "a finished shard gets the hash of its bytes as its name, in a draft",
    "segmill/data/packing/writing.py": "the same for the shards of a packed split",
    "segmill/serving/batch/output.py": "many masks in one folder, through which files.replacing would look for each",
}


def test_only_these_modules_rename_files() -> None:
    renaming = set()
    for path in sorted(file for room in ("segmill", "tasks", "flows") for file in (ROOT / room).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
                on_os = isinstance(node.func.value, ast.Name) and node.func.value.id in ("os", "shutil")
                moves = node.func.attr == "rename" or (on_os and node.func.attr in ("replace", "renames", "move"))
                one_path = node.func.attr == "replace" and len(node.args) == 1 and not node.keywords  # Path.replace
                if moves or one_path:
                    renaming.add(path.relative_to(ROOT).as_posix())

    assert renaming == set(ALLOWED)
