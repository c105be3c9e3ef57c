"""The workspace that is disturbed, and a table at the end: what each disturbance cost."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from brain import brain_workspace as new_workspace
from disturbed import DONE, EPOCHS, end_state, running
from terminal import BIN, terminal

from segmill.workspace import Workspace

__all__ = ["new_workspace"]


@pytest.fixture(scope="session")
def brain_workspace(
    tmp_path_factory: pytest.TempPathFactory, new_workspace: Callable[..., Workspace]
) -> Callable[..., Workspace]:
    """Return what gives a new workspace around the atlas, whose Prefect has a database with tables but no rows.

    Making the tables takes longer than all that a member of this size learns, and is not what is disturbed.
    """
    home = tmp_path_factory.mktemp("prefect")
    subprocess.run(
        [BIN / "prefect", "server", "database", "upgrade", "--yes"], capture_output=True, check=True,
        env={**terminal(), "PREFECT_HOME": str(home)},
    )  # fmt: skip

    def copy(folder: Path, *members: str, epochs: int = 2) -> Workspace:
        workspace = new_workspace(folder, *members, epochs=epochs)
        shutil.copytree(home, workspace.prefect_home)
        return workspace

    return copy


@pytest.fixture
def workspace(tmp_path: Path, brain_workspace: Callable[..., Workspace]) -> Workspace:
    """A workspace with one member."""
    return brain_workspace(tmp_path, "fpn", epochs=EPOCHS)


@pytest.fixture(scope="session")
def one_member(
    tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace], servers: dict[str, str]
) -> dict[str, Any]:
    """What a run with one member comes to that nothing disturbs."""
    workspace = brain_workspace(tmp_path_factory.mktemp("undisturbed"), "fpn", epochs=EPOCHS)
    with running(workspace, "segmill", "retrain", servers=servers) as run:
        assert run.end() in DONE, run.said
    return end_state(workspace)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line per disturbed run, from what the tests recorded."""
    rows = [dict(report.user_properties) for report in terminalreporter.getreports("passed") if report.user_properties]
    if rows:
        terminalreporter.section("disturbed runs")
        columns = list(rows[0])
        terminalreporter.write_line("  ".join(f"{column:>10}" for column in columns))
        for row in rows:
            terminalreporter.write_line("  ".join(f"{row.get(column, '')!s:>10}" for column in columns))
