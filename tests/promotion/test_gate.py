"""The gate's verdicts: who passes, who fails, and when it says that it does not know."""

from __future__ import annotations

import json
import subprocess
import sys

import numpy as np
import pytest

from segmill.errors import InputError
from segmill.promotion.gate import Verdict, decide

GROUPS = [f"g{i}" for i in range(10)]


def tables(accuracies: list[float]) -> np.ndarray:
    """One two-class table of 1000 + 1000 pixels per accuracy, errors spread evenly."""
    return np.array(
        [[[round(1000 * a), 1000 - round(1000 * a)], [1000 - round(1000 * a), round(1000 * a)]] for a in accuracies]
    )


def judge(challenger: np.ndarray, champion: np.ndarray | None, groups: list[str] = GROUPS, **changes: float) -> Verdict:
    keys = {"floor_miou": 0.5, "min_gain": 0.0, "confidence": 0.95} | changes
    return decide(challenger, champion, groups, seed=0, **keys)


OLD = tables([0.80, 0.82, 0.78, 0.85, 0.75, 0.81, 0.79, 0.83, 0.77, 0.80])
BETTER = tables([0.84, 0.85, 0.83, 0.88, 0.80, 0.85, 0.82, 0.88, 0.81, 0.84])
MIXED = tables([0.84, 0.79, 0.83, 0.81, 0.80, 0.78, 0.82, 0.81, 0.81, 0.79])


def test_better_everywhere_passes() -> None:
    verdict = judge(BETTER, OLD)
    assert verdict.decision == "PASS"
    assert verdict.facts["gain_low"] > 0 and verdict.facts["groups"] == 10
    assert "all of it above min_gain 0" in verdict.reasons[-1]
    assert verdict.facts["champion_iou"] == pytest.approx([verdict.facts["champion_miou"]] * 2), "errors spread evenly"


def test_worse_everywhere_fails() -> None:
    verdict = judge(OLD, BETTER)
    assert verdict.decision == "FAIL"
    assert verdict.facts["gain_high"] < 0


def test_a_larger_mean_alone_is_inconclusive() -> None:
    verdict = judge(MIXED, OLD)
    assert verdict.facts["gain"] > 0
    assert verdict.decision == "INCONCLUSIVE"
    assert "more test groups can decide" in verdict.reasons[-1]


def test_the_interval_says_what_it_rests_on() -> None:
    assert "(10 groups, 10 images)" in judge(BETTER, OLD).reasons[-1]
    assert "(1 group, 10 images)" in judge(BETTER, OLD, ["g"] * 10).reasons[-1]


def test_the_same_model_fails() -> None:
    assert judge(OLD, OLD).decision == "FAIL"


def test_min_gain_asks_for_more_than_any_gain() -> None:
    assert judge(BETTER, OLD, min_gain=0.2).decision == "FAIL"
    gain = judge(BETTER, OLD).facts["gain"]
    assert judge(BETTER, OLD, min_gain=gain).decision == "INCONCLUSIVE"


def test_the_first_model_needs_only_the_floor() -> None:
    assert judge(OLD, None).decision == "PASS"
    assert judge(OLD, None, floor_miou=0.9).decision == "FAIL"
    assert "misses the floor 0.9000" in judge(OLD, None, floor_miou=0.9).reasons[0]


def test_exactly_the_floor_is_enough() -> None:
    assert judge(tables([0.75]), None, ["g"], floor_miou=0.6).decision == "PASS"  # 750 / 1250


def test_a_better_model_below_the_floor_fails() -> None:
    assert judge(BETTER, OLD, floor_miou=0.95).decision == "FAIL"


def test_a_model_without_a_counted_pixel_fails() -> None:
    nothing = np.zeros((10, 2, 2), np.int64)
    assert judge(nothing, None, floor_miou=0.0).decision == "FAIL"
    assert judge(nothing, nothing, floor_miou=0.0).decision == "FAIL"


def test_two_groups_prove_nothing_however_large_the_gain() -> None:
    verdict = judge(BETTER, OLD, ["a", "b"] * 5)
    assert verdict.decision == "INCONCLUSIVE"
    assert "at least 3 groups into the test split" in verdict.reasons[-1]
    assert judge(BETTER, OLD, ["a", "b", "c", "d", "e"] * 2).decision == "PASS"


def test_one_group_with_many_images_proves_nothing() -> None:
    assert judge(BETTER, OLD, ["drive"] * 10).decision == "INCONCLUSIVE"


def test_facts_are_json_and_the_verdict_repeats() -> None:
    assert json.loads(json.dumps(judge(MIXED, OLD).facts)) == judge(MIXED, OLD).facts
    assert json.dumps(judge(np.zeros((10, 2, 2), np.int64), OLD * 0).facts, allow_nan=False)


def test_refuses_a_champion_scored_on_other_images() -> None:
    with pytest.raises(InputError, match="on different truths"):
        judge(BETTER, OLD * 2)


def test_imports_numpy_and_metrics_only() -> None:
    script = (
        "import sys, segmill.promotion.gate; "
        "print(*sorted(name for name in sys.modules if name.startswith('segmill') or name == 'torch'))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.split()
    assert loaded == [
        "segmill", "segmill.errors", "segmill.metrics", "segmill.metrics.intervals", "segmill.metrics.scores",
        "segmill.promotion", "segmill.promotion.gate",
    ]  # fmt: skip
