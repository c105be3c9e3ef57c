"""A member's training on Ray: start it, replace workers that die, errors as sentences. Light to import."""

from __future__ import annotations

import errno
import json
import os
import shutil
import time
import traceback
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill import progress
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.cluster.resources import Resources, check_resources
from segmill.cluster.waiting import fetch, in_thread, raise_if_stopped
from segmill.cluster.work import first_line, on_ray
from segmill.errors import InfrastructureError, SegmillError
from segmill.files import is_of_a_full_disk
from segmill.training.distributed.run_folder import FINISHED, copy_finished, has_finished, incidents_path
from segmill.training.distributed.stall import ending_stopped, stacks_path
from segmill.training.job import TrainJob

if TYPE_CHECKING:
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# A worker that dies (killed, lost node, driver fault) is replaced this often, from its last checkpoint.
RESTARTS = 2

RAY = "ray"  # in a run folder

# What Ray Train reads from the environment of the process that starts a training.
TRAIN_ENVIRONMENT = {
    # So often Ray asks each rank how it goes: five times a second take some percent of two cores.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "1",
    # A member waits for its turn, however long the members before it take.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600),
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


class WorkersLost(InfrastructureError):
    """The workers of a member died, or made no step, as often as they are replaced in one run."""


@dataclass(frozen=True)
class Launch:
    """A training as it goes to Ray: ``job``, and the seconds without a step after which a rank ends, None for never."""

    job: TrainJob
    stall_s: float | None


def train_member(job: TrainJob, *, stall_s: float | None = None) -> dict[str, Any]:
    """Train the network member of ``job`` on the cluster, and return its metrics when its folder is written.

    It waits until the cluster has room. A run of the same ``inputs_hash`` resumes from its last checkpoint, or takes
    the member that it finished. The run folder is the caller's to delete, once the member is recorded.

    Raises:
        InputError: the member can't be built, its weights can't be reached, or it does not fit the memory.
        InfrastructureError: the cluster could never hold it, or its worker died again and again.
        SegmillError: its loss was not finite.
    """
    finished = job.run_folder / FINISHED
    if not has_finished(finished):
        train_until_finished(job, stall_s=stall_s)
    copy_finished(finished, job.out_dir)
    metrics: dict[str, Any] = json.loads((job.out_dir / "metrics.json").read_text())
    return metrics


def train_until_finished(job: TrainJob, *, stall_s: float | None = None) -> None:
    """Train ``job`` until its run folder has the finished member; again where its workers die, or make no progress.

    ``stall_s``: seconds without a step after which a worker is ended, its stacks in ``stacks_path``; None: never.
    Errors as of train_member.
    """
    workers = job.workers
    check_resources(f"member {job.name}", Resources(workers.cpus, workers.gpus), times=workers.count)
    os.environ.update(TRAIN_ENVIRONMENT)
    job.run_folder.mkdir(parents=True, exist_ok=True)
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    for restarts_left in reversed(range(RESTARTS + 1)):
        progress.report(job.progress_path, member=job.name, state="starting", time=time.time())
        stacks = _size(stacks_path(job.progress_path))
        try:
            with ending_stopped(job.progress_path, stall_s):
                _train(Launch(job, stall_s))
            break
        except (TrainingFailedError, RayError) as error:
            # Exceptions may hold what only the worker's process could unpickle: only our sentences travel on.
            _raise_if_final(job, error)
            why = f"lost its worker ({first_line(_failures(error)[0])})"
            if stall_s and _size(stacks_path(job.progress_path)) > stacks:
                why = f"made no step for {stall_s / 60:g} minutes (stacks: {stacks_path(job.progress_path)})"
            if not restarts_left:
                raise _given_up(job, why) from None
            progress.add_incident(
                incidents_path(job.progress_path), f"member {job.name} {why}; it resumed from its last epoch"
            )


def _train(launch: Launch) -> None:
    """Run Ray Train: several ranks in its worker group, a single one in a Ray task that holds its share of the cluster.

    A worker group takes four processes beside the ranks' own (controller, synchronisation, dataset manager, placement
    group cleaner), each 2 s of a core; they keep ranks together, and a single one needs none of them. It may train in
    a process that worked before, which saves the seconds of importing torch; where a task takes a GPU, Ray ends its
    process with it, so that the memory is free for the next.
    """
    workers = launch.job.workers
    if workers.count == 1:
        fetch(on_ray(_fit, launch, Resources(workers.cpus, workers.gpus)).reference)
        return
    raise_if_stopped()
    in_thread(lambda: _fit(launch))


def _fit(launch: Launch) -> None:
    _trainer(launch).fit()


def _trainer(launch: Launch) -> DataParallelTrainer:
    """Return the trainer, with a folder for what Ray keeps: a former one may be cut, and nothing in it is needed."""
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from segmill.training.distributed.ranks import RanksConfig

    job = launch.job
    shutil.rmtree(job.run_folder / RAY, ignore_errors=True)
    gpu = job.workers.gpus > 0
    return DataParallelTrainer(
        _work,
        train_loop_config={"launch": launch},
        backend_config=RanksConfig(gpu=gpu),
        scaling_config=ScalingConfig(
            num_workers=job.workers.count if job.workers.count > 1 else 0,  # 0: in this process
            use_gpu=gpu,
            resources_per_worker={"CPU": job.workers.cpus, "GPU": job.workers.gpus},
        ),
        run_config=RunConfig(
            name=RAY,
            storage_path=str(job.run_folder),
            # Ray would repeat every failure alike; train_member repeats only what may go better the next time.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=RESTARTS),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


class Unforeseen(Exception):
    """What a rank raised that is no sentence of ours; its traceback as text, which every process can unpickle."""


def _work(config: dict[str, Launch]) -> None:
    """Be one rank; here and not in worker.py, so that Ray's onlookers need not import torch to pass it on.

    Raises SegmillError, OSError, Ray's errors, or Unforeseen for all others: whatever else comes out of a training
    is Ray's report that a rank died.
    """
    from ray.exceptions import RayError

    from segmill.training.distributed import worker

    try:
        worker.work(config["launch"].job, stall_s=config["launch"].stall_s)
    except (SegmillError, OSError, RayError):
        raise
    except Exception as error:
        if is_of_a_full_disk(error):
            folder = str(config["launch"].job.run_folder)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), folder) from None
        raise Unforeseen("".join(traceback.format_exception(error))) from None


def _raise_if_final(job: TrainJob, error: TrainingFailedError | RayError) -> None:
    """Raise where another try would end alike; return where a process died and may be replaced."""
    from ray.exceptions import OutOfMemoryError, RayError
    from ray.train import ControllerError

    if isinstance(error, ControllerError):
        raise InfrastructureError(
            f"Ray could not start the workers of member {job.name} ({first_line(error.controller_failure)}); "
            "run again: what is done is kept"
        ) from None
    failures = _failures(error)
    for failure in failures:
        if isinstance(failure, SegmillError | OSError):
            raise failure from None
    # Of a rank in a worker group that its monitor stopped because the memory was full, Ray gives a text, not a class.
    full = [failure for failure in failures if not isinstance(failure, Unforeseen) and ran_out_of_memory(failure)]
    if full or isinstance(error, OutOfMemoryError):
        raise out_of_memory(job.name, job.train.batch_size, job.data.size_px) from None
    # With several ranks the others' broken connections may arrive before the death that broke them.
    if job.workers.count == 1 and not isinstance(failures[0], RayError):
        raise RuntimeError(f"member {job.name} failed: {failures[0]}") from None


def _given_up(job: TrainJob, why: str) -> WorkersLost:
    return WorkersLost(
        f"member {job.name} failed {RESTARTS + 1} times: the last time it {why}; run again to continue from its last "
        f"epoch, and if the machine is short of memory lower batch_size (now {job.train.batch_size})"
    )


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _failures(error: TrainingFailedError | RayError) -> list[BaseException]:
    """Return what the ranks raised, or what Ray says of their deaths."""
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    if isinstance(error, RayTaskError):
        return [error.cause]
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return list(error.worker_failures.values())
    return [error]
