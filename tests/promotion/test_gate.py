"""The gate's verdicts: who passes, who fails, and when it says that it does not know or cannot."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from segmill.errors import InputError
from segmill.promotion.budget import Judgement, budget, group_id
from segmill.promotion.gate import GateEvidence, GatePolicy, Verdict, decide, promising

GROUPS = [f"g{i:02}" for i in range(12)]


def tables(accuracies: list[float]) -> np.ndarray:
    """One two-class table of 1000 + 1000 pixels per accuracy, errors spread evenly."""
    return np.array(
        [[[round(1000 * a), 1000 - round(1000 * a)], [1000 - round(1000 * a), round(1000 * a)]] for a in accuracies]
    )


def judge(
    challenger: np.ndarray,
    champion: np.ndarray | None,
    groups: list[str] = GROUPS,
    *,
    history: list[Judgement] | None = None,
    evidence: dict[str, Any] | None = None,
    **changes: Any,
) -> Verdict:
    names = ["road", "sky", "sign", "car"][: challenger.shape[1]]
    counts = {"challenger_counts_NKK": challenger, "champion_counts_NKK": champion}
    left = budget(history or [], groups, alpha=0.05, judgements=20, recipe="r")
    seen = GateEvidence(**counts, groups=groups, class_names=names, **(evidence or {}))
    return decide(seen, GatePolicy(**{"floor_miou": 0.5} | changes), left, seed=0)


def earlier(count: int, *, passed: bool = False, recipe: str = "r", groups: list[str] = GROUPS) -> list[Judgement]:
    return [Judgement(frozenset(map(group_id, groups)), passed, False, recipe, False)] * count


OLD = tables([0.80, 0.82, 0.78, 0.85, 0.75, 0.81, 0.79, 0.83, 0.77, 0.80, 0.84, 0.76])
BETTER = tables([0.84, 0.85, 0.83, 0.88, 0.80, 0.85, 0.82, 0.88, 0.81, 0.84, 0.88, 0.81])
MIXED = tables([0.84, 0.79, 0.83, 0.81, 0.80, 0.78, 0.82, 0.81, 0.81, 0.79, 0.84, 0.77])


def test_better_everywhere_passes_at_the_level_of_the_budget() -> None:
    verdict = judge(BETTER, OLD)
    assert verdict.decision == "PASS"
    assert verdict.facts["gain_low"] > 0 and verdict.facts["groups"] == 12
    assert verdict.facts["p_value"] == 2.0**-12 <= verdict.facts["level"] == pytest.approx(0.025 / 40)
    assert "shown to be above zero at the level 0.00063 of this judgement (p is 0.00024" in verdict.reasons[1]
    assert verdict.reasons[-1] == "This is judgement 1 of 20 on test set 1."
    assert verdict.facts["champion_iou"] == pytest.approx([verdict.facts["champion_miou"]] * 2), "errors spread evenly"


def test_worse_everywhere_fails() -> None:
    verdict = judge(OLD, BETTER)
    assert verdict.decision == "FAIL"
    assert verdict.facts["gain_high"] < 0
    assert "It is not above zero: none of the interval is." in verdict.reasons[1]
    assert verdict.facts["classes_lost"] == ["road", "sky"]


def test_a_larger_mean_alone_is_inconclusive_and_says_how_many_groups_would_do() -> None:
    verdict = judge(MIXED, OLD)
    assert verdict.facts["gain"] > 0
    assert verdict.decision == "INCONCLUSIVE"
    settling = verdict.facts["groups_that_settle"]
    assert settling > 12 and f"About {settling} groups like these would settle it." in verdict.reasons[1]
    copies = -(-settling // 12)
    groups = [f"g{index}" for index in range(12 * copies)]
    assert judge(np.tile(MIXED, (copies, 1, 1)), np.tile(OLD, (copies, 1, 1)), groups).decision == "PASS"


def test_the_interval_says_what_it_rests_on() -> None:
    assert "(12 groups, 12 images)" in judge(BETTER, OLD).reasons[1]


def test_the_same_model_fails() -> None:
    verdict = judge(OLD, OLD)
    assert verdict.decision == "FAIL" and "the same counts on every image" in verdict.reasons[0]


def test_min_gain_asks_for_more_than_any_gain_and_is_approximate() -> None:
    assert judge(BETTER, OLD, min_gain=0.2).decision == "FAIL"
    gain = judge(BETTER, OLD).facts["gain"]
    assert judge(BETTER, OLD, min_gain=gain).decision == "INCONCLUSIVE"
    passed = judge(BETTER, OLD, min_gain=0.01)
    assert passed.decision == "PASS"
    assert "jackknife over groups, which is approximate" in passed.reasons[1]


def test_noninferiority_asks_that_no_more_than_the_margin_is_lost() -> None:
    same = {"goal": "noninferiority", "margin": 0.05}
    assert judge(OLD, OLD, **same).decision == "PASS"
    assert judge(MIXED, OLD, **same).decision == "PASS"
    assert judge(MIXED, OLD, **same | {"margin": 0.001}).decision == "INCONCLUSIVE"
    worse = judge(OLD, BETTER, **same | {"margin": 0.01})
    assert worse.decision == "FAIL" and "above -0.01" in worse.reasons[1]


def test_a_better_model_below_the_floor_fails() -> None:
    verdict = judge(BETTER, OLD, floor_miou=0.95)
    assert verdict.decision == "FAIL" and "misses the floor 0.9500" in verdict.reasons[0]


def test_the_first_model_must_reach_the_floor_with_the_lower_bound() -> None:
    assert judge(OLD, None).decision == "PASS"
    estimate = judge(OLD, None).facts["challenger_miou"]
    between = judge(OLD, None, floor_miou=estimate - 1e-4)
    assert between.decision == "INCONCLUSIVE" and "more test groups can decide" in between.reasons[0]
    missed = judge(OLD, None, floor_miou=0.9)
    assert missed.decision == "FAIL" and "it misses the floor 0.9000" in missed.reasons[0]


def test_the_first_model_spends_no_alpha_and_two_groups_cannot_show_a_floor() -> None:
    first = judge(OLD, None)
    assert (first.facts["alpha_spent"], first.facts["level"]) == (0.0, pytest.approx(0.025))
    two = judge(OLD, None, ["a", "b"] * 6)
    assert two.decision == "UNDECIDABLE" and "at least 3 groups into the test split" in two.reasons[0]
    assert judge(OLD, None, ["a", "b"] * 6, floor_miou=0.0).decision == "PASS", "a floor of zero asks for nothing"


def test_a_set_of_which_no_group_is_left_in_test_decides_nothing() -> None:
    history = [*earlier(20), *earlier(1, groups=[f"h{index}" for index in range(13)])]
    for champion in (None, OLD):
        verdict = judge(BETTER, champion, history=history, floor_miou=0.0)
        assert verdict.decision == "UNDECIDABLE" and verdict.facts["groups"] == 0


def test_a_model_without_a_counted_pixel_fails() -> None:
    nothing = np.zeros((12, 2, 2), np.int64)
    assert judge(nothing, None, floor_miou=0.0).decision == "FAIL"
    assert judge(nothing, nothing, floor_miou=0.0).decision == "FAIL"


def test_a_class_that_test_does_not_hold_does_not_decide() -> None:
    """One stray pixel of it took a third of the mIoU (0.667 to 0.500 here) and turned PASS into FAIL."""
    right, wrong = [[2, 0, 0], [0, 2, 0], [0, 0, 0]], [[2, 0, 0], [1, 1, 0], [0, 0, 0]]
    challenger, champion = np.array([right] * 11 + [wrong]), np.array([wrong] * 12)
    stray = challenger.copy()
    stray[-1] = [[2, 0, 0], [1, 0, 1], [0, 0, 0]]
    for counts in (challenger, stray):
        verdict = judge(counts, champion, floor_miou=0.7)
        assert verdict.decision == "PASS"
        assert verdict.facts["challenger_miou"] > 0.9 and verdict.facts["champion_iou"][2] is None
    assert judge(stray, None, floor_miou=0.7).decision == "PASS"


def test_three_groups_of_noise_decide_nothing() -> None:
    """Twenty noise images with three in test PASSed; equal models must not, whatever their three groups say."""
    random = np.random.default_rng(0)
    for rule in ("lifetime", "plain"):
        for _ in range(20):
            new, old = (random.multinomial(2000, [0.25] * 4, 3).reshape(3, 2, 2) for _ in range(2))
            new[:, :, 1] = old.sum(axis=2) - new[:, :, 0]
            verdict = judge(new, old, ["a", "b", "c"], floor_miou=0.0, rule=rule)
            assert verdict.decision == "UNDECIDABLE"


def test_groups_that_cannot_reach_the_level_are_not_read() -> None:
    verdict = judge(BETTER, OLD, history=earlier(1, passed=True))
    assert verdict.decision == "UNDECIDABLE"
    assert verdict.reasons == [
        "12 test groups can't decide: no p-value of so few is below 0.00024, and this judgement asks for 3.3e-05.",
        "On this test set the first promotion over a champion takes 11 groups, the second 15, the third 19.",
        "A new test set with 20 judgements begins with 13 test groups that were never judged; 0 of them are there, 13 "
        "are missing: add them with `segmill data add`.",
        "promotion.rule plain judges one night at a time, from 6 groups on.",
    ]
    assert not {"gain", "challenger_miou", "p_value"} & set(verdict.facts) and verdict.facts["alpha_spent"] == 0
    swapped = judge(OLD, BETTER, history=earlier(1, passed=True))
    assert swapped == verdict, "no count was read"


def test_a_used_up_set_decides_nothing_until_new_groups_come() -> None:
    verdict = judge(BETTER, OLD, history=earlier(20))
    assert verdict.decision == "UNDECIDABLE"
    assert verdict.reasons[0] == "All 20 judgements of test set 1 are used, so nothing was compared."
    assert "13 are missing" in verdict.reasons[1]
    groups = [*GROUPS, *(f"h{index:02}" for index in range(13))]
    better, old = np.vstack([OLD, BETTER, BETTER[:1]]), np.vstack([OLD, OLD, OLD[:1]])
    renewed = judge(better, old, groups, history=earlier(20))
    assert (renewed.decision, renewed.facts["set_number"], renewed.facts["groups"]) == ("PASS", 2, 13)
    assert renewed.facts["test_groups"] == sorted(map(group_id, groups[12:]))
    assert renewed.facts["level"] == pytest.approx(0.05 / 6 / 2 / 20)


def test_a_level_that_no_test_can_show_is_undecidable() -> None:
    groups = [f"g{index}" for index in range(36)]
    history = earlier(7, passed=True, groups=groups)
    verdict = judge(np.tile(BETTER, (3, 1, 1)), np.tile(OLD, (3, 1, 1)), groups, history=history)
    assert verdict.decision == "UNDECIDABLE"
    assert verdict.reasons[0].startswith("After 7 PASSes on test set 1 a judgement would ask for p below 7.8e-10")


def test_plain_judges_each_night_alone_and_says_so() -> None:
    verdict = judge(BETTER, OLD, history=earlier(20), rule="plain")
    assert verdict.decision == "PASS" and verdict.facts["level"] == pytest.approx(0.025)
    assert verdict.reasons[-1].endswith("this verdict is for one night and promises nothing over many nights.")
    few = judge(BETTER, OLD, ["a", "b", "c", "d", "e"] * 2 + ["a", "b"], rule="plain")
    assert few.decision == "UNDECIDABLE" and few.reasons[1] == "promotion.rule plain takes 6 test groups."
    assert judge(BETTER, OLD, ["a", "b", "c", "d", "e", "f"] * 2, rule="plain").decision == "PASS"


def test_changes_made_by_people_are_named_beside_the_bound() -> None:
    verdict = judge(BETTER, OLD, history=[*earlier(1, recipe="a"), *earlier(1, recipe="b")])
    assert verdict.facts["changes_by_people"] == 2
    assert verdict.reasons[-1].startswith("The bound does not cover 2 changes made by people")


def test_nothing_but_pass_or_not_leaves_sealed_groups() -> None:
    passed = judge(BETTER, OLD, evidence={"sealed": True})
    assert passed.reasons == [
        "The challenger passes on the sealed groups.",
        "This is judgement 1 of 20 on test set 1.",
    ]
    refused = [judge(new, old, evidence={"sealed": True}, **how)
               for new, old, how in ((MIXED, OLD, {}), (OLD, BETTER, {}), (OLD, OLD, {}))]  # fmt: skip
    assert [one == refused[0] for one in refused] == [True] * 3, "how it misses is not said"
    assert refused[0].decision == "FAIL" and refused[0].facts == passed.facts
    floor = judge(BETTER, OLD, evidence={"sealed": True}, floor_miou=0.95)
    assert floor.reasons == refused[0].reasons


def test_a_guard_that_is_not_met_refuses_a_better_model() -> None:
    new, old = three_classes(lost=0.6)
    assert judge(new, old).decision == "PASS", "the mean is better"
    verdict = judge(new, old, class_loss=0.05)
    assert verdict.decision == "FAIL"
    assert any(one.startswith("class sign loses 0.05: IoU -0.") for one in verdict.reasons)
    assert verdict.facts["classes_lost"] == ["sign"]
    outcomes = {one["name"]: one["outcome"] for one in verdict.facts["conditions"]}
    assert outcomes == {
        "floor": "met",
        "gain": "met",
        "class road": "met",
        "class sky": "met",
        "class sign": "not met",
    }


def three_classes(lost: float) -> tuple[np.ndarray, np.ndarray]:
    """Two classes gain much, the third loses: N x 3 x 3 of challenger and champion."""
    random = np.random.default_rng(3)
    jitter = random.normal(0, 0.01, (2, 12, 3))

    def counts(accuracy_N3: np.ndarray) -> np.ndarray:
        right = (1000 * accuracy_N3).round().astype(int)
        found = np.stack([np.diag(row) for row in right])
        for k in range(3):
            found[:, k, (k + 1) % 3] = 1000 - right[:, k]
        return found

    return counts(np.array([0.95, 0.95, 0.8 - lost / 2]) + jitter[0]), counts(np.array([0.7, 0.7, 0.8]) + jitter[1])


def rare(new_right: list[int], old_right: list[int]) -> tuple[np.ndarray, np.ndarray]:
    """BETTER and OLD with a third class that few groups hold, 10 pixels each, of which so many are right."""
    found = []
    for base, right in ((BETTER, new_right), (OLD, old_right)):
        counts = np.zeros((12, 3, 3), np.int64)
        counts[:, :2, :2] = base
        for index, number in enumerate(right):
            counts[index, 2, 2], counts[index, 2, 0] = number, 10 - number
        found.append(counts)
    return found[0], found[1]


def test_a_class_too_rare_to_test_is_named_and_vetoes_only_if_it_is_shown_worse() -> None:
    asked: dict[str, Any] = {"class_loss": 0.05, "rule": "plain"}
    unclear = judge(*rare([8, 8, 7, 8], [8, 7, 8, 8]), **asked)
    assert unclear.decision == "PASS"
    assert "Too rare to test on these groups: class sign (not shown to be worse)." in unclear.reasons
    refused = judge(*rare([8, 8, 7, 8], [8, 7, 8, 8]), **asked, untestable="refuse")
    assert refused.decision == "INCONCLUSIVE"
    worse = judge(*rare([2, 3, 1, 2], [8, 9, 8, 8]), **asked)
    assert worse.decision == "FAIL"
    assert any(one.startswith("class sign is shown to be worse") for one in worse.reasons)
    in_two_groups = judge(*rare([7, 8], [8, 7]), **asked)
    assert any("class sign (not shown to be worse)" in one for one in in_two_groups.reasons)
    assert in_two_groups.facts["conditions"][-1]["figures"]["groups"] == 2


def test_a_slice_that_loses_refuses() -> None:
    night = ["night" if index % 4 == 1 else "day" for index in range(12)]
    old = [0.80, 0.82, 0.78, 0.85, 0.75, 0.81, 0.79, 0.83, 0.77, 0.80, 0.84, 0.76]
    new = tables([one - 0.03 if index % 4 == 1 else one + 0.14 for index, one in enumerate(old)])
    seen = {"slices": {"light": night}}
    assert judge(new, OLD, rule="plain", evidence=seen).decision == "PASS"
    verdict = judge(new, OLD, rule="plain", evidence=seen, slices={"light": 0.02})
    assert verdict.decision == "FAIL"
    assert any(one.startswith("slice light=night loses 0.02: mIoU -0.0") for one in verdict.reasons)
    assert [one["outcome"] for one in verdict.facts["conditions"]] == ["met", "met", "met", "not met"]
    with pytest.raises(InputError, match=r"names weather, which no column of the manifest is; name one .*: light"):
        judge(BETTER, OLD, evidence=seen, slices={"weather": 0.02})


def test_latency_and_size_are_guards_and_are_never_taken_for_granted() -> None:
    random = np.random.default_rng(0)
    base = random.normal(100, 3, 30)
    same, slow = {"latency_ms": (base * 1.01, base)}, {"latency_ms": (base * 1.5 + random.normal(0, 1, 30), base)}
    assert judge(BETTER, OLD, evidence=same, latency_ratio=1.1).decision == "PASS"
    verdict = judge(BETTER, OLD, evidence=slow, latency_ratio=1.1)
    assert verdict.decision == "FAIL"
    assert any("1.50 times the champion's, is above 1.1 times" in one for one in verdict.reasons)
    assert judge(BETTER, OLD, evidence={"bytes": (200, 100)}, size_ratio=2).decision == "PASS"
    assert judge(BETTER, OLD, evidence={"bytes": (201, 100)}, size_ratio=2).decision == "FAIL"
    with pytest.raises(InputError, match=r"guards\.latency_ratio is set, but it was not measured"):
        judge(BETTER, OLD, latency_ratio=1.1)
    with pytest.raises(InputError, match=r"guards\.size_ratio is set, but it was not measured"):
        judge(BETTER, OLD, size_ratio=1.1)
    assert judge(OLD, None, size_ratio=1.1).decision == "PASS", "there is nothing to compare with"


def test_facts_are_json_and_the_verdict_repeats() -> None:
    for verdict in (judge(MIXED, OLD, class_loss=0.05), judge(OLD, None), judge(MIXED, OLD, history=earlier(20))):
        assert json.loads(json.dumps(verdict.facts, allow_nan=False)) == verdict.facts
    assert judge(MIXED, OLD) == judge(MIXED, OLD)
    assert json.dumps(judge(np.zeros((12, 2, 2), np.int64), OLD * 0).facts, allow_nan=False)


def test_refuses_a_champion_scored_on_other_images() -> None:
    with pytest.raises(InputError, match="on different truths"):
        judge(BETTER, OLD * 2)
    with pytest.raises(InputError, match="11 groups came for 12 images"):
        judge(BETTER, None, GROUPS[:11])


def test_only_challengers_that_look_promising_on_val_are_judged() -> None:
    policy = GatePolicy(floor_miou=0.5)
    assert promising(BETTER, OLD, GROUPS, policy)[0]
    found, why = promising(OLD, BETTER, GROUPS, policy)
    assert not found and "it was not judged on test, which saves a judgement" in why
    assert not promising(MIXED, OLD, GROUPS, policy)[0], "above zero, and not by a standard error"
    assert promising(OLD, OLD, GROUPS, GatePolicy(floor_miou=0.5, goal="noninferiority"))[0]
    few, why = promising(OLD, BETTER, ["a", "b"] * 6, policy)
    assert few and why == "Val has 2 groups, too few to screen with: the test split decides."


def test_imports_numpy_and_metrics_only() -> None:
    script = (
        "import sys, segmill.promotion.gate; "
        "print(*sorted(name for name in sys.modules if name.startswith('segmill') or name in ('torch', 'mlflow')))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == [
        "segmill", "segmill.errors", "segmill.metrics", "segmill.metrics.intervals", "segmill.metrics.judging",
        "segmill.metrics.scores", "segmill.promotion", "segmill.promotion.budget", "segmill.promotion.gate",
        "segmill.promotion.guards", "segmill.promotion.paired", "segmill.promotion.policy",
        "segmill.promotion.swap_test",
    ]  # fmt: skip
