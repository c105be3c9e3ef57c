"""The trials of a tuning as files: how each went, which is best, and whether it beats the current settings."""

from __future__ import annotations

import csv
import hashlib
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from segmill import progress
from segmill.files import replacing
from segmill.metrics.intervals import student_t_quantile
from segmill.names import for_spreadsheet
from segmill.training.job import TrainData, TrainJob
from segmill.tuning.space import settings_of

State = Literal["full", "stopped", "failed", "open"]
NOTE_EVERY_S = 2.0


@dataclass(frozen=True)
class Work:
    """What all trials of a tuning have in common.

    Args:
        folder: of the Study; on every node at the same path.
        member: the network that is tuned.
        values: params.yaml as plain values.
        job: of training that member as params.yaml is; a trial changes its settings and where it keeps what it makes.
        epochs: of every trial; None for the member's own, and its own max_minutes.
        data: what training reads, each with the upstream values it was made with. The last one is that of params.yaml
            as it is.
        cpus, gpus: of each trial.
    """

    folder: Path
    member: str
    values: dict[str, Any]
    job: TrainJob
    epochs: int | None
    data: tuple[tuple[dict[str, Any], TrainData], ...]
    cpus: float
    gpus: float

    @property
    def seed(self) -> int:
        """The seed of the search; repeats count on from it."""
        return int(settings_of(self.values, self.member)["seed"])


@dataclass(frozen=True)
class Study:
    """The folder of one tuning: ``trials/KEY.json`` written by the trial KEY, the rest by who leads the search.

    Nothing else is needed to resume after a kill: what a trial did is in its file after each epoch.
    """

    folder: Path

    @property
    def decisions(self) -> Path:
        """Trials that were stopped early or whose process died: KEY to why."""
        return self.folder / "decisions.json"

    @property
    def sessions(self) -> Path:
        """When each search began and was last seen alive, in seconds since 1970."""
        return self.folder / "sessions.json"

    @property
    def runs(self) -> Path:
        """MLflow's run of the tuning and of each trial."""
        return self.folder / "runs.json"

    def trial(self, key: str) -> Path:
        return self.folder / "trials" / f"{key}.json"

    def checkpoint(self, key: str) -> Path:
        """Where the trial stood after its last epoch; gone once it is over."""
        return self.folder / "checkpoints" / key


@dataclass(frozen=True)
class Trial:
    """One training with some values.

    ``values``: of the searched keys, or {} for params.yaml as it is. ``seed``: of the training. ``rows``: one per
    epoch with epoch, share (of the training, 0..1), loss, val_miou (None where it was not measured), best (val
    mIoU so far, None before the first validation run), lr, seconds. ``why``: what stopped or failed it.
    """

    key: str
    values: dict[str, Any]
    seed: int
    began: float
    rows: list[dict[str, Any]]
    state: State
    why: str = ""

    @property
    def best(self) -> float | None:
        """The best val mIoU so far; None before the first validation run."""
        return self.rows[-1]["best"] if self.rows else None

    @property
    def share(self) -> float:
        return self.rows[-1]["share"] if self.rows else 0.0

    @property
    def seconds(self) -> float:
        return self.rows[-1]["seconds"] if self.rows else 0.0

    def at(self, share: float) -> float | None:
        """Return the best val mIoU when ``share`` of the training was done; None where it never came so far."""
        return next((row["best"] for row in self.rows if row["share"] >= share - 1e-9), None)


def trial_key(values: Mapping[str, Any], seed: int) -> str:
    """Return 12 hex digits that stand for a trial: the same values and seed are the same trial."""
    return hashlib.sha256(json.dumps([dict(values), seed], sort_keys=True).encode()).hexdigest()[:12]


def read_trials(study: Study) -> list[Trial]:
    """Return every trial that began, in that order."""
    decided = progress.read(study.decisions) or {}
    found = []
    for path in (study.folder / "trials").glob("*.json"):
        facts = json.loads(path.read_text())
        key = path.stem
        state: State = "open"
        if facts["over"]:
            state = "full"
        elif facts["failed"]:
            state = "failed"
        elif key in decided:
            state = decided[key]["state"]
        why = facts["failed"] or decided.get(key, {}).get("why", "")
        found.append(Trial(key, facts["values"], facts["seed"], facts["began"], facts["rows"], state, why))
    return sorted(found, key=lambda trial: (trial.began, trial.key))


def decide(study: Study, key: str, state: State, why: str) -> None:
    """Record that the trial ``key`` does not continue."""
    decided = progress.read(study.decisions) or {}
    progress.report(study.decisions, **{**decided, key: {"state": state, "why": why}})


class Spending:
    """Counts the seconds that a search has taken, those of earlier, perhaps killed, searches among them."""

    def __init__(self, study: Study) -> None:
        self._path = study.sessions
        noted = progress.read(self._path) or {"sessions": []}
        self._earlier: list[list[float]] = noted["sessions"]
        self._began = self._noted = time.time()

    @property
    def seconds(self) -> float:
        return sum(last - began for began, last in self._earlier) + time.time() - self._began

    def note(self) -> None:
        """Say that the search is alive; a kill loses NOTE_EVERY_S at most."""
        now = time.time()
        if now - self._noted >= NOTE_EVERY_S:
            self._noted = now
            progress.report(self._path, sessions=[*self._earlier, [self._began, now]])

    def end(self) -> None:
        self._noted = 0.0
        self.note()


