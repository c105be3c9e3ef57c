"""What a tuning searches: keys of params.yaml with ranges and choices, read from text and checked before a run."""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from shlex import quote
from typing import Any, Literal

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segmill.errors import InputError, near_miss
from segmill.params import Params, parse_params, read_params
from segmill.params_text import say

Value = float | int | str | bool | None | list[Any] | dict[str, Any]
Values = dict[str, Any]  # of params.yaml, or of a trial: key -> value

BLOCKS = ("prepare", "augment", "train", "members")
UPSTREAM = ("prepare", "augment")
JUDGE = ("data", "split")
# Significant digits of a number: more make no difference to a network, and a patch stays readable.
DIGITS = 3
FIXED = {
    "seed": "the spread of the result is measured over seeds; --repeats trains with other ones",
    "epochs": "all trials have the same length, so that they can be compared; give --epochs",
    "max_minutes": "all trials have the same length, so that they can be compared; give --epochs",
    "val_every": "all trials are validated in the same way, so that they can be compared",
    "warm_start": "the champion is no setting; set it in params.yaml before",
    "kind": "members of another kind have other keys",
}
HOW = "write KEY=LOW..HIGH, KEY=LOW..HIGH:log or KEY=VALUE,VALUE,..."


@dataclass(frozen=True)
class Dimension:
    """One key that is searched: from ``low`` to ``high``, evenly or (``log``) by factor, or among ``choices``."""

    key: str
    kind: Literal["float", "int", "choice"]
    low: float = 0.0
    high: float = 0.0
    log: bool = False
    choices: tuple[Any, ...] = ()

    @property
    def tried(self) -> tuple[Any, ...]:
        """The values to check: if they are valid, all are. The ends of a range, or every choice."""
        if self.kind == "choice":
            return self.choices
        return (int(self.low), int(self.high)) if self.kind == "int" else (self.low, self.high)

    def holds(self, value: Any) -> bool:
        """Return whether ``value`` is in the search space."""
        if self.kind == "choice":
            return value in self.choices
        return isinstance(value, int | float) and not isinstance(value, bool) and self.low <= value <= self.high

    def tidy(self, value: Any) -> Any:
        """Return a suggested number with DIGITS digits, inside the range."""
        if self.kind != "float":
            return value
        return min(max(float(f"{value:.{DIGITS}g}"), self.low), self.high)

    def __str__(self) -> str:
        if self.kind == "choice":
            return f"{self.key}={','.join(say(choice) for choice in self.choices)}"
        return f"{self.key}={say(self.tried[0])}..{say(self.tried[1])}{':log' if self.log else ''}"


def read_values(path: Path) -> Values:
    """Return the params.yaml at ``path`` as plain values, once it is checked; InputError where it is not valid."""
    read_params(path)
    values: Values = YAML(typ="safe").load(path.read_text())
    return values


def read_space(searches: Sequence[str], values: Values, member: str) -> list[Dimension]:
    """Read what ``--search`` says and check the values that decide whether all are valid.

    Args:
        searches: ``KEY=SPEC`` each; SPEC is ``LOW..HIGH``, ``LOW..HIGH:log`` or ``VALUE,VALUE,...`` in YAML. A key
            without a block (``lr``) is the member's own.
        values: params.yaml as plain values.
        member: the network that is tuned.

    Raises:
        InputError: one sentence: another grammar, an unknown key (with its near miss), a key that no member's training
            depends on, that decides what trials are compared on, or that the member's own settings override; a value
            that is not allowed, alone or with the other keys' first values.
    """
    space = [_dimension(text, values, member) for text in searches]
    keys = [dimension.key for dimension in space]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise InputError(f"--search names {twice[0]} twice; name each key once")
    for dimension in space:
        for value in dimension.tried:
            parse_params(with_values(values, member, {dimension.key: value}), f"--search {dimension}")
    for chosen in _corners(space):
        parse_params(with_values(values, member, chosen), "--search, " + ", ".join(assignments_of(chosen)))
    return space


