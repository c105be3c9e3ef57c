"""What a retrain that was interrupted leaves to know: when it was last heard of, in which steps. Light to import."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import datetime

from segmill import progress
from segmill.workspace import Workspace


@dataclass(frozen=True)
class InterruptedRun:
    """A retrain that neither came to its end nor failed. Times are local, in ISO format."""

    began: str
    last_heard: str
    steps: tuple[str, ...]

    def __str__(self) -> str:
        steps = f" in {', '.join(self.steps)}" if self.steps else " before its first step"
        return f"the retrain of {self.began} was interrupted at {self.last_heard}{steps}; the next one resumes there"


def begin(workspace: Workspace) -> None:
    """Note that a retrain begins; the note stays where that is interrupted, whatever the cause."""
    progress.report(workspace.begun, began=time.time())


def end(workspace: Workspace, *, settled: bool = True) -> None:
    """Note that it came to its end, or failed; not ``settled``: a server still takes it for running."""
    if not settled:
        progress.report_failure(workspace.unsettled, ended=time.time())
    workspace.begun.unlink(missing_ok=True)


def is_unsettled(workspace: Workspace) -> bool:
    """Tell whether a server may still take a run for running that is over; ask only while none runs."""
    return workspace.begun.exists() or workspace.unsettled.exists()


def interrupted(workspace: Workspace) -> InterruptedRun | None:
    """Return what is known of an interrupted retrain; None where there was none. Ask only while none runs."""
    facts = progress.read(workspace.begun)
    if facts is None:
        return None
    notes = sorted(workspace.progress.glob("*.json"))
    states = {note.stem: (progress.read(note) or {}).get("state") for note in notes if "." not in note.stem}
    last_heard = max([facts["began"], *(note.stat().st_mtime for note in notes)])
    steps = tuple(step for step, state in states.items() if state in ("running", "interrupted"))
    return InterruptedRun(_iso(facts["began"]), _iso(last_heard), steps)


def _iso(seconds: float) -> str:
    return datetime.fromtimestamp(seconds).isoformat(" ", "seconds")
