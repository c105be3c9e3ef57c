"""How often the gate promotes what is not better, and how often what is: lives, power, guards, and a table of needs.

Lives: --lives times 50 challengers that are all as good as the champion, on 20 test groups of skewed, correlated images
(gate_population.py). The maker of challengers retrains the same recipe every night, or reads everything that segmill
publishes and climbs, or runs the boosting attack of Blum & Hardt ("The Ladder", ICML 2015): read the figures of 49
challengers, mix those that looked better. Three gates judge: that of before (the 95 % bootstrap interval above zero,
each night alone), the lifetime rule on open groups, and the lifetime rule on sealed groups, whose figures the maker
does not see (those of 20 other groups are open). Any PASS is false. Power: challengers better by so many points.

No figure depends on the machine or its load.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

os.environ["OPENBLAS_NUM_THREADS"] = "1"  # read when numpy loads: the processes share the cores

import numpy as np
from gate_population import (
    CLASSES,
    NAMES,
    RARE,
    Array,
    TestSet,
    better_by,
    draw_models,
    draw_test_set,
    miou_of,
    overlaps,
    pair_of,
)

from segmill.metrics.intervals import student_t_quantile
from segmill.promotion import swap_test as swaps
from segmill.promotion.budget import Judgement, budget, group_id, groups_needed
from segmill.promotion.guards import Condition, class_conditions, latency_condition, loses_less
from segmill.promotion.paired import PairedOverlaps

NIGHTS, GROUPS, IMAGES = 50, 20, 233
ALPHA, JUDGEMENTS = 0.05, 20
PLAIN = 0.025  # one-sided, of a night
RESAMPLES = 1000  # of the bootstrap of the gate of before
FOUND_BY_T = 0.84  # standard errors above the critical value give a power of 80 %
STUDIED, STUDIED_GROUPS = ((1, 233), (1, 1000), (2, 233), (2, 1000)), (10, 20, 50)  # points and images; groups
LINES = ("#b3452c", "#d9a13b", "#2f6f9f", "#4d8c57")
LOSSES = (0.02, 0.03, 0.05, 0.08)
# All swaps of 20 groups would take hours here. Random ones are as valid, and the gate draws them above 20 groups.
swaps.EXACT_GROUPS = 15

PARTS = ("lives", "power", "guards", "table")
Life = Callable[[int], tuple[int | None, ...]]


def main() -> None:
    options = _options()
    with ProcessPoolExecutor(options.processes) as pool:
        if "lives" in options.only:
            first_pass = _print_lives(pool, options.lives)
            if options.pictures:
                _draw_lives(options.pictures, first_pass, options.lives)
        if "power" in options.only:
            power = _print_power(pool, options.runs)
            if options.pictures:
                _draw_power(options.pictures, power)
        if "guards" in options.only:
            _print_guards(pool, options.runs)
            _print_rare(pool, options.runs)
        if "table" in options.only:
            _print_table(pool)


# Lives of challengers as good as the champion


def nightly(seed: int) -> tuple[int | None, ...]:
    """Return for each gate the night of the first PASS of independent retrains; None where there was none."""
    test, own, random = _life(seed)
    pairs = _pairs(test, own[1:], own[0])
    before = next((night for night, passed in enumerate(passes_before(pairs, random)) if passed), None)
    promised = _judged_in_turn(pairs, seed)
    return before, promised, promised  # nothing that is published enters a retrain: sealed groups change nothing


def climbing(seed: int) -> tuple[int | None, ...]:
    """As ``nightly``, by a maker who changes the best challenger so far, by the figures that are published of it."""
    test, own, random = _life(seed, groups=2 * GROUPS, images=2 * IMAGES)
    judged, other = test.part(0, GROUPS), test.part(GROUPS, 2 * GROUPS)
    split = len(judged.pixels_NK)

    def climb(seen: TestSet, columns: slice) -> list[PairedOverlaps]:
        best, best_gain, pairs = own[1], -np.inf, []
        for one in own[1:]:
            model = np.sqrt(0.8) * best + np.sqrt(0.2) * one  # of the same variance, so as good as any
            published = _gains(seen, model[None, columns], own[0, columns])[0]
            if published > best_gain:
                best, best_gain = model, published
            pairs += _pairs(judged, model[None, :split], own[0, :split])
        return pairs

    open_pairs, sealed_pairs = climb(judged, slice(split)), climb(other, slice(split, None))
    before = next((night for night, passed in enumerate(passes_before(open_pairs, random)) if passed), None)
    return before, _judged_in_turn(open_pairs, seed), _judged_in_turn(sealed_pairs, seed)


def boosting(seed: int) -> tuple[int | None, ...]:
    """As ``nightly``, by a maker who reads 49 figures, spends no judgement on them, and mixes what looked better."""
    test, own, random = _life(seed, groups=2 * GROUPS, images=2 * IMAGES)
    judged, other = test.part(0, GROUPS), test.part(GROUPS, 2 * GROUPS)
    split = len(judged.pixels_NK)
    tried = own[1:NIGHTS]

    def boost(seen: TestSet, columns: slice) -> PairedOverlaps:
        signs = np.sign(_gains(seen, tried[:, columns], own[0, columns]))
        mixed = np.tensordot(signs, tried, axes=1) / np.sqrt(len(tried))  # of the same variance, so as good as any
        return _pairs(judged, mixed[None, :split], own[0, :split])[0]

    open_pair, sealed_pair = boost(judged, slice(split)), boost(other, slice(split, None))
    last = NIGHTS - 1
    before = last if passes_before([open_pair], random)[0] else None
    promised = [last if _judged_in_turn([pair], seed) is not None else None for pair in (open_pair, sealed_pair)]
    return before, *promised


LIVES: dict[str, Life] = {"nightly retrains": nightly, "reads and climbs": climbing, "boosting attack": boosting}
GATES = ("gate of before", "lifetime", "lifetime, sealed")


def _life(seed: int, groups: int = GROUPS, images: int = IMAGES) -> tuple[TestSet, Array, np.random.Generator]:
    random = np.random.default_rng([1, seed])
    test = draw_test_set(random, groups, images)
    return test, draw_models(random, test, NIGHTS + 1), random


def _pairs(test: TestSet, challengers_MNK: Array, champion_NK: Array) -> list[PairedOverlaps]:
    both, either = overlaps(test, challengers_MNK)
    old_both, old_either = overlaps(test, champion_NK[None])
    return [pair_of(test, one, (old_both[0], old_either[0])) for one in zip(both, either, strict=True)]


def _gains(test: TestSet, challengers_MNK: Array, champion_NK: Array) -> Array:
    found: Array = miou_of(*overlaps(test, challengers_MNK)) - miou_of(*overlaps(test, champion_NK[None]))
    return found


def _judged_in_turn(pairs: Sequence[PairedOverlaps], seed: int) -> int | None:
    """Return the night of the first PASS under the lifetime rule, with the budget that the first champion left."""
    names = [f"g{index}" for index in range(len(pairs[0].truth))]
    ids = frozenset(map(group_id, names))
    history = [Judgement(ids, True, True, "", True)]
    for night, pair in enumerate(pairs):
        left = budget(history, names, alpha=ALPHA, judgements=JUDGEMENTS, recipe="")
        if not left.decidable:
            return None
        if swaps.swap_test(pair, level=left.level, seed=seed).p_value <= left.level:
            return night
        history.append(Judgement(ids, False, False, "", True))
    return None


def passes_before(pairs: Sequence[PairedOverlaps], random: np.random.Generator) -> list[bool]:
    """Say of each pair what the gate of before decided: PASS where the 95 % bootstrap interval was above zero."""
    groups = len(pairs[0].truth)
    draws_RG = random.multinomial(groups, np.full(groups, 1 / groups), RESAMPLES).astype(float)
    old_RK = (draws_RG @ pairs[0].old_both) / np.maximum(draws_RG @ pairs[0].old_either, 1e-9)
    found = []
    for pair in pairs:
        gain = _class_mean(
            pair.new_both.sum(0) / pair.new_either.sum(0) - pair.old_both.sum(0) / pair.old_either.sum(0)
        )
        new_RK = (draws_RG @ pair.new_both) / np.maximum(draws_RG @ pair.new_either, 1e-9)
        error = _class_mean(new_RK - old_RK).std() * np.sqrt(groups / (groups - 1))
        found.append(bool(gain - student_t_quantile(0.975, groups - 1) * error > 0))
    return found


def _class_mean(values: Array) -> Array:
    return np.asarray(values.mean(axis=-1))


def _print_lives(pool: ProcessPoolExecutor, lives: int) -> dict[str, list[tuple[int | None, ...]]]:
    """Print and return the nights of the first PASS by each gate in each life."""
    print(
        f"Lives of {NIGHTS} equal challengers with a false promotion, of {lives:,} ({GROUPS} groups, {IMAGES} images)"
    )
    print(f"  {'':18}" + "".join(f"{gate:>20}" for gate in GATES))
    first_pass = {}
    for name, life in LIVES.items():
        first_pass[name] = list(pool.map(life, range(lives), chunksize=5))
        counts = [sum(one[gate] is not None for one in first_pass[name]) for gate in range(len(GATES))]
        print(f"  {name:18}" + "".join(f"{count:>20}" for count in counts), flush=True)
    return first_pass


# Power


@dataclass(frozen=True)
class Study:
    """Challengers whose logit of wrong is lower by ``better`` in each class, on so many groups and images.

    ``uneven``: standard deviation of a factor on that, drawn for each challenger and class.
    """

    groups: int
    images: int
    better: tuple[float, ...]
    uneven: float = 0.0

    def pair(self, seed: int) -> PairedOverlaps:
        random = np.random.default_rng([2, seed, self.groups, self.images])
        test = draw_test_set(random, self.groups, self.images)
        own = draw_models(random, test, 2)
        better = np.array(self.better) * (1 + self.uneven * random.normal(size=CLASSES))
        new_both, new_either = overlaps(test, own[:1], better)
        old_both, old_either = overlaps(test, own[1:])
        return pair_of(test, (new_both[0], new_either[0]), (old_both[0], old_either[0]))


def levels(count: int, judgements: int = JUDGEMENTS) -> list[float]:
    """Return the levels of the first promotions over a champion, after one judgement of the floor."""
    history = [Judgement(frozenset("g"), True, True, "", True)]
    found = []
    for _ in range(count):
        found.append(budget(history, ["g"], alpha=ALPHA, judgements=judgements, recipe="").level)
        history.append(Judgement(frozenset("g"), True, False, "", True))
    return found


def promotions_passed(study: Study, seed: int) -> list[bool]:
    """Say whether the gain would be the first, the second promotion."""
    pair, found = study.pair(seed), []
    for level in levels(2):
        enough = study.groups >= groups_needed(level) and all(found)
        found.append(enough and swaps.swap_test(pair, level=level, seed=seed).p_value <= level)
    return found


def _print_power(pool: ProcessPoolExecutor, runs: int) -> dict[tuple[int, int, int], list[float]]:
    print(f"\nPower, % of {runs} challengers that PASS in mIoU alone (first promotion / second):")
    print("  points  images " + "".join(f"{f'{groups} groups':>14}" for groups in STUDIED_GROUPS))
    power = {}
    for points, images in STUDIED:
        row = f"  {points:+6}  {images:6} "
        for groups in STUDIED_GROUPS:
            study = Study(groups, images, tuple(better_by(points / 100)))
            passed = np.mean(list(pool.map(partial(promotions_passed, study), range(runs), chunksize=5)), axis=0)
            power[points, images, groups] = passed.tolist()
            row += f"{f'{100 * passed[0]:.0f} / {100 * passed[1]:.0f}':>14}"
        print(row, flush=True)
    return power


# Guards


def outcomes(study: Study, seed: int) -> dict[str, bool]:
    """Say what PASSes as the first promotion: mIoU alone, and with all guards at each of LOSSES."""
    pair, level = study.pair(seed), levels(1)[0]
    alone = swaps.swap_test(pair, level=level, seed=seed).p_value <= level
    random = np.random.default_rng([3, seed])
    base_ms = random.lognormal(4, 0.1, 30)
    latency = latency_condition((base_ms * random.lognormal(0, 0.03, 30), base_ms), ratio=1.1, level=PLAIN)
    found = {"alone": alone}
    for loss in LOSSES:
        classes = class_conditions(pair, NAMES, loss=loss, level=PLAIN)
        slices = list(_slices(pair, loss, random))
        found[f"{loss}"] = alone and _met([*classes, *slices, latency])
        found[f"{loss} rare"] = not _met([one for one in classes if one.name == f"class {NAMES[RARE]}"])
    return found


def _slices(pair: PairedOverlaps, loss: float, random: np.random.Generator) -> Iterator[Condition]:
    """Yield a condition for each of three slices: groups of three weathers, as a column of the manifest would say."""
    weather = random.permutation(np.arange(len(pair.truth)) % 3)
    for value in range(3):
        inside = PairedOverlaps(*(part[weather == value] for part in vars(pair).values()))
        yield loses_less(f"slice weather={value}", "mIoU", inside.gain_in_miou(), loss, PLAIN)


def _met(conditions: Sequence[Condition]) -> bool:
    return all(one.outcome != "not met" for one in conditions)


def _print_guards(pool: ProcessPoolExecutor, runs: int) -> None:
    """Print what guards cost where all classes gain alike, and where about one in six of them loses."""
    print(f"\nAll guards (11 classes, 3 slices, latency) at +2 points, first promotion, % of {runs} that PASS:")
    better = tuple(better_by(0.02))
    print("  images groups   gains  mIoU alone" + "".join(f"{f'class_loss {loss}':>17}" for loss in LOSSES))
    for images, groups, uneven in ((233, 20, 0), (1000, 20, 0), (1000, 50, 0), (1000, 50, 1)):
        found = list(pool.map(partial(outcomes, Study(groups, images, better, uneven)), range(runs), chunksize=5))
        share = {key: 100 * np.mean([one[key] for one in found]) for key in found[0]}
        cells = [(share[str(loss)], 100 * share[str(loss)] / max(share["alone"], 1e-9)) for loss in LOSSES]
        kept = "".join(f"{f'{passed:.0f} ({of_alone:.0f} %)':>17}" for passed, of_alone in cells)
        print(f"  {images:6} {groups:6} {'uneven' if uneven else 'even':>7} {share['alone']:11.0f}{kept}", flush=True)


def _print_rare(pool: ProcessPoolExecutor, runs: int) -> None:
    print(f"\nA class of 0.7 % of the pixels 5 points worse, the others 2 better: % of {runs} that its guard refuses")
    print("(in brackets: how often it refuses an equal class)")
    better = better_by(0.02) * (np.arange(CLASSES) != RARE) + better_by(-0.05, RARE)
    print("  images groups " + "".join(f"{f'class_loss {loss}':>17}" for loss in LOSSES))
    for images, groups in ((233, 20), (1000, 20), (1000, 50)):
        shares = []
        for one in (better, 0 * better):
            study = Study(groups, images, tuple(one))
            found = list(pool.map(partial(outcomes, study), range(runs), chunksize=5))
            shares.append([100 * np.mean([each[f"{loss} rare"] for each in found]) for loss in LOSSES])
        row = "".join(f"{f'{worse:.0f} ({equal:.0f})':>17}" for worse, equal in zip(*shares, strict=True))
        print(f"  {images:6} {groups:6} {row}", flush=True)


# What a gain needs


def error_of(study: Study, seed: int) -> float:
    """Return the standard error of the gain."""
    return study.pair(seed).gain_in_miou().error


def _print_table(pool: ProcessPoolExecutor) -> None:
    """Print how many groups show a gain with a power of 80 %, by Student's t and the simulated standard errors."""
    print("\nTest groups (and images) for a power of 80 %, the first and the second promotion on a test set:")
    per_group = (5, 20)
    errors = {}
    for each in per_group:
        study = Study(100, 100 * each, tuple(np.zeros(CLASSES)))
        errors[each] = np.mean(list(pool.map(partial(error_of, study), range(40)))) * 10  # of one group
    print("  gain     T " + "".join(f"{f'{each} images a group':>34}" for each in per_group))
    for points in (0.5, 1, 2):
        for judgements in (20, 50):
            row = f"  {points:+4} {judgements:5} "
            for each in per_group:
                needs = [needed(points / 100, errors[each], level) for level in levels(2, judgements)]
                row += f"{' / '.join(f'{groups} ({groups * each:,})' for groups in needs):>34}"
            print(row, flush=True)


