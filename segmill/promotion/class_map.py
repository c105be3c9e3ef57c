"""A class map that changed: the classes that a registered version and today's data can both be counted on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError, near_miss

Counts = NDArray[np.int64]
OTHER = "no class of both class maps"


@dataclass(frozen=True)
class CommonClasses:
    """The C classes on which today's class map (K classes) and a version's own (F classes) are compared.

    ``names``: C, in the order of today's classes; merged ones are joined as "car + truck". The last one is OTHER where
    one of the maps has a class that the other has nothing of: no pixel's truth is OTHER, and predicting it is wrong.
    ``today`` and ``known``: the number in ``names`` of each of today's and of the version's classes. Truth of the
    classes in ``unlabelled`` (numbers of today's classes) was no class before, and is not counted.
    """

    names: tuple[str, ...]
    today: tuple[int, ...]
    known: tuple[int, ...]
    unlabelled: frozenset[int] = frozenset()

    def of_today(self, counts_NKK: Counts) -> Counts:
        """Turn counts of a model that knows today's classes, N x K x K, into N x C x C."""
        return self._merged(counts_NKK, self.today)

    def of_known(self, counts_NKF: Counts) -> Counts:
        """Turn counts of the version, N x K x F (rows today's truth, columns its own classes), into N x C x C."""
        return self._merged(counts_NKF, self.known)

    def _merged(self, counts: Counts, columns: Sequence[int]) -> Counts:
        rows_KC = self._members(self.today)
        rows_KC[sorted(self.unlabelled)] = 0
        merged: Counts = rows_KC.T @ counts @ self._members(columns)
        return merged

    def _members(self, numbers: Sequence[int]) -> Counts:
        return np.eye(len(self.names), dtype=np.int64)[list(numbers)]


def common_classes(
    today: Sequence[str], known: Sequence[str], former_classes: Mapping[str, Sequence[str]]
) -> CommonClasses:
    """Return the classes on which today's class map and that of an earlier version can be compared.

    Classes of one name are the same, unless ``former_classes`` says otherwise. Classes that share pixels by that are
    merged, over any number of steps: if ``vehicle`` was split into car and truck, they are compared as one.

    Args:
        today: the class names of the data, in the order of their ids.
        known: those of the version, in the order of its ids.
        former_classes: as dataset.yaml has it: former name -> today's classes that hold its pixels now; none where it
            is no class any more. The name "" is for today's classes whose pixels were not labelled.

    Raises:
        InputError: a class of one of the two maps is in none of the other and ``former_classes`` does not name it, or
            fewer than two common classes are left. The sentence begins after "version N can't be compared: ".
    """
    if list(known) == list(today):
        numbers = tuple(range(len(today)))
        return CommonClasses(tuple(today), numbers, numbers)
    became = [_became(name, today, former_classes) for name in known]
    unlabelled = _unlabelled(today, became, former_classes)
    component = _components(len(today), became)
    kept = sorted({component[number] for number in range(len(today)) if number not in unlabelled})
    if len(kept) < 2:
        raise InputError(
            f"former_classes of dataset.yaml merges {', '.join(known)} and {', '.join(today)} into one class, on which "
            "nothing can be compared; leave at least two that are apart"
        )
    names = [" + ".join(name for name, own in zip(today, component, strict=True) if own == one) for one in kept]
    place = {one: number for number, one in enumerate(kept)}
    other = len(names)
    if unlabelled or not all(became):
        names.append(OTHER)
    return CommonClasses(
        tuple(names),
        tuple(other if number in unlabelled else place[component[number]] for number in range(len(today))),
        tuple(place[component[targets[0]]] if targets else other for targets in became),
        frozenset(unlabelled),
    )


def _became(name: str, today: Sequence[str], former_classes: Mapping[str, Sequence[str]]) -> list[int]:
    """Return the numbers of today's classes that hold the pixels of the version's class ``name``."""
    if name in former_classes:
        return [list(today).index(target) for target in former_classes[name]]
    if name in today:
        return [list(today).index(name)]
    raise InputError(
        f"it knows the class '{name}', which the data do not have{near_miss(name, list(today))}; write what became of "
        f"it into dataset.yaml, as former_classes: {{{name}: [{today[0]}]}}, or [] where it is no class any more"
    )


def _unlabelled(
    today: Sequence[str], became: Sequence[Sequence[int]], former_classes: Mapping[str, Sequence[str]]
) -> set[int]:
    """Return the numbers of today's classes that no class of the version became: they must be stated as such."""
    held = {number for targets in became for number in targets}
    new = [name for number, name in enumerate(today) if number not in held]
    unstated = [name for name in new if name not in former_classes.get("", ())]
    if unstated:
        raise InputError(
            f"the data have the class '{unstated[0]}', which is in none of its classes; write which class its pixels "
            f"were into dataset.yaml, as former_classes: {{road: [road, {unstated[0]}]}}, or {{'': [{unstated[0]}]}} "
            "where they were not labelled"
        )
    return {list(today).index(name) for name in new}


def _components(count: int, became: Sequence[Sequence[int]]) -> list[int]:
    """Return for each of ``count`` classes the least class that it is merged with."""
    component = list(range(count))
    for targets in became:
        joined = {component[number] for number in targets}
        component = [min(joined) if one in joined else one for one in component]
    return component
