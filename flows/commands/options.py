"""What commands share: the workspace option, how it is opened and written to by one alone, and the terminal."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console

from segmill.names import visible_lines
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing

if TYPE_CHECKING:
    from segmill.params import Params

out = Console()

WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder with params.yaml and dvc.yaml.")]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Where another command writes to the workspace, wait until it is done.")
]
HERE = Path()


def open_workspace(folder: Path) -> tuple[Workspace, Params]:
    """Return the workspace at ``folder`` and its settings, with the environment of every library prepared."""
    from flows.environment import prepare_environment
    from segmill.params import read_params

    workspace = Workspace.open(folder)
    params = read_params(workspace.params)
    prepare_environment(workspace, params)
    return workspace, params


def alone(
    workspace: Workspace, command: str, part: Part = Part.WORKSPACE, *, wait: bool = False
) -> AbstractContextManager[None]:
    """Be the only writer of the workspace; what it holds is read inside, since another may have changed it."""
    return writing(workspace, part, command, wait=wait, say=say)


def say(line: str) -> None:
    """Print a line as it is: no markup, no colours, not broken; no character in it moves the cursor."""
    out.print(visible_lines(line), highlight=False, markup=False, soft_wrap=True)
