"""`segmill status` and `segmill history`: data version, what is stale and why, last run, champion and challenger."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field, replace
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WorkspaceOption, open_workspace, out, tell
from flows.interrupted import InterruptedRun, interrupted
from flows.standing import Standing, registry_asked
from segmill import progress
from segmill.names import visible
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writer

if TYPE_CHECKING:
    from collections.abc import Sequence

    from flows.schedule_state import ScheduleState
    from segmill.params import Params
    from segmill.promotion.rows import LedgerRow
    from tasks.stage import Outcome


def status_command(workspace: WorkspaceOption = HERE) -> None:
    """Show what is stale and why, and which models stand."""
    from flows.leftovers import send_unsent
    from flows.notices import notices_state
    from segmill.stores import store_sizes
    from tasks.stage import survey

    space, params = open_workspace(workspace)
    unsent = send_unsent(space, params)
    with registry_asked(space, params) as registry:
        found = look(space, params, survey(space, params), registry())
    if unsent:
        late = f"MLflow did not answer, and {unsent} updates of its runs wait: a later command sends them"
        found = replace(found, noticed=[*found.noticed, late])
    notices = notices_state(space, params)
    found = replace(found, notices=notices, bytes=store_sizes(space, params), schedule=_schedule(space, params))
    if not tell(**found.facts()):
        show(found, out)


def _schedule(workspace: Workspace, params: Params) -> ScheduleState | None:
    """Ask Prefect's server where params.yaml has a schedule."""
    if "schedule" not in params.model_fields_set or not (workspace.root / params.data.path / "dataset.yaml").is_file():
        return None
    from flows.schedule_state import schedule_state
    from tasks.register import model_name

    return schedule_state(workspace, params, model_name(workspace, params))


def history_command(workspace: WorkspaceOption = HERE) -> None:
    """List every verdict and move of the champion, and why."""
    space, params = open_workspace(workspace)
    rows = ledger_rows(space, params)
    if not tell([asdict(row) for row in rows]):
        show_history(rows, out)


def ledger_rows(workspace: Workspace, params: Params) -> list[LedgerRow]:
    """Return the rows of every model in the ledger, oldest first."""
    from tasks.promote import opened_ledger

    return opened_ledger(workspace, params).rows()


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
    gate: dict[str, Any] | None = None
    waiting: dict[str, Any] | None = None
    noticed: list[str] = field(default_factory=list)
    notices: dict[str, Any] = field(default_factory=dict)
    bytes: dict[str, int] = field(default_factory=dict)
    schedule: ScheduleState | None = None

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
            "gate": self.gate,
            "waiting": self.waiting,
            "noticed": self.noticed,
            "notices": self.notices,
            "bytes": self.bytes,
            "schedule": self.schedule.facts() if self.schedule else None,
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
        gate=standing.gate,
        waiting=standing.waiting,
        noticed=standing.noticed,
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
    if status.gate:
        console.print(f"[bold]gate[/]          {gate_line(status.gate)}", highlight=False, soft_wrap=True)
    if status.waiting:
        console.print(f"[bold]approval[/]      {_waiting_line(status.waiting)}", highlight=False, soft_wrap=True)
    for sentence in status.noticed:
        console.print(f"[bold]ledger[/]        {escape(sentence)}", style="yellow", highlight=False, soft_wrap=True)
    if status.notices.get("waiting"):
        console.print(f"[bold]notices[/]       {_notices_line(status.notices)}", highlight=False, soft_wrap=True)
    if status.schedule:
        _show_schedule(status.schedule, console)
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


def gate_line(gate: dict[str, Any]) -> str:
    """Say what is left of the judgements of a test set, and whether the next one can be decided."""
    needed, groups = gate["groups_needed"], gate["groups"]
    if gate["rule"] == "plain":
        enough = f"{groups} test groups, of which it takes {needed}"
        return f"plain: judges one night at a time and promises nothing over many nights ({enough})"
    left = f"test set {gate['set_number']}: {gate['judgements_left']} of {gate['judgements']} judgements left"
    passes = f"{gate['passes']} PASS{'' if gate['passes'] == 1 else 'es'} so far"
    if needed is not None and groups >= needed:
        return (
            f"{left}, {passes}; the next asks for p below {gate['level']:.1g}, {needed} of {groups} groups can show it"
        )
    short = f"the next takes {needed} groups and there are {groups}; " if needed is not None else ""
    return f"{left}, {passes}; {short}{gate['renewal']}"


