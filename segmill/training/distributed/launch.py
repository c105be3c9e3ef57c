"""A member's training on Ray: start it, replace workers that die, errors as sentences. Light to import."""

from __future__ import annotations

import importlib
import json
import os
import shutil
import time
import traceback
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill import progress
from segmill.cluster import work
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.cluster.resources import Resources, check_resources
from segmill.cluster.work import Running, first_line
from segmill.errors import InfrastructureError, SegmillError
from segmill.training.settings import run_folder

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


def on_ray(function: str, *args: Any, num_cpus: float = 1, num_gpus: float = 0, **kwargs: Any) -> Running[Any]:
    """Start ``function``, written ``module:name``, on the cluster; its result comes from ``wait``."""
    return work.on_ray(_call, (function, args, kwargs), Resources(num_cpus, num_gpus))


def train_member(args: dict[str, Any]) -> dict[str, Any]:
    """Start the training of a member; ``wait`` returns its metrics when the member folder is written.

    It waits until the cluster has room. A run of the same ``inputs_hash`` continues from its last checkpoint; its run
    folder is deleted at the end.

    Args (all JSON-able, all required):
        name, backbone, decoder, weights, lr, decoder_width, attention, context, aux_heads, head_weights, keep_heads,
            deep_supervision: the member, as in params.yaml.
        seed, epochs, max_minutes, batch_size, grad_accum_steps, optimizer, momentum, weight_decay, encoder_lr_factor,
            layer_decay, schedule, warmup_epochs, loss, focal_gamma, tversky_alpha, class_weights, ohem, ema_decay,
            max_grad_norm, freeze_epochs, unfreeze_epochs, early_stopping_patience, precision,
            gradient_checkpointing, compile, val_every: as in params.yaml.
        start_folder, start_source: a member folder to begin with instead of ``weights``, where its network is the
            same, and what it is called in the record; or None twice.
        recipe, size: what Augmenter takes.
        packed_dir, extra_dir: the packed splits, and a packed folder of further train samples or None.
        out_dir: the member folder to write, a temporary one.
        run_dir: where run folders lie (see run_folder). progress_path: the progress JSON; curves_path: the
            curve that grows with each epoch, timings included. failure_path: the .npz that a batch goes to whose
            loss is not finite.
        data_version, params: for the record.
        num_workers, cpus_per_worker, gpus_per_worker, loader_workers: what it runs on.
        inputs_hash: of everything that decides the result.

    Raises:
        InputError: the member can't be built, its weights can't be reached, or it does not fit the memory.
        InfrastructureError: the cluster could never hold it, or its worker died again and again.
        SegmillError: its loss was not finite.
    """
    check_resources(
        f"member {args['name']}",
        Resources(args["cpus_per_worker"], args["gpus_per_worker"]),
        times=args["num_workers"],
    )
    os.environ.update(TRAIN_ENVIRONMENT)
    progress.report(
        Path(args["progress_path"]),
        member=args["name"],
        state="starting",
        time=time.time(),
    )
    run_folder(args).mkdir(parents=True, exist_ok=True)
    from ray.exceptions import RayError
    from ray.train import TrainingFailedError

    for restarts_left in reversed(range(RESTARTS + 1)):
        try:
            _train(args)
            break
        except (TrainingFailedError, RayError) as error:
            # Exceptions may hold what only the worker's process could unpickle: only our sentences travel on.
            _raise_if_final(args, error, restarts_left)
    metrics: dict[str, Any] = json.loads((Path(args["out_dir"]) / "metrics.json").read_text())
    shutil.rmtree(run_folder(args))
    return metrics


def _call(job: tuple[str, tuple[Any, ...], dict[str, Any]]) -> Any:
    function, args, kwargs = job
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def _train(args: dict[str, Any]) -> None:
    """Run Ray Train: several ranks in its worker group, a single one in a Ray task that holds its share of the cluster.

    A worker group takes four processes beside the ranks' own (controller, synchronisation, dataset manager, placement
    group cleaner), each 2 s of a core; they keep ranks together, and a single one needs none of them.
    """
    if args["num_workers"] > 1:
        _fit(args)
        return
    import ray

    alone = ray.remote(
        num_cpus=args["cpus_per_worker"],
        num_gpus=args["gpus_per_worker"],
        max_retries=0,
        max_calls=1,  # its process ends with it
    )(_fit)
    ray.get(alone.remote(args))


def _fit(args: dict[str, Any]) -> None:
    _trainer(args).fit()


def _trainer(args: dict[str, Any]) -> DataParallelTrainer:
    from ray.train import FailureConfig, LoggingConfig, RunConfig, ScalingConfig
    from ray.train.v2.api.data_parallel_trainer import DataParallelTrainer

    from segmill.training.distributed.ranks import RanksConfig

    gpu = args["gpus_per_worker"] > 0
    return DataParallelTrainer(
        _work,
        train_loop_config=args,
        backend_config=RanksConfig(gpu=gpu),
        scaling_config=ScalingConfig(
            num_workers=args["num_workers"] if args["num_workers"] > 1 else 0,  # 0: in this process
            use_gpu=gpu,
            resources_per_worker={"CPU": args["cpus_per_worker"], "GPU": args["gpus_per_worker"]},
        ),
        run_config=RunConfig(
            name=run_folder(args).name,
            storage_path=args["run_dir"],
            # Ray would repeat every failure alike; train_member repeats only what may go better the next time.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=RESTARTS),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


class Unforeseen(Exception):
    """What a rank raised that is no sentence of ours; its traceback as text, which every process can unpickle."""


def _work(args: dict[str, Any]) -> None:
    """Be one rank; here and not in worker.py, so that Ray's onlookers need not import torch to pass it on.

    Raises SegmillError, OSError, Ray's errors, or Unforeseen for all others: whatever else comes out of a training
    is Ray's report that a rank died.
    """
    from ray.exceptions import RayError

    from segmill.training.distributed import worker

    try:
        worker.work(args)
    except (SegmillError, OSError, RayError):
        raise
    except Exception as error:
        raise Unforeseen("".join(traceback.format_exception(error))) from None


def _raise_if_final(args: dict[str, Any], error: TrainingFailedError | RayError, restarts_left: int) -> None:
    """Raise where another try would end alike; return where a process died and may be replaced."""
    from ray.exceptions import OutOfMemoryError, RayError
    from ray.train import ControllerError

    if isinstance(error, ControllerError):
        raise InfrastructureError(
            f"Ray could not start the workers of member {args['name']} ({first_line(error.controller_failure)}); "
            "run again: what is done is kept"
        ) from None
    failures = _failures(error)
    for failure in failures:
        if isinstance(failure, SegmillError | OSError):
            raise failure from None
    # Of a rank in a worker group that its monitor stopped because the memory was full, Ray gives a text, not a class.
    full = [failure for failure in failures if not isinstance(failure, Unforeseen) and ran_out_of_memory(failure)]
    if full or isinstance(error, OutOfMemoryError):
        raise out_of_memory(args["name"], args["batch_size"], args["size"]) from None
    # With several ranks the others' broken connections may arrive before the death that broke them.
    if args["num_workers"] == 1 and not isinstance(failures[0], RayError):
        raise RuntimeError(f"member {args['name']} failed: {failures[0]}") from None
    if not restarts_left:
        raise InfrastructureError(
            f"member {args['name']} lost its worker {RESTARTS + 1} times ({first_line(failures[0])}); run "
            "again to continue from its last epoch, and if the machine is short of memory lower batch_size "
            f"(now {args['batch_size']})"
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
