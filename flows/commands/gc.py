"""`segmill gc`: what the block `keep:` does not keep is deleted, from the workspace and from every store."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WaitOption, WorkspaceOption, open_workspace, out, say, tell
from segmill.names import visible

if TYPE_CHECKING:
    from tasks.collect import Collected

STORES = {
    "registry": "versions in the registry",
    "runs": "runs of MLflow",
    "dvc_cache": "DVC's cache",
    "remote": "DVC's remote",
    "scratch": "scratch of the workspace",
    "temporary": "temporary folders",
    "ray": "sessions of Ray",
    "prefect": "runs of Prefect",
}
MOST_SHOWN = 8  # removals of one store


def gc_command(
    workspace: WorkspaceOption = HERE,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would be deleted; delete nothing.")] = False,
    wait: WaitOption = False,
) -> None:
    """Delete what `keep` in params.yaml does not keep.

    The champion, the versions that a rollback goes back to, the one that waits for approval and every data version that
    git names always stay. docs/retention.md has the whole list.
    """
    from flows.prefect_server import start_server
    from segmill.retention.plan import DAY_S
    from tasks.collect import collect
    from tasks.prefect_history import has_old_runs

    space, params = open_workspace(workspace)
    days = params.keep.prefect_days
    if days is not None and has_old_runs(space, time.time() - days * DAY_S):
        start_server()
    done = collect(space, params, dry_run=dry_run, wait=wait, say=say)
    tell(**done.facts())
    _show(done)


def _show(done: Collected) -> None:
    from segmill.retention.plan import by_store

    would = "would be " if done.dry_run else ""
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for column in (f"{would}deleted".strip(), "", "MiB"):
        table.add_column(column, justify="right" if column == "MiB" else "left", overflow="fold")
    for store, (_, size) in by_store(done.removals).items():
        some = [one for one in done.removals if one.store == store]
        table.add_row(STORES[store], "", _mib(size))
        for one in some[:MOST_SHOWN]:
            files = f"{len(one.files):,} {one.what}" if one.store in ("dvc_cache", "remote") else one.what
            table.add_row("", Text(f"{visible(files)}: {visible(one.why)}", "dim"), "")
        if len(some) > MOST_SHOWN:
            table.add_row("", Text(f"and {len(some) - MOST_SHOWN} more (--json names all)", "dim"), "")
    if done.removals:
        out.print(table)
    for version, why in done.kept.items():
        say(f"version {version} stays: {why}")
    for note in done.notes:
        say(note)
    if not done.removals:
        say("there is nothing to delete")
        return
    freed = f"{'would free' if done.dry_run else 'freed'} {_mib(done.freed_bytes)} MiB"
    say(f"{len(done.removals):,} things {would}deleted, which {freed}")


def _mib(size_bytes: int) -> str:
    return f"{size_bytes / 2**20:,.1f}"
