"""The `segmill ledger` commands: check every row against all that keeps the last one; make this ledger the model's."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, open_workspace, say, tell, with_json
from segmill.errors import InputError
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params

ledger_app = typer.Typer(help="The ledger of promotions: verify it, adopt it.", no_args_is_help=True)


@ledger_app.command()
@with_json
def verify(workspace: WorkspaceOption = HERE) -> None:
    """Check each row's hash and signature, and the last row against MLflow's tags, the workspace's file and git.

    Exit code 1 where something was changed, removed, inserted, reordered, or is older than what is kept elsewhere.
    """
    from flows.environment import tracking_uri
    from segmill.promotion.heads import examine
    from segmill.promotion.ledger import workspace_ledger
    from tasks.register import model_name

    space, params = open_workspace(workspace)
    ledger, model = workspace_ledger(space.root, params.promotion.ledger_url), model_name(space, params)
    findings = examine(tracking_uri(space, params), space.root, ledger, model)
    rows = ledger.rows(model)
    tell(ledger=ledger.address, model=model, rows=len(rows), whole=not findings, findings=findings)
    for finding in findings:
        say(finding)
    if findings:
        raise typer.Exit(1)
    earlier = sum(row.taken_over for row in rows)
    unsigned = f"; the first {earlier} are of an earlier release, which signed none" if earlier else ""
    say(f"the ledger of {model} at {ledger.address} is whole: {len(rows)} rows{unsigned}")


@ledger_app.command()
@with_json
def adopt(
    because: Annotated[str, typer.Option("--because", help="Why; it is kept in the ledger.")],
    workspace: WorkspaceOption = HERE,
    wait: WaitOption = False,
) -> None:
    """Make this workspace's ledger the one that records the model from now on; who serves stays as it is.

    For a ledger restored from a backup, and for a model that another ledger recorded.
    """
    with alone(Workspace.open(workspace), "segmill ledger adopt", wait=wait):
        _adopt(*open_workspace(workspace), because)


def _adopt(space: Workspace, params: Params, because: str) -> None:
    from flows.environment import tracking_uri
    from segmill.data.versioning.repository import commits_runs
    from segmill.promotion import chain, heads, reconcile
    from segmill.promotion.ledger import workspace_ledger
    from segmill.promotion.signers import ensure_signer
    from tasks.register import model_name

    if not because.strip():
        raise InputError("nothing was given as the reason", 'write --because "WHY"')
    if said := ensure_signer(space.root):
        say(said)
    ledger, model = workspace_ledger(space.root, params.promotion.ledger_url), model_name(space, params)
    row = reconcile.adopt(tracking_uri(space, params), ledger, model, because)
    commit = commits_runs(space.root) if params.git.commit is None else params.git.commit
    heads.write_file(space.root, row, ledger.named(), commit=commit)
    if any(
        chain.contradiction(one, ledger.named(), ledger.rows(model)) for one in heads.in_workspace(space.root, model)
    ):
        say(f"git still has the last row of before; commit {heads.FILE}, else nobody is promoted")
    tell(ledger=ledger.address, model=model, row=row.number, champion=row.champion, says=row.reasons)
    for reason in row.reasons:
        say(reason)
