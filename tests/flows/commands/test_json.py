"""`--json`: one object on standard output, all else on standard error, the keys that docs/json.md lists."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from terminal import BIN, terminal

from flows.commands.cli import COMMANDS, FOR_DVC, app
from segmill.params import read_params
from segmill.workspace import Workspace

DOCS = Path(__file__).parents[3] / "docs" / "json.md"
Ask = Callable[..., Any]


def documented() -> dict[str, set[str]]:
    """Return the keys of each command's object, those inside keys left out."""
    rows = re.findall(r"^\| (`[^|]+`) \| (.+) \|$", DOCS.read_text(), re.MULTILINE)
    return {
        command: set(re.findall(r"`(\w+)`", re.sub(r"\(.*?\)", "", keys)))
        for commands, keys in rows
        for command in re.findall(r"`([^`]+)`", commands)
    }


def ask(*arguments: str, cwd: Path, code: int = 0) -> Any:
    """Run `segmill ... --json` and return what it printed on standard output."""
    done = subprocess.run(
        [BIN / "segmill", *arguments, "--json"], cwd=cwd, capture_output=True, text=True, env=terminal()
    )
    assert done.returncode == code, done.stderr
    return json.loads(done.stdout)


def test_every_command_has_a_line_in_the_docs() -> None:
    grouped = {
        f"{group.name} {command.name or command.callback.__name__}"
        for group in app.registered_groups
        if group.typer_instance
        for command in group.typer_instance.registered_commands
        if command.callback
    }
    assert set(documented()) == {*COMMANDS, *grouped} - set(FOR_DVC)


@pytest.fixture
def set_aside(tmp_path: Path, street: Path) -> Path:
    """A set of one more sample than the workspace has."""
    folder = tmp_path / "more"
    shutil.copytree(street, folder)
    for kind in ("images", "masks"):
        for path in sorted((folder / kind).iterdir())[1:]:
            path.unlink()
        (only,) = (folder / kind).iterdir()
        only.rename(only.with_name("new_s0099_f00.png"))
    return folder


@pytest.mark.long
def test_the_keys_are_those_of_the_docs(workspace: Workspace, set_aside: Path, street: Path) -> None:
    keys, root = documented(), workspace.root
    said = ask("validate", cwd=root)
    assert set(said) == keys["validate"] and said["sound"] is True
    assert sum(split["samples"] for split in said["splits"].values()) == 80
    first = ask("data", "log", cwd=root)["head"]
    added = ask("data", "add", str(set_aside), "-m", "one more", cwd=root)
    assert set(added) == keys["data add"] and (added["added"], added["before"]) == (1, first)
    log = ask("data", "log", cwd=root)
    assert set(log) == keys["data log"] and [one["message"] for one in log["versions"]][-1] == "one more"
    diff = ask("data", "diff", first[:8], cwd=root)
    assert set(diff) == keys["data diff"] and diff["added"] == ["new_s0099_f00"]
    assert set(ask("data", "export", "../exported", cwd=root)) == keys["data export"]
    back = ask("data", "checkout", first[:8], cwd=root)
    assert set(back) == keys["data checkout"] and back["version"] == first
    assert set(ask("data", "layouts", cwd=root)) == keys["data layouts"]
    status = ask("status", cwd=root)
    assert set(status) == keys["status"] and status["data_version"] == first
    assert set(ask("doctor", cwd=root)) == keys["doctor"] - {"changes"}
    assert ask("history", cwd=root) == []
    made = ask("init", "made", "--data", str(street), cwd=root.parent)
    assert set(made) == keys["init"] and made["workspace"] == str(root.parent / "made")
    assert (made["gate"]["groups"], made["gate"]["promotions"], made["gate"]["needed"]) == (2, 0, [11, 15, 19])
    assert said["gate"] == made["gate"]


def test_what_fails_says_why_with_the_exit_code_that_it_has_without(workspace: Workspace, tmp_path: Path) -> None:
    said = ask("status", cwd=tmp_path, code=1)
    assert set(said) == {"error"} and "is not a workspace" in said["error"]
    raw = workspace.root / read_params(workspace.params).data.path
    next((raw / "images").iterdir()).write_bytes(b"no image")
    said = ask("validate", cwd=workspace.root, code=1)
    assert said["sound"] is False and said["splits"] is None and said["gate"] is None
    assert [(issue["kind"], issue["state"], len(issue["files"])) for issue in said["issues"]] == [
        ("unreadable", "error", 1)
    ]