def needed(gain: float, error: float, level: float) -> int:
    """Return the least number of groups with a power of 80 %; ``error``: the standard error with one group."""
    return next(
        groups
        for groups in range(groups_needed(level), 100_000)
        if gain * np.sqrt(groups) / error >= student_t_quantile(1 - level, groups - 1) + FOUND_BY_T
    )


def _draw_lives(folder: Path, first_pass: dict[str, list[tuple[int | None, ...]]], lives: int) -> None:
    """Draw the share of lives with a false promotion up to each night."""
    figure, axes = _axes(len(first_pass))
    for one, (name, nights) in zip(axes, first_pass.items(), strict=True):
        for gate in range(len(GATES)):
            at = [first for night in nights if (first := night[gate]) is not None]
            share = [100 * sum(first <= night for first in at) / lives for night in range(NIGHTS)]
            one.plot(range(1, NIGHTS + 1), share, color=LINES[gate], label=GATES[gate], lw=2)
        one.set(title=name, xlabel="night", ylim=(0, 100))
    axes[0].set_ylabel("lives with a false promotion, %")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, folder / "promotion-lives.png")


def _draw_power(folder: Path, power: dict[tuple[int, int, int], list[float]]) -> None:
    """Draw power over the test groups."""
    figure, axes = _axes(2)
    for promotion, (one, title) in enumerate(zip(axes, ("first promotion", "second promotion"), strict=True)):
        for (points, images), color in zip(STUDIED, LINES, strict=True):
            passed = [100 * power[points, images, groups][promotion] for groups in STUDIED_GROUPS]
            one.plot(STUDIED_GROUPS, passed, "o-", color=color, label=f"{points:+} points, {images} images", lw=2)
        one.set(title=title, xlabel="test groups", ylim=(0, 102))
    axes[0].set_ylabel("challengers that PASS, %")
    axes[0].legend(frameon=False, fontsize=8)
    _save(figure, folder / "promotion-power.png")


def _axes(count: int) -> Any:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, count, figsize=(9, 3), sharey=True, layout="constrained")
    for one in axes:
        one.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _save(figure: Any, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=90)


def _options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--lives", type=int, default=1000, help="of 50 challengers, for each maker (default 1000)")
    parser.add_argument("--runs", type=int, default=200, help="challengers for each figure of power (default 200)")
    parser.add_argument("--only", nargs="+", choices=PARTS, default=PARTS, help="parts of it (default: all)")
    parser.add_argument("--processes", type=int, default=os.cpu_count(), help="default: one per core")
    parser.add_argument("--pictures", type=Path, metavar="DIR", help="draw promotion-lives.png, promotion-power.png")
    return parser.parse_args()


if __name__ == "__main__":
    main()
