"""The `segmill keys` commands: API keys of the service, shown once, kept as hashes in the ledger's database."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import HERE, WorkspaceOption, open_workspace, say, tell, with_json

if TYPE_CHECKING:
    from segmill.serving.keys import ApiKey, ApiKeys, Scope

keys_app = typer.Typer(help="API keys: who may ask the served model.", no_args_is_help=True)

KeyArgument = Annotated[str, typer.Argument(help="The key's id, as `segmill keys list` shows it.")]
DAYS = 90.0


@keys_app.command()
@with_json
def create(
    name: Annotated[str, typer.Argument(help="Who uses it, for the list and the audit log.")],
    scope: Annotated[
        list[str] | None,
        typer.Option("--scope", "-s", help="segment (where left out), metrics or admin; repeat for more."),
    ] = None,
    days: Annotated[float, typer.Option(min=0, help="Days until it expires; 0: never.")] = DAYS,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Make a key and show it, this once."""
    from segmill.serving.keys import ApiKeys
    from segmill.serving.tables import make_service_tables

    url = _url(workspace)
    make_service_tables(url)  # the service may have no right to
    keys = ApiKeys(url)
    _show(*keys.create(name, _scopes(scope or ["segment"]), timedelta(days=days) if days else None))


@keys_app.command("list")
@with_json
def list_keys(workspace: WorkspaceOption = HERE) -> None:
    """List every key there ever was, and what became of it."""
    keys = _keys(workspace).all()
    tell(keys=[_facts(key) for key in keys])
    for key in keys:
        until = f", until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else ""
        replaces = f", in place of {key.replaces}" if key.replaces else ""
        say(f"{key.id}  {key.name}  {' '.join(sorted(key.scopes))}  {key.state()}{until}{replaces}")
    if not keys:
        say("there is no key; `segmill keys create NAME` makes one")


@keys_app.command()
@with_json
def rotate(
    key: KeyArgument,
    grace_hours: Annotated[float, typer.Option(min=0, help="Hours for which the old one is still good.")] = 24.0,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Make a key that takes the place of another, with the same name, scopes and lifetime, and show it, this once."""
    made, text = _keys(workspace).rotate(key, timedelta(hours=grace_hours))
    _show(made, text)
    say(f"{key} is good for {grace_hours:g} hours more at most")


@keys_app.command()
@with_json
def revoke(key: KeyArgument, workspace: WorkspaceOption = HERE) -> None:
    """Let a key be good for nothing any more; every replica of the service knows within 5 s."""
    revoked = _keys(workspace).revoke(key)
    tell(**_facts(revoked))
    say(f"{revoked.id} of {revoked.name} is revoked")


def _keys(workspace: Path) -> ApiKeys:
    from segmill.serving.keys import ApiKeys

    return ApiKeys(_url(workspace))


def _url(workspace: Path) -> str:
    from segmill.promotion.ledger_url import ledger_url

    space, params = open_workspace(workspace)
    return ledger_url(space.root, params.promotion.ledger_url)


def _scopes(words: list[str]) -> list[Scope]:
    from segmill.errors import InputError, near_miss
    from segmill.serving.keys import Scope

    for word in words:
        if word not in list(Scope):
            raise InputError(
                f"there is no scope {word!r}{near_miss(word, list(Scope))}", f"name some of {', '.join(Scope)}"
            )
    return [Scope(word) for word in words]


def _show(key: ApiKey, text: str) -> None:
    tell(**_facts(key), key=text)
    until = f"until {key.expires:%Y-%m-%d %H:%M} UTC" if key.expires else "without end"
    say(f"key {key.id} of {key.name} is good for {', '.join(sorted(key.scopes))}, {until}")
    say(text)
    say("keep it now: it is shown this once, and only its hash is kept")


def _facts(key: ApiKey) -> dict[str, object]:
    return {
        "id": key.id, "name": key.name, "scopes": sorted(key.scopes), "state": key.state(),
        "created": _said(key.created), "expires": _said(key.expires), "revoked": _said(key.revoked),
        "replaces": key.replaces or None,
    }  # fmt: skip


def _said(time: datetime | None) -> str | None:
    return time.astimezone(UTC).isoformat(timespec="seconds") if time else None
