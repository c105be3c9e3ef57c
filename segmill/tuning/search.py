"""The search itself: Ray Tune runs the trials, Optuna's TPE proposes them, ASHA stops those that fall behind.

Ray Train is not used here: each trial is one process that runs the straight loop. Neither Tune's nor Optuna's own way
to resume is used either: Tuner.restore resumes with an unchanged budget from a snapshot that may miss the last finished
trial, Optuna's storage knows nothing of ASHA's rungs. What every trial did is in its file (trials.py); a search
starts by giving all of it to a new Optuna study and a new pruner, and resumes the trials that were open.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import optuna
import torch
from ray import tune
from ray.tune.stopper import CombinedStopper, Stopper

from segmill import progress
from segmill.cluster.memory import out_of_memory, ran_out_of_memory
from segmill.errors import InputError, SegmillError
from segmill.params import parse_params
from segmill.training import checkpoint
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.job import TrainJob
from segmill.training.loop import Step
from segmill.training.train import Callbacks, train
from segmill.tuning.jobs import RepeatJob, SearchJob
from segmill.tuning.proposals import Proposals
from segmill.tuning.space import with_values
from segmill.tuning.trials import (
    Spending,
    Study,
    Trial,
    Work,
    decide,
    read_trials,
    reserve_seconds,
    trial_key,
)

# A trial is stopped where it is in the lower half of all that came so far: at a quarter and at half of its training.
GRACE_PERCENT = 25
REDUCTION = 2
RUNGS = (GRACE_PERCENT, GRACE_PERCENT * REDUCTION)
LEAST_RIVALS = 3  # that came as far: fewer say nothing of which half a trial is in
LOOK_EVERY_S = 2.0
TUNE_ENVIRONMENT = {
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_PRINT_ALL_TRIAL_ERRORS": "0",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
}


def search(job: SearchJob) -> None:
    """Run trials until the job's are made or its minutes spent, by this and all earlier searches of the study.

    Each trial's file says how it went; one that fails (its loss is not finite, it runs out of memory) ends alone.
    """
    os.environ.update(TUNE_ENVIRONMENT)
    work, trials, present = job.work, job.trials, job.present
    study = Study(work.folder)
    before = [trial for trial in read_trials(study) if trial.values and trial.seed == work.seed]
    over = [trial for trial in before if trial.state != "open"]
    at_once = _at_once(work)
    spending = Spending(study)
    proposals = Proposals(
        job.space, over, seed=work.seed, most=None if trials is None else trials - len(over),
        first=[trial.values for trial in before if trial.state == "open"] or ([present] if present else []),
    )  # fmt: skip
    tuner = tune.Tuner(
        tune.with_resources(
            tune.with_parameters(_trial, work=work), tune.PlacementGroupFactory([{"CPU": work.cpus, "GPU": work.gpus}])
        ),
        tune_config=tune.TuneConfig(
            metric="miou",
            mode="max",
            search_alg=proposals,
            num_samples=-1,
            max_concurrent_trials=at_once,
            trial_dirname_creator=lambda trial: trial.trial_id,
        ),
        run_config=tune.RunConfig(
            name="search",
            storage_path=str(work.folder / "ray"),
            stop=CombinedStopper(
                Budget(study, spending, job.minutes, job.repeats, at_once), Rungs(study, work.seed, over)
            ),
            callbacks=[Deaths(study, work.seed)],
            verbose=0,
        ),
    )
    shutil.rmtree(work.folder / "ray", ignore_errors=True)
    try:
        tuner.fit()
    finally:
        spending.end()
        shutil.rmtree(work.folder / "ray", ignore_errors=True)


def train_once(job: RepeatJob) -> None:
    """Train one setting to its end, without anyone to stop it, and note it as a trial; nothing where that was done.

    Raises SegmillError where it fails, with what training said.
    """
    _run(job.work, job.values, job.seed, lambda result: None)


class Rungs(Stopper):  # type: ignore[misc]
    """Stops a trial that is in the lower half of all that came as far, those of earlier searches included.

    Asynchronous successive halving (Li et al., "A System for Massively Parallel Hyperparameter Tuning", MLSys 2020)
    with Optuna's PercentilePruner, which compares with completed trials only. So each arrival at a rung is a trial of
    a small Optuna study, complete at once, and trials that still run count as rivals too.
    """

    def __init__(self, study: Study, seed: int, over: Sequence[Trial]) -> None:
        self._study, self._seed = study, seed
        self._arrivals = optuna.create_study(
            direction="maximize",
            pruner=optuna.pruners.PercentilePruner(
                100 / REDUCTION, n_startup_trials=LEAST_RIVALS, n_min_trials=LEAST_RIVALS
            ),
        )
        self._reached: dict[str, int] = {}
        for trial in over:
            for result in results(trial.rows):
                self._is_behind(trial.key, result)

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Tell whether the trial stops here; if so, note it and delete its checkpoint."""
        if "percent" not in result:  # Ray Tune's own word on a trial that was over before and reported nothing
            return False
        behind = self._is_behind(trial_id, result)
        if not behind or result["percent"] >= 100:
            return False
        key = trial_key(result["config"]["values"], self._seed)
        why = f"behind the other half of the trials at {result['percent']:.0f} % of the training"
        decide(self._study, key, "stopped", why)
        shutil.rmtree(self._study.checkpoint(key), ignore_errors=True)
        return True

    def stop_all(self) -> bool:
        return False

    def _is_behind(self, trial_id: str, result: dict[str, Any]) -> bool:
        """Compare a trial that arrives at a rung with those that were there before."""
        rung = max((rung for rung in RUNGS if rung <= result["percent"]), default=0)
        if rung <= self._reached.get(trial_id, 0):
            return False
        self._reached[trial_id] = rung
        arrival = self._arrivals.ask()
        arrival.report(result["miou"], step=rung)
        behind: bool = arrival.should_prune()
        self._arrivals.tell(arrival, result["miou"])
        return behind


