from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from jobs import train_job

from segmill import progress
from segmill.cluster.connection import connect
from segmill.data.packing.pack import pack
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InfrastructureError, InputError
from segmill.training.distributed import launch
from segmill.training.job import TrainJob, Workers

ALONE = train_job(Path("/nowhere"))


def test_importing_it_is_light() -> None:
    heavy = "('torch', 'ray', 'numpy')"
    code = f"import sys, segmill.training.distributed.launch; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_only_deaths_are_tried_again() -> None:
    from ray.exceptions import ActorDiedError, OutOfMemoryError, RayTaskError, WorkerCrashedError
    from ray.train import ControllerError, WorkerGroupError

    def raised(error: Exception) -> RayTaskError:
        return RayTaskError("_fit", "Traceback", error)

    def failed(error: Exception) -> WorkerGroupError:
        return WorkerGroupError("text", {0: error})

    ranks = replace(ALONE, workers=Workers(count=2))
    for job, error in ((ALONE, raised), (ranks, failed)):
        with pytest.raises(InputError, match="mend this"):
            launch._raise_if_final(job, error(InputError("mend this")), restarts_left=2)
        with pytest.raises(InputError, match="ran out of memory"):
            launch._raise_if_final(job, error(RuntimeError("CUDA out of memory")), restarts_left=2)
    with pytest.raises(InputError, match="ran out of memory"):
        launch._raise_if_final(ALONE, OutOfMemoryError("Ray's monitor"), restarts_left=2)
    with pytest.raises(RuntimeError, match="member a failed: KeyError: 'bug'"):
        launch._raise_if_final(ALONE, raised(launch.Unforeseen("KeyError: 'bug'")), restarts_left=2)
    with pytest.raises(InfrastructureError, match=r"could not start the workers of member a \(no room\)"):
        launch._raise_if_final(ranks, ControllerError(RuntimeError("no room")), restarts_left=2)
    # Among ranks, a broken connection may be the first sign of a death.
    launch._raise_if_final(ranks, failed(launch.Unforeseen("Connection closed")), restarts_left=1)
    launch._raise_if_final(ranks, failed(ActorDiedError()), restarts_left=1)
    launch._raise_if_final(ranks, ActorDiedError(), restarts_left=1)  # Ray Train's controller itself
    launch._raise_if_final(ALONE, WorkerCrashedError(), restarts_left=1)
    with pytest.raises(InfrastructureError, match="lost its worker 3 times"):
        launch._raise_if_final(ALONE, WorkerCrashedError(), restarts_left=0)


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Path:
    root = tmp_path_factory.mktemp("launch")
    validate_dataset(street, root / "manifest.parquet", shares=SplitShares(0.25, 0.25, 0))
    pack(street, root / "manifest.parquet", root / "packed")
    return root / "packed"


def a_job(root: Path, packed: Path, **own: Any) -> TrainJob:
    return train_job(root, packed, **{"epochs": 6, "seed": 3, "precision": "fp32", "size_px": (64, 64), **own})


@pytest.mark.slow
def test_a_killed_worker_is_replaced_and_the_member_is_the_same(joined: None, packed: Path, tmp_path: Path) -> None:
    from segmill.models.members import Member

    calm, killed = (a_job(tmp_path / name, packed) for name in ("calm", "killed"))
    with ThreadPoolExecutor(2) as threads:
        trainings = [threads.submit(launch.train_member, job) for job in (calm, killed)]
        victim = _worker_pid(killed, epoch=3)
        os.kill(victim, signal.SIGKILL)
        metrics = [training.result() for training in trainings]
    assert metrics[0] == metrics[1]
    weights = [(job.out_dir / "weights.safetensors").read_bytes() for job in (calm, killed)]
    assert weights[0] == weights[1]
    launch.train_member(again := a_job(tmp_path / "again", packed))
    assert (again.out_dir / "weights.safetensors").read_bytes() == weights[0], "in a process that trained before"
    losses = [_losses(job.out_dir / "curves.csv") for job in (calm, killed)]
    assert losses[0] == losses[1] and len(losses[0]) == 6
    growing = killed.curves_path.read_text().splitlines()
    assert len(growing) == 1 + 6 and growing[0].endswith(",images_s,seconds,seconds_left")
    assert not killed.run_folder.exists()
    facts = progress.read(killed.progress_path)
    assert facts is not None and (facts["member"], facts["epoch"], facts["epochs"]) == ("a", 6, 6)
    probs = Member.load(killed.out_dir).predict_probs(np.zeros((1, 37, 51, 3), np.uint8))
    assert probs.shape == (1, 5, 37, 51)


@pytest.mark.slow
def test_two_ranks_write_one_member(joined: None, packed: Path, tmp_path: Path) -> None:
    everything = {
        "aux_heads": {"presence": 0.1, "boundary": 0.4, "distance": 0.2},
        "head_weights": "learned",
        "deep_supervision": 0.4,
        "context": "gru",
    }
    metrics = launch.train_member(a_job(tmp_path, packed, count=2, epochs=2, **everything))
    assert metrics["epochs"] == 2
    assert json.loads((tmp_path / "member" / "metrics.json").read_text()) == metrics


@pytest.mark.slow
def test_what_the_worker_refuses_comes_out_as_one_sentence(joined: None, packed: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^member a: weights file:/no.pth: there is no file"):
        launch.train_member(a_job(tmp_path, packed, weights="file:/no.pth"))
    with pytest.raises(InputError, match=r"^member a ran out of memory; lower members.a.batch_size \(now 8\)"):
        launch.train_member(a_job(tmp_path, packed, size_px=(2_000_000, 2_000_000)))
    with pytest.raises(InputError, match=r"a batch of 1 leaves one image to each of 1 workers; raise train.batch_size"):
        launch.train_member(a_job(tmp_path, packed, decoder="deeplabv3plus", batch_size=1))
    with pytest.raises(RuntimeError, match=r"(?s)member a failed: Traceback .*AttributeError"):
        launch.train_member(a_job(tmp_path, packed, policy=None))
    with pytest.raises(InfrastructureError, match="member a asks for 3 x 1 CPU"):
        launch.train_member(a_job(tmp_path, packed, count=3))


def _losses(curves: Path) -> list[str]:
    with curves.open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def _worker_pid(job: TrainJob, epoch: int) -> int:
    """Wait until the member's worker is in ``epoch``, and return its process id."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        facts = progress.read(job.progress_path) or {}
        if facts.get("epoch", 0) >= epoch:
            return int(facts["pid"])
        time.sleep(0.02)
    raise AssertionError("the worker never got there")


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["auto", "fp16"])
def test_a_member_trained_on_the_gpu_predicts_on_the_cpu(packed: Path, tmp_path: Path, precision: str) -> None:
    from segmill.models.members import Member

    with connect("local"):
        metrics = launch.train_member(a_job(tmp_path, packed, gpus=1, precision=precision, epochs=20))
    assert metrics["val_miou"] > 0.2
    images = np.random.default_rng(0).integers(0, 256, (2, 64, 64, 3), np.uint8)
    own, there = (Member.load(tmp_path / "member", device).predict_probs(images) for device in ("cpu", "cuda"))
    assert np.abs(own - there).max() < 0.05
