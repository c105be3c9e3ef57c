"""What a passport says against what is found again: it agrees, differs by how much, or is unknown and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from segmill.promotion.budget import GateBudget, group_id
from segmill.promotion.gate import GateEvidence, GatePolicy, Verdict, decide
from segmill.promotion.passport import (
    Data,
    Figures,
    Finding,
    Recipe,
    RecordedVerdict,
    ScoreFigure,
    Scores,
    WeightsOrigin,
)
from segmill.promotion_params import PromotionParams

State = Literal["agrees", "differs", "unknown"]
EXACT, OTHER_DEVICE = 1e-9, 1e-3  # how far apart figures may be: on the same kind of device, and on another
DETECTION_ON_OTHER_DEVICE = 0.05  # an image whose score is another one moves a rank
MOST_NAMED = 5


@dataclass(frozen=True)
class Check:
    """One figure or hash of a passport, looked at again.

    ``part``: which part of the passport it is of; ``what``: its name in words; ``state``: ``unknown`` where it can't be
    recomputed here; ``says``: how it agrees, by how much it differs, or why it is unknown, in one sentence;
    ``recorded`` and ``found``: the two values, JSON-able, where there are two.
    """

    part: str
    what: str
    state: State
    says: str
    recorded: Any = None
    found: Any = None


def same(part: str, what: str, recorded: Any, found: Any, says: str = "") -> Check:
    """Compare two values that must be equal; ``says``: of two that are."""
    if recorded == found:
        return Check(part, what, "agrees", says or _short(found), recorded, found)
    return Check(part, what, "differs", f"recorded {_short(recorded)}, here {_short(found)}", recorded, found)


def unknown(part: str, what: str, why: str) -> Check:
    """Say why something can't be recomputed."""
    return Check(part, what, "unknown", why)


def compare_data(recorded: Data, found: Data) -> Iterator[Check]:
    """Compare what validation found of the same data version under the same settings."""
    yield same("data", "classes", recorded.classes, found.classes)
    for split in dict.fromkeys([*recorded.splits, *found.splits]):
        then, now = recorded.splits.get(split), found.splits.get(split)
        sizes = f"{now.samples:,} samples in {now.groups:,} groups" if now else ""
        what, pair = f"split {split}", [one.model_dump() if one else None for one in (then, now)]
        if then == now:
            yield Check("data", what, "agrees", f"{sizes}, the same ids and sha256s", *pair)
        elif then and now and (then.samples, then.groups) == (now.samples, now.groups):
            yield Check("data", what, "differs", f"{sizes} as recorded, but other ids or contents", *pair)
        else:
            was = f"{then.samples:,} samples in {then.groups:,} groups" if then else "none"
            yield Check("data", what, "differs", f"recorded {was}, here {sizes or 'none'}", *pair)
    kinds = [{one.kind: one for one in data.findings} for data in (recorded, found)]
    if kinds[0] == kinds[1]:
        yield Check("data", "findings of validation", "agrees", _findings(recorded.findings))
    for kind in sorted(kinds[0].keys() | kinds[1].keys()) if kinds[0] != kinds[1] else ():
        counts = [one[kind].files if kind in one else 0 for one in kinds]
        yield same("data", f"files with {kind}", counts[0], counts[1])
    if kinds[0] == kinds[1]:
        leaks = [one for one in found.findings if one.leak]
        yield Check("data", "leaks between splits", "agrees", _findings(leaks))


def compare_figures(recorded: Figures, found: Figures, *, device_then: str, device_now: str) -> Iterator[Check]:
    """Compare the figures of the ensemble and of each member that both have."""
    yield same("figures", "test images", recorded.images, found.images)
    yield same("figures", "test groups", recorded.groups, found.groups)
    near = EXACT if device_then == device_now else OTHER_DEVICE
    devices = "" if device_then == device_now else f"; measured on {device_then}, here on {device_now}"
    pairs: list[tuple[str, Scores, Scores | None]] = [("ensemble", recorded.ensemble, found.ensemble)]
    pairs += [(f"member {name}", one, found.members.get(name)) for name, one in recorded.members.items()]
    for name, then, now in pairs:
        if now is None:
            yield unknown("figures", name, "the version does not hold this member")
            continue
        for title, key in (("mIoU", "miou"), ("mean Dice", "mdice"), ("pixel accuracy", "accuracy")):
            yield _figure(f"{name}, {title}", getattr(then, key), getattr(now, key), near, devices)
        for label in dict.fromkeys([*then.iou, *now.iou]):
            if label in then.iou and label in now.iou:
                yield _figure(f"{name}, IoU of {label}", then.iou[label], now.iou[label], near, devices)
            else:
                yield same("figures", f"{name}, class {label}", label in then.iou, label in now.iou)


