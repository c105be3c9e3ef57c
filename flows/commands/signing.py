"""The `segmill signing` commands: your key, whose signatures the workspace believes, and versions of before."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.options import HERE, WorkspaceOption, open_workspace, say, tell, with_json
from segmill.errors import InputError
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.promotion.keys import PublicKey

signing_app = typer.Typer(help="Keys that sign versions and the ledger, and who is trusted.", no_args_is_help=True)


@signing_app.command()
@with_json
def setup(workspace: WorkspaceOption = HERE) -> None:
    """Make your key where there is none, and list it where the workspace lists nobody yet."""
    from segmill.promotion.keys import trusted_keys
    from segmill.promotion.signers import own_key, set_up, unlisted, worth

    root = Workspace.open(workspace).root
    trusted = trusted_keys(root)
    if trusted.keys and (fault := unlisted(own_key(), trusted)):
        say(f"{worth(own_key())}; {fault.what}; {fault.fix}")
    else:
        say(set_up(root))
    key = own_key().public
    tell(key=key.id, line=key.line, listed=key.id in {one.id for one in trusted_keys(root).keys})


@signing_app.command()
@with_json
def trust(
    key: Annotated[str, typer.Argument(help="A public key (ssh-ed25519 AAAA... NAME), or a file of such lines.")],
    name: Annotated[
        str | None, typer.Option(help="Whose it is, for messages; what the line says where left out.")
    ] = None,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Believe what somebody signs: add a public key to the workspace's trusted_keys."""
    from segmill.promotion.keys import TRUSTED, PublicKey, parse_trusted, trusted_keys
    from segmill.promotion.keys import trust as add

    root = Workspace.open(workspace).root
    path = Path(key)
    found = list(parse_trusted(path.read_text(), key) if _is_file(path) else parse_trusted(key, "what you named"))
    if not found:
        raise InputError(
            f"{key} holds no public key", "write `ssh-ed25519 KEY NAME`, as `segmill signing setup` says it"
        )
    known = {one.id for one in trusted_keys(root).keys}
    new = [PublicKey(name or one.name, one.line) for one in found if one.id not in known]
    for one in new:
        add(root, one)
        say(f"{one.name} ({one.id}) is trusted now")
    say(f"next: git add {TRUSTED} && git commit, for the others" if new else "trusted already")
    tell(added=[_facts(one) for one in new], trusted_keys=root / TRUSTED)


@signing_app.command("list")
@with_json
def list_keys(workspace: WorkspaceOption = HERE) -> None:
    """List whose signatures the workspace believes."""
    from segmill.promotion.keys import signing_key, trusted_keys

    trusted = trusted_keys(Workspace.open(workspace).root)
    try:
        own = signing_key().public.id
    except InputError:
        own = None
    tell(keys=[_facts(key) for key in trusted.keys], own=own, source=trusted.source)
    for key in trusted.keys:
        say(f"{key.id}  {key.name}{'  (your key)' if key.id == own else ''}")
    if not trusted.keys:
        say(f"{trusted.source} lists no key; `segmill signing setup` lists yours")
    if own not in {None, *(key.id for key in trusted.keys)}:
        say(f"your key {own} is not among them")


@signing_app.command()
@with_json
def sign(
    version: Annotated[str, typer.Argument(help="Number or alias of a version that nobody signed.")],
    workspace: WorkspaceOption = HERE,
) -> None:
    """Sign a version of an earlier segmill as it is now. That is worth what you know of where it comes from."""
    from flows.environment import tracking_uri
    from segmill.promotion import registry
    from segmill.promotion.keys import signing_key, trusted_keys
    from segmill.promotion.signers import ensure_signer
    from segmill.promotion.versions import sign_registered
    from tasks.register import model_name

    space, params = open_workspace(workspace)
    if line := ensure_signer(space.root):
        say(line)
    uri, model, key = tracking_uri(space, params), model_name(space, params), signing_key()
    number = registry.version_called(uri, model, version)
    manifest, signed = sign_registered(uri, model, number, key, trusted_keys(space.root))
    tell(model=model, version=number, manifest_sha256=manifest.sha256, key=manifest.signer.id, signed=signed)
    if not signed:
        say(f"version {number} of {model} is signed already, by {manifest.signer.name}")
        return
    size_mb = sum(length for _, length in manifest.files.values()) / 1e6
    say(
        f"version {number} of {model} is signed by you as it is now ({len(manifest.files)} files, {size_mb:.1f} MB): "
        "that is worth what you know of where it comes from, since nobody can tell what was done to it before"
    )


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError:  # a key is too long for a name
        return False


def _facts(key: PublicKey) -> dict[str, str]:
    return {"id": key.id, "name": key.name, "line": key.line}
