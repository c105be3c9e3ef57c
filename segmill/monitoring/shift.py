"""An anytime-valid test of exchangeability: has what the model sees changed since it learned?

Each new score is ranked among all before it. While the stream is exchangeable with the calibration's scores the ranks
are independent and uniform (Vovk, Nouretdinov and Gammerman, "Testing exchangeability on-line", 2003), however scores
are distributed. A bet against that, begun at any moment, multiplies its stake by a factor of mean 1 with each rank; the
stakes of all moments add up to less than 1, so the capital ever exceeds 1 / level with probability at most ``level``
(Ville, 1939). Stakes on all moments keep the test quick after a long quiet time, as in Shiryaev's and Roberts' tests.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np

# The bets are k * p ** (k - 1), each with the same share of the stake: the smaller k, the smaller the ranks it wins on.
BETS = np.array([0.05, 0.1, 0.2, 0.3, 0.45, 0.6, 0.8])
MOST_CAPITAL = 1e300  # after an alarm it grows without end


@dataclass(frozen=True)
class ShiftState:
    """What the test says after a score.

    Attributes:
        number: scores seen, the calibration's not counted.
        p_value: the new score's rank among all before it, in (0, 1].
        evidence: the capital, 1 at first. At 1 / level the alarm goes off.
        alarm: it has gone off, now or before.
        since: the number of the score with which the change began, if there is one: where the bet that won most would
            have been begun best.
    """

    number: int
    p_value: float
    evidence: float
    alarm: bool
    since: int


@dataclass
class ShiftTest:
    """The test of one stream of scores; a high score is an unusual one.

    Args:
        seen: the calibration's scores, one per group, exchangeable with those of the stream while nothing changes.
        level: the probability of a false alarm, however long the stream is.
        seed: of the random numbers that break ties in a rank.
    """

    seen: list[float]
    level: float = 0.05
    seed: int = 0
    number: int = field(default=0, init=False)
    alarm_at: int | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self.seen = sorted(self.seen)
        self._unspent = 1.0
        self._capital_B = np.zeros(len(BETS))
        self._best_B, self._since_B = np.ones(len(BETS)), np.ones(len(BETS), np.int64)

    def add(self, score: float) -> ShiftState:
        """Take the next score of the stream; NaN counts as more unusual than any number."""
        score = math.inf if math.isnan(score) else score
        p_value = self._rank(score)
        bisect.insort(self.seen, score)
        self.number += 1
        stake = stake_on(self.number)
        self._unspent -= stake
        factor_B = BETS * p_value ** (BETS - 1)
        self._capital_B = np.minimum((self._capital_B + stake / len(BETS)) * factor_B, MOST_CAPITAL)
        self._since_B = np.where(self._best_B > 1, self._since_B, self.number)
        self._best_B = np.minimum(np.maximum(self._best_B, 1) * factor_B, MOST_CAPITAL)
        evidence = self._unspent + float(self._capital_B.sum())
        if self.alarm_at is None and evidence >= 1 / self.level:
            self.alarm_at = self.number
        since = int(self._since_B[np.argmax(self._best_B)])
        return ShiftState(self.number, p_value, evidence, self.alarm_at is not None, since)

    def add_all(self, scores: Iterable[float]) -> list[ShiftState]:
        return [self.add(score) for score in scores]

    def _rank(self, score: float) -> float:
        """Return the share of all scores until now, this one included, that are as unusual; ties by chance."""
        above = len(self.seen) - bisect.bisect_right(self.seen, score)
        ties = len(self.seen) - above - bisect.bisect_left(self.seen, score) + 1
        chance = 1.0 - np.random.default_rng([self.seed, self.number]).random()  # in (0, 1]
        return float((above + chance * ties) / (len(self.seen) + 1))


def stake_on(number: int) -> float:
    """Return the stake on a change that begins with this score, from 1 on; all of them add up to 0.9996."""
    return 1.0 / ((number + 2.0) * math.log(number + 2.0) ** 2) / 1.0695
