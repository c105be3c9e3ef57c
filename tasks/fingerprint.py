"""Stage fingerprint: write down the code and the settings of each stage, so that both are inputs like any other."""

from __future__ import annotations

from segmill.params import Params
from segmill.workspace import Workspace
from tasks.inputs import write_inputs


def fingerprint(workspace: Workspace, params: Params) -> None:
    """Write ``.segmill/code`` and ``.segmill/settings``, with a file per stage and member."""
    write_inputs(workspace, params)
