"""`segmill tune`: what it refuses, what it writes, and the whole way with a kill in the middle."""

from __future__ import annotations

import csv
import io
import json
import pickle
import signal
import subprocess
import time
from typing import Any

import pytest
from rich.console import Console
from ruamel.yaml import YAML
from terminal import BIN, terminal

from flows.commands.tune import write_patch as accept
from flows.tune import made_data, present_values, refuse_other_than_network
from segmill.data.loading.recipes import settle_policy
from segmill.data.packing.packed import read_pack
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.tuning.jobs import EvidenceJob, RepeatJob, evidence_on_ray, repeat_on_ray
from segmill.tuning.space import Dimension, read_values
from segmill.tuning.trials import Study, Work, read_trials
from segmill.workspace import Workspace
from tasks.finetune import train_job
from tasks.stage import run


def tiny(workspace: Workspace) -> Workspace:
    members = (
        "members={tiny: {backbone: mobilenetv3_small_050, decoder: fpn, weights: none, lr: 0.005, epochs: 8}, "
        "colours: {kind: svm}}"
    )
    others = ["prepare.size_px=[64, 64]", "augment.recipe=none", "train.val_every=1"]
    set_params(workspace.params, [members, *others])
    return workspace


def test_only_networks_are_tuned(workspace: Workspace) -> None:
    params = read_params(tiny(workspace).params)
    with pytest.raises(InputError, match="colours is an svm"):
        refuse_other_than_network(params, "colours")
    with pytest.raises(InputError, match="there is no member 'tinny'; did you mean 'tiny'"):
        refuse_other_than_network(params, "tinny")


def test_what_stands_is_tried_first_where_the_search_can_come_upon_it(workspace: Workspace) -> None:
    values = read_values(tiny(workspace).params)
    lr, schedule = "members.tiny.lr", Dimension("train.schedule", "choice", choices=("poly", "cosine"))
    inside = [Dimension(lr, "float", 0.001, 0.01), schedule]
    assert present_values(inside, values, "tiny") == {lr: 0.005, "train.schedule": "cosine"}
    assert present_values([Dimension(lr, "float", 0.01, 0.1), schedule], values, "tiny") is None


def test_other_values_of_prepare_and_augment_are_made_once_beside_the_real_ones(workspace: Workspace) -> None:
    for name in ("fingerprint", "validate", "prepare", "augment"):
        run(tiny(workspace), name, read_params(workspace.params))
    real = read_pack(workspace.packed)
    set_params(workspace.params, ["prepare.size_px=[32, 32]", "augment.recipe=driving"])
    params = read_params(workspace.params)
    made = made_data(workspace, params, {"prepare.size_px": [32, 32]})
    assert read_pack(made.packed_dir).size == (32, 32) and made.size_px == (32, 32)
    assert made.policy.transforms == settle_policy("driving").transforms and made.extra_dir is None
    assert read_pack(workspace.packed) == real
    written = (made.packed_dir / "pack.json").stat().st_mtime_ns
    assert made_data(workspace, params, {"prepare.size_px": [32, 32]}) == made
    assert (made.packed_dir / "pack.json").stat().st_mtime_ns == written


@pytest.mark.slow
def test_two_settings_trained_once_are_trials_and_evidence(workspace: Workspace) -> None:
    for name in ("fingerprint", "validate", "prepare", "augment"):
        run(tiny(workspace), name, read_params(workspace.params))
    set_params(workspace.params, ["ray.cpus_per_worker=1", "members.tiny.early_stopping_patience=9"])
    values, lr = read_values(workspace.params), "members.tiny.lr"
    job = train_job(workspace, read_params(workspace.params), "tiny", workspace.root / "out")
    work = Work(
        folder=workspace.scratch / "tuning" / "tiny", member="tiny", values=values, job=job, epochs=1,
        data=(({}, job.data),), cpus=1, gpus=0,
    )  # fmt: skip
    for rate in (0.002, 0.005):
        repeat_on_ray(pickle.loads(pickle.dumps(RepeatJob(work=work, values={lr: rate}, seed=work.seed))))
    found = read_trials(Study(work.folder))
    assert [(trial.state, trial.values[lr], len(trial.rows)) for trial in found] == [
        ("full", 0.002, 1),
        ("full", 0.005, 1),
    ]
    assert found[0].best != found[1].best
    said = evidence_on_ray(
        EvidenceJob(
            work=work, space=(Dimension(lr, "float", 0.001, 0.01),), out_dir=workspace.root / "tuning" / "tiny",
            present={lr: 0.005}, repeats=0, confidence=0.95,
        )
    )  # fmt: skip
    assert said["trials"] == 2 and (workspace.root / "tuning" / "tiny" / "patch.yaml").is_file()


