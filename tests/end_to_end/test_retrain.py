"""The main job on the real sample with the real libraries: Prefect's server, Ray, DVC, MLflow; nothing stands in."""

from __future__ import annotations

import hashlib
import json
import os
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from PIL import Image
from ruamel.yaml import YAML
from terminal import BIN, run, run_json, shown, states, terminal

from segmill.data.ingest.builtin import write_brain
from segmill.data.schema.manifest import read_manifest
from segmill.data.versioning.history import log_path, read_log
from segmill.workspace import Workspace
from tasks.stage import stage_edges

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> tuple[Workspace, str]:
    workspace = brain_workspace(tmp_path_factory.mktemp("first"))
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
    status = run_json(workspace, "segmill", "status")
    assert {stage["state"] for stage in status["stages"].values()} == {"fresh"}
    assert (status["champion"]["version"], status["champion"]["verdict"]) == ("1", "PASS")
    assert status["challenger"] is None, "it is the champion now"
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
    status = run_json(workspace, "segmill", "status")
    assert version.tags["data_version"] == status["data_version"]
    assert all(version.tags[tag] for tag in ("params_sha256", "code_sha256", "dvc_lock_sha256", "git_commit"))
    commit = version.tags["git_commit"]
    shown = subprocess.check_output(["git", "show", "--stat", "--format=%s%n%b", commit], cwd=workspace.root, text=True)
    assert shown.startswith("retrain segmill-brain on data ") and "finetune@fpn: ran (never ran here)" in shown
    assert {"params.yaml", "dvc.lock"} & set(shown.split()) == {"dvc.lock", "params.yaml"}
    assert not subprocess.check_output(["git", "status", "--porcelain"], cwd=workspace.root)
    assert version.tags["verdict"] == "PASS" and float(version.tags["test_miou"]) > 0
    parent = client.get_run(version.run_id)
    assert "**PASS**" in parent.data.tags["mlflow.note.content"] == version.description
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.info.run_id}'")
    assert {child.info.run_name for child in nested} == {"fpn", "unet"}
    for child in nested:
        assert [point.step for point in client.get_metric_history(child.info.run_id, "val_miou")] == [1, 2]


def test_the_report_says_the_verdict_and_is_kept_with_the_run(first: tuple[Workspace, str]) -> None:
    from mlflow import MlflowClient
    from mlflow.artifacts import load_text

    workspace, _ = first
    uri = f"sqlite:///{workspace.root / 'mlflow.db'}"
    version = MlflowClient(uri, uri).get_model_version_by_alias("segmill-brain", "champion")
    page = workspace.page.read_text()
    assert "PASS" in page and "version 1 of segmill-brain is the champion now" in page
    assert "There is no earlier champion to compare with." in page and f"/runs/{version.run_id}?" in page
    assert f'title="{version.tags["git_commit"]}"' in page
    stored = MlflowClient(uri, uri).get_run(version.run_id).info.artifact_uri
    assert load_text(f"{stored}/report/index.html") == page
    low, miou, high = (float(version.tags[tag]) for tag in ("test_miou_low", "test_miou", "test_miou_high"))
    assert low < miou < high and version.tags["compared_with"] == "none"
    tags = MlflowClient(uri, uri).get_run(version.run_id).data.tags
    assert (tags["verdict"], tags["test_miou_low"]) == ("PASS", version.tags["test_miou_low"])
    assert f"between {low:.4f} and {high:.4f}" in version.description
    assert f"`{version.tags['git_commit']}`" in version.description


@pytest.mark.long
def test_a_lost_report_is_written_again(first: tuple[Workspace, str], servers: dict[str, str]) -> None:
    workspace, _ = first
    workspace.page.unlink()
    assert run_json(workspace, "segmill", "status")["up_to_date"] is False
    assert "up to date" in run(workspace, "dvc", "status"), "it is no stage's out"
    found = states(run(workspace, "segmill", "retrain", servers=servers))
    assert {found.pop(step) for step in ("version", "register", "promote", "report")} == {"ran"}
    assert set(found.values()) == {"fresh"}
    page = workspace.page.read_text()
    assert "version 1 of segmill-brain is the champion now" in page and "of an earlier run" in page


def test_the_second_run_and_dvc_have_nothing_to_do(first: tuple[Workspace, str]) -> None:
    workspace, _ = first
    assert "nothing to do" in run(workspace, "segmill", "retrain")
    assert "up to date" in run(workspace, "dvc", "status")
    assert "Running stage" not in run(workspace, "dvc", "repro")
    assert run_json(workspace, "segmill", "status")["up_to_date"] is True


