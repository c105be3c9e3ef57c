"""One rank of a member's training, as Ray Train runs it: reports how it goes, saves checkpoints and the member."""

from __future__ import annotations

import os
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import ray.train
import ray.train.collective
import ray.train.torch
import torch

from segmill import progress
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.models.curves import write_curves
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.distributed import run_folder
from segmill.training.distributed.stall import SLOWEST_VALIDATION, Watchdog, stacks_path
from segmill.training.job import TrainJob
from segmill.training.loop import Step
from segmill.training.train import Callbacks, save, train

PROGRESS_EVERY_S = 0.5


def work(job: TrainJob, *, stall_s: float | None = None) -> None:
    """Train as ``job`` says; running out of memory becomes one sentence.

    This process ends where there is no step for ``stall_s`` seconds.
    """
    watchdog = Watchdog(stacks_path(job.progress_path), stall_s)
    try:
        _work(job, watchdog)
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise out_of_memory(job.name, job.train.batch_size, job.data.size_px) from error
        raise
    finally:
        watchdog.stop()


def _work(job: TrainJob, watchdog: Watchdog) -> None:
    watchdog.feed()
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    # A single rank sees the machine's GPUs even where it asks for none.
    device = ray.train.torch.get_device() if job.workers.gpus > 0 else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    reporter = Reporter(job, rank, watchdog)
    trained = train(
        job,
        rank=rank,
        device=device,
        resume_from=_checkpoint(job, rank, reporter),
        callbacks=Callbacks(reporter.state, reporter.step, reporter.epoch),
    )
    if rank.index == 0:
        with run_folder.finishing(job.run_folder / run_folder.FINISHED) as draft:
            save(replace(trained, job=replace(trained.job, out_dir=draft)))


def _checkpoint(job: TrainJob, rank: Rank, reporter: Reporter) -> Path | None:
    """Return the folder of the checkpoint that all ranks resume from: rank 0 chooses."""
    chosen: Path | None = None
    if rank.index == 0:
        chosen, damaged = run_folder.last_whole_checkpoint(job.run_folder)
        if damaged:
            reporter.incident(damaged)
    common: Path | None = ray.train.collective.broadcast_from_rank_zero(chosen)
    return common


class Reporter:
    """Says how training goes: to Ray after each epoch, to whoever reads the progress file twice a second."""

    def __init__(self, job: TrainJob, rank: Rank, watchdog: Watchdog):
        self._job = job
        self._rank = rank
        self._watchdog = watchdog
        self._epoch_began = time.monotonic()
        self._said_at = 0.0
        self._val_miou: float | None = None

    def state(self, state: str) -> None:
        """Say what happens before the first step."""
        self._watchdog.feed()
        if self._rank.index == 0:
            progress.report(self._job.progress_path, member=self._job.name, state=state, **self._here())

    def incident(self, sentence: str) -> None:
        """Say what was wrong and is mended."""
        path = run_folder.incidents_path(self._job.progress_path)
        progress.add_incident(path, f"member {self._job.name}: {sentence}")

    def step(self, step: Step) -> None:
        now = time.monotonic()
        if step.step == 1:
            self._epoch_began = now
        if step.step == step.steps or step.progress >= 1:  # a validation run follows, which says nothing
            self._watchdog.feed(at_least_s=self._pause_s(now))
        else:
            self._watchdog.feed()
        if self._rank.index == 0 and now - self._said_at >= PROGRESS_EVERY_S:
            self._said_at = now
            progress.report(
                self._job.progress_path,
                member=self._job.name,
                state="training",
                epoch=step.epoch,
                epochs=None if self._job.train.max_minutes else self._job.train.epochs,
                step=step.step,
                steps=step.steps,
                share_done=step.progress,
                loss=float(step.loss),
                val_miou=self._val_miou,
                images_s=step.images_s,
                seconds_left=step.seconds_left,
                pause_s=self._pause_s(now),
                **self._here(),
            )

    def _pause_s(self, now: float) -> float:
        """Return how long a validation run after this epoch may take."""
        return SLOWEST_VALIDATION * (now - self._epoch_began)

    def _here(self) -> dict[str, Any]:
        return {"time": time.time(), "pid": os.getpid(), "host": socket.gethostname()}

    def epoch(self, training: Training) -> None:
        """Save this epoch's checkpoint in the run folder; every rank must come here equally often."""
        self._watchdog.feed(at_least_s=1.0)
        row = training.curves[-1]
        if self._rank.index == 0:
            if row["val_miou"] is not None:
                self._val_miou = row["val_miou"]
            write_curves(self._job.curves_path, training.curves)
            run_folder.keep_former_checkpoint(self._job.run_folder)
            checkpoint.save(training, self._job.run_folder)
        ray.train.report(row)
