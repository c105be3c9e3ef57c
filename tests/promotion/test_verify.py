"""Each part of a passport held against what is found again: agrees, differs by how much, unknown and why."""

from __future__ import annotations

import numpy as np

from segmill.promotion import passport, verify
from segmill.promotion.gate import GateEvidence, GatePolicy, Verdict
from segmill.promotion.passport import ScoreFigure
from segmill.promotion.verify import Check
from segmill.promotion_params import PromotionParams
from tests.promotion.test_passport import made

GROUPS = [f"g{number // 2}" for number in range(40)]


def of(checks: list[Check], what: str) -> Check:
    (found,) = [check for check in checks if check.what == what]
    return found


def test_the_same_data_agree_and_each_difference_has_a_line() -> None:
    data = made().data
    assert {check.state for check in verify.compare_data(data, data)} == {"agrees"}
    part = data.splits["test"]
    other = data.model_copy(
        update={
            "splits": {**data.splits, "test": part.model_copy(update={"sha256": "9" * 64})},
            "findings": [*data.findings, data.findings[0].model_copy(update={"kind": "group_leak", "files": 3})],
        }
    )
    found = list(verify.compare_data(data, other))
    assert of(found, "split train").state == "agrees"
    assert of(found, "split test").says == "2 samples in 1 groups as recorded, but other ids or contents"
    assert of(found, "files with group_leak").says == "recorded 0, here 3"
    assert of(found, "files with near_duplicate").state == "agrees"
    grown = data.model_copy(update={"splits": {**data.splits, "val": part}})
    assert of(list(verify.compare_data(data, grown)), "split val").says == "recorded none, here 2 samples in 1 groups"


def test_a_figure_that_was_edited_differs_by_how_much() -> None:
    figures = made().figures
    same = list(verify.compare_figures(figures, figures, device_then="CPU", device_now="CPU"))
    assert {check.state for check in same} == {"agrees"}
    miou = figures.ensemble.miou
    assert miou.value is not None
    better = miou.model_copy(update={"value": miou.value + 0.1})
    edited = figures.model_copy(update={"ensemble": figures.ensemble.model_copy(update={"miou": better})})
    found = list(verify.compare_figures(edited, figures, device_then="CPU", device_now="CPU"))
    assert [check.what for check in found if check.state != "agrees"] == ["ensemble, mIoU"]
    assert of(found, "ensemble, mIoU").says.endswith("(-0.1000)")


def test_another_device_may_be_a_little_apart_and_no_more() -> None:
    figures = made().figures
    accuracy = figures.ensemble.accuracy

    def shifted(by: float) -> passport.Figures:
        moved = ScoreFigure(value=(accuracy.value or 0) + by, low=accuracy.low, high=accuracy.high)
        return figures.model_copy(update={"ensemble": figures.ensemble.model_copy(update={"accuracy": moved})})

    for by, device, state in ((5e-4, "H200", "agrees"), (5e-4, "CPU", "differs"), (5e-3, "H200", "differs")):
        found = list(verify.compare_figures(shifted(by), figures, device_then=device, device_now="CPU"))
        check = of(found, "ensemble, pixel accuracy")
        assert check.state == state
        assert ("measured on H200, here on CPU" in check.says) == (device == "H200")


def test_a_member_that_the_version_lacks_is_unknown() -> None:
    figures = made().figures
    alone = figures.model_copy(update={"members": {}})
    check = of(list(verify.compare_figures(figures, alone, device_then="CPU", device_now="CPU")), "member net")
    assert (check.state, check.says) == ("unknown", "the version does not hold this member")
    (origin,) = verify.compare_origins(made().weights, {})
    assert origin.state == "unknown"
    (other,) = verify.compare_origins(made().weights, {"net": passport.WeightsOrigin(source="none", sha256=None)})
    assert other.state == "differs"