def default_searches(values: Values, member: str) -> list[str]:
    """Return the search of a member for which none is given: rates, decay, the mix of the loss and the schedule."""
    settings = settings_of(values, member)
    lr, mine = settings["lr"], f"members.{member}"
    searches = [
        f"{mine}.lr={lr / 5:.3g}..{lr * 5:.3g}:log",
        f"{mine}.weight_decay=0.0001..0.1:log",
        f"{mine}.loss.dice=0.2..2",
        f"{mine}.schedule=cosine,poly",
    ]
    if settings["weights"] != "none":
        searches.insert(2, f"{mine}.encoder_lr_factor=0.05..1:log")
    return searches


def with_values(values: Values, member: str, chosen: Mapping[str, Any]) -> Values:
    """Return params.yaml's ``values`` with each key of ``chosen`` set; ``values`` stay as they are.

    A part of a mapping that the member takes over from ``train`` (``members.NAME.loss.dice``) keeps its other parts.
    """
    changed: Values = copy.deepcopy(_plain(values))
    for key, value in chosen.items():
        *parents, leaf = key.split(".")
        block = changed
        for depth, parent in enumerate(parents):
            inherited = changed.get("train", {}).get(parent) if parents[:depth] == ["members", member] else None
            block = block.setdefault(parent, copy.deepcopy(inherited) if isinstance(inherited, dict) else {})
            if not isinstance(block, dict):
                raise InputError(f"--search {key}: {'.'.join(parents[: depth + 1])} is a value, not a block of keys")
        block[leaf] = value
    return changed


def value_at(values: Values, member: str, key: str) -> Any:
    """Return what ``key`` is now, for a key of the member what holds for it; None where it has no value."""
    parts = key.split(".")
    plain = parse_params(values, "params.yaml")
    found: Any = plain.model_dump(mode="json")
    if parts[:2] == ["members", member]:
        found, parts = settings_of(values, member), parts[2:]
    for part in parts:
        found = found.get(part) if isinstance(found, dict) else None
    return found


def settings_of(values: Values, member: str) -> Values:
    """Return what the network ``member`` is trained with: its own keys and the training block that holds for it."""
    params = parse_params(values, "params.yaml")
    return {
        **params.members[member].model_dump(mode="json"),
        **_plain(asdict(params.training_of(member))),
    }


def assignments(values: Values, member: str, chosen: Mapping[str, Any]) -> list[str]:
    """Return the ``KEY=VALUE`` that bring params.yaml from ``values`` to ``chosen``, without those that change nothing.

    A part of a mapping that the member had taken over from ``train`` is written as the whole mapping.
    """
    before, after = _plain(values), with_values(values, member, chosen)
    found = {}
    for key, value in chosen.items():
        parts = key.split(".")
        while len(parts) > 1 and not isinstance(_at(before, parts[:-1]), dict):
            parts.pop()
            value = _at(after, parts)
        if _at(before, parts) != value:
            found[".".join(parts)] = value
    return assignments_of(found)


def assignments_of(chosen: Mapping[str, Any]) -> list[str]:
    return [f"{key}={say(value)}" for key, value in chosen.items()]


def combinations(space: Iterable[Dimension]) -> list[Values]:
    """Return every combination of the choices in ``space``, an empty one where there are none."""
    dimensions = list(space)
    products = itertools.product(*(dimension.choices for dimension in dimensions))
    return [dict(zip((dimension.key for dimension in dimensions), product, strict=True)) for product in products]


def upstream(space: Iterable[Dimension]) -> list[Dimension]:
    """Return the dimensions that change what training reads, so that it is made anew for each value."""
    return [dimension for dimension in space if dimension.key.split(".")[0] in UPSTREAM]


def network_names(params: Params) -> list[str]:
    return [name for name, member in params.members.items() if member.kind == "network"]


