"""Stage fingerprint: hash the code each stage can reach, so that code is an input like any other."""

from __future__ import annotations

from segmill.params import Params
from segmill.workspace import Workspace
from tasks.stage import watch_code


def fingerprint(workspace: Workspace, params: Params) -> None:
    """Write ``.segmill/code/STAGE`` for every stage."""
    watch_code(workspace)
