"""One rank of a member's training, as Ray Train runs it: reports how it goes, saves checkpoints and the member."""

from __future__ import annotations

import os
import time

import ray.train
import ray.train.torch
import torch

from segmill import progress
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.models.curves import write_curves
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.job import TrainJob
from segmill.training.loop import Step
from segmill.training.train import Callbacks, save, train

PROGRESS_EVERY_S = 0.5


def work(job: TrainJob) -> None:
    """Train as ``job`` says; running out of memory becomes one sentence."""
    try:
        _work(job)
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise out_of_memory(job.name, job.train.batch_size, job.data.size_px) from error
        raise


def _work(job: TrainJob) -> None:
    context = ray.train.get_context()
    rank = Rank(context.get_world_rank(), context.get_world_size())
    # A single rank sees the machine's GPUs even where it asks for none.
    device = ray.train.torch.get_device() if job.workers.gpus > 0 else torch.device("cpu")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    reporter = Reporter(job, rank)
    run = job.run_folder
    trained = train(
        job,
        rank=rank,
        device=device,
        resume_from=run if (run / checkpoint.FILE).is_file() else None,
        callbacks=Callbacks(reporter.state, reporter.step, reporter.epoch),
    )
    if rank.index == 0:
        save(trained)


class Reporter:
    """Says how training goes: to Ray after each epoch, to whoever reads the progress file twice a second."""

    def __init__(self, job: TrainJob, rank: Rank):
        self._job = job
        self._rank = rank
        self._said_at = 0.0
        self._val_miou: float | None = None

    def state(self, state: str) -> None:
        """Say what happens before the first step."""
        if self._rank.index == 0:
            progress.report(
                self._job.progress_path, member=self._job.name, state=state, time=time.time(), pid=os.getpid()
            )

    def step(self, step: Step) -> None:
        now = time.monotonic()
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
                time=time.time(),
                pid=os.getpid(),
            )

    def epoch(self, training: Training) -> None:
        """Save this epoch's checkpoint in the run folder; every rank must come here equally often."""
        row = training.curves[-1]
        if self._rank.index == 0:
            if row["val_miou"] is not None:
                self._val_miou = row["val_miou"]
            write_curves(self._job.curves_path, training.curves)
            checkpoint.save(training, self._job.run_folder)
        ray.train.report(row)
