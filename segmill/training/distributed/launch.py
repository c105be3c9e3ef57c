"""Work on Ray: connecting, functions by name, members' trainings, errors as sentences. Light to import."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import shutil
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill import progress
from segmill.alongside import alongside
from segmill.errors import InfrastructureError, InputError, SegmillError
from segmill.training.memory import out_of_memory, ran_out_of_memory
from segmill.training.settings import run_folder

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.train import TrainingFailedError

    from segmill.training.distributed.ranks import LeanTrainer

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

# How glibc gives memory to the processes of a cluster that is started here (mallopt(3)): one heap that keeps what is
# freed. Left alone it gives large tensors back to the kernel in every step and takes them again, page by page.
ALLOCATOR = {
    "MALLOC_ARENA_MAX": "1",  # Ray trains in a thread, whose own heap could not hold a tensor
    "MALLOC_MMAP_MAX_": "0",
    "MALLOC_TRIM_THRESHOLD_": str(2**40),
    "MALLOC_TOP_PAD_": str(2**26),
}

DEATHS = (
    "ActorDiedError",
    "ActorUnavailableError",
    "WorkerHealthCheckFailedError",
    "WorkerHealthCheckTimeoutError",
)


_CONNECTING = threading.Lock()


@contextlib.contextmanager
def connect(address: str, num_cpus: int | None = None) -> Iterator[None]:
    """Be connected to Ray inside the ``with``.

    ``local`` starts a cluster of this machine's cores (or of ``num_cpus``) that ends with the block and never
    joins one that is there already; any other address joins that cluster. Inside another ``connect``, of any
    thread, it does nothing. What is no Exception (Ctrl-C, a termination signal) ends the connection for all threads,
    so that whoever waits for work fails at once. Raises InfrastructureError where nothing answers.
    """
    with _CONNECTING:
        mine = _init(address, num_cpus)
    over = False
    try:
        yield
    except BaseException as reason:
        over = not isinstance(reason, Exception)
        raise
    finally:
        if mine or over:
            import ray

            ray.shutdown()


@contextlib.contextmanager
def connecting(address: str) -> Iterator[None]:
    """Begin to ``connect`` while the block already runs; a ``connect`` inside it waits for that, and says what failed.

    The thread that starts Ray stays until the end: Ray's processes are told to die with it.
    """

    def hold(over: threading.Event) -> None:
        with contextlib.suppress(InfrastructureError), connect(address):
            over.wait()

    with alongside(hold):
        yield


def even_share(workers: int) -> float:
    """Return the CPUs for each of ``workers`` processes that train at the same time: whole ones where it can be.

    At least half a CPU, so that never more than two trainings crowd on one; the others wait.
    """
    import ray

    share = ray.cluster_resources().get("CPU", 0) / workers
    return float(int(share)) if share >= 1 else max(0.5, int(share * 100) / 100)


def whole_node() -> dict[str, float]:
    """Return what ``on_ray`` takes to hold all CPUs and GPUs of the largest node."""
    import ray

    largest = max((node["Resources"] for node in ray.nodes() if node["Alive"]), key=lambda has: has.get("CPU", 0))
    return {"num_cpus": largest.get("CPU", 0), "num_gpus": min(1, largest.get("GPU", 0))}


def _init(address: str, num_cpus: int | None) -> bool:
    """Connect this process to Ray; False where it is connected already."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    # A member takes five small processes; with few cores Ray warns of them on the terminal.
    os.environ.setdefault("RAY_worker_maximum_startup_concurrency", "8")
    import ray

    if ray.is_initialized():
        return False
    local: dict[str, Any] = {}
    if address == "local":
        local = {"num_cpus": num_cpus, "include_dashboard": False}
        for name, value in ALLOCATOR.items():
            os.environ.setdefault(name, value)
    try:
        ray.init(address, log_to_driver=False, logging_level="ERROR", **local)
    except Exception as reason:  # Ray raises a bare Exception where its own processes take too long
        ray.shutdown()
        if address == "local":
            raise InfrastructureError(
                f"Ray did not start on this machine ({_first_line(reason)}); where it is overloaded, try again later"
            ) from reason
        raise InfrastructureError(
            f"no Ray cluster at {address} ({_first_line(reason)}); start one with `ray start --head`, set ray.address "
            "to local, or, where the cluster asks for a token, RAY_AUTH_MODE=token"
        ) from reason
    return True


def on_ray(
    function: str,
    *args: Any,
    num_cpus: float = 1,
    num_gpus: float = 0,
    **kwargs: Any,
) -> ObjectRef:
    """Start ``function``, written ``module:name``, on the cluster; its result comes from ``wait``.

    Raises InfrastructureError where the cluster could never hold it.
    """
    import ray

    check_resources(function, {"CPU": num_cpus, "GPU": num_gpus})
    task = ray.remote(num_cpus=num_cpus, num_gpus=num_gpus, max_retries=0)(_call)
    return task.remote(function, args, kwargs)


