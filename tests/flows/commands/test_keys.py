"""`segmill keys`: a key is shown once, listed without its text, rotated and revoked."""

from __future__ import annotations

from terminal import run, run_json

from segmill.workspace import Workspace


def test_a_key_is_shown_once_rotated_and_revoked(workspace: Workspace) -> None:
    made = run_json(workspace, "segmill", "keys", "create", "camera-7", "--scope", "segment", "--scope", "metrics")
    assert made["key"].startswith(f"segmill_{made['id']}_")
    assert (made["name"], made["scopes"], made["state"]) == ("camera-7", ["metrics", "segment"], "valid")

    new = run_json(workspace, "segmill", "keys", "rotate", made["id"], "--grace-hours", "1")
    assert new["replaces"] == made["id"] and new["key"] != made["key"]
    assert "is revoked" in run(workspace, "segmill", "keys", "revoke", new["id"])

    listed = run(workspace, "segmill", "keys", "list")
    assert made["key"] not in listed and new["key"] not in listed
    states = {key["id"]: key["state"] for key in run_json(workspace, "segmill", "keys", "list")["keys"]}
    assert states == {made["id"]: "valid", new["id"]: "revoked"}


def test_a_scope_that_there_is_not_is_named(workspace: Workspace) -> None:
    assert "there is no scope 'segmnt'; did you mean 'segment'?" in run(
        workspace, "segmill", "keys", "create", "camera-7", "--scope", "segmnt", code=1
    )
    assert "there is no key; `segmill keys create NAME` makes one" in run(workspace, "segmill", "keys", "list")