class Deaths(tune.Callback):  # type: ignore[misc]
    """Notes trials whose process died before it could say why."""

    def __init__(self, study: Study, seed: int) -> None:
        self._study, self._seed = study, seed

    def on_trial_error(self, iteration: int, trials: list[Any], trial: Any, **info: Any) -> None:
        key = trial_key(trial.config["values"], self._seed)
        if not (progress.read(self._study.trial(key)) or {}).get("failed"):
            decide(self._study, key, "failed", "its process died, perhaps for want of memory")


class Budget(Stopper):  # type: ignore[misc]
    """Ends the search when its minutes are spent, but for what the repeats will take."""

    def __init__(self, study: Study, spending: Spending, minutes: float | None, repeats: int, at_once: int) -> None:
        self._study, self._spending, self._repeats, self._at_once = study, spending, repeats, at_once
        self._budget_s = None if minutes is None else 60 * minutes
        self._looked_at = 0.0
        self._reserve_s = 0.0

    def __call__(self, trial_id: str, result: dict[str, Any]) -> bool:
        return False

    def stop_all(self) -> bool:
        self._spending.note()
        if self._budget_s is None:
            return False
        if time.monotonic() - self._looked_at > LOOK_EVERY_S:
            self._looked_at = time.monotonic()
            reserve_s = reserve_seconds(read_trials(self._study), self._repeats, self._at_once)
            self._reserve_s = min(reserve_s, self._budget_s / 2)
        return self._spending.seconds > self._budget_s - self._reserve_s


