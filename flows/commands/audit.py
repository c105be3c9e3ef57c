"""`segmill audit`: what a label audit found, in the terminal; the page and the list have all of it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, members_of, open_workspace, out, say, tell
from segmill.evaluation.audit_job import AuditResult
from segmill.names import visible
from segmill.workspace import Workspace


def audit_command(
    workspace: WorkspaceOption = HERE,
    to: Annotated[
        Path | None, typer.Option(help="Folder for the review page and the list; audit/ of the workspace.")
    ] = None,
    top: Annotated[int, typer.Option(help="Samples drawn on the page.", min=1, max=500)] = 50,
    folds: Annotated[
        int, typer.Option(help="Also audit train, by this many models that each train without a part of it.", min=0)
    ] = 0,
    member: Annotated[
        str | None,
        typer.Option(help="The member of params.yaml that is trained for it; the smallest.", autocompletion=members_of),
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Its epochs for it; half of its own.", min=1)] = None,
    wait: WaitOption = False,
) -> None:
    """Rank labels by how much held-out predictions contradict them."""
    from flows.audit import audit, fold_training

    with alone(Workspace.open(workspace), "segmill audit", wait=wait):
        space, params = open_workspace(workspace)
        training = fold_training(space, params, folds, member, epochs)
        if training:
            say(
                f"train: {training.folds} models of {training.member}, {training.epochs} epochs each "
                f"({training.own_epochs} in a retraining); each judges the part it was trained without"
            )
        found = audit(space, params, to or space.root / "audit", top, out, training)
    tell(**asdict(found))
    show(found, out)


def show(found: AuditResult, console: Console) -> None:
    """Print what an audit found: how many samples were examined, the first rows, the paths."""

    def line(text: str, style: str = "") -> None:
        console.print(text, style=style, markup=False, highlight=False, soft_wrap=True)

    examined = ", ".join(f"{count} {split}" for split, count in found.samples.items())
    line(f"examined {examined} samples: {found.suspicious} are suspicious")
    if "train" not in found.samples:
        line("train was not examined, since the models learned its labels; --folds 3 trains models that did not", "dim")
    if found.unknown:
        unknown = ", ".join(map(visible, found.unknown))
        line(f"a model hardly knows {unknown}: objects of these classes that are missing are not found", "yellow")
    if found.first:
        console.print(_table(found.first))
    for path in (found.page, found.table):
        line(str(path))


def _table(rows: list[dict[str, Any]]) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for title in ("#", "sample", "split", "labelled", "predicted"):
        table.add_column(title, overflow="fold")
    for title in ("px", "confidence", "regions", "score"):
        table.add_column(title, justify="right")
    for row in rows:
        cells = (
            str(row["rank"]), row["sample"], row["split"], row["given"], row["suggested"], str(row["pixels"]),
            f"{row['confidence']:.2f}", str(row["regions"]), f"{row['sample_score']:.2f}",
        )  # fmt: skip
        table.add_row(*(Text(visible(cell)) for cell in cells))
    return table
