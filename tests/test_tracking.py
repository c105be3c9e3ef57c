"""MLflow runs with a real SQLite store: nesting, curves, names, and a server that is not there."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from mlflow import MlflowClient

from segmill import tracking
from segmill.errors import InfrastructureError


@pytest.fixture(scope="module")
def uri(tmp_path_factory: pytest.TempPathFactory) -> str:
    return f"sqlite:///{tmp_path_factory.mktemp('mlflow')}/mlflow.db"


@pytest.fixture
def run(uri: str, tmp_path: Path) -> str:
    return tracking.start_run(uri, "brain", "retrain", tags={"data_version": "v1"}, artifacts=str(tmp_path / "files"))


def test_a_child_is_shown_under_its_parent(uri: str, run: str) -> None:
    child = tracking.start_run(uri, "brain", "lite0-unet", parent=run)
    tracking.finish(uri, child, "FAILED")
    client = MlflowClient(uri)
    data, info = client.get_run(child).data, client.get_run(child).info
    assert data.tags["mlflow.parentRunId"] == run and info.run_name == "lite0-unet" and info.status == "FAILED"
    assert client.get_run(run).data.tags["data_version"] == "v1"
    assert info.experiment_id == client.get_run(run).info.experiment_id


def test_curves_keep_their_epochs_and_leave_gaps(uri: str, run: str) -> None:
    rows = [{"epoch": "1", "loss": "1.5", "val_miou": ""}, {"epoch": "2", "loss": 1.0, "val_miou": 0.25}]
    tracking.log_curves(uri, run, rows)
    client = MlflowClient(uri)
    assert [(m.step, m.value) for m in client.get_metric_history(run, "loss")] == [(1, 1.5), (2, 1.0)]
    assert [(m.step, m.value) for m in client.get_metric_history(run, "val_miou")] == [(2, 0.25)]
    assert not client.get_metric_history(run, "epoch")


def test_more_values_than_one_request_holds(uri: str, run: str) -> None:
    tracking.log_curves(uri, run, [{"epoch": step, "a": step, "b": -step} for step in range(700)])
    assert len(MlflowClient(uri).get_metric_history(run, "b")) == 700
    tracking.log_params(uri, run, {"many": {f"p{index}": index for index in range(150)}})
    assert len(MlflowClient(uri).get_run(run).data.params) == 150


def test_names_that_mlflow_refuses_and_absent_classes(uri: str, run: str) -> None:
    tracking.log_metrics(uri, run, {"iou/cars & vans (all)": 0.5, "iou/none": None, "iou/nan": float("nan")})
    assert MlflowClient(uri).get_run(run).data.metrics == {"iou/cars _ vans _all_": 0.5}


def test_nested_parameters_get_dotted_names(uri: str, run: str) -> None:
    tracking.log_params(uri, run, {"train": {"epochs": 2, "ema": {"decay": 0.9}}, "name": "http://u:p@s/s@x"})
    params = MlflowClient(uri).get_run(run).data.params
    assert params == {"train.epochs": "2", "train.ema.decay": "0.9", "name": "http://x"}, "without a password"


def test_files_and_folders_go_where_the_experiment_says(uri: str, run: str, tmp_path: Path) -> None:
    (tmp_path / "reports" / "figures").mkdir(parents=True)
    (tmp_path / "reports" / "index.html").write_text("page")
    (tmp_path / "reports" / "figures" / "a.png").write_text("picture")
    tracking.log_artifacts(uri, run, tmp_path / "reports", "reports")
    tracking.log_artifacts(uri, run, tmp_path / "reports" / "index.html")
    folder = Path(MlflowClient(uri).get_run(run).info.artifact_uri)
    assert {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()} == {
        "index.html", "reports/index.html", "reports/figures/a.png",
    }  # fmt: skip


@pytest.mark.parametrize("uri", ["http://127.0.0.1:9", "postgresql://me:secret@127.0.0.1:9/mlflow"])
def test_a_server_that_is_not_there_is_told_at_once(uri: str) -> None:
    began = time.monotonic()
    with pytest.raises(InfrastructureError, match=r"127\.0\.0\.1:9.* does not answer .*Connection refused") as told:
        tracking.start_run(uri, "brain", "retrain")
    assert time.monotonic() - began < 5 and "secret" not in str(told.value)
