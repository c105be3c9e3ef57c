"""A member's training on Ray: start it, replace workers that die, errors as sentences. Light to import."""

from __future__ import annotations

import json
import os
import shutil
import time
import traceback
from typing import TYPE_CHECKING, Any

from segmill import progress
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.cluster.resources import Resources, check_resources
from segmill.cluster.work import fetch, first_line, on_ray, raise_if_stopped
from segmill.errors import InfrastructureError, SegmillError
from segmill.training.job import TrainJob

if TYPE_CHECKING:
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

# A worker that dies (killed, lost node, driver fault) is replaced this often, from its last checkpoint.
RESTARTS = 2

# What Ray Train reads from the environment of the process that starts a training.
TRAIN_ENVIRONMENT = {
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # A member waits for its turn, however long the members before it take.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": str(7 * 24 * 3600),
    "RAY_TRAIN_METRICS_ENABLED": "0",
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}


def train_member(job: TrainJob) -> dict[str, Any]:
    """Train the network member of ``job`` on the cluster, and return its metrics when its folder is written.

    It waits until the cluster has room. A run of the same ``inputs_hash`` resumes from its last checkpoint; its run
    folder is deleted at the end.

    Raises:
        InputError: the member can't be built, its weights can't be reached, or it does not fit the memory.
        InfrastructureError: the cluster could never hold it, or its worker died again and again.
        SegmillError: its loss was not finite.
    """
    workers = job.workers
    check_resources(f"member {job.name}", Resources(workers.cpus, workers.gpus), times=workers.count)
    os.environ.update(TRAIN_ENVIRONMENT)
    progress.report(job.progress_path, member=job.name, state="starting", time=time.time())
    job.run_folder.mkdir(parents=True, exist_ok=True)
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    for restarts_left in reversed(range(RESTARTS + 1)):
        try:
            _train(job)
            break
        except (TrainingFailedError, RayError) as error:
            # Exceptions may hold what only the worker's process could unpickle: only our sentences travel on.
            _raise_if_final(job, error, restarts_left)
    metrics: dict[str, Any] = json.loads((job.out_dir / "metrics.json").read_text())
    shutil.rmtree(job.run_folder)
    return metrics


def _train(job: TrainJob) -> None:
    """Run Ray Train: several ranks in its worker group, a single one in a Ray task that holds its share of the cluster.

    A worker group takes four processes beside the ranks' own (controller, synchronisation, dataset manager, placement
    group cleaner), each 2 s of a core; they keep ranks together, and a single one needs none of them. It may train in
    a process that worked before, which saves the seconds of importing torch; where a task takes a GPU, Ray ends its
    process with it, so that the memory is free for the next.
    """
    if job.workers.count == 1:
        fetch(on_ray(_fit, job, Resources(job.workers.cpus, job.workers.gpus)).reference)
        return
    raise_if_stopped()
    _fit(job)


def _fit(job: TrainJob) -> None:
    _trainer(job).fit()


def _trainer(job: TrainJob) -> DataParallelTrainer:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from segmill.training.distributed.ranks import RanksConfig

    gpu = job.workers.gpus > 0
    return DataParallelTrainer(
        _work,
        train_loop_config={"job": job},
        backend_config=RanksConfig(gpu=gpu),
        scaling_config=ScalingConfig(
            num_workers=job.workers.count if job.workers.count > 1 else 0,  # 0: in this process
            use_gpu=gpu,
            resources_per_worker={"CPU": job.workers.cpus, "GPU": job.workers.gpus},
        ),
        run_config=RunConfig(
            name=job.run_folder.name,
            storage_path=str(job.runs_dir),
            # Ray would repeat every failure alike; train_member repeats only what may go better the next time.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=RESTARTS),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


class Unforeseen(Exception):
    """What a rank raised that is no sentence of ours; its traceback as text, which every process can unpickle."""


def _work(config: dict[str, TrainJob]) -> None:
    """Be one rank; here and not in worker.py, so that Ray's onlookers need not import torch to pass it on.

    Raises SegmillError, OSError, Ray's errors, or Unforeseen for all others: whatever else comes out of a training
    is Ray's report that a rank died.
    """
    from ray.exceptions import RayError

    from segmill.training.distributed import worker

    try:
        worker.work(config["job"])
    except (SegmillError, OSError, RayError):
        raise
    except Exception as error:
        raise Unforeseen("".join(traceback.format_exception(error))) from None


def _raise_if_final(job: TrainJob, error: TrainingFailedError | RayError, restarts_left: int) -> None:
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
    if not restarts_left:
        raise InfrastructureError(
            f"member {job.name} lost its worker {RESTARTS + 1} times ({first_line(failures[0])}); run "
            "again to continue from its last epoch, and if the machine is short of memory lower batch_size "
            f"(now {job.train.batch_size})"
        ) from None


def _failures(error: TrainingFailedError | RayError) -> list[BaseException]:
    """Return what the ranks raised, or what Ray says of their deaths."""
    from ray.exceptions import RayTaskError
    from ray.train import WorkerGroupError

    if isinstance(error, RayTaskError):
        return [error.cause]
    if isinstance(error, WorkerGroupError) and error.worker_failures:
        return list(error.worker_failures.values())
    return [error]
