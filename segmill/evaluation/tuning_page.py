"""What a tuning leaves: a patch of params.yaml with its evidence, the list of trials, and a page with the curves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from io import StringIO
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from segmill.errors import InputError
from segmill.evaluation.report import LINES, THEMES
from segmill.files import write_atomically
from segmill.params import say
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

# Importance is judged where every trial came: before that none is stopped.
JUDGED_AT = 0.25
LEAST_TRIALS = 4  # below this nothing can be said of importance


def write_evidence(
    work: Work,
    space: Sequence[Dimension],
    out_dir: Path,
    *,
    present: dict[str, Any] | None,
    repeats: int,
    confidence: float,
) -> dict[str, Any]:
    """Write patch.yaml, trials.csv, index.html and figures/ into ``out_dir``, and return what a terminal shows of it.

    Args:
        work, space: of the tuning.
        out_dir: made where it is missing; what an earlier tuning left is replaced.
        present: the searched keys' values in params.yaml; None where the search can't come upon them.
        repeats: further seeds that winner and present were trained with.
        confidence: of the interval around the gain.

    Raises:
        InputError: no trial of the search came to its end.
    """
    study = Study(work.folder)
    trials = read_trials(study)
    searched = [trial for trial in trials if trial.values and trial.seed == work.seed]
    winner = best_trial(searched)
    if winner is None:
        raise InputError(f"no trial of {work.member} came to its end; run `segmill tune` with a larger budget")
    seeds = range(work.seed, work.seed + repeats + 1)
    by_key = {(say(trial.values), trial.seed): trial for trial in trials if trial.state == "full"}
    stands = [by_key.get((say(present or {}), seed)) for seed in seeds]
    again = [by_key.get((say(winner.values), seed)) for seed in seeds[1:]]
    figures_of_present = [one.best for one in stands if one and one.best is not None]
    figures_of_winner = [one.best for one in again if one and one.best is not None]
    if winner.values == present:
        compared = unchanged(figures_of_present, confidence)
    else:
        compared = compare(figures_of_winner, figures_of_present, confidence)
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
    write_page(out_dir, work, space, trials, found, compared, before)
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
        "data_version": work.arguments["data_version"],
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

    Judged by val mIoU when JUDGED_AT of the training was done, which every trial that did not fail reached. Empty where
    fewer than LEAST_TRIALS did, or all are alike.

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


def write_page(
    out_dir: Path,
    work: Work,
    space: Sequence[Dimension],
    trials: Sequence[Trial],
    found: dict[str, Any],
    compared: Comparison,
    before: dict[str, Any],
) -> None:
    """Write index.html and the pictures it shows, once for each theme, in figures/."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    figures = out_dir / "figures"
    figures.mkdir(exist_ok=True)
    for former in figures.glob("*.png"):
        former.unlink()
    searched = [trial for trial in trials if trial.values and trial.seed == work.seed]
    winner = trials[found["winner"]["trial"] - 1]
    drawn = [
        _draw(figures, "best", "Best val mIoU so far, %", lambda axes, ink: draw_best(axes, searched)),
        _draw(figures, "curves", "Learning curves, val mIoU, %", lambda axes, ink: draw_curves(axes, searched, winner)),
    ]
    if compared.winner and compared.present:
        drawn.append(
            _draw(figures, "seeds", "Winner and what stands, by seed", lambda axes, ink: draw_seeds(axes, compared))
        )
    slices = [
        {
            **_draw(figures, f"key-{number}", dimension.key, _slice_of(dimension, searched, winner, before)),
            "searched": str(dimension).partition("=")[2],
        }
        for number, dimension in enumerate(space)
    ]
    page = Environment(loader=FileSystemLoader(Path(__file__).parent), autoescape=True, undefined=StrictUndefined)
    page.filters["score"] = lambda value: "-" if value is None else f"{100 * value:.1f}"
    page.filters["say"] = say
    text = page.get_template("tuning.html.jinja").render(
        found=found,
        work=work,
        compared=compared,
        importances=importances(searched, space),
        judged_at=JUDGED_AT,
        drawn=drawn,
        slices=slices,
        keys=list(before),
        rows=list(enumerate(trials, 1)),
        line=" ".join(f"--set '{one}'" for one in found["set"]),
    )
    write_atomically(out_dir / "index.html", text)


def draw_best(axes: Any, trials: Sequence[Trial]) -> None:
    """Draw the best val mIoU over the trials in the order they began, and each trial's own."""
    from matplotlib.ticker import MaxNLocator

    figures = [(number, 100 * trial.best) for number, trial in enumerate(trials, 1) if trial.best is not None]
    best, so_far = -1.0, []
    for number, figure in figures:
        best = max(best, figure)
        so_far.append((number, best))
    if figures:
        axes.plot(*zip(*figures, strict=True), "o", color=LINES[5], ms=5, label="a trial")
        axes.step(*zip(*so_far, strict=True), where="post", color=LINES[0], lw=2, label="best so far")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("trial")


