"""`segmill signing`: set up, trust, list, and sign what an earlier segmill registered."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from judging import judging
from registering import register_unsigned
from typer.testing import CliRunner

from flows.commands.cli import app
from flows.environment import tracking_uri
from segmill import tracking
from segmill.errors import InputError
from segmill.params import read_params
from segmill.promotion import registry
from segmill.promotion.champion import refuse_unsigned_champion
from segmill.promotion.keys import SignatureError, make_signing_key, trusted_keys
from segmill.promotion.signers import ensure_signer
from segmill.workspace import Workspace

__all__ = ["judging"]


def signing(*arguments: str, root: Path) -> str:
    done = CliRunner().invoke(app, ["signing", *arguments, "-w", str(root)])
    if done.exception and not isinstance(done.exception, SystemExit):
        raise done.exception
    return done.output


def asked(*arguments: str, root: Path) -> dict[str, Any]:
    done = CliRunner().invoke(app, ["signing", *arguments, "--json", "-w", str(root)])
    assert done.exit_code == 0, done.output
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def test_a_colleague_is_trusted_after_somebody_listed_says_so(
    workspace: Workspace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root, own = workspace.root, make_signing_key().public
    assert asked("setup", root=root) == {"key": own.id, "line": own.line, "listed": True}
    assert "listed in trusted_keys already" in signing("setup", root=root)
    with monkeypatch.context() as at_the_colleagues:
        at_the_colleagues.setenv("XDG_CONFIG_HOME", str(tmp_path / "colleague"))
        said = signing("setup", root=root)
        new = make_signing_key().public
        assert f'`segmill signing trust "{new.line}" --name' in said and "is not listed" in said
        assert len(trusted_keys(root).keys) == 1, "nobody lists themselves beside others"
        assert asked("setup", root=root)["listed"] is False
        assert f"your key {new.id} is not among them" in signing("list", root=root)
    assert "bea (" in signing("trust", new.line, "--name", "bea", root=root)
    assert signing("trust", new.line, "--name", "bea", root=root) == "trusted already\n"
    listed = asked("list", root=root)
    assert listed["own"] == own.id and [key["name"] for key in listed["keys"]][1:] == ["bea"]
    with monkeypatch.context() as at_the_colleagues:
        at_the_colleagues.setenv("XDG_CONFIG_HOME", str(tmp_path / "colleague"))
        assert ensure_signer(root) is None


def test_a_file_of_keys_is_taken_and_anything_else_refused(workspace: Workspace, tmp_path: Path) -> None:
    (own,) = trusted_keys(workspace.root).keys
    lines = tmp_path / "keys.pub"
    lines.write_text(f"# ours\n{own.line} me\n")
    added = asked("trust", str(lines), root=workspace.root)
    assert added == {"added": [], "trusted_keys": str(workspace.root / "trusted_keys")}
    with pytest.raises(InputError, match="what you named, line 1 is no Ed25519 key; write `ssh-ed25519 KEY NAME`"):
        signing("trust", "bea", root=workspace.root)
    lines.write_text("# nobody\n")
    with pytest.raises(InputError, match="holds no public key"):
        signing("trust", str(lines), root=workspace.root)


@pytest.mark.long
def test_a_version_of_before_is_signed_as_it_is(workspace: Workspace, judging: Path, tmp_path: Path) -> None:
    """The champion of an earlier segmill stops a retrain at its start, with the command that helps."""
    params, model = read_params(workspace.params), "segmill-street"
    uri = tracking_uri(workspace, params)
    refuse_unsigned_champion(workspace, params, model)
    assert not (workspace.root / "mlflow.db").exists(), "asking makes no database"
    run_id = tracking.start_run(uri, model, "before", artifacts=str(tmp_path / "artifacts"))
    version = register_unsigned(uri, run_id, judging / "ensemble", model, tmp_path)
    registry.set_alias(uri, model, registry.CHAMPION, version)
    with pytest.raises(SignatureError, match=r"version 1 of .* is not signed; `segmill signing sign 1` signs it as"):
        refuse_unsigned_champion(workspace, params, model)
    assert "worth what you know of where it comes from" in signing("sign", "champion", root=workspace.root)
    refuse_unsigned_champion(workspace, params, model)
    again = asked("sign", "1", root=workspace.root)
    assert (again["model"], again["version"], again["signed"]) == (model, "1", False)
    with pytest.raises(InputError, match="has no version 7"):
        signing("sign", "7", root=workspace.root)
    with pytest.raises(InputError, match="has no version called bob"):
        signing("sign", "bob", root=workspace.root)