def _dimension(text: str, values: Values, member: str) -> Dimension:
    key, equals, spec = (part.strip() for part in text.partition("="))
    if not equals or not key or not spec:
        raise InputError(f"--search {text}: {HOW}")
    key = _full_key(key, values, member)
    low, dots, rest = spec.partition("..")
    if not dots:
        return Dimension(key, "choice", choices=_choices(text, spec))
    if key.split(".")[0] in UPSTREAM:
        raise InputError(
            f"--search {text}: the data are built again for every value of {key}, so a range would never end; name the "
            f"values, as {key}={low},{rest.partition(':')[0]}"
        )
    high, colon, scale = rest.partition(":")
    if colon and scale != "log":
        raise InputError(f"--search {text}: {scale!r} after the range is no scale{near_miss(scale, ['log'])}; {HOW}")
    try:
        least, most = float(low), float(high)
    except ValueError:
        raise InputError(f"--search {text}: {low!r} to {high!r} is no range of numbers; {HOW}") from None
    if not (math.isfinite(least) and math.isfinite(most) and least < most):
        raise InputError(f"--search {text}: the range must go from a number up to a larger one")
    if colon and least <= 0:
        raise InputError(f"--search {text}: a logarithmic range (:log) starts above 0; raise {low} or leave :log out")
    whole = least.is_integer() and most.is_integer() and "." not in low + high and "e" not in (low + high).lower()
    kind: Literal["float", "int"] = "int" if whole and _only_whole(values, member, key, least) else "float"
    return Dimension(key, kind, least, most, bool(colon))


def _full_key(key: str, values: Values, member: str) -> str:
    """Return the key with its block; InputError where it is none that a member's tuning may search."""
    parts = key.split(".")
    if parts[0] not in Params.model_fields:
        parts = ["members", member, *parts]
    block = parts[0]
    if block in JUDGE:
        raise InputError(f"--search {key}: {block} decides what the trials are compared on; leave it out")
    if block not in BLOCKS:
        raise InputError(f"--search {key}: no training depends on {block}; search keys of {', '.join(BLOCKS)}")
    if len(parts) < (3 if block == "members" else 2):
        raise InputError(f"--search {key}: it is a block of keys; name one of them")
    if block == "members" and parts[1] != member:
        others = list(values["members"])
        hint = "is another member" if parts[1] in others else f"is no member{near_miss(parts[1], others)}"
        raise InputError(f"--search {key}: {parts[1]} {hint}; this tunes {member}")
    name = parts[2] if block == "members" else parts[1]
    if block in ("train", "members") and name in FIXED:
        raise InputError(f"--search {key}: {FIXED[name]}")
    if block == "train" and name in values["members"][member]:
        raise InputError(
            f"--search {key}: members.{member}.{name} is set and wins over it; search members.{member}.{name}"
        )
    return ".".join(parts)


def _choices(text: str, spec: str) -> tuple[Any, ...]:
    try:
        found = YAML(typ="safe").load(f"[{spec}]")
    except YAMLError:
        raise InputError(f"--search {text}: the choices are not YAML; {HOW}") from None
    choices = tuple(_plain(choice) for choice in found)
    if len(choices) < 2:
        raise InputError(f"--search {text}: one value can't be searched; `segmill retrain --set {quote(text)}` sets it")
    if any(choices.count(choice) > 1 for choice in choices):
        raise InputError(f"--search {text}: a value is there twice; name each once")
    return choices


def _only_whole(values: Values, member: str, key: str, least: float) -> bool:
    """Tell whether params.yaml refuses a number between ``least`` and the next whole one at ``key``."""
    try:
        parse_params(with_values(values, member, {key: least + 0.5}), "")
    except InputError:
        return True
    return False


def _corners(space: Sequence[Dimension]) -> Iterator[Values]:
    """Yield combinations that show what can't be together: all lowest values, all highest, every data set."""
    for end in (0, -1):
        yield {dimension.key: dimension.tried[end] for dimension in space}
    yield from combinations(upstream(space))


def _at(values: Any, parts: Sequence[str]) -> Any:
    for part in parts:
        values = values.get(part) if isinstance(values, dict) else None
    return values


def _plain(values: Any) -> Any:
    """Return YAML's own kinds of mappings, lists and numbers as Python's."""
    if isinstance(values, Mapping):
        return {str(key): _plain(value) for key, value in values.items()}
    if isinstance(values, list | tuple):
        return [_plain(value) for value in values]
    if isinstance(values, bool) or values is None:
        return values
    for kind in (int, float, str):
        if isinstance(values, kind):
            return kind(values)
    return values
