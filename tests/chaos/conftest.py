"""The workspace that is disturbed, and a table at the end: what each disturbance cost."""

from __future__ import annotations

import pytest
from brain import brain_workspace

__all__ = ["brain_workspace"]


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    """Print a line per disturbed run, from what the tests recorded."""
    rows = [dict(report.user_properties) for report in terminalreporter.getreports("passed") if report.user_properties]
    if rows:
        terminalreporter.section("disturbed runs")
        columns = list(rows[0])
        terminalreporter.write_line("  ".join(f"{column:>10}" for column in columns))
        for row in rows:
            terminalreporter.write_line("  ".join(f"{row.get(column, '')!s:>10}" for column in columns))
