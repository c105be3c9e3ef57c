from __future__ import annotations

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from jobs import train_job

from segmill import progress
from segmill.cluster.connection import connect
from segmill.data.packing.pack import pack
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InfrastructureError, InputError
from segmill.training.distributed import launch
from segmill.training.distributed.run_folder import FINISHED, MEMBER, STATE, incidents_path
from segmill.training.distributed.stall import stacks_path
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
            launch._raise_if_final(job, error(InputError("mend this")))
        with pytest.raises(InputError, match="ran out of memory"):
            launch._raise_if_final(job, error(RuntimeError("CUDA out of memory")))
    with pytest.raises(InputError, match="ran out of memory"):
        launch._raise_if_final(ALONE, OutOfMemoryError("Ray's monitor"))
    with pytest.raises(RuntimeError, match="member a failed: KeyError: 'bug'"):
        launch._raise_if_final(ALONE, raised(launch.Unforeseen("KeyError: 'bug'")))
    with pytest.raises(InfrastructureError, match=r"could not start the workers of member a \(no room\)"):
        launch._raise_if_final(ranks, ControllerError(RuntimeError("no room")))
    # Among ranks, a broken connection may be the first sign of a death.
    launch._raise_if_final(ranks, failed(launch.Unforeseen("Connection closed")))
    launch._raise_if_final(ranks, failed(ActorDiedError()))
    launch._raise_if_final(ranks, ActorDiedError())  # Ray Train's controller itself
    launch._raise_if_final(ALONE, WorkerCrashedError())


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory, street: Path) -> Path:
    root = tmp_path_factory.mktemp("launch")
    validate_dataset(street, root / "manifest.parquet", shares=SplitShares(0.25, 0.25, 0))
    pack(street, root / "manifest.parquet", root / "packed")
    return root / "packed"


def a_job(root: Path, packed: Path, **own: Any) -> TrainJob:
    return train_job(root, packed, **{"epochs": 6, "seed": 3, "precision": "fp32", "size_px": (64, 64), **own})


@pytest.mark.long
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
    facts = progress.read(killed.progress_path)
    assert facts is not None and (facts["member"], facts["epoch"], facts["epochs"]) == ("a", 6, 6)
    probs = Member.load(killed.out_dir).predict_probs(np.zeros((1, 37, 51, 3), np.uint8))
    assert probs.shape == (1, 5, 37, 51)


@pytest.mark.long
def test_a_damaged_checkpoint_costs_an_epoch_and_no_bit(joined: None, packed: Path, tmp_path: Path) -> None:
    """Ends like a run that was killed in its fourth epoch, whose last checkpoint the disk has lost a part of."""
    calm, hurt = (a_job(tmp_path / name, packed) for name in ("calm", "hurt"))
    launch.train_member(calm)
    for damage in (lambda path: path.write_bytes(b""), lambda path: os.truncate(path, path.stat().st_size // 2)):
        _leave_after_epoch(hurt, 3)
        damage(hurt.run_folder / STATE)
        launch.train_member(hurt)
        assert _bytes(hurt) == _bytes(calm)
        (said,) = progress.incidents(incidents_path(hurt.progress_path))
        assert said.startswith("member a: checkpoint ") and "resumes from the epoch before" in said
        incidents_path(hurt.progress_path).unlink()
        shutil.rmtree(hurt.run_folder)


@pytest.mark.slow
def test_a_member_that_was_finished_is_taken_as_it_is_and_made_again_where_it_is_damaged(
    joined: None, packed: Path, tmp_path: Path
) -> None:
    job = a_job(tmp_path, packed, epochs=1)
    launch.train_member(job)
    whole, state = _bytes(job), (job.run_folder / STATE).stat().st_mtime_ns
    for damaged in (False, True):
        shutil.rmtree(job.out_dir)
        job.progress_path.unlink(missing_ok=True)
        if damaged:
            os.truncate(job.run_folder / FINISHED / MEMBER / "weights.safetensors", 1000)
        launch.train_member(job)
        assert _bytes(job) == whole
        assert job.progress_path.exists() is damaged, "said of what Ray does"
        assert (job.run_folder / STATE).stat().st_mtime_ns == state, "no epoch was trained"


@pytest.mark.slow
@pytest.mark.fault
def test_a_training_that_is_stuck_ends_with_its_stacks_and_resumes(joined: None, packed: Path, tmp_path: Path) -> None:
    """First its loader is stopped, so that it waits for a batch for ever; then it is stopped as a whole."""
    calm, stuck = (a_job(tmp_path / name, packed, loader_workers=1, epochs=12) for name in ("calm", "stuck"))
    launch.train_member(calm)
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(launch.train_member, stuck, stall_s=40.0)
        worker = psutil.Process(_worker_pid(stuck, epoch=2))
        loaders = worker.children(recursive=True)
        for loader in loaders:
            loader.suspend()
        worker.wait(timeout=200)
        for loader in loaders:
            loader.kill()
        stacks = stacks_path(stuck.progress_path).read_text()
        assert "Timeout" in stacks and "loop.py" in stacks
        psutil.Process(_worker_pid(stuck, epoch=3, but=worker.pid)).suspend()
        training.result()
    assert _bytes(stuck) == _bytes(calm)
    said = progress.incidents(incidents_path(stuck.progress_path))
    assert len(said) == 2 and "made no step for 0.666667 minutes" in said[0] and "lost its worker" in said[1]


@pytest.mark.slow
@pytest.mark.long
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
    run = tmp_path / "runs" / "a-0123"
    whole = (tmp_path / "member" / "weights.safetensors").read_bytes()
    shutil.rmtree(run / FINISHED)
    os.truncate(run / STATE, 1000)
    for cut in (run / "checkpoint_manager_snapshot.json", run / launch.RAY / "checkpoint_manager_snapshot.json"):
        cut.write_text('{"ray_version": "2.')
    launch.train_member(a_job(tmp_path, packed, count=2, epochs=2, **everything))
    assert (tmp_path / "member" / "weights.safetensors").read_bytes() == whole


@pytest.mark.slow
@pytest.mark.long
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


def _leave_after_epoch(job: TrainJob, epoch: int) -> None:
    """Leave the run folder as a run that is killed after ``epoch`` does."""
    with ThreadPoolExecutor(1) as thread:
        training = thread.submit(launch.train_member, job)
        while not (job.run_folder / STATE).exists() or len(job.curves_path.read_text().splitlines()) < 1 + epoch:
            assert not training.done(), "it was too fast for this test"
            time.sleep(0.005)
        copy = job.run_folder.with_name("copy")
        shutil.copytree(job.run_folder, copy, ignore=shutil.ignore_patterns("*.draft", FINISHED, launch.RAY))
        training.result()
    shutil.rmtree(job.run_folder)
    copy.rename(job.run_folder)


def _bytes(job: TrainJob) -> bytes:
    return (job.out_dir / "weights.safetensors").read_bytes()


def _losses(curves: Path) -> list[str]:
    with curves.open(newline="") as file:
        return [row["loss"] for row in csv.DictReader(file)]


def _worker_pid(job: TrainJob, epoch: int, but: int | None = None) -> int:
    """Wait until the member's worker, not the one ``but``, is in ``epoch``, and return its process id."""
    deadline = time.monotonic() + 600
    while time.monotonic() < deadline:
        facts = progress.read(job.progress_path) or {}
        if facts.get("epoch", 0) >= epoch and facts["pid"] != but:
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
