"""The page for operators quotes what segmill says, and names commands that there are."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operations.md").read_text()


def test_alarms_are_quoted_as_they_are_said() -> None:
    code = "\n".join(
        file.read_text() for room in ("segmill", "flows", "tasks", "deploy") for file in (ROOT / room).rglob("*.py")
    )
    alarms = PAGE.partition("## Alarms")[2].partition("\n## ")[0]
    quoted = re.findall(r'^\| "([^"]+)"', alarms, re.MULTILINE)
    assert len(quoted) > 12
    missing = [part for phrase in quoted for part in phrase.split("...") if part.strip() and part.strip() not in code]
    assert missing == []


def test_the_stacks_commands_are_those_that_it_has() -> None:
    done = subprocess.run([sys.executable, "-m", "deploy.stack", "--help"], cwd=ROOT, capture_output=True, text=True)
    has = re.search(r"\{([\w,]+)\}", done.stdout)
    named = set(re.findall(r"python -m deploy\.stack (\w+)", PAGE))
    assert has and named and named <= set(has[1].split(","))