def test_other_code_is_unknown_and_names_its_modules() -> None:
    recipe = made().recipe
    found = passport.code_hashes({"prepare": "segmill.errors 34\nsegmill.files 12\n"})
    assert verify.compare_code(recipe, found).state == "agrees"
    moved = passport.code_hashes({"prepare": "segmill.errors 34\nsegmill.files 13\nsegmill.new 1\n"})
    check = verify.compare_code(recipe, moved)
    assert check.state == "unknown"
    assert check.says == "the installed segmill differs in segmill.files, segmill.new, so figures may differ"
    settings = verify.compare_settings(recipe, {}, ["prepare.size_px unset -> 96"])
    assert (settings.state, settings.says) == ("differs", "prepare.size_px unset -> 96")


def judged(gain: int) -> tuple[passport.RecordedVerdict, GateEvidence, GatePolicy, PromotionParams]:
    """Return a verdict as the gate gives it on 20 groups, and what it was given."""
    from segmill.promotion.budget import budget
    from segmill.promotion.gate import decide

    noise = np.random.default_rng(0).integers(0, 8, (40, 2))
    counts = [
        np.array([[[900 + right, 100 - right], [100 - left, 900 + left]] for right, left in noise + better])
        for better in (gain, 0)
    ]
    settings, policy = PromotionParams(), GatePolicy(floor_miou=0.1, class_loss=0.05)
    evidence = GateEvidence(
        challenger_counts_NKK=counts[0], champion_counts_NKK=counts[1], groups=GROUPS, class_names=["road", "sky"]
    )
    allowed = budget([], GROUPS, alpha=settings.alpha, judgements=settings.judgements, recipe="")
    verdict = decide(evidence, policy, allowed, seed=3)
    recorded = passport.RecordedVerdict(
        decision=verdict.decision, reasons=verdict.reasons, facts=verdict.facts, compared_with="1", policy={},
        ledger=passport.VerdictRow(number=2, hash=""),
    )  # fmt: skip
    return recorded, evidence, policy, settings


def test_the_verdict_is_given_again_from_the_same_counts() -> None:
    recorded, evidence, policy, settings = judged(gain=40)
    assert recorded.decision == "PASS"
    found = list(verify.judge_again(recorded, policy, evidence, settings, seed=3))
    assert {check.state for check in found} == {"agrees"}, found
    assert {"verdict", "condition gain", "condition floor", "figures of the verdict"} <= {one.what for one in found}


def test_another_decision_or_figure_than_the_counts_give_differs() -> None:
    recorded, evidence, policy, settings = judged(gain=0)
    assert recorded.decision != "PASS"
    claimed = recorded.model_copy(update={"decision": "PASS", "facts": {**recorded.facts, "gain": 0.25}})
    found = list(verify.judge_again(claimed, policy, evidence, settings, seed=3))
    assert of(found, "verdict").says == f"recorded PASS, here {recorded.decision}"
    assert of(found, "figures of the verdict").says.startswith("gain recorded 0.25, here 0")


def test_what_was_measured_on_that_day_alone_is_unknown_and_an_earlier_release_too() -> None:
    recorded, evidence, policy, settings = judged(gain=40)
    slow = {"name": "latency", "outcome": "not met", "figures": {}}
    facts = {**recorded.facts, "conditions": [*recorded.facts["conditions"], slow]}
    refused = recorded.model_copy(update={"decision": "FAIL", "facts": facts})
    found = list(verify.judge_again(refused, policy, evidence, settings, seed=3))
    assert of(found, "verdict").says == "it also rests on latency, measured on that day alone"
    assert of(found, "condition latency").state == "unknown"
    earlier = recorded.model_copy(update={"facts": {"gain": 0.1}})
    (only,) = verify.judge_again(earlier, policy, evidence, settings, seed=3)
    assert only.state == "unknown"


def test_figures_of_a_sealed_verdict_are_not_shown() -> None:
    sealed = Verdict("FAIL", ["It does not pass."], {"level": 0.1, "samples": 40})
    recorded = made().verdict.model_copy(update={"decision": "FAIL", "facts": {"level": 0.1, "samples": 40}})
    found = list(verify.compare_verdict(recorded, sealed))
    assert [check.what for check in found] == ["verdict", "figures of the verdict"]
    assert {check.state for check in found} == {"agrees"}