@pytest.mark.long
def test_dvc_repro_gives_the_same_bytes(
    first: tuple[Workspace, str],
    tmp_path: Path,
    brain_workspace: Callable[..., Workspace],
    servers: dict[str, str],
) -> None:
    workspace, _ = first
    other = brain_workspace(tmp_path)
    run(other, "dvc", "add", "data/raw")
    run(other, "dvc", "repro", servers=servers)
    locks = [YAML(typ="safe").load(space.root / "dvc.lock")["stages"] for space in (workspace, other)]
    same = ["validate", "prepare", "augment", "finetune@fpn", "finetune@unet", "ensemble"]
    assert [name for name in same if locks[0][name]["outs"] != locks[1][name]["outs"]] == []
    assert json.loads(workspace.metrics.read_text()) == json.loads(other.metrics.read_text())


def test_weights_lie_once_in_the_workspace_and_once_in_the_registry(first: tuple[Workspace, str]) -> None:
    workspace, _ = first
    weights: dict[bytes, set[int]] = {}
    for path in [*workspace.root.rglob("*.safetensors"), *(workspace.root / ".dvc" / "cache" / "files").rglob("*")]:
        if path.is_file() and (path.suffix or path.stat().st_size > 10**6):
            weights.setdefault(path.read_bytes(), set()).add(path.stat().st_ino)
    members = [
        (folder / "weights.safetensors").read_bytes() for folder in workspace.members.iterdir() if folder.is_dir()
    ]
    assert [len(weights[member]) for member in members] == [2, 2], "member, ensemble and cache are one file"
    sizes = json.loads(run(workspace, "segmill", "status", "--json"))["bytes"]
    assert sizes["models"] < 1.1 * sum(map(len, members)) and sizes["dvc_cache"] < sizes["models"]


@pytest.mark.long
def test_a_terminal_shows_the_live_table_and_nothing_of_dvc(first: tuple[Workspace, str]) -> None:
    """Its progress bars scrolled through the table: 87 lines in one run."""
    workspace, _ = first
    command = [str(BIN / "segmill"), "retrain", "-w", str(workspace.root), "--set", "evaluate.overlays=8"]
    said, code = shown(*command, columns=80, rows=24)
    assert code == 0, said
    assert re.search(r"evaluate +\d+s", said) and "\x1b[2K" in said  # the table, drawn again and again
    for foreign in ("\x1b[A", "Collecting", "Committing", "Pushing", "Querying", "file/s", "!\r"):
        assert foreign not in said


def test_a_machine_is_told_the_last_run_where_nothing_is_to_do(first: tuple[Workspace, str]) -> None:
    workspace, _ = first
    done = subprocess.run(
        [BIN / "segmill", "retrain", "--json"], cwd=workspace.root, capture_output=True, text=True, env=terminal()
    )
    said = json.loads(done.stdout)
    assert done.returncode == 0 and "nothing to do" in done.stderr
    assert said["nothing_to_do"] is True and said["verdict"]["decision"] == "PASS"
    keys = re.search(r"`demo`, `retrain` \| (.*) \|", (Path(__file__).parents[2] / "docs" / "json.md").read_text())
    assert keys and set(said) == set(re.findall(r"`(\w+)`", keys[1]))


@pytest.mark.long
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


KEPT = """
import json
from prefect.client.orchestration import get_client
with get_client(sync_client=True) as client:
    run = min(client.read_flow_runs(), key=lambda one: one.start_time)
    artifacts = {a.key: [a.type, a.data] for a in client.read_artifacts() if a.key and a.flow_run_id == run.id}
    logs = [log.message for log in client.read_logs() if log.flow_run_id == run.id]
    graph = client.request("GET", "/flow_runs/{id}/graph-v2", path_params={"id": run.id}).json()
nodes = {id: (node["label"], [parent["id"] for parent in node["parents"]]) for id, node in graph["nodes"]}
edges = {label: sorted({nodes[parent][0] for parent in parents}) for label, parents in nodes.values()}
print(json.dumps([run.state_name, run.name, run.parameters, edges, artifacts, logs]))
"""


