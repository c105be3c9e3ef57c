"""A version is verified from another checkout of the workspace, with the registry, the ledger and the data's remote."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from ruamel.yaml import YAML
from terminal import BIN, run, terminal

from segmill.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long]


@dataclass(frozen=True)
class Checkout:
    """A second clone: its folder, and the variables that name the first one's registry and ledger."""

    workspace: Workspace
    environment: dict[str, str]

    def verify(self, *options: str, code: int = 0) -> dict[str, Any]:
        """Return what `segmill verify --json` prints."""
        command = [str(BIN / "segmill"), "verify", *options, "--json"]
        done = subprocess.run(
            command, cwd=self.workspace.root, capture_output=True, text=True, env=terminal(self.environment)
        )
        assert done.returncode == code, done.stdout + done.stderr
        found: dict[str, Any] = json.loads(done.stdout)
        return found


@pytest.fixture(scope="module")
def published(
    tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace], servers: dict[str, str]
) -> Workspace:
    """A workspace whose version 2 was compared with version 1; its data are in a remote that others reach."""
    folder = tmp_path_factory.mktemp("published")
    workspace = brain_workspace(folder)
    yaml = YAML()
    params = yaml.load(workspace.params)
    params["data"]["remote"] = str(folder / "remote")
    params["promotion"]["rule"] = "plain"  # which six groups can decide
    yaml.dump(params, workspace.params)
    run(workspace, "segmill", "retrain", servers=servers)
    run(workspace, "segmill", "retrain", "--set", "members.fpn.lr=0.01", servers=servers, code=(0, 3))
    return workspace


@pytest.fixture
def checkout(published: Workspace, servers: dict[str, str], tmp_path: Path) -> Checkout:
    root = tmp_path / "clone"
    subprocess.run(["git", "clone", "-q", str(published.root), str(root)], check=True)
    first = {
        "MLFLOW_TRACKING_URI": f"sqlite:///{published.root / 'mlflow.db'}",
        "SEGMILL_LEDGER_URL": f"sqlite:///{published.root / 'ledger.db'}",
    }
    return Checkout(Workspace.open(root), {**servers, **first})


def test_both_versions_are_verified_from_another_checkout(published: Workspace, checkout: Checkout) -> None:
    for version in ("1", "2"):
        found = checkout.verify(f"segmill-brain/{version}")
        wrong = [check for check in found["checks"] if check["state"] == "differs"]
        assert wrong == [] and found["agrees"] is True
        state = {check["what"]: check["state"] for check in found["checks"]}
        for what in ("files of the version", "split test", "ensemble, mIoU", "member fpn, IoU of csf", "verdict",
                     "settings", "code", "weights of unet", "predictions with the version's own code"):  # fmt: skip
            assert state[what] == "agrees", (what, found["checks"])
    assert set(found) == {"model", "version", "agrees", "counts", "checks", "passport"}, "as docs/json.md lists them"
    assert found["passport"]["verdict"]["compared_with"] == "1"
    assert {check["state"] for check in found["checks"] if check["part"] == "verdict"} <= {"agrees"}
    page = published.page.read_bytes()
    assert found["passport"]["report_sha256"] == hashlib.sha256(page).hexdigest()
    assert not (checkout.workspace.root / "data" / "raw").exists(), "the clone stays as it was"
    assert not list(checkout.workspace.scratch.glob("verify-*"))


def test_data_that_can_not_be_had_are_unknown_and_why(checkout: Checkout) -> None:
    yaml = YAML()
    params = yaml.load(checkout.workspace.params)
    params["data"]["remote"] = "nowhere"
    yaml.dump(params, checkout.workspace.params)
    found = checkout.verify("segmill-brain@champion")
    says = {check["what"]: check["says"] for check in found["checks"] if check["state"] == "unknown"}
    assert "not in the cache and could not be fetched from nowhere" in says["data version"]
    assert says["figures of the ensemble and 2 members"] == "its data version can't be used"
    assert {"verdict"} <= set(says) and found["counts"]["differs"] == 0


def test_an_edited_figure_is_found_at_a_glance(published: Workspace, checkout: Checkout) -> None:
    (stored,) = [
        path
        for path in (published.root / "mlartifacts").rglob("passport.json")
        if json.loads(path.read_text())["version"] == "1"
    ]
    kept = stored.read_text()
    said = json.loads(kept)
    said["figures"]["ensemble"]["miou"]["value"] = 0.99
    try:
        stored.write_text(json.dumps(said))
        shown = run(checkout.workspace, "segmill", "verify", "segmill-brain/1", servers=checkout.environment, code=1)
        assert "DIFFERS" in shown and "signature of the passport" in shown and "recorded 0.9900" in shown
        assert "2 of " in shown.splitlines()[-1]
        quick = checkout.verify("segmill-brain/1", "--quick", code=1)
        assert quick["counts"]["differs"] == 1 and "passport" in quick
    finally:
        stored.write_text(kept)
    assert checkout.verify("models:/segmill-brain/1", "--quick")["agrees"] is True


def test_what_names_no_version_says_how_to_name_one(checkout: Checkout) -> None:
    for named, says in (("champion", "NAME@champion or NAME/VERSION"), ("segmill-brain@nobody", "alias nobody"),
                        ("segmill-brain/99", "has no version 99")):  # fmt: skip
        assert says in run(checkout.workspace, "segmill", "verify", named, servers=checkout.environment, code=1)
