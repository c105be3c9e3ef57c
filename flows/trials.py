"""A tuning while it runs: its trials in the terminal, and each of them as a nested run in MLflow."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from flows.display import Pauses, clock, watching
from segmill import progress, tracking
from segmill.alongside import alongside
from segmill.errors import InfrastructureError
from segmill.params_text import say
from segmill.tuning.trials import Study, Trial, read_trials, run_seconds

LOG_INTERVAL_S = 2.0
MOST_ROWS = 20
STYLES = {"full": "green", "stopped": "dim", "failed": "red", "open": "yellow"}
ENDED = {"full": "FINISHED", "stopped": "FINISHED", "failed": "FAILED", "open": "KILLED"}


@contextmanager
def watched(study: Study, keys: Sequence[str], minutes: float | None, console: Console) -> Iterator[None]:
    """Show the trials until the block ends: a table in a terminal, a line per trial that ends elsewhere."""
    told = {trial.key for trial in read_trials(study) if trial.state != "open"}
    pauses, began = Pauses(), time.time()

    def news(over: bool) -> Iterator[str]:
        trials = read_trials(study)
        for number, trial in enumerate(trials, 1):
            if trial.state != "open" and trial.key not in told:
                told.add(trial.key)
                yield line(number, trial, keys)
        running = sum(trial.state == "open" for trial in trials)
        state = f"{'1 trial runs' if running == 1 else f'{running} trials run'}, {clock(run_seconds(study))} spent"
        if running and not over and pauses.over("trials", began, state):
            yield state

    with watching(console, lambda: table(study, keys, minutes), news):
        yield


@contextmanager
def logged(study: Study, uri: str, experiment: str, name: str, artifacts: str | None, unsent: Path) -> Iterator[None]:
    """Log a run and, nested under it, one per trial, while the block runs; a tuning that resumes logs to the same run.

    ``unsent``: the folder that keeps that the run is over, where MLflow does not answer then.

    Raises InfrastructureError where MLflow does not answer at the start; one that falls silent later stops no search.
    """
    runs = progress.read(study.runs) or {"parent": "", "trials": {}}
    if not runs["parent"]:
        runs["parent"] = tracking.start_run(uri, experiment, name, artifacts=artifacts)
        progress.report(study.runs, **runs)
    status: Any = "FAILED"
    try:
        with alongside(lambda over: _log(study, uri, experiment, runs, over)):
            yield
        status = "FINISHED"
    finally:
        tracking.finish(uri, runs["parent"], status, unsent)


def line(number: int, trial: Trial, keys: Sequence[str]) -> str:
    """Say one trial in a line: number, state, how far, val mIoU, its values."""
    values = ", ".join(f"{key.rpartition('.')[2]} {say(trial.values[key])}" for key in keys if key in trial.values)
    best = "-" if trial.best is None else f"{trial.best:.3f}"
    why = f" ({trial.why})" if trial.why else ""
    return f"trial {number}: {trial.state} at {trial.share:.0%}, val mIoU {best}, {values or 'current settings'}{why}"


def table(study: Study, keys: Sequence[str], minutes: float | None) -> Table:
    """Return the table of the latest trials, the best one marked."""
    trials = read_trials(study)
    best = max((trial.best for trial in trials if trial.best is not None), default=None)
    spent, most = clock(run_seconds(study)), f" of {clock(60 * minutes)}" if minutes else ""
    shown = Table(box=None, pad_edge=False, header_style="dim", title=f"{len(trials)} trials, {spent}{most}",
                  title_justify="left", title_style="dim")  # fmt: skip
    for title in ("trial", "state", "done", "val mIoU", *(key.rpartition(".")[2] for key in keys), "seed"):
        shown.add_column(title, justify="right" if title in ("done", "val mIoU") else "left", no_wrap=True)
    for number, trial in list(enumerate(trials, 1))[-MOST_ROWS:]:
        figure = "-" if trial.best is None else f"{trial.best:.3f}{' *' if trial.best == best else '  '}"
        values = [say(trial.values[key]) if key in trial.values else "current" for key in keys]
        shown.add_row(str(number), trial.state, f"{trial.share:.0%}", figure, *values, str(trial.seed),
                      style=STYLES[trial.state])  # fmt: skip
    return shown


def _log(study: Study, uri: str, experiment: str, runs: dict[str, Any], over: threading.Event) -> None:
    while True:
        last = over.wait(LOG_INTERVAL_S)
        with suppress(InfrastructureError):  # the files hold everything; the next round logs what is missing
            for number, trial in enumerate(read_trials(study), 1):
                _log_trial(study, uri, experiment, runs, number, trial, last)
        if last:
            return


def _log_trial(
    study: Study, uri: str, experiment: str, runs: dict[str, Any], number: int, trial: Trial, last: bool
) -> None:
    noted = runs["trials"].get(trial.key)
    if noted is None:
        run_id = tracking.start_run(
            uri, experiment, f"trial {number}", parent=runs["parent"], tags={"seed": str(trial.seed)}
        )
        tracking.log_params(uri, run_id, {**trial.values, "seed": trial.seed})
        noted = runs["trials"][trial.key] = {"id": run_id, "epoch": 0, "state": "open"}
        progress.report(study.runs, **runs)
    new = [row for row in trial.rows if row["epoch"] > noted["epoch"]]
    if new:
        tracking.log_curves(uri, noted["id"], new)
        noted["epoch"] = new[-1]["epoch"]
    if noted["state"] == "open" and (trial.state != "open" or last):
        tracking.finish(uri, noted["id"], ENDED[trial.state])  # type: ignore[arg-type]
        noted["state"] = trial.state
    if new or noted["state"] != "open":
        progress.report(study.runs, **runs)