def prefect_kept_the_run_with_its_graph_table_picture_and_logs(workspace: Workspace, api: str) -> None:
    """Ask what Prefect's own pages ask of the first run, in a fresh process."""
    done = subprocess.run(
        [sys.executable, "-c", KEPT], capture_output=True, text=True, check=True, env=terminal({"PREFECT_API_URL": api})
    )
    state, name, parameters, edges, artifacts, logs = json.loads(done.stdout.splitlines()[-1])
    assert state == "Completed"
    assert parameters == {"folder": str(workspace.root)}, "none of params.yaml, where an address may hold a password"
    assert re.fullmatch(r"segmill-brain data [0-9a-f]{8}: first run", name)
    stages = stage_edges(workspace)
    assert {step: set(edges[step]) & {*stages} for step in stages} == stages, "dvc.yaml's edges, and no other"
    assert {step: parents for step, parents in edges.items() if step not in stages} == {
        "version": [], "check members": ["fingerprint"], "register": ["evaluate"], "promote": ["register"],
        "report": ["promote"],
    }  # fmt: skip
    assert "validate: ran" in " ".join(logs) and any(re.match(r"finetune@unet: ran in \d+s", line) for line in logs)
    assert "| ensemble |" in artifacts["retrain-summary"][1]
    assert artifacts["retrain-overlays"][1].startswith("data:image/png;base64,")


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


@pytest.mark.long
def test_the_pages_answer_on_any_port_know_the_run_and_end_with_the_command(
    first: tuple[Workspace, str], tmp_path: Path
) -> None:
    workspace, _ = first
    with socket.socket() as one, socket.socket() as other:
        one.bind(("127.0.0.1", 0)), other.bind(("127.0.0.1", 0))
        ports = one.getsockname()[1], other.getsockname()[1]
    options = ("--prefect-port", str(ports[0]), "--mlflow-port", str(ports[1]))
    process = psutil.Popen([BIN / "segmill", "ui", *options], cwd=workspace.root, stdout=subprocess.PIPE, text=True)
    try:
        said = []
        while not said or "Ctrl-C" not in said[-1]:
            said.append(process.stdout.readline())
            assert said[-1], "it ended"
        named = dict(line.split() for line in said if "http://" in line)
        mlflow = f"http://127.0.0.1:{ports[1]}"
        assert named["model"] == f"{mlflow}/#/models/segmill-brain?workflowType=machine_learning"
        asked = f"{mlflow}/api/2.0/mlflow/experiments/get-by-name?experiment_name=segmill-brain"
        experiment = json.load(urllib.request.urlopen(asked))["experiment"]["experiment_id"]
        assert named["runs"] == f"{mlflow}/#/experiments/{experiment}/runs?workflowType=machine_learning"
        settings = json.load(urllib.request.urlopen(f"http://127.0.0.1:{ports[0]}/ui-settings"))
        assert settings["api_url"] == f"http://127.0.0.1:{ports[0]}/api", "where the page in the browser asks"
        assert "<title>MLflow</title>" in urllib.request.urlopen(mlflow).read().decode()
        shown = [" ".join(one.cmdline()) for one in process.children(recursive=True)]
        assert any("mlflow" in line for line in shown)
        assert not [line for line in shown if "mlflow.db" in line], "the address of a database may hold a password"
        prefect_kept_the_run_with_its_graph_table_picture_and_logs(workspace, f"http://127.0.0.1:{ports[0]}/api")
        a_schedule_fires(f"http://127.0.0.1:{ports[0]}/api", tmp_path)
    finally:
        started = process.children(recursive=True)
        process.terminate()
    assert psutil.wait_procs([process, *started], timeout=30)[1] == []


