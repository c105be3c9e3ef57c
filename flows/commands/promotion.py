"""`segmill promote`, `rollback`, `approve`, `reject`: what people decide about who serves, each with its reason."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import HERE, WorkspaceOption, open_workspace, say, tell

if TYPE_CHECKING:
    from flows.decisions import Decide
    from segmill.params import Params
    from segmill.workspace import Workspace

Because = Annotated[str, typer.Option("--because", help="The reason, for the ledger.", show_default=False)]


def promote_command(
    version: Annotated[str, typer.Argument(help="The version that is to serve, whatever the gate said.")],
    because: Because,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Make a version the champion over the gate's verdict.

    The ledger records it as such. Where promotion.approval asks for approvals, it waits for them.
    """
    from segmill.promotion.moves import overrule

    space, params = open_workspace(workspace)
    settings = params.promotion
    _decide(
        space,
        params,
        because,
        lambda book, model, decision: overrule(
            book, model, version, decision, approval=settings.approval, days=settings.approval_days
        ),
    )


def rollback_command(
    because: Because,
    to: Annotated[
        str | None, typer.Option("--to", help="A version that served before; without it the one before the champion.")
    ] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Make an earlier champion serve again.

    The next retrain does not undo it: what is rolled back from is not judged again.
    """
    from segmill.promotion.moves import roll_back

    space, params = open_workspace(workspace)
    _decide(space, params, because, lambda book, model, decision: roll_back(book, model, to, decision))


def approve_command(
    because: Because,
    version: Annotated[str | None, typer.Argument(help="The version that waits; without it whichever does.")] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Approve the version that waits for it.

    With the last approval that is needed it becomes the champion. Where two are needed, they come from two keys, and
    neither is the one that made the version.
    """
    from segmill.promotion.keys import signing_key
    from segmill.promotion.moves import approve

    space, params = open_workspace(workspace)
    own = signing_key().public.id
    _decide(space, params, because, lambda book, model, decision: approve(book, model, version, decision, key_id=own))


def reject_command(
    because: Because,
    version: Annotated[str | None, typer.Argument(help="The version that waits; without it whichever does.")] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Reject the version that waits for approval."""
    from segmill.promotion.moves import reject

    space, params = open_workspace(workspace)
    _decide(space, params, because, lambda book, model, decision: reject(book, model, version, decision.because))


def _decide(workspace: Workspace, params: Params, because: str, decide: Decide) -> None:
    from flows.decisions import make

    made = make(workspace, params, because, decide)
    tell(**made.facts())
    for sentence in (made.outcome, *made.noticed):
        say(sentence)
