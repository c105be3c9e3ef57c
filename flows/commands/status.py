"""`segmill status` and `segmill history`: data version, what is stale and why, last run, champion and challenger."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WorkspaceOption, open_workspace, out, tell
from flows.interrupted import InterruptedRun, interrupted
from flows.standing import Standing, registry_asked
from segmill import progress
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writer

if TYPE_CHECKING:
    from segmill.params import Params
    from tasks.stage import Outcome


def status_command(workspace: WorkspaceOption = HERE) -> None:
    """Show what is stale and why, and which models stand."""
    from segmill.stores import store_sizes
    from tasks.stage import survey

    space, params = open_workspace(workspace)
    with registry_asked(space, params) as registry:
        found = replace(look(space, params, survey(space, params), registry()), bytes=store_sizes(space, params))
    if not tell(**found.facts()):
        show(found, out)


def history_command(workspace: WorkspaceOption = HERE) -> None:
    """List every verdict and move of the champion."""
    from segmill.promotion import earlier_ledger as ledger
    from tasks.promote import ledger_url

    space = open_workspace(workspace)[0]
    if not tell([asdict(entry) for entry in reversed(ledger.entries(ledger_url(space)))]):
        show_history(space, out)


@dataclass(frozen=True)
class Status:
    """What a look at the workspace found; nothing was run."""

    workspace: Workspace
    data_version: str | None
    data_why: str
    stages: dict[str, Outcome]
    last_run: dict[str, Any] | None
    champion: dict[str, Any] | None
    challenger: dict[str, Any] | None
    judged: bool
    writer: str
    interrupted: InterruptedRun | None = None
    bytes: dict[str, int] = field(default_factory=dict)

    @property
    def up_to_date(self) -> bool:
        """Whether a retrain has nothing to do: same data, every stage fresh, this ensemble judged, its page there."""
        judged = self.judged and self.workspace.page.is_file()
        return not self.data_why and judged and all(stage.state == "fresh" for stage in self.stages.values())

    def facts(self) -> dict[str, Any]:
        """Return what `segmill status --json` prints."""
        return {
            "workspace": str(self.workspace.root),
            "data_version": self.data_version,
            "data_changed": self.data_why or None,
            "stages": {name: {"state": stage.state, "why": stage.why} for name, stage in self.stages.items()},
            "up_to_date": self.up_to_date,
            "running": self.writer or None,
            "interrupted": asdict(self.interrupted) if self.interrupted else None,
            "last_run": self.last_run,
            "champion": self.champion,
            "challenger": self.challenger,
            "bytes": self.bytes,
        }


def look(workspace: Workspace, params: Params, stages: dict[str, Outcome], standing: Standing) -> Status:
    """Look at the rest of the workspace besides its stages. Starts no server and imports no torch."""
    from segmill.data.versioning.versions import data_changed, recorded_version

    recorded = recorded_version(workspace.root, params.data.path)
    running = writer(workspace, Part.WORKSPACE)
    return Status(
        workspace=workspace,
        data_version=recorded.md5 if recorded else None,
        data_why=data_changed(workspace.root, params.data.path),
        stages=stages,
        last_run=progress.read(workspace.last_run),
        champion=standing.champion,
        challenger=standing.challenger,
        judged=standing.judged,
        writer=running or writer(workspace, Part.DATA),
        interrupted=None if running else interrupted(workspace),
    )


def show(status: Status, console: Console) -> None:
    """Print the state for a person."""
    from flows.summary import run_table

    console.print(f"[bold]workspace[/]     {escape(str(status.workspace.root))}", highlight=False, soft_wrap=True)
    version = status.data_version or "none yet"
    console.print(
        f"[bold]data version[/]  {version}{escape(f'  ({status.data_why})') if status.data_why else ''}",
        highlight=False,
    )
    for alias, model in (("champion", status.champion), ("challenger", status.challenger)):
        console.print(f"[bold]{alias:13}[/] {escape(model_line(model))}", highlight=False, soft_wrap=True)
    if status.writer:
        console.print(f"[bold]now[/]           {escape(status.writer)}", highlight=False, soft_wrap=True)
    if status.interrupted:
        console.print(
            f"[bold]interrupted[/]   {escape(str(status.interrupted))}", style="yellow", highlight=False, soft_wrap=True
        )
    if status.bytes:
        console.print(f"[bold]disk[/]          {stores_line(status.bytes)}", highlight=False, soft_wrap=True)
    stages = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    stages.add_column("stage")
    stages.add_column("state")
    stages.add_column("why")
    for stage in status.stages.values():
        stages.add_row(stage.stage, stage.state, Text(stage.why), style="yellow" if stage.state == "stale" else "dim")
    console.print()
    console.print(stages)
    console.print()
    last = status.last_run
    if last is None:
        torn = status.workspace.last_run.exists()
        damaged = f"what the last run left in {status.workspace.last_run} is damaged; the next run writes it anew"
        console.print(
            damaged if torn else "no run yet: `segmill retrain` makes the first", markup=False, soft_wrap=True
        )
        return
    console.print(f"[bold]last run[/] {last['finished']}, {escape(last['outcome'])}", highlight=False, soft_wrap=True)
    if last.get("scores"):
        console.print(run_table(last["scores"], console.width))


def model_line(model: dict[str, Any] | None) -> str:
    """Say one registered model in a line."""
    if model is None:
        return "none"
    score = f", test mIoU {model['miou']:.4f}" if model.get("miou") is not None else ""
    verdict = f", {model['verdict']}" if model.get("verdict") else ""
    return f"{model['name']} version {model['version']}{score}{verdict}, data {str(model['data_version'])[:8]}"


def stores_line(sizes: dict[str, int]) -> str:
    """Say what takes how much of the disk: all, then the stores that take something, the largest first."""
    parts = sorted(((size, name) for name, size in sizes.items() if name != "total"), reverse=True)
    said = ", ".join(f"{name.replace('_', ' ')} {mib(size)}" for size, name in parts if size >= 2**19)
    return f"{mib(sizes['total'])} MiB{f': {said}' if said else ''}"


def mib(size: int) -> str:
    """Write bytes as MiB, with a decimal below 10."""
    return f"{size / 2**20:,.{1 if size < 10 * 2**20 else 0}f}"


def show_history(workspace: Workspace, console: Console) -> None:
    """Print the ledger, oldest first, in 80 columns; "against" is the champion of that time."""
    from segmill.promotion import earlier_ledger as ledger
    from tasks.promote import ledger_url

    entries = ledger.entries(ledger_url(workspace))
    if not entries:
        console.print("no verdict yet: `segmill retrain` brings the first")
        return
    console.print(f"[bold]{entries[0].model}[/], the latest last")
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in ("time (UTC)", "version", "action", "verdict", "against", "mIoU", "gain"):
        table.add_column(heading, no_wrap=True)
    for entry in reversed(entries):
        gain, miou = entry.facts.get("gain"), entry.facts.get("challenger_miou")
        table.add_row(
            entry.time[:19], entry.version, entry.action, entry.decision or "-", entry.previous or "-",
            "-" if miou is None else f"{miou:.4f}", "-" if gain is None else f"{gain:+.4f}",
        )  # fmt: skip
    console.print(table)