@pytest.mark.long
def test_a_changed_and_a_new_member_are_trained_from_what_was_there_when_the_run_began(
    first: tuple[Workspace, str], tmp_path: Path, servers: dict[str, str]
) -> None:
    """One member is damaged, one changed, one new; while they train others come with data, edits and a second run.

    The changed one leaves its batch to the machine, which is recorded; the new one is classical, and serves.
    """
    workspace, _ = first
    before = run_json(workspace, "segmill", "status")
    weights = workspace.member("fpn") / "weights.safetensors"
    sound = weights.read_bytes()
    weights.unlink()
    weights.write_bytes(sound[:-1] + bytes([sound[-1] ^ 1]))
    more = tmp_path / "more"
    write_brain(more, every=2)
    changes = ["members.unet.lr=0.005", "members.unet.batch_size=auto", "promotion.floor_miou=0.99",
               "members.shades={kind: svm, pixels: 2000, components: 30}"]  # fmt: skip
    (workspace.progress / "finetune@unet.json").unlink()
    command = ("segmill", "retrain", *(part for one in changes for part in ("--set", one)))
    with ThreadPoolExecutor(1) as background:
        running = background.submit(run, workspace, *command, code=3, servers=servers)
        while not (workspace.progress / "finetune@unet.json").exists():
            assert not running.done(), running.result()
            time.sleep(0.1)
        recorded = what_others_do_meanwhile(workspace, more)
        said = running.result()

    assert "members.unet.lr: 0.003 -> 0.005" in said
    found = states(said)
    assert {found[name] for name in ("finetune@unet", "finetune@shades", "ensemble", "evaluate")} == {"ran"}
    assert {found["prepare"], found["validate"]} == {"fresh"}
    assert found["finetune@fpn"] == "restored" and "weights.safetensors is damaged" in said
    assert weights.read_bytes() == sound
    batch_size = json.loads((workspace.member("unet") / "member.json").read_text())["params"]["train"]["batch_size"]
    assert batch_size >= 2 and batch_size & (batch_size - 1) == 0, "a power of two that was tried"
    assert load_and_predict(workspace, "segmill-brain/2")[:2] == [[2, 50, 70], True]

    from mlflow import MlflowClient

    uri = f"sqlite:///{workspace.root / 'mlflow.db'}"
    tags = MlflowClient(uri, uri).get_model_version("segmill-brain", "2").tags
    assert data_versions(workspace, "2") == {before["data_version"]}
    assert (tags["verdict"], tags["compared_with"]) == ("FAIL", "version 1")
    page = workspace.page.read_text()
    assert "FAIL" in page and "version 1 stays the champion" in page and "Where the two versions differ most" in page
    assert all(f"<bdi>{line}</bdi>" in page for line in ("members.unet.lr 0.003 -&gt; 0.005", "member shades is new"))
    assert tags["params_sha256"] == hashlib.sha256(recorded.encode()).hexdigest()
    status = run_json(workspace, "segmill", "status")
    assert status["challenger"]["version"] == "2" and status["champion"]["version"] == "1", "the floor is an input"
    assert status["data_version"] != before["data_version"]
    assert status["up_to_date"] is False, "what came meanwhile counts for the next run"


def data_versions(workspace: Workspace, version: str) -> set[str]:
    """Return the data versions that the records of the last run, which registered ``version``, name."""
    from mlflow import MlflowClient
    from mlflow.artifacts import load_text

    uri, root = f"sqlite:///{workspace.root / 'mlflow.db'}", workspace.root
    client = MlflowClient(uri, uri)
    registered = client.get_model_version("segmill-brain", version)
    parent = client.get_run(registered.run_id)
    nested = client.search_runs([parent.info.experiment_id], f"tags.`mlflow.parentRunId` = '{registered.run_id}'")
    assert len(nested) == 3
    members = [path for folder in (workspace.members, workspace.ensemble) for path in folder.rglob("member.json")]
    assert len(members) == 6
    found = {json.loads(path.read_text())["data_version"] for path in members}
    found |= {one.data.tags[tag] for one in nested for tag in ("data_version", "trained_on_data_version")}
    found |= {registered.tags["data_version"], parent.data.tags["data_version"]}
    found |= {json.loads(workspace.last_run.read_text())["data_version"]}
    described = re.compile("Data version `([0-9a-f]{32})`")
    found |= {one for text in (registered.description, parent.data.tags["mlflow.note.content"])
              for one in described.findall(text)}  # fmt: skip
    found |= set(re.findall('data version <b title="([^"]*)"', workspace.page.read_text()))
    for lock in ((root / "dvc.lock").read_text(), load_text(f"{parent.info.artifact_uri}/pipeline/dvc.lock")):
        stages = YAML(typ="safe").load(lock)["stages"]
        found |= {dep["md5"].removesuffix(".dir") for name in ("validate", "prepare") for dep in stages[name]["deps"]
                  if dep["path"] == "data/raw"}  # fmt: skip
    committed = ["git", "show", f"{registered.tags['git_commit']}:data/raw.dvc"]
    record = YAML(typ="safe").load(subprocess.check_output(committed, cwd=root, text=True))
    found |= {record["outs"][0]["md5"].removesuffix(".dir")}
    (entry,) = [entry for entry in read_log(log_path(root / "data" / "raw")) if entry.version in found]
    assert read_manifest(workspace.manifest).num_rows == entry.samples, "the manifest has no version, but its samples"
    return found


def what_others_do_meanwhile(workspace: Workspace, more: Path) -> str:
    """Begin a second run, add data and edit params.yaml while a member trains; return params.yaml before the edit."""
    second = run(workspace, "segmill", "retrain", code=4)
    assert re.search(r"`segmill retrain` has been running in .* since [\d:]+ \(process \d+\)", second)
    assert "samples added" in run(workspace, "segmill", "data", "add", str(more), "-m", "while it trains")
    text = workspace.params.read_text()
    workspace.params.write_text(text.replace("lr: 0.005", "lr: 0.007"))
    return text
