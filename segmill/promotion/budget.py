"""How many judgements a test set has left and how strict the next one must be: a bound over a model's whole life.

A challenger of tonight depends on the verdicts of the nights before, and so on the test set. If it depends on it
through PASS and not PASS alone, then it is one of the challengers that the possible histories of verdicts lead to, a
tree fixed before the set was seen. Levels that sum to alpha over all nodes of that tree bound the chance of any false
PASS by alpha, whatever night depends on whatever other (Blum & Hardt, "The Ladder", ICML 2015; Renggli et al.,
"Continuous Integration of Machine Learning Models with ease.ml/ci", SysML 2019). docs/promotion.md has the proof.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import takewhile

# Of random swaps, which more than 20 groups are tested with, no practical number shows a smaller p-value.
LEAST_LEVEL = 1e-8


@dataclass(frozen=True)
class Judgement:
    """One earlier verdict that read test groups (UNDECIDABLE reads none and is no judgement).

    ``groups``: ids of the groups that it read. ``floor``: there was no champion, the floor alone was judged.
    ``recipe``: sha256 of the settings and code that the version was made with. ``sealed``: nothing but PASS or not
    PASS was shown of it.
    """

    groups: frozenset[str]
    passed: bool
    floor: bool
    recipe: str
    sealed: bool


@dataclass(frozen=True)
class GateBudget:
    """What is left for one judgement on today's test groups.

    ``set_number`` counts the model's test sets from 1; ``groups`` are the names of today's groups in it. ``used``
    judgements read the set, of them ``passes`` were a PASS that counts for the level and ``floor_judgements`` judged
    the floor before the first champion; ``left`` are allowed. ``level``: alpha of the next judgement against a
    champion, one-sided; 0.0 where none is left. ``changes_by_people``: recipes that changed after a verdict whose
    figures were shown. ``fresh``: today's groups that were never judged.
    """

    set_number: int
    groups: tuple[str, ...]
    used: int
    passes: int
    floor_judgements: int
    left: int
    level: float
    changes_by_people: int
    fresh: int
    alpha: float
    judgements: int

    @property
    def decidable(self) -> bool:
        """Whether a p-value can be as small as the level."""
        return self.level >= LEAST_LEVEL and len(self.groups) >= groups_needed(self.level)

    @property
    def group_ids(self) -> frozenset[str]:
        return frozenset(map(group_id, self.groups))

    def renewal(self) -> str:
        """Return a sentence: how many new test groups begin a set of their own."""
        first = groups_for_promotions(self.alpha, self.judgements, set_number=self.set_number + 1, count=1)
        if not first:
            return "A new test set would have too small a level to decide anything: raise promotion.alpha."
        needed = first[0]
        missing = max(needed - self.fresh, 0)
        begun = (
            f"A new test set with {self.judgements} judgements begins with {needed} test groups that were never judged"
        )
        return f"{begun}; {self.fresh} of them are there, {missing} are missing: add them with `segmill data add`."


def group_id(name: str) -> str:
    """Return what the ledger keeps of a group's name."""
    return hashlib.sha256(name.encode()).hexdigest()[:12]


def groups_needed(level: float) -> int:
    """Return the least n with 2**-n <= level: no sign-flip test of n groups has a smaller p-value.

    Raises:
        ValueError: the level is not in 0..1.
    """
    if not 0 < level <= 1:
        raise ValueError(f"level is {level}; allowed is above 0 and up to 1")
    return next(n for n in range(1100) if 2.0**-n <= level)


def groups_for_promotions(
    alpha: float, judgements: int, *, set_number: int = 1, floor_judgements: int = 0, count: int = 3
) -> tuple[int, ...]:
    """Return how many groups the first, second, ... promotion over a champion needs on a set of ``judgements``.

    The list ends before the first whose level would be below LEAST_LEVEL: that one takes a new set.
    """
    allowed = min(count, judgements - floor_judgements)
    share = alpha / (set_number * (set_number + 1)) * _floor_weight(floor_judgements)
    levels = [share * _level(judgements - floor_judgements, passes) for passes in range(allowed)]
    return tuple(map(groups_needed, takewhile(lambda level: level >= LEAST_LEVEL, levels)))


