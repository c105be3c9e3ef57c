"""The main job on the real sample with the real libraries: Prefect's server, Ray, DVC, MLflow; nothing stands in."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML

from flows.commands.start import create
from segmill.data.ingest.builtin import write_brain
from segmill.workspace import Workspace

pytestmark = pytest.mark.slow

BIN = Path(sys.executable).parent
SMALL: dict[str, Any] = {
    "prepare": {"size_px": [96, 96]},
    "members": {
        "fpn": {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003},
        "unet": {"backbone": "resnet10t", "decoder": "unet", "weights": "none", "lr": 0.003},
    },
    "promotion": {"floor_miou": 0.05, "min_gain": 0.0, "confidence": 0.95},
}


def run(workspace: Workspace, *command: str, code: int | tuple[int, ...] = 0) -> str:
    """Run a command of the environment in the workspace, as a person would; return what it printed."""
    home = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT", "MLFLOW", "RAY"))}
    done = subprocess.run(
        [str(BIN / command[0]), *command[1:]],
        cwd=workspace.root,
        capture_output=True,
        text=True,
        env={**home, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "200"},
    )
    said = done.stdout + done.stderr
    assert done.returncode in (code if isinstance(code, tuple) else (code,)), said
    assert "Traceback" not in said
    return said


def states(said: str) -> dict[str, str]:
    """Return what became of each stage, by the last line that says so."""
    return dict(re.findall(r"^([\w@-]+): (fresh|restored|ran|failed)\b", said, re.M))


@pytest.fixture(scope="module")
def brain_workspace(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Workspace]:
    """Return what gives a new workspace around the atlas, in which Prefect's database is laid out already.

    To lay it out takes ten seconds; `first` begins without.
    """
    folder = tmp_path_factory.mktemp("template")
    write_brain(folder / "atlas", every=4)
    template = create(folder / "workspace", folder / "atlas")
    command = [str(BIN / "prefect"), "server", "database", "upgrade", "-y"]
    subprocess.run(command, env={**os.environ, "PREFECT_HOME": str(template.prefect_home)}, check=True)

    def copy(folder: Path, *members: str, epochs: int = 2) -> Workspace:
        shutil.copytree(template.root, folder / "workspace", symlinks=True)
        workspace = Workspace.open(folder / "workspace")
        yaml = YAML()
        params = yaml.load(workspace.params)
        params["train"] |= {"epochs": epochs, "val_every": 1}
        chosen = {name: SMALL["members"][name] for name in members or SMALL["members"]}
        yaml.dump({**params, **SMALL, "members": chosen}, workspace.params)
        return workspace

    return copy


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> tuple[Workspace, str]:
    workspace = brain_workspace(tmp_path_factory.mktemp("first"))
    shutil.rmtree(workspace.prefect_home)
    return workspace, run(workspace, "segmill", "retrain")


def load_and_predict(workspace: Workspace, model: str) -> list[Any]:
    """Load a registered model in a fresh process that knows nothing but MLflow's address, and predict."""
    program = (
        "import json, mlflow, numpy as np\n"
        f"model = mlflow.pyfunc.load_model('models:/{model}')\n"
        "images = np.random.default_rng(0).integers(0, 255, (2, 50, 70, 3), dtype=np.uint8)\n"
        "ids = np.asarray(model.predict(images))\n"
        "both = model.predict([images[0], images[1][:40]], params={'probabilities': True})\n"
        "sums = [float(np.asarray(p, float).sum(0).mean()) for p in both['probabilities']]\n"
        "print(json.dumps([list(ids.shape), int(ids.max()) < 4, [list(c.shape) for c in both['classes']], sums]))"
    )
    environment = {**os.environ, "MLFLOW_TRACKING_URI": f"sqlite:///{workspace.root / 'mlflow.db'}"}
    done = subprocess.run(
        [sys.executable, "-c", program], cwd="/", capture_output=True, text=True, env=environment, check=True
    )
    loaded: list[Any] = json.loads(done.stdout.splitlines()[-1])
    return loaded


