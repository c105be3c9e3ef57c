"""`segmill verify`: what a version's passport says, held against what registry, data and code give again."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import asdict
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WorkspaceOption, open_workspace, out, tell
from segmill.errors import InputError
from segmill.names import visible

if TYPE_CHECKING:
    from segmill.promotion.verify import Check

WORDS = {"agrees": ("agrees", "green"), "differs": ("DIFFERS", "bold red"), "unknown": ("unknown", "yellow")}
COUNTED = ("agrees", "differs", "unknown")


def verify_command(
    version: Annotated[str, typer.Argument(help="NAME@champion or another alias, or NAME/VERSION.")],
    quick: Annotated[bool, typer.Option("--quick", help="Check hashes, signatures and the ledger alone.")] = False,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Recompute what the passport of a registered version says."""
    from flows.environment import ray_address, tracking_uri
    from segmill.cluster.connection import connect
    from segmill.tracking import warm_up_without_pandas
    from tasks.verify import fetch, look_at_hashes, look_at_ledger, recompute

    space, params = open_workspace(workspace)
    uri = tracking_uri(space, params)
    if quick:
        warm_up_without_pandas()
    model, number = resolve(uri, version)
    checks: list[Check] = []
    with tempfile.TemporaryDirectory(prefix="segmill-verify-") as folder:
        subject = fetch(space, uri, model, number, Path(folder) / "subject")
        title = (
            f"version {number} of {model}, {subject.passport.verdict.decision}, passport of {subject.passport.issued}"
        )
        out.print(title, style="bold", highlight=False, markup=False, soft_wrap=True)
        checks += shown(look_at_hashes(subject), out)
        checks += shown(look_at_ledger(space, params, subject), out)
        with nullcontext() if quick else connect(ray_address(params)):
            checks += shown(recompute(space, params, subject) if not quick else iter(()), out)
    counts = {state: sum(check.state == state for check in checks) for state in COUNTED}
    agrees = counts["differs"] == 0
    tell(
        model=model, version=number, agrees=agrees, counts=counts, checks=[asdict(check) for check in checks],
        passport=subject.passport.model_dump(mode="json"),
    )  # fmt: skip
    out.print(conclusion(counts), style="bold green" if agrees else "bold red", highlight=False, soft_wrap=True)
    if not agrees:
        raise typer.Exit(1)


def resolve(uri: str, named: str) -> tuple[str, str]:
    """Return model and number of NAME@ALIAS or NAME/VERSION, with or without ``models:/`` before it."""
    from segmill.promotion import registry

    named = named.removeprefix("models:/")
    model, _, alias = named.rpartition("@")
    if model:
        if found := registry.aliased(uri, model, alias):
            return model, found.version
        raise InputError(f"no version of {model} has the alias {alias}", "`segmill status` shows what there is")
    model, _, number = named.rpartition("/")
    if not (model and number.isdigit()):
        raise InputError(f"'{named}' names no version", "write NAME@champion or NAME/VERSION, as in segmill-brain/3")
    return model, number


def shown(checks: Iterator[Check], console: Console) -> list[Check]:
    """Print each check as it comes, and return all. IoU of classes that agree take one line per model."""
    done = []
    for together, some in groupby(checks, key=_line):
        group = list(some)
        done += group
        first = group[0]
        what, says = (first.what, first.says) if len(group) == 1 else (together[1], f"of {len(group)} classes")
        table = Table(box=None, show_header=False, pad_edge=False, padding=(0, 2, 0, 0))
        table.add_column(width=7)
        table.add_column(width=28)
        table.add_column(ratio=1)
        word, style = WORDS[first.state]
        table.add_row(Text(word, style), Text(visible(what)), Text(visible(says)))
        console.print(table)
    return done


def conclusion(counts: dict[str, int]) -> str:
    """Say in a line what came of all checks."""
    agree, differ, unknown = (counts[state] for state in COUNTED)
    rest = f"; {unknown} can't be recomputed here" if unknown else ""
    if differ:
        return f"{differ} of {agree + differ + unknown} differ{rest}: this is not the thing that the passport describes"
    return f"all {agree} that can be recomputed agree{rest}"


def _line(check: Check) -> tuple[str, str, str]:
    """Return what checks have in common that share a line."""
    before, between, _ = check.what.partition(" of ")
    together = check.state == "agrees" and check.part == "figures" and ", IoU" in check.what
    return (check.part, before, check.state) if together and between else (check.part, check.what, check.says)