def compare_detection(
    recorded: dict[str, Any] | None, found: dict[str, Any] | None, *, same_device: bool
) -> Iterator[Check]:
    """Compare what the anomaly detector finds on test, where the version has one; nothing where neither has."""
    if recorded is None or found is None:
        if recorded is not found:
            yield same("figures", "anomaly detector", recorded is not None, found is not None)
        return
    pairs = [
        ("mean_auroc", recorded["mean_auroc"], found["mean_auroc"]),
        ("alarms", recorded["alarms"], found["alarms"]),
    ]
    for kind, by_severity in recorded["kinds"].items():
        now = found["kinds"].get(kind, {})
        pairs += [
            (f"{kind} {severity}", one["auroc"], now.get(severity, {}).get("auroc", -1.0))
            for severity, one in by_severity.items()
        ]
    name, then, here = max(pairs, key=lambda pair: abs(pair[1] - pair[2]))
    state: State = "agrees" if abs(then - here) <= (EXACT if same_device else DETECTION_ON_OTHER_DEVICE) else "differs"
    text = f"{len(pairs)} figures; the furthest apart, {name}: recorded {then:.4f}, here {here:.4f}"
    yield Check("figures", "anomaly detection", state, text, recorded["mean_auroc"], found["mean_auroc"])


def compare_settings(recorded: Recipe, found: Mapping[str, Mapping[str, Any]], changes: Sequence[str]) -> Check:
    """Compare the settings of all stages; ``changes``: a text per value that differs."""
    if recorded.settings == found:
        return Check("recipe", "settings", "agrees", f"of {len(found)} stages, with every default")
    return Check("recipe", "settings", "differs", _some(changes) or "other stages")


def compare_code(recorded: Recipe, found: Mapping[str, Mapping[str, str]]) -> Check:
    """Compare the code of the stages with that of the installed segmill, as ``passport.code_hashes`` gives it."""
    if recorded.code == found["code"]:
        return Check(
            "recipe", "code", "agrees", f"the installed segmill is the recorded one in {len(found['code'])} stages"
        )
    both = recorded.modules.items() ^ found["modules"].items()
    modules = _some(sorted({name for name, _ in both}))
    return unknown("recipe", "code", f"the installed segmill differs in {modules}, so figures may differ")


def compare_origins(recorded: Mapping[str, WeightsOrigin], found: Mapping[str, WeightsOrigin]) -> Iterator[Check]:
    """Compare where the members' weights came from with what the members of the version say."""
    for name, origin in recorded.items():
        if name not in found:
            yield unknown("weights", f"weights of {name}", "the version does not hold this member")
        else:
            pair = [one.model_dump() for one in (origin, found[name])]
            yield same("weights", f"weights of {name}", pair[0], pair[1], _origin(origin))


def judge_again(
    recorded: RecordedVerdict, policy: GatePolicy, evidence: GateEvidence, settings: PromotionParams, *, seed: int
) -> Iterator[Check]:
    """Compare the recorded verdict with the gate's on counts that were made again, at the recorded level.

    Args:
        policy: what the gate asked for. Latency and size were measured when it was judged, and not again.
        evidence: of the same versions on the same data version.
        settings: of ``promotion``, under which it was judged.
        seed: of the draws.
    """
    facts = recorded.facts
    if not facts.keys() >= {"test_groups", "level", "set_number"}:
        yield unknown("verdict", "verdict", "it was given without comparing the test images, or by an earlier release")
        return
    used = set(facts["test_groups"])
    allowed = GateBudget(
        set_number=facts["set_number"],
        groups=tuple(sorted({group for group in evidence.groups if group_id(group) in used})),
        used=settings.judgements - facts["judgements_left"],
        passes=facts["passes"],
        floor_judgements=0,
        left=facts["judgements_left"],
        level=facts["level"],
        changes_by_people=facts["changes_by_people"],
        fresh=0,
        alpha=settings.alpha,
        judgements=settings.judgements,
    )
    again = decide(evidence, replace(policy, latency_ratio=None, size_ratio=None), allowed, seed=seed)
    yield from compare_verdict(recorded, again)