def draw_curves(axes: Any, trials: Sequence[Trial], winner: Trial) -> None:
    """Draw val mIoU by epoch of every trial: stopped ones thin and cut off, the winner on top."""
    from matplotlib.ticker import MaxNLocator

    labelled = set()
    styles = {"full": (LINES[5], 1.4, "-"), "stopped": (LINES[1], 0.9, "--")}
    for trial in sorted(trials, key=lambda one: one.key == winner.key):
        points = [(row["epoch"], 100 * row["val_miou"]) for row in trial.rows if row["val_miou"] is not None]
        if not points:
            continue
        color, width, style = styles.get(trial.state, ("#8a94a3", 0.9, ":"))
        name: str = trial.state if trial.state != "open" else "cut off"
        if trial.key == winner.key:
            color, width, name = LINES[0], 2.4, "winner"
        label = name if name not in labelled else None
        labelled.add(name)
        axes.plot(*zip(*points, strict=True), style, color=color, lw=width, label=label,
                  marker="o" if len(points) == 1 else None, ms=3)  # fmt: skip
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.set_xlabel("epoch")


def draw_slice(axes: Any, dimension: Dimension, trials: Sequence[Trial], winner: Trial, now: Any) -> None:
    """Draw every trial's val mIoU over its value of one key: whole trainings filled, stopped ones hollow."""
    shown = [trial for trial in trials if trial.best is not None]
    names = [say(choice) for choice in dimension.choices]
    place: Callable[[Any], float] = (
        (lambda value: float(names.index(say(value)))) if dimension.kind == "choice" else float
    )
    for state, filled, color in (("stopped", False, LINES[1]), ("full", True, LINES[5])):
        some = [trial for trial in shown if (trial.state == "full") == (state == "full")]
        name = "whole" if filled else "stopped or cut off"
        axes.plot(
            [place(trial.values[dimension.key]) for trial in some], [100 * (trial.best or 0) for trial in some], "o",
            color=color, ms=6, mfc=color if filled else "none", label=name if some else None,
        )  # fmt: skip
    axes.plot(place(winner.values[dimension.key]), 100 * (winner.best or 0), "*", color=LINES[0], ms=14, label="winner")
    if dimension.log:
        axes.set_xscale("log")
    if dimension.kind != "choice" and dimension.log:
        room = (dimension.high / dimension.low) ** 0.04
        axes.set_xlim(dimension.low / room, dimension.high * room)
    elif dimension.kind != "choice":
        room = 0.04 * (dimension.high - dimension.low)
        axes.set_xlim(dimension.low - room, dimension.high + room)
    if dimension.kind == "choice":
        axes.set_xticks(range(len(names)), names, fontsize=8)
        axes.set_xlim(-0.5, len(names) - 0.5)
    if dimension.holds(now):
        axes.axvline(place(now), color="#8a94a3", lw=1, ls=":", label="as it stands")
    axes.set_xlabel(dimension.key)
    axes.set_ylabel("val mIoU, %")


def draw_seeds(axes: Any, compared: Comparison) -> None:
    """Draw a dot per seed for the winner and for what stands, with their means."""
    for place, (name, figures) in enumerate((("as it stands", compared.present), ("winner", compared.winner))):
        color = LINES[0] if name == "winner" else LINES[1]
        axes.plot([100 * figure for figure in figures], [place] * len(figures), "o", color=color, ms=7)
        axes.plot(100 * sum(figures) / len(figures), place, "|", color=color, ms=24, mew=2.5)
    axes.set_yticks((0, 1), ("as it stands", "winner"))
    axes.set_ylim(-0.6, 1.6)
    axes.set_xlabel("val mIoU, %; a dot per seed, a line at the mean")


def _slice_of(
    dimension: Dimension, trials: Sequence[Trial], winner: Trial, before: dict[str, Any]
) -> Callable[[Any, str], None]:
    return lambda axes, ink: draw_slice(axes, dimension, trials, winner, before[dimension.key])


def _draw(figures: Path, stem: str, title: str, draw: Callable[[Any, str], None]) -> dict[str, str]:
    """Draw once for each theme, in the report's style; return what the page says of it."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    for theme, (ink, grid) in THEMES.items():
        figure = Figure(figsize=(5.2, 3.1), layout="constrained")
        FigureCanvasAgg(figure)
        axes = figure.add_subplot(facecolor="none")
        draw(axes, ink)
        axes.tick_params(which="both", colors=ink, length=0)
        axes.xaxis.label.set_color(ink)
        axes.yaxis.label.set_color(ink)
        axes.grid(color=grid, lw=0.7)
        axes.spines[:].set_visible(False)
        if axes.get_legend_handles_labels()[1]:
            axes.legend(frameon=False, labelcolor=ink, fontsize=8.5)
        figure.savefig(figures / f"{stem}-{theme}.png", dpi=160, transparent=True)
    return {"stem": f"figures/{stem}", "title": title}
