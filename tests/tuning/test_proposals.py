from __future__ import annotations

from typing import Any

from ray.tune.search import Searcher

from segmill.tuning.proposals import Proposals
from segmill.tuning.space import Dimension
from segmill.tuning.trials import Trial, trial_key

LR = Dimension("members.a.lr", "float", 0.001, 0.01, log=True)
SCHEDULE = Dimension("train.schedule", "choice", choices=("cosine", "poly"))


def over(values: dict[str, Any], miou: float) -> Trial:
    """Return a trial that came to its end with ``miou``."""
    return Trial(trial_key(values, 0), values, 0, 0.0, [{"val_miou": miou, "best": miou, "share": 1.0}], "full")


def test_a_search_begins_with_what_stands_and_proposes_nothing_twice() -> None:
    only = Dimension("a", "choice", choices=(1, [2, 3]))
    search = Proposals([only], [], seed=0, most=None, first=[{"a": [2, 3]}])
    assert search.suggest("x") == {"values": {"a": [2, 3]}}
    assert search.suggest("y") == {"values": {"a": 1}}
    assert search.suggest("z") == Searcher.FINISHED
    known = over({"a": 1}, 0.5)
    again = Proposals([only], [known], seed=0, most=None, first=[{"a": 1}])
    assert again.suggest("x") == {"values": {"a": [2, 3]}}


def test_a_search_that_goes_on_keeps_to_the_budget_and_learns_from_what_was() -> None:
    """Of 40 earlier trials those near lr 0.002 with cosine were good: TPE proposes more of that."""
    earlier = []
    for number in range(40):
        lr, schedule = 0.001 * 10 ** (number / 39), ("cosine", "poly")[number % 2]
        good = 0.6 - abs(lr - 0.002) * 40 - 0.2 * (schedule == "poly")
        earlier.append(over({LR.key: round(lr, 6), SCHEDULE.key: schedule}, good))
    search = Proposals([LR, SCHEDULE], earlier, seed=0, most=8, first=())
    found = []
    for number in range(8):
        found.append(search.suggest(str(number))["values"])
        search.on_trial_complete(str(number), {"miou": 0.5})
    assert search.suggest("more") == Searcher.FINISHED
    assert sum(one[SCHEDULE.key] == "cosine" for one in found) >= 6
    assert sum(one[LR.key] < 0.004 for one in found) >= 6
    assert all(float(f"{one[LR.key]:.3g}") == one[LR.key] for one in found), "numbers that can be read"