def reserve_seconds(trials: Sequence[Trial], runs: int, at_once: int) -> float:
    """Return the seconds that ``runs`` whole trainings will take, by the pace of those that went farthest."""
    whole = [trial.seconds / trial.share for trial in trials if trial.share > 0]
    if not whole or not runs:
        return 0.0
    return -(-runs // at_once) * statistics.median(whole)


def best_trial(trials: Sequence[Trial]) -> Trial | None:
    """Return the whole training with the best val mIoU; None where none came to its end."""
    whole = [trial for trial in trials if trial.state == "full" and trial.best is not None]
    return max(whole, key=lambda trial: trial.best or 0.0, default=None)


@dataclass(frozen=True)
class Comparison:
    """The winner's val mIoU against that of params.yaml as it is.

    ``winner`` and ``present``: one figure per seed. The winner's seed of the search is not among them: it was chosen
    for its figure, so that figure is too high. ``gain``: difference of the means; ``low``, ``high``: its interval, None
    where there are too few figures for one. ``decision``: better, noise, worse or unchanged.
    """

    winner: list[float]
    present: list[float]
    gain: float | None
    low: float | None
    high: float | None
    confidence: float
    decision: Literal["better", "noise", "worse", "unchanged"]

    @property
    def sentence(self) -> str:
        """Say in words what the figures are worth."""
        if self.decision == "unchanged":
            return "no trial beat the current settings: keep params.yaml as it is"
        if self.gain is None:
            return (
                "the winner was trained with one seed only, so nothing is known of the noise; run again with "
                "--repeats 2 or more before you trust it"
            )
        seeds = f"over {len(self.winner)} new seeds against {len(self.present)} of the current settings"
        if self.low is None or self.high is None:
            said = f"the winner gains {100 * self.gain:+.1f} points of val mIoU with one new seed"
            return f"{said}; one figure says nothing of the noise: run again with --repeats 2 or more"
        interval = f"{100 * self.low:+.1f} to {100 * self.high:+.1f} at {100 * self.confidence:g} %"
        said = f"the winner gains {100 * self.gain:+.1f} points of val mIoU {seeds} ({interval})"
        if self.decision == "better":
            return f"{said}: more than the noise between seeds"
        if self.decision == "worse":
            return f"{said}: the winner of the search was luck; keep params.yaml as it is"
        return f"{said}: within the noise; more seeds (--repeats) or more data can decide"


def compare(winner: Sequence[float], present: Sequence[float], confidence: float) -> Comparison:
    """Compare two settings by a figure per seed: difference of the means and its interval by Student's t.

    Both are taken to spread alike (the pooled variance), since with two or three seeds each no spread is known well.

    Source: Student, "The Probable Error of a Mean", Biometrika 1908; Henderson et al., "Deep Reinforcement Learning
    that Matters", AAAI 2018, for why a comparison of trainings needs several seeds.
    """
    ours, theirs = list(winner), list(present)
    if not ours or not theirs:
        return Comparison(ours, theirs, None, None, None, confidence, "noise")
    gain = statistics.fmean(ours) - statistics.fmean(theirs)
    freedom = len(ours) + len(theirs) - 2
    if len(ours) < 2 or len(theirs) < 2:
        return Comparison(ours, theirs, gain, None, None, confidence, "noise" if gain > 0 else "worse")
    pooled = sum(statistics.variance(some) * (len(some) - 1) for some in (ours, theirs)) / freedom
    error = (pooled * (1 / len(ours) + 1 / len(theirs))) ** 0.5
    reach = student_t_quantile((1 + confidence) / 2, freedom) * error
    low, high = gain - reach, gain + reach
    decision: Literal["better", "noise", "worse"] = "better" if low > 0 else "worse" if gain <= 0 else "noise"
    return Comparison(ours, theirs, gain, low, high, confidence, decision)


def unchanged(present: Sequence[float], confidence: float) -> Comparison:
    """Return the comparison where the current settings won the search."""
    return Comparison([], list(present), None, None, None, confidence, "unchanged")


def write_table(path: Path, trials: Sequence[Trial], keys: Sequence[str]) -> None:
    """Write trials.csv: a row per trial with number, state, seed, epochs, share, val_miou, seconds and its values."""
    with replacing(path) as draft, draft.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["trial", "state", "seed", "epochs", "share", "val_miou", "seconds", *keys, "why"])
        for number, trial in enumerate(trials, 1):
            epochs = trial.rows[-1]["epoch"] if trial.rows else 0
            best = "" if trial.best is None else f"{trial.best:.4f}"
            shown = [_cell(trial.values.get(key)) for key in keys]
            writer.writerow(
                [number, trial.state, trial.seed, epochs, f"{trial.share:.3f}", best, f"{trial.seconds:.1f}", *shown,
                 for_spreadsheet(trial.why)]
            )  # fmt: skip


def _cell(value: Any) -> Any:
    if isinstance(value, str):
        return for_spreadsheet(value)
    return json.dumps(value) if isinstance(value, list | dict) else value


def run_seconds(study: Study) -> float:
    """Return the seconds that all searches of the study took so far, by their own notes."""
    noted = progress.read(study.sessions) or {"sessions": []}
    return float(sum(last - began for began, last in noted["sessions"]))