def results(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Return what a trial reports to Ray Tune: one entry per validation run."""
    return [{"miou": row["best"], "percent": 100 * row["share"]} for row in rows if row["val_miou"] is not None]


def _trial(config: dict[str, Any], work: Work) -> None:
    """Be one trial of Ray Tune."""
    _run(work, config["values"], work.seed, tune.report)


def _run(work: Work, values: dict[str, Any], seed: int, say: Callable[[dict[str, Any]], None]) -> None:
    """Train with ``values``, from where an earlier search left it; its file tells after every epoch.

    ``say`` is called after each validation run, those of the earlier search too, and may end the process.
    """
    study = Study(work.folder)
    key = trial_key(values, seed)
    job = trial_job(work, values, seed)
    path, kept = study.trial(key), study.checkpoint(key)
    known = progress.read(path)
    if known and known["over"]:
        return
    went_on = known is not None and (kept / checkpoint.FILE).is_file()
    facts: dict[str, Any] = {
        "values": values, "seed": seed, "began": known["began"] if known else time.time(),
        "rows": known["rows"] if known and went_on else [], "over": False, "failed": "",
    }  # fmt: skip
    progress.report(path, **facts)
    kept.mkdir(parents=True, exist_ok=True)
    share = 0.0

    def on_step(step: Step) -> None:
        nonlocal share
        share = step.progress

    def on_epoch(training: Training) -> None:
        row = training.curves[-1]
        facts["over"] = training.over or training.epochs_done >= job.train.epochs
        facts["rows"] = [earlier for earlier in facts["rows"] if earlier["epoch"] < row["epoch"]]
        facts["rows"].append(
            {
                **{name: row[name] for name in ("epoch", "loss", "val_miou", "lr")},
                "share": 1.0 if facts["over"] else share,
                "best": training.best_miou if training.best_epoch else None,
                "seconds": round(training.seconds, 2),
            }
        )
        progress.report(path, **facts)
        if facts["over"]:
            shutil.rmtree(kept, ignore_errors=True)
        else:
            checkpoint.save(training, kept)
        for result in results(facts["rows"][-1:]):
            say(result)

    for result in results(facts["rows"]):
        say(result)
    try:
        train(
            job,
            rank=Rank(),
            device=torch.device("cuda" if job.workers.gpus > 0 else "cpu"),
            resume_from=kept if went_on else None,
            callbacks=Callbacks(on_step=on_step, on_epoch=on_epoch),
        )
    except (SegmillError, MemoryError, RuntimeError) as error:
        sentence: BaseException = error
        if ran_out_of_memory(error):
            sentence = out_of_memory(job.name, job.train.batch_size, job.data.size_px)
        progress.report(path, **{**facts, "failed": str(sentence)})
        shutil.rmtree(kept, ignore_errors=True)
        if isinstance(sentence, SegmillError):
            raise sentence from None
        raise


def trial_job(work: Work, values: dict[str, Any], seed: int) -> TrainJob:
    """Return the training of a trial: what its values say wins over params.yaml as it is."""
    params = parse_params(with_values(work.values, work.member, values), "params.yaml")
    train = replace(params.training_of(work.member), seed=seed)
    if work.epochs is not None:
        train = replace(train, epochs=work.epochs, max_minutes=None)
    data = next(made for when, made in work.data if all(values.get(key) == value for key, value in when.items()))
    return replace(
        work.job,
        network=params.network_of(work.member),
        train=train,
        data=data,
        runs_dir=work.folder / "settled",
        failure_path=None,
        inputs_hash=trial_key(values, seed),
    )


def _at_once(work: Work) -> int:
    """Return how many trials the cluster holds at a time; InputError where it is none."""
    import ray

    total = ray.cluster_resources()
    rooms = [total.get("CPU", 0) / work.cpus] + ([total.get("GPU", 0) / work.gpus] if work.gpus else [])
    if int(min(rooms)) < 1:
        raise InputError(
            f"a trial of {work.member} asks for {work.cpus:g} CPU and {work.gpus:g} GPU and the Ray cluster has "
            f"{total.get('CPU', 0):g} and {total.get('GPU', 0):g}; lower ray.cpus_per_worker or ray.gpus_per_worker"
        )
    return int(min(rooms))