def compare_verdict(recorded: RecordedVerdict, again: Verdict) -> Iterator[Check]:
    """Compare the recorded verdict with the one that the gate gives ``again``."""
    facts, conditions = dict(recorded.facts), {one["name"]: one for one in recorded.facts.get("conditions", ())}
    now = {one["name"]: one for one in again.facts.get("conditions", ())}
    lost = conditions.keys() - now.keys()
    if any(conditions[name]["outcome"] != "met" for name in lost) and recorded.decision != again.decision:
        yield unknown("verdict", "verdict", f"it also rests on {_some(sorted(lost))}, measured on that day alone")
    else:
        yield same("verdict", "verdict", recorded.decision, again.decision, f"{again.decision} again")
    for name in conditions:
        if name in now:
            outcome = (conditions[name]["outcome"], now[name]["outcome"])
            yield same("verdict", f"condition {name}", *outcome)
        else:
            yield unknown("verdict", f"condition {name}", "measured on that day alone")
    keys = [key for key in facts if key in again.facts and key != "conditions"]
    moved = [key for key in keys if not _near(facts[key], again.facts[key])]
    named = [f"{key} recorded {_short(facts[key])}, here {_short(again.facts[key])}" for key in moved]
    says = _some(named, "; ") or f"{len(keys)} figures, {_some(keys)}"
    pair = [{key: one[key] for key in moved} for one in (facts, again.facts)]
    yield Check("verdict", "figures of the verdict", "differs" if moved else "agrees", says, *pair)


def _figure(what: str, then: ScoreFigure, now: ScoreFigure, near: float, devices: str) -> Check:
    pair = (then.model_dump(), now.model_dump())
    if then == now:
        return Check("figures", what, "agrees", f"{_shown(now)}", *pair)
    if all(_near(one, other, near) for one, other in zip(pair[0].values(), pair[1].values(), strict=True)):
        return Check("figures", what, "agrees", f"{_shown(now)}{devices}", *pair)
    apart = f" ({now.value - then.value:+.4f})" if then.value is not None and now.value is not None else ""
    return Check("figures", what, "differs", f"recorded {_shown(then)}, here {_shown(now)}{apart}{devices}", *pair)


def _near(one: Any, other: Any, near: float = EXACT) -> bool:
    if isinstance(one, list) and isinstance(other, list | tuple):
        return len(one) == len(other) and all(_near(*pair, near) for pair in zip(one, other, strict=True))
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_near(one[key], other[key], near) for key in one)
    if isinstance(one, float) or isinstance(other, float):
        return one is not None and other is not None and abs(one - other) <= near
    return bool(one == other)


def _shown(figure: ScoreFigure) -> str:
    if figure.value is None:
        return "none (no pixel of it)"
    between = f" ({figure.low:.4f} to {figure.high:.4f})" if figure.low is not None and figure.high is not None else ""
    return f"{figure.value:.4f}{between}"


def _findings(findings: Sequence[Finding]) -> str:
    said = [f"{one.kind} in {one.files:,}{' (accepted)' if one.accepted else ''}" for one in findings]
    return ", ".join(said) or "none"


def _origin(origin: WeightsOrigin) -> str:
    if origin.sha256 is None:
        return "random initialisation" if origin.source == "none" else origin.source
    return f"{origin.source}, sha256 {origin.sha256[:12]}"


def _some(texts: Sequence[str], between: str = ", ") -> str:
    more = f" and {len(texts) - MOST_NAMED} more" if len(texts) > MOST_NAMED else ""
    return f"{between.join(texts[:MOST_NAMED])}{more}"


def _short(value: Any) -> str:
    """Return a value in few characters: a hash by its first digits."""
    if isinstance(value, float):
        return f"{value:.6g}"
    text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    if len(text) in (32, 40, 64) and all(digit in "0123456789abcdef" for digit in text):
        return text[:12]
    return text if len(text) <= 80 else f"{text[:77]}..."