def test_the_first_run_ends_with_a_champion(first: tuple[Workspace, str]) -> None:
    workspace, said = first
    found = states(said)
    assert found.pop("fingerprint") == "fresh"  # brought up to date before anything is shown
    assert set(found.values()) == {"ran"}
    assert "PASS" in said and "version 1 of segmill-brain is the champion now" in said
    assert str(workspace.reports / "index.html") in said
    metrics = json.loads(workspace.metrics.read_text())
    assert set(metrics["members"]) == {"fpn", "unet"}
    assert 0 < metrics["ensemble"]["miou"] < 1
    status = json.loads(run(workspace, "segmill", "status", "--json"))
    assert {stage["state"] for stage in status["stages"].values()} == {"fresh"}
    assert status["champion"]["version"] == status["challenger"]["version"] == "1"
    assert status["up_to_date"] is True


def test_the_champion_loads_anywhere_and_holds_no_pickle(first: tuple[Workspace, str]) -> None:
    workspace, _ = first
    shape, ids_are_classes, shapes, sums = load_and_predict(workspace, "segmill-brain@champion")
    assert (shape, ids_are_classes, shapes) == ([2, 50, 70], True, [[50, 70], [40, 70]])
    assert sums == pytest.approx([1.0, 1.0], abs=1e-3)
    stored = [path for path in (workspace.root / "mlartifacts").rglob("*") if path.is_file()]
    assert any(path.name == "weights.safetensors" for path in stored)
    assert [path for path in stored if path.suffix in (".pkl", ".pickle", ".pt", ".pth", ".joblib")] == []


def test_mlflow_leads_back_to_data_params_code_and_commit(first: tuple[Workspace, str]) -> None:
    from mlflow import MlflowClient

    workspace, _ = first
    uri = f"sqlite:///{workspace.root / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    version = client.get_model_version_by_alias("segmill-brain", "champion")
    status = json.loads(run(workspace, "segmill", "status", "--json"))
    assert version.tags["data_version"] == status["data_version"]
    assert all(version.tags[tag] for tag in ("params_sha256", "code_sha256", "dvc_lock_sha256", "git_commit"))
    parent = client.get_run(version.run_id)
    assert "PASS" in parent.data.tags["mlflow.note.content"]
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in nested} == {"fpn", "unet"}
    for child in nested:
        assert [point.step for point in client.get_metric_history(child.info.run_id, "val_miou")] == [1, 2]


def test_prefect_kept_the_run_with_its_tasks_table_and_picture(first: tuple[Workspace, str]) -> None:
    """Asks the database that Prefect's own pages read, through Prefect's client, in a fresh process."""
    workspace, _ = first
    program = (
        "import json\n"
        "from prefect.client.orchestration import get_client\n"
        "with get_client(sync_client=True) as client:\n"
        "    (run,) = client.read_flow_runs()\n"
        "    tasks = sorted(task.name for task in client.read_task_runs())\n"
        "    artifacts = {a.key: [a.type, a.data] for a in client.read_artifacts() if a.key}\n"
        "print(json.dumps([run.state_name, tasks, artifacts]))"
    )
    environment = {**os.environ, "PREFECT_HOME": str(workspace.prefect_home)}
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, env=environment, check=True)
    state, names, artifacts = json.loads(done.stdout.splitlines()[-1])
    assert state == "Completed"
    assert {"finetune@fpn", "finetune@unet"} <= set(names)
    assert {name.rpartition("-")[0] for name in names} >= {"version", "validate", "prepare", "promote"}
    assert "| ensemble |" in artifacts["retrain-summary"][1]
    assert artifacts["retrain-overlays"][1].startswith("data:image/png;base64,")


def test_the_second_run_and_dvc_have_nothing_to_do(first: tuple[Workspace, str]) -> None:
    workspace, _ = first
    assert "nothing to do" in run(workspace, "segmill", "retrain")
    assert "up to date" in run(workspace, "dvc", "status")
    assert "Running stage" not in run(workspace, "dvc", "repro")
    assert json.loads(run(workspace, "segmill", "status", "--json"))["up_to_date"] is True


