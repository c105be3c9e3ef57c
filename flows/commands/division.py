"""What each split of a set is for, what it holds, and what the gate will be able to decide with its test groups."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.promotion.forecast import GateForecast

PURPOSES = {
    "train": "what members learn from",
    "val": "chooses epochs and the ensemble's weights",
    "test": "judges: the report's figures and the gate",
}


@dataclass(frozen=True)
class Division:
    """How a set is divided: per split, how many samples it has, and the names of its groups."""

    samples: Mapping[str, int]
    groups: Mapping[str, Collection[str]]

    def lines(self) -> list[str]:
        """Return a sentence for each split: what it is for, how many images and groups it has."""
        total = sum(self.samples.values())
        return [
            f"{split}: {_count(self.samples.get(split, 0), 'image')} ({self.samples.get(split, 0) / total:.0%}) in "
            f"{_count(len(self.groups.get(split, ())), 'group')}; {purpose}"
            for split, purpose in PURPOSES.items()
        ]

    def missing(self) -> str:
        """Say which split has no group and what to do; "" where each has one."""
        empty = [split for split in PURPOSES if not self.groups.get(split)]
        if not empty:
            return ""
        return (
            f"no group is in {' and '.join(empty)}, and a group never goes to two splits: add samples of other groups "
            "with `segmill data add`, or correct the group rule in data/raw/dataset.yaml"
        )


def division_of_set(raw: Path) -> Division:
    """Return how the set at ``raw``, whose groups are all assigned, is divided."""
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.schema.samples import list_samples
    from segmill.data.splitting.splits import settled_splits

    info = read_dataset_info(raw)
    split_of = settled_splits(raw, info)
    group_of_sample = [info.group_of(entry.id) or "" for entry in list_samples(raw)[0]]
    return _division((split_of[group], group) for group in group_of_sample)


def division_of_manifest(manifest: Path) -> Division:
    """Return how a checked set is divided. InputError where there is no manifest."""
    from segmill.data.schema.manifest import read_manifest

    rows = read_manifest(manifest)
    return _division(zip(rows["split"].to_pylist(), rows["group"].to_pylist(), strict=True))


def gate_forecast(divided: Division, params: Params) -> GateForecast:
    """Return what the gate will be able to decide with the test groups of a set."""
    from segmill.promotion.forecast import forecast

    test = set(divided.groups.get("test", ()))
    return forecast(len(test), len(test.intersection(params.split.sealed)), params.promotion)


def gate_lines(divided: Division, params: Params) -> list[str]:
    """Say what is missing for a run, or what the gate will be able to decide."""
    missing = divided.missing()
    return [missing] if missing else list(gate_forecast(divided, params).says)


def _division(places: Iterable[tuple[str, str]]) -> Division:
    """``places``: split and group of each sample."""
    samples: Counter[str] = Counter()
    groups: dict[str, set[str]] = defaultdict(set)
    for split, group in places:
        samples[split] += 1
        groups[split].add(group)
    return Division(samples, groups)


def _count(number: int, what: str) -> str:
    return f"{number:,} {what}{'' if number == 1 else 's'}"