def _waiting_line(waiting: dict[str, Any]) -> str:
    missing = waiting["approvals_missing"]
    until = datetime.fromisoformat(str(waiting["expires"])).astimezone().strftime("%Y-%m-%d %H:%M %Z")
    return (
        f"version {waiting['version']} waits for {missing} approval{'' if missing == 1 else 's'} until {until}: "
        "`segmill approve`, `segmill reject`"
    )


def _show_schedule(schedule: ScheduleState, console: Console) -> None:
    if schedule.error:
        says = f"{schedule.schedule}; {schedule.error}"
    elif not schedule.deployed:
        says = f"{schedule.schedule}; not deployed: `segmill deploy`"
    else:
        coming = f"next run {schedule.next}" if schedule.next else "no run is scheduled"
        says = f"{schedule.schedule}, {'paused' if schedule.paused else coming}"
    console.print(f"[bold]schedule[/]      {escape(says)}", highlight=False, soft_wrap=True)
    if schedule.late:
        runs = f"{schedule.late.runs} run{'' if schedule.late.runs == 1 else 's'}"
        says = f"{runs} since {schedule.late.since}: {schedule.late.why}"
        console.print(f"[bold]late[/]          {escape(says)}", style="yellow", highlight=False, soft_wrap=True)
    for run in [*schedule.running, *schedule.last][:3]:
        says = f"{run['name']}: {run['state']}, due {run['due']}"
        said = f", {visible(run['message'], 200)}" if run["message"] else ""
        console.print(f"              {escape(says + said)}", highlight=False, soft_wrap=True)


def _notices_line(notices: dict[str, Any]) -> str:
    error = f" ({escape(str(notices['last_error']))})" if notices.get("last_error") else ""
    return f"{notices['waiting']} to be sent{error}"


def stores_line(sizes: dict[str, int]) -> str:
    """Say what takes how much of the disk: all, then the stores that take something, the largest first."""
    parts = sorted(((size, name) for name, size in sizes.items() if name != "total"), reverse=True)
    said = ", ".join(f"{name.replace('_', ' ')} {mib(size)}" for size, name in parts if size >= 2**19)
    return f"{mib(sizes['total'])} MiB{f': {said}' if said else ''}"


def mib(size: int) -> str:
    """Write bytes as MiB, with a decimal below 10."""
    return f"{size / 2**20:,.{1 if size < 10 * 2**20 else 0}f}"


def show_history(rows: Sequence[LedgerRow], console: Console) -> None:
    """Print the ledger, oldest first: a line of 80 columns for each row, and below it who decided and why."""
    if not rows:
        console.print("no verdict yet: `segmill retrain` brings the first")
        return
    for model in dict.fromkeys(row.model for row in rows):
        console.print(f"[bold]{escape(model)}[/], the latest last", highlight=False)
        table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
        for heading in ("#", "time (UTC)", "version", "action", "verdict", "against", "gain", "alpha"):
            table.add_column(heading, no_wrap=True)
        notes: dict[int, str] = {}
        for row in [row for row in rows if row.model == model]:
            gain, spent = row.facts.get("gain"), row.facts.get("alpha_spent")
            table.add_row(
                str(row.number), row.time[2:16].replace("T", " "), row.version, row.action, row.decision or "-",
                row.previous or "-", "-" if gain is None else f"{gain:+.4f}", f"{spent:.1g}" if spent else "-",
            )  # fmt: skip
            if row.because or row.doubt:
                notes[row.number] = _note(row)
        console.print(table)
        for number, note in notes.items():
            console.print(f"  {number}: {note}", highlight=False, markup=False, soft_wrap=True)


def _note(row: LedgerRow) -> str:
    """Say who decided and why, or why a row is not to be believed."""
    if row.doubt:
        return f"NOT TO BE BELIEVED: {row.doubt}"
    who = row.actor.get("git") or row.actor.get("user") or "somebody"
    return f"{who}, who says so of themselves and signed with key {row.key_id}: {row.because}"