def test_dvc_repro_gives_the_same_bytes(
    first: tuple[Workspace, str], tmp_path: Path, brain_workspace: Callable[..., Workspace]
) -> None:
    workspace, _ = first
    other = brain_workspace(tmp_path)
    run(other, "dvc", "add", "data/raw")
    run(other, "dvc", "repro")
    locks = [YAML(typ="safe").load(space.root / "dvc.lock")["stages"] for space in (workspace, other)]
    same = ["validate", "prepare", "augment", "finetune@fpn", "finetune@unet", "ensemble"]
    assert [name for name in same if locks[0][name]["outs"] != locks[1][name]["outs"]] == []
    assert json.loads(workspace.metrics.read_text()) == json.loads(other.metrics.read_text())


def test_predict_writes_masks_and_overlays(first: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, _ = first
    images = sorted((workspace.root / "data" / "raw" / "images").rglob("*.png"))[:2]
    said = run(workspace, "segmill", "predict", *map(str, images), "--to", str(tmp_path / "masks"))
    for path in images:
        mask, overlay = (Image.open(tmp_path / "masks" / f"{path.stem}{end}.png") for end in ("", "-overlay"))
        assert mask.mode == "L" and overlay.mode == "RGB"
        assert mask.size == overlay.size == Image.open(path).size
        assert 0 < int(np.asarray(mask).max()) < 4
        assert str(tmp_path / "masks" / f"{path.stem}.png") in said
    assert "no version called staging" in run(
        workspace, "segmill", "predict", str(images[0]), "--to", str(tmp_path / "none"), "--model", "staging", code=1
    )
    (tmp_path / "torn.png").write_bytes(images[0].read_bytes()[:100])
    assert "torn.png" in run(workspace, "segmill", "predict", str(tmp_path / "torn.png"), "--to", "none", code=1)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", str(folder)]).returncode:
        pytest.skip("mounting a small file system needs root")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def test_a_disk_that_runs_full_in_the_middle_costs_only_that_stage(
    small_disk: Path, brain_workspace: Callable[..., Workspace]
) -> None:
    """On a real file system of 700 MiB, filled to the last byte while the member trains."""
    workspace = brain_workspace(small_disk, "fpn", epochs=20)
    filler = small_disk / "filler"

    def fill() -> None:
        while not workspace.progress.joinpath("finetune@fpn.json").exists():
            time.sleep(0.1)
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))

    with ThreadPoolExecutor(1) as filling:
        filling.submit(fill)
        said = run(workspace, "segmill", "retrain", code=1)
    assert said.splitlines()[-1].startswith("error the disk is full: ")
    os.truncate(filler, filler.stat().st_size - 100 * 2**20)
    assert "a run may take about 3" in run(workspace, "segmill", "retrain", code=1), "refused before anything starts"
    filler.unlink()
    yaml = YAML()
    yaml.dump(
        yaml.load(workspace.params) | {"train": yaml.load(workspace.params)["train"] | {"epochs": 1}}, workspace.params
    )
    found = states(run(workspace, "segmill", "retrain"))
    assert (found["prepare"], found["finetune@fpn"], found["promote"]) == ("fresh", "ran", "ran")


def test_weights_out_of_reach_stop_the_run_before_any_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, brain_workspace: Callable[..., Workspace]
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    workspace = brain_workspace(tmp_path, "fpn")
    said = run(workspace, "segmill", "retrain", "--set", "members.fpn.weights=timm", code=1)
    assert "weights" in said.splitlines()[-1] and "none" in said.splitlines()[-1], "says what to write instead"
    assert "finetune@fpn" not in states(said)
    assert not list(workspace.checkpoints.rglob("state.pt"))


