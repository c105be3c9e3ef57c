"""What is recorded is what ran, whatever was added or edited since the run began. Real DVC and MLflow, no training."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mlflow import MlflowClient
from mlflow.artifacts import download_artifacts

from segmill import tracking
from segmill.data.ingest.builtin import write_street
from segmill.data.packing.packed import PackedSplit
from segmill.data.versioning.repository import commit_files, git_commit
from segmill.data.versioning.versions import bring_data, recorded_version
from segmill.params import read_params, read_params_and_text
from segmill.params_change import set_params
from segmill.promotion.golden import read_golden
from segmill.workspace import Workspace
from tasks.register import register, run_inputs
from tasks.stage import bring_up_to_date
from tasks.version import packed_version, version

SCORES = {"miou": 0.5, "mdice": 0.6, "accuracy": 0.7, "iou": {"road": 0.5}, "dice": {"road": 0.6}}


@pytest.mark.long
@pytest.mark.slow
def test_data_added_and_settings_edited_meanwhile_are_not_what_a_version_was_made_from(
    workspace: Workspace, judging: Path, tmp_path: Path
) -> None:
    opens = "postgresql://anna:p@ss/w0rd@127.0.0.1:9/db"
    set_params(workspace.params, [f"mlflow.tracking_uri={opens}", f"promotion.ledger_url={opens}"])
    params, text = read_params_and_text(workspace.params)
    first = version(workspace, params)
    inputs = run_inputs(workspace, params, text)
    for name in ("fingerprint", "validate", "prepare"):
        bring_up_to_date(workspace, name, params)
    shutil.copytree(judging / "ensemble", workspace.ensemble)
    shutil.copytree(judging / "members", workspace.members)
    workspace.reports.mkdir()
    members = sorted(path.name for path in workspace.members.iterdir())
    metrics = {"classes": ["road"], "ensemble": SCORES, "members": dict.fromkeys(members, SCORES)}
    workspace.metrics.write_text(json.dumps(metrics))
    test = PackedSplit(workspace.packed / "test")
    examples = {str(index): np.zeros(test.shape(index), np.uint8) for index in (2, 0, 1)}
    np.savez(workspace.reports / "examples.npz", allow_pickle=False, **examples)
    commit = git_commit(workspace.root)

    write_street(workspace.root / "data" / "raw", count=90, size=(64, 64), seed=0)
    second = bring_data(workspace.root, "data/raw", None)
    set_params(workspace.params, ["train.epochs=77", "promotion.floor_miou=0.99"])
    workspace.pipeline.write_text(workspace.pipeline.read_text() + "# edited\n")
    commit_files(workspace.root, "another commit")

    uri = f"sqlite:///{tmp_path / 'mlflow.db'}"
    with tracking.open_run(
        uri, inputs.model, "run", members, tmp_path / "unsent", artifacts=str(tmp_path / "artifacts")
    ) as run:
        registered = register(workspace, params, run, [], inputs)
    recorded = recorded_version(workspace.root, "data/raw")
    assert recorded is not None and recorded.md5 == second.md5 != first.md5
    tags = MlflowClient(uri, uri).get_model_version(registered.model, registered.version).tags
    assert tags["data_version"] == packed_version(workspace, read_params(workspace.params)) == first.md5
    shown = text.replace("anna:p@ss/w0rd@", "")
    assert tags["params_sha256"] == hashlib.sha256(shown.encode()).hexdigest()
    assert tags["git_commit"].removesuffix("-dirty") == commit.removesuffix("-dirty"), "a commit would undo the other"
    folder = Path(download_artifacts(run_id=run.id, artifact_path="pipeline", tracking_uri=uri))
    assert (folder / "params.yaml").read_text() == shown != workspace.params.read_text()
    stored = [Path(uri.removeprefix("sqlite:///")), *(tmp_path / "artifacts").rglob("*.*")]
    assert not [path for path in stored if path.is_file() and b"w0rd" in path.read_bytes()], "nowhere in MLflow"
    golden = read_golden(next(path.parent for path in stored if path.name == "golden.npz"))
    assert [(image == test.image(index)).all() for index, (image, _) in enumerate(golden)] == [True, True]
    assert "# edited" not in (folder / "dvc.yaml").read_text()
    assert (folder / "dvc.lock").read_bytes() == (workspace.root / "dvc.lock").read_bytes()
    assert MlflowClient(uri, uri).get_run(run.id).data.params["promotion.floor_miou"] == "0.5"