def write_patch(workspace: Workspace, present: dict[str, Any]) -> None:
    folder = workspace.root / "tuning" / "tiny"
    folder.mkdir(parents=True)
    evidence = {"present": present, "verdict": "within the noise"}
    with (folder / "patch.yaml").open("w") as file:
        YAML().dump({"member": "tiny", "set": ["members.tiny.lr=0.002"], "evidence": evidence}, file)


def test_accept_writes_the_patch_with_comments_kept(workspace: Workspace) -> None:
    console = Console(file=io.StringIO(), width=120)
    with pytest.raises(InputError, match="run `segmill tune tiny` first"):
        accept(tiny(workspace), "tiny", console)
    write_patch(workspace, {"members.tiny.lr": 0.005})
    accept(workspace, "tiny", console)
    assert read_params(workspace.params).members["tiny"].lr == 0.002  # type: ignore[union-attr]
    assert "# weighted sum of ce" in workspace.params.read_text()
    said = console.file.getvalue()  # type: ignore[attr-defined]
    assert "members.tiny.lr: 0.005 -> 0.002" in said and "within the noise" in said
    with pytest.raises(InputError, match=r"members\.tiny\.lr is 0\.002 now and was 0\.005"):
        accept(workspace, "tiny", console)


def trials(workspace: Workspace) -> list[Any]:
    folders = list((workspace.scratch / "tuning").glob("tiny-*"))
    return read_trials(Study(folders[0])) if folders else []


@pytest.mark.fault
def test_a_killed_search_goes_on_and_ends_with_a_patch(workspace: Workspace, servers: dict[str, str]) -> None:
    """Killed without warning when the first trial is over; the same command again repeats none of its epochs."""
    command = [str(BIN / "segmill"), "tune", "tiny", "--search", "lr=1e-3..1e-2:log",
               "--search", "train.schedule=cosine,poly",
               "--trials", "3", "--repeats", "1", "--epochs", "2"]  # fmt: skip
    environment = terminal(servers)
    set_params(tiny(workspace).params, ["ray.cpus_per_worker=1"])
    with (workspace.root / "first").open("w") as out:
        first = subprocess.Popen(command, cwd=workspace.root, stdout=out, stderr=out, env=environment)
        while not any(trial.state == "full" for trial in trials(workspace)):
            assert first.poll() is None, (workspace.root / "first").read_text()
            time.sleep(0.1)
        first.send_signal(signal.SIGKILL)
        first.wait()
    before = {trial.key: trial for trial in trials(workspace) if trial.state != "open"}
    done = subprocess.run(command, cwd=workspace.root, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    after = trials(workspace)
    assert {trial.key: trial for trial in after if trial.key in before} == before, "not trained again, nor written"
    searched = [trial for trial in after if trial.seed == 0]
    present = {"members.tiny.lr": 0.005, "train.schedule": "cosine"}
    # Two trials run side by side: which of the first two began first is up to Ray.
    assert len(searched) == 3 and present in [trial.values for trial in searched[:2]]
    folder = workspace.root / "tuning" / "tiny"
    patch = YAML(typ="safe").load((folder / "patch.yaml").read_text())
    winner = max((trial for trial in searched if trial.state == "full"), key=lambda trial: trial.best)
    assert patch["evidence"]["winner"] == winner.values
    assert len(list(csv.DictReader((folder / "trials.csv").open()))) == len(after)
    if winner.values != present:
        assert {trial.seed for trial in after if trial.values == winner.values} == {0, 1}
        assert "segmill retrain --set" in done.stdout
    page = (folder / "index.html").read_text()
    assert patch["evidence"]["verdict"] in page.replace("&#39;", "'") and "data:image/png;base64," in page
    assert (folder / "figures" / "curves-light.png").is_file()

    from mlflow import MlflowClient

    uri = f"sqlite:///{workspace.root / 'mlflow.db'}"
    client = MlflowClient(uri, uri)
    noted = json.loads((next((workspace.scratch / "tuning").glob("tiny-*")) / "runs.json").read_text())
    assert client.get_run(noted["parent"]).info.status == "FINISHED"
    assert set(noted["trials"]) == {trial.key for trial in after}, "one nested run each, however often it was begun"
    run_of_winner = client.get_run(noted["trials"][winner.key]["id"])
    assert run_of_winner.data.tags["mlflow.parentRunId"] == noted["parent"]
    assert run_of_winner.data.params["train.schedule"] == winner.values["train.schedule"]
    assert run_of_winner.data.metrics["best"] == pytest.approx(winner.best)
