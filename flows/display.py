"""What the terminal shows while a run goes on: stages and members, read from the progress files."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from segmill import progress
from segmill.alongside import alongside
from segmill.workspace import Workspace

PLAIN_INTERVAL_S = (10.0, 60.0)  # between two lines of a step: a twentieth of its time so far, within these
LIVE_INTERVAL_S = 0.5
BAR_WIDTH = 8
MARKS = {
    "fresh": ("=", "dim"), "restored": ("<", "cyan"), "ran": ("✓", "green"), "running": ("…", "yellow"),
    "failed": ("✗", "red"), "waiting": ("·", "dim"),
}  # fmt: skip


@contextmanager
def showing(workspace: Workspace, steps: list[str], console: Console) -> Iterator[None]:
    """Show the progress of ``steps`` until the block ends: live in a terminal, a line per news elsewhere."""
    workspace.progress.mkdir(parents=True, exist_ok=True)
    for old in workspace.progress.glob("*.json"):
        old.unlink()
    watch = _live if console.is_terminal else _plain
    with alongside(lambda over: watch(workspace.progress, steps, console, over)):
        yield


def running_line(facts: dict[str, Any]) -> str:
    """Say how far a step is: how many samples of how many, or how a member's training goes."""
    return f"{facts['done']:,} of {facts['total']:,} samples" if "total" in facts else member_line(facts)


def member_line(facts: dict[str, Any]) -> str:
    """Say one member's progress: epoch, loss, val mIoU, images/s and time left."""
    if "epoch" not in facts:
        return str(facts["state"])
    # A time budget ends a training before its last epoch: that number would mislead.
    parts = [f"epoch {facts['epoch']}" + (f"/{facts['epochs']}" if facts["epochs"] else "")]
    if facts.get("loss") is not None:
        parts.append(f"loss {facts['loss']:.3f}")
    if facts.get("val_miou") is not None:
        parts.append(f"val mIoU {facts['val_miou']:.3f}")
    if facts.get("images_s"):
        parts.append(f"{facts['images_s']:.1f} images/s")
    if facts.get("seconds_left") is not None:
        parts.append(f"{clock(facts['seconds_left'])} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Write seconds as 45s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _facts(folder: Path, step: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    stage = progress.read(folder / f"{step}.json") or {"state": "waiting"}
    if stage["state"] != "running":
        return stage, None
    return stage, progress.read(folder / f"{step}.member.json") or progress.read(folder / f"{step}.count.json")


def _share_done(running: dict[str, Any]) -> float:
    if "total" in running:
        return float(running["done"] / max(running["total"], 1))
    return float(running.get("share_done", 0.0))  # not told before the first step


def _detail(stage: dict[str, Any], running: dict[str, Any] | None) -> str:
    if running:
        return running_line(running)
    return str(stage.get("why", ""))


def _spent(stage: dict[str, Any]) -> str:
    if stage["state"] == "running":
        return clock(time.time() - stage["began"])
    return clock(stage["seconds"]) if stage.get("seconds", 0) >= 0.5 else ""


def _table(folder: Path, steps: list[str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(width=BAR_WIDTH)
    table.add_column(ratio=1)
    for step in steps:
        stage, running = _facts(folder, step)
        mark, style = MARKS[stage["state"]]
        done = ProgressBar(completed=100 * _share_done(running), width=BAR_WIDTH) if running else Text("")
        table.add_row(Text(mark, style=style), step, _spent(stage), done, Text(_detail(stage, running), style=style))
    return table


def _live(folder: Path, steps: list[str], console: Console, over: threading.Event) -> None:
    with Live(console=console, auto_refresh=False, transient=False) as live:
        while True:
            last = over.wait(LIVE_INTERVAL_S)
            live.update(_table(folder, steps), refresh=True)
            if last:
                return


def _plain(folder: Path, steps: list[str], console: Console, over: threading.Event) -> None:
    told: dict[str, Any] = {}
    spoke: dict[str, float] = {}
    while True:
        last = over.wait(LIVE_INTERVAL_S)
        for step in steps:
            stage, running = _facts(folder, step)
            if stage["state"] != "waiting" and told.get(step) != stage["state"]:
                told[step] = stage["state"]
                spent = f" in {_spent(stage)}" if stage["state"] == "ran" and _spent(stage) else ""
                why = f" ({stage['why']})" if stage.get("why") else ""
                console.print(f"{step}: {stage['state']}{spent}{why}", highlight=False, soft_wrap=True)
            least, most = PLAIN_INTERVAL_S
            pause = min(most, max(least, (time.time() - stage.get("began", time.time())) / 20))
            if running and time.monotonic() - spoke.get(step, 0.0) >= pause:
                spoke[step] = time.monotonic()
                console.print(f"{step}: {running_line(running)}", highlight=False, soft_wrap=True)
        if last:
            return