def train_member(args: dict[str, Any]) -> dict[str, Any]:
    """Start the training of a member; ``wait`` returns its metrics when the member folder is written.

    A Ray task without CPUs of its own runs Ray Train, whose workers wait until the cluster has room. A run of
    the same ``inputs_hash`` continues from its last checkpoint; its run folder goes when it is through.

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
        {"CPU": args["cpus_per_worker"], "GPU": args["gpus_per_worker"]},
        times=args["num_workers"],
    )
    os.environ.update(TRAIN_ENVIRONMENT)
    progress.report(
        Path(args["progress_path"]),
        member=args["name"],
        state="starting",
        time=time.time(),
    )
    from ray.train import TrainingFailedError

    for restarts_left in reversed(range(RESTARTS + 1)):
        try:
            _trainer(args).fit()
            break
        except TrainingFailedError as error:
            # Exceptions may hold what only the worker's process could unpickle: only our sentences travel on.
            _raise_if_final(args, error, restarts_left)
    metrics: dict[str, Any] = json.loads((Path(args["out_dir"]) / "metrics.json").read_text())
    shutil.rmtree(run_folder(args))
    return metrics


def wait(reference: ObjectRef) -> Any:
    """Return what the work behind ``reference`` returned, or raise what it raised.

    Errors of ours come out as they went in. Raises InputError where the work ran out of memory and
    InfrastructureError where its process died or the cluster went away.
    """
    import ray
    from ray import exceptions

    try:
        return ray.get(reference)
    except exceptions.RayTaskError as error:
        if isinstance(error.cause, SegmillError | OSError):
            raise error.cause from None
        if isinstance(error.cause, MemoryError | RuntimeError) and ran_out_of_memory(error.cause):
            raise InputError(
                f"the work ran out of memory ({_first_line(error.cause)}); lower prepare.size_px"
            ) from error
        raise
    except exceptions.OutOfMemoryError as error:
        raise InputError("Ray stopped the work because the machine ran out of memory; lower prepare.size_px") from error
    except exceptions.RayError as error:
        raise InfrastructureError(
            f"Ray lost the work ({_first_line(error)}); run again: what is done is kept"
        ) from error


def check_resources(what: str, each: dict[str, float], times: int = 1) -> None:
    """Raise InfrastructureError where the whole cluster, when idle, lacks ``times`` x ``each`` (CPU, GPU)."""
    import ray

    total = ray.cluster_resources()
    for kind, amount in each.items():
        has = total.get(kind, 0)
        if amount * times > has:
            raise InfrastructureError(
                f"{what} asks for {times} x {amount:g} {kind} and the Ray cluster has {has:g}; lower "
                f"ray.workers or ray.{kind.lower()}s_per_worker, or add nodes"
            )


def _call(function: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    module, _, name = function.partition(":")
    return getattr(importlib.import_module(module), name)(*args, **kwargs)


def _trainer(args: dict[str, Any]) -> LeanTrainer:
    from ray.train import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

    from segmill.training.distributed.ranks import LeanTrainer, RanksConfig

    gpu = args["gpus_per_worker"] > 0
    return LeanTrainer(
        _work,
        train_loop_config=args,
        backend_config=RanksConfig(gpu=gpu),
        scaling_config=ScalingConfig(
            num_workers=args["num_workers"],
            use_gpu=gpu,
            resources_per_worker={"CPU": args["cpus_per_worker"], "GPU": args["gpus_per_worker"]},
        ),
        run_config=RunConfig(
            name=run_folder(args).name,
            storage_path=args["run_dir"],
            checkpoint_config=CheckpointConfig(num_to_keep=1),
            # Ray would repeat every failure alike; train_member repeats only what may go better the next time.
            failure_config=FailureConfig(max_failures=0, controller_failure_limit=RESTARTS),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )


def _work(args: dict[str, Any]) -> None:
    """Be one rank; here and not in worker.py, so that Ray's onlookers need not import torch to pass it on."""
    from segmill.training.distributed import worker

    worker.work(args)


def _raise_if_final(args: dict[str, Any], error: TrainingFailedError, restarts_left: int) -> None:
    """Raise where another try would end alike; return where a worker died and may be replaced."""
    failures = list(getattr(error, "worker_failures", {}).values())
    for failure in failures:
        if isinstance(failure, SegmillError | OSError):
            raise failure from None
    # What Ray's monitor stopped for want of memory arrives as text only.
    if any(ran_out_of_memory(failure) for failure in failures):
        raise out_of_memory(args) from None
    # With several ranks the others' broken connections may arrive before the death that broke them.
    died = args["num_workers"] > 1 or any(type(failure).__name__ in DEATHS for failure in failures)
    if not died:
        raise RuntimeError(f"member {args['name']} failed: {error}") from None
    if not restarts_left:
        raise InfrastructureError(
            f"member {args['name']} lost its worker {RESTARTS + 1} times ({_first_line(failures[0])}); run "
            "again to continue from its last epoch, and if the machine is short of memory lower batch_size "
            f"(now {args['batch_size']})"
        ) from None


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