def budget(
    history: Sequence[Judgement], groups: Sequence[str], *, alpha: float, judgements: int, recipe: str
) -> GateBudget:
    """Return what is left for a judgement of today's test groups.

    A test set holds the groups that no judgement of an earlier set read. It continues when it grows or is relabelled:
    the judgements that it had stay counted. Where its budget is exhausted or too small for its groups to decide, and
    the groups that were never judged can decide as a set of their own, the next set begins with these alone. Set v
    has alpha / (v (v + 1)), which sums to alpha over all sets. On a set that allows T judgements, the level after k
    PASSes is 2^-(k+1) / C(T, k+1) of that.

    The judgements against the floor before the first champion read the set too. If s of them came up to the first
    PASS, T is T - s and the level is multiplied by a weight that sums to 1 over s: 9/10 for s = 1, the usual case,
    and 1 / (10 s (s - 1)) above. Where somebody made a version champion without a PASS after s of them, the weight is
    that of s + 1. Later ones (a champion may be withdrawn) count as any other judgement, with their PASSes.

    Args:
        history: the model's judgements, oldest first.
        groups: today's test groups; a name may come more than once.
        alpha: over the life of the model, in 0..1.
        judgements: T.
        recipe: of the version that is to be judged.
    """
    names = {group_id(name): name for name in sorted(set(groups))}
    sets = _sets(history)
    judged = frozenset().union(*(one.groups for one in history))
    fresh = tuple(names[one] for one in names if one not in judged)
    number = max(len(sets), 1)
    earlier = frozenset().union(*sets[:-1]) if sets else frozenset()
    current = _on_set(
        history, number, sets[-1] if sets else frozenset(), tuple(names[one] for one in names if one not in earlier),
        fresh=len(fresh), alpha=alpha, judgements=judgements, recipe=recipe,
    )  # fmt: skip
    if current.decidable or not sets:
        return current
    new = _on_set(
        history, number + 1, frozenset(), fresh, fresh=len(fresh), alpha=alpha, judgements=judgements, recipe=recipe
    )
    return new if new.decidable else current


def _sets(history: Sequence[Judgement]) -> list[frozenset[str]]:
    """Return the groups of each test set, the first set first.

    A judgement that read no group of an earlier one began a set. Otherwise it belongs to the newest set that it read
    groups of, and its groups that are in no set yet joined that one.
    """
    sets: list[frozenset[str]] = []
    for one in history:
        known = frozenset().union(*sets)
        touched = [number for number, held in enumerate(sets) if held & one.groups]
        if touched:
            sets[touched[-1]] |= one.groups - known
        elif one.groups:
            sets.append(one.groups)
    return sets


def _on_set(
    history: Sequence[Judgement],
    number: int,
    held: frozenset[str],
    groups: tuple[str, ...],
    *,
    fresh: int,
    alpha: float,
    judgements: int,
    recipe: str,
) -> GateBudget:
    """Return the budget of one set: every judgement that read any of its groups is counted."""
    ours = [one for one in history if one.groups & held]
    before, weight_index = _before_the_first_champion(ours)
    passes = sum(one.passed for one in ours[before:])
    left = max(judgements - len(ours), 0)
    share = alpha / (number * (number + 1)) * _floor_weight(weight_index)
    return GateBudget(
        set_number=number,
        groups=groups,
        used=len(ours),
        passes=passes,
        floor_judgements=before,
        left=left,
        level=share * _level(judgements - before, passes) if left else 0.0,
        changes_by_people=_changes_by_people(ours, recipe),
        fresh=fresh,
        alpha=alpha,
        judgements=judgements,
    )


def _before_the_first_champion(ours: Sequence[Judgement]) -> tuple[int, int]:
    """Return how many judgements of the floor came up to the first PASS, and the index of their weight.

    s failures that no PASS ended are the history that s - 1 failures and a PASS are not, so they take the next index.
    """
    count = 0
    for one in ours:
        if not one.floor:
            break
        count += 1
        if one.passed:
            return count, count
    return count, count + 1 if count else 0


def _floor_weight(index: int) -> float:
    """Return the weight of so many judgements of the floor: 1 for none, else one that sums to 1 over 1, 2, ..."""
    return 1.0 if index == 0 else 0.9 if index == 1 else 0.1 / (index * (index - 1))


def _level(judgements: int, passes: int) -> float:
    """Return 2^-(k+1) / C(T, k+1): C(T, k+1) histories of at most T judgements lead to the next after k PASSes."""
    return 2.0 ** -(passes + 1) / math.comb(judgements, passes + 1)


def _changes_by_people(ours: Sequence[Judgement], recipe: str) -> int:
    """Count the recipes that changed after a verdict on the set whose figures were open."""
    recipes = [*(one.recipe for one in ours), recipe]
    opened = [any(not one.sealed for one in ours[: index + 1]) for index in range(len(ours))]
    return sum(seen and recipes[index] != recipes[index + 1] for index, seen in enumerate(opened))
