"""What a tuning leaves: a patch of params.yaml with its evidence, the list of trials, and a page with the curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from io import StringIO
from typing import Any

from ruamel.yaml import YAML

from segmill.errors import InputError
from segmill.files import write_atomically
from segmill.params_text import say
from segmill.reports.tuning_page import SearchedKey, TrialRow, TuningPage, write_tuning_page
from segmill.tuning.jobs import EvidenceJob
from segmill.tuning.space import Dimension, assignments, value_at
from segmill.tuning.trials import (
    Comparison,
    Study,
    Trial,
    Work,
    best_trial,
    compare,
    read_trials,
    run_seconds,
    unchanged,
    write_table,
)

# Importance is computed at this share of the training, which every trial reaches: none is stopped before.
JUDGED_AT = 0.25
LEAST_TRIALS = 4  # with fewer, importances mean nothing


def write_evidence(job: EvidenceJob) -> dict[str, Any]:
    """Write patch.yaml, trials.csv and index.html, and return what a terminal shows of it.

    The folder is made where it is missing; what an earlier tuning left in it is replaced.

    Raises:
        InputError: no trial of the search came to its end.
    """
    work, space, out_dir, present = job.work, job.space, job.out_dir, job.present
    study = Study(work.folder)
    trials = read_trials(study)
    searched = [trial for trial in trials if trial.values and trial.seed == work.seed]
    winner = best_trial(searched)
    if winner is None:
        raise InputError(f"no trial of {work.member} was completed; run `segmill tune` with a larger budget")
    seeds = range(work.seed, work.seed + job.repeats + 1)
    by_key = {(say(trial.values), trial.seed): trial for trial in trials if trial.state == "full"}
    repeated = [by_key.get((say(present or {}), seed)) for seed in seeds]
    again = [by_key.get((say(winner.values), seed)) for seed in seeds[1:]]
    figures_of_present = [one.best for one in repeated if one and one.best is not None]
    figures_of_winner = [one.best for one in again if one and one.best is not None]
    if winner.values == present:
        compared = unchanged(figures_of_present, job.confidence)
    else:
        compared = compare(figures_of_winner, figures_of_present, job.confidence)
    before = {dimension.key: value_at(work.values, work.member, dimension.key) for dimension in space}
    changes = {key: (say(before[key]), say(value)) for key, value in winner.values.items() if before[key] != value}
    found = {
        "member": work.member,
        "trials": len(searched),
        "states": dict(Counter(trial.state for trial in searched)),
        "seconds": round(run_seconds(study), 1),
        "winner": {"trial": trials.index(winner) + 1, "val_miou": winner.best, "values": winner.values},
        "changes": changes,
        "decision": compared.decision,
        "verdict": compared.sentence,
        "set": assignments(work.values, work.member, winner.values) if changes else [],
        "files": [str(out_dir / name) for name in ("patch.yaml", "trials.csv", "index.html")],
    }
    out_dir.mkdir(parents=True, exist_ok=True)
    write_table(out_dir / "trials.csv", trials, list(before))
    write_atomically(out_dir / "patch.yaml", patch_text(found, before, compared, work, space))
    write_tuning_page(page_of(work, space, trials, found, compared, before), out_dir)
    return found


def patch_text(
    found: dict[str, Any], before: dict[str, Any], compared: Comparison, work: Work, space: Sequence[Dimension]
) -> str:
    """Return patch.yaml: ``set`` as ``segmill retrain --set`` takes it, and ``evidence`` for it."""
    evidence = {
        "verdict": compared.sentence,
        "decision": compared.decision,
        "winner": found["winner"]["values"],
        "winner_val_miou_in_search": found["winner"]["val_miou"],
        "winner_val_miou_of_fresh_seeds": compared.winner,
        "present": before,
        "present_val_miou": compared.present,
        "gain": compared.gain,
        "interval": None if compared.low is None else [compared.low, compared.high],
        "confidence": compared.confidence,
        "searched": [str(dimension) for dimension in space],
        "trials": found["trials"],
        "states": found["states"],
        "epochs": work.epochs,
        "seed": work.seed,
        "seconds": found["seconds"],
        "data_version": work.job.data_version,
    }
    yaml = YAML(typ="safe", pure=True)
    yaml.sort_base_mapping_type_on_output = False  # type: ignore[assignment]
    yaml.default_flow_style = False
    yaml.width = 110
    text = StringIO()
    text.write(f"# What `segmill tune {work.member}` found; `segmill tune {work.member} --accept` writes `set`.\n")
    yaml.dump({"member": work.member, "set": found["set"], "evidence": evidence}, text)
    return text.getvalue()


def importances(trials: Sequence[Trial], space: Sequence[Dimension]) -> dict[str, float]:
    """Return how much of the trials' differences each key explains, summing to 1, largest first.

    Computed from val mIoU when JUDGED_AT of the training was done, which every trial that did not fail reached. Empty
    where fewer than LEAST_TRIALS did, or all are equal.

    Source: Watanabe et al., "PED-ANOVA: Efficiently Quantifying Hyperparameter Importance in Arbitrary Subspaces",
    IJCAI 2023, as Optuna has it.
    """
    import optuna

    from segmill.tuning.proposals import distribution, encoded

    optuna.logging.set_verbosity(optuna.logging.ERROR)
    distributions = {dimension.key: distribution(dimension) for dimension in space}
    study = optuna.create_study(direction="maximize")
    for trial in trials:
        figure = trial.at(JUDGED_AT)
        if figure is not None:
            params = encoded(trial.values, space)
            study.add_trial(optuna.trial.create_trial(value=figure, params=params, distributions=distributions))
    if len(study.trials) < LEAST_TRIALS or len({trial.value for trial in study.trials}) == 1:
        return {}
    found = optuna.importance.get_param_importances(study)
    return {key: float(share) for key, share in sorted(found.items(), key=lambda pair: -pair[1])}


def page_of(
    work: Work,
    space: Sequence[Dimension],
    trials: Sequence[Trial],
    found: dict[str, Any],
    compared: Comparison,
    before: dict[str, Any],
) -> TuningPage:
    """Return what the page shows."""
    searched = [trial for trial in trials if trial.values and trial.seed == work.seed]
    winner = trials[found["winner"]["trial"] - 1]
    return TuningPage(
        member=work.member,
        epochs=work.epochs,
        seed=work.seed,
        states=found["states"],
        seconds=found["seconds"],
        verdict=compared.sentence,
        assignments=found["set"],
        trials=[_trial_row(number, trial, list(before), trial in searched) for number, trial in enumerate(trials, 1)],
        winner=found["winner"]["trial"],
        keys=[_searched_key(dimension, searched, winner, before[dimension.key]) for dimension in space],
        importances=importances(searched, space),
        judged_at=JUDGED_AT,
        winner_mious=compared.winner,
        current_mious=compared.present,
    )


def _trial_row(number: int, trial: Trial, keys: Sequence[str], searched: bool) -> TrialRow:
    return TrialRow(
        number=number,
        state=trial.state,
        share=trial.share,
        best=trial.best,
        seed=trial.seed,
        searched=searched,
        why=trial.why,
        texts=[say(trial.values[key]) if key in trial.values else None for key in keys],
        points=[(row["epoch"], row["val_miou"]) for row in trial.rows if row["val_miou"] is not None],
    )


def _searched_key(dimension: Dimension, trials: Sequence[Trial], winner: Trial, current: Any) -> SearchedKey:
    names = [say(choice) for choice in dimension.choices]

    def place(value: Any) -> float:
        return float(names.index(say(value))) if names else float(value)

    key = dimension.key
    shown = [(trial, trial.best) for trial in trials if trial.best is not None]
    return SearchedKey(
        key=key,
        searched=str(dimension).partition("=")[2],
        current=say(current),
        winner=say(winner.values[key]),
        names=names,
        low=dimension.low,
        high=dimension.high,
        log=dimension.log,
        points=[(place(trial.values[key]), best, trial.state == "full") for trial, best in shown],
        current_at=place(current) if dimension.holds(current) else None,
        winner_at=place(winner.values[key]),
    )
