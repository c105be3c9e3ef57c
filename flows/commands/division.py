"""What each split of a set is for, what it holds, and what the gate can decide with so many test groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path

PURPOSES = {
    "train": "what members learn from",
    "val": "chooses epochs and the ensemble's weights",
    "test": "judges: the report's figures and the gate",
}
MANY = 10_000  # groups


def division(raw: Path, confidence: float) -> list[str]:
    """Return a sentence for each split of the set at ``raw``, and one on what can be decided with its test groups.

    ``confidence``: of the gate's interval.
    """
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.schema.samples import list_samples
    from segmill.data.splitting.splits import settled_splits

    info = read_dataset_info(raw)
    split_of = settled_splits(raw, info)
    samples: Counter[str] = Counter()
    groups: dict[str, set[str]] = defaultdict(set)
    for entry in list_samples(raw)[0]:
        group = info.group_of(entry.id) or ""
        samples[split_of[group]] += 1
        groups[split_of[group]].add(group)
    counts = {split: len(groups[split]) for split in PURPOSES}
    return [*split_lines(samples, counts), gate_line(counts, confidence)]


def split_lines(samples: Mapping[str, int], groups: Mapping[str, int]) -> list[str]:
    """Say what each split is for, how many images and groups it has, and its share of the images."""
    total = sum(samples.values())
    return [
        f"{split}: {_count(samples.get(split, 0), 'image')} ({samples.get(split, 0) / total:.0%}) in "
        f"{_count(groups[split], 'group')}; {purpose}"
        for split, purpose in PURPOSES.items()
    ]


def gate_line(groups: Mapping[str, int], confidence: float) -> str:
    """Say what is missing for a run, or what ``segmill.promotion.gate`` can decide with so many test groups."""
    from segmill.metrics.intervals import LEAST_GROUPS, student_t_quantile

    empty = [split for split in groups if not groups[split]]
    if empty:
        return (
            f"no group is in {' and '.join(empty)}, and a group never goes to two splits: add samples of other groups "
            "with `segmill data add`, or correct the group rule in data/raw/dataset.yaml"
        )
    if groups["test"] < LEAST_GROUPS:
        return (
            "the gate promotes the first version that reaches promotion.floor_miou; of later ones it can't say which "
            f"is better, for that takes {LEAST_GROUPS} test groups: add groups with `segmill data add`, or, before the "
            "first run, move some to test in data/raw/splits.csv (splits of dataset.yaml come first)"
        )
    few, many = (student_t_quantile((1 + confidence) / 2, freedom) for freedom in (groups["test"] - 1, MANY))
    said = f"with {groups['test']} test groups the gate's interval reaches {few:.1f} standard errors to each side"
    return f"{said} ({many:.1f} with many groups); a gain within it is INCONCLUSIVE"


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