def test_a_stop_signal_ends_a_training_at_once_and_leaves_no_process(
    tmp_path: Path, brain_workspace: Callable[..., Workspace]
) -> None:
    workspace = brain_workspace(tmp_path, "fpn", epochs=200)
    said = tmp_path / "said"
    with said.open("w") as out:
        process = psutil.Popen([BIN / "segmill", "retrain"], cwd=workspace.root, stdout=out, stderr=out)
    while not list(workspace.checkpoints.rglob("state.pt")):
        assert process.poll() is None, said.read_text()
        time.sleep(0.1)
    started = process.children(recursive=True)
    assert len(started) > 3, "Ray's and Prefect's"
    process.terminate()
    assert process.wait(timeout=60) == 130
    assert "interrupted; what was finished is recorded" in said.read_text()
    assert psutil.wait_procs(started, timeout=30)[1] == []
    assert list(workspace.checkpoints.rglob("state.pt")), "the next run goes on from here"


SCHEDULED = """
import sys
from datetime import timedelta
from pathlib import Path
from prefect import flow

@flow
def tick(path: str) -> None:
    Path(path).touch()

if __name__ == "__main__":
    tick.serve(name="ticks", interval=timedelta(seconds=3), parameters={"path": sys.argv[1]})
"""


def a_schedule_fires(api: str, folder: Path) -> None:
    """Serve a flow with a schedule: with some sets of libraries Prefect's server takes one and never starts a run."""
    (folder / "scheduled.py").write_text(SCHEDULED)
    environment = {**os.environ, "PREFECT_API_URL": api, "PREFECT_HOME": str(folder / "prefect")}
    command = [sys.executable, str(folder / "scheduled.py"), str(folder / "ticked")]
    with (folder / "runner").open("w") as out:
        runner = psutil.Popen(command, stdout=out, stderr=out, env=environment)
    until = time.monotonic() + 120
    while not (folder / "ticked").exists():
        assert runner.poll() is None and time.monotonic() < until, (folder / "runner").read_text()
        time.sleep(0.1)
    runner.terminate()
    runner.wait(timeout=60)


def test_the_pages_answer_on_any_port_and_end_with_the_command(first: tuple[Workspace, str], tmp_path: Path) -> None:
    workspace, _ = first
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0)), other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    options = ("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    process = psutil.Popen([BIN / "segmill", "ui", *options], cwd=workspace.root, stdout=subprocess.PIPE, text=True)
    while "Ctrl-C" not in (line := process.stdout.readline()):
        assert line, "it ended"
    settings = json.load(urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/ui-settings"))
    assert settings["api_url"] == f"http://127.0.0.1:{ports[0]}/api", "where the page in the browser asks"
    assert "<title>MLflow</title>" in urllib.request.urlopen(f"http://127.0.0.1:{ports[1]}").read().decode()
    a_schedule_fires(f"http://127.0.0.1:{ports[0]}/api", tmp_path)
    started = process.children(recursive=True)
    process.terminate()
    assert psutil.wait_procs([process, *started], timeout=30)[1] == []


def test_a_changed_and_a_new_member_are_trained_and_what_follows(first: tuple[Workspace, str]) -> None:
    """The changed one leaves its batch to the machine, which is recorded; the new one is classical, and serves."""
    workspace, _ = first
    changes = ["members.unet.lr=0.005", "members.unet.batch_size=auto",
               "members.shades={kind: svm, pixels: 2000, components: 30}"]  # fmt: skip
    said = run(workspace, "segmill", "retrain", *(part for one in changes for part in ("--set", one)), code=(0, 3))
    assert "members.unet.lr: 0.003 -> 0.005" in said
    found = states(said)
    assert {found[name] for name in ("finetune@unet", "finetune@shades", "ensemble", "evaluate")} == {"ran"}
    assert {found["finetune@fpn"], found["prepare"], found["validate"]} == {"fresh"}
    assert "The gain over the champion is" in said
    batch_size = json.loads((workspace.member("unet") / "member.json").read_text())["params"]["train"]["batch_size"]
    assert batch_size >= 2 and batch_size & (batch_size - 1) == 0, "a power of two that was tried"
    assert "shades" in (workspace.reports / "index.html").read_text()
    status = json.loads(run(workspace, "segmill", "status", "--json"))
    assert status["challenger"]["version"] == "2"
    assert status["champion"]["version"] == ("2" if "PASS" in said else "1")
    assert status["up_to_date"] is True
    assert load_and_predict(workspace, "segmill-brain/2")[:2] == [[2, 50, 70], True]
