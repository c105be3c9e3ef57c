"""The stream of images that one version answers: does it still see what it learned?"""

from __future__ import annotations

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field

from segmill.monitoring.shift import ShiftTest

LEVEL = 0.05
EVERY_S = 10.0


@dataclass(frozen=True)
class Drift:
    """What the stream says.

    Attributes:
        images: that were counted.
        evidence: against the stream being like the calibration images; 1 at first, an alarm at 1 / level.
        alarm: it has gone off.
        since_s: when the first image came that looks changed, in seconds since 1970; NaN before any image.
    """

    images: int = 0
    evidence: float = 1.0
    alarm: bool = False
    since_s: float = math.nan


@dataclass
class StreamWatch:
    """Tests the stream of anomaly scores of one version, from its first image on.

    Images that follow one another are alike and would be taken for a change, so at most one image counts in
    ``every_s``. What is promised holds for a stream whose counted images are exchangeable with the calibration groups:
    light that changes with the time of day is a change too, unless the calibration groups show it.

    Args:
        usual: the score of one image of each calibration group.
        level: probability of a false alarm, however long the stream is.
        every_s: seconds between two images that count; 0 counts all.
    """

    usual: Sequence[float]
    level: float = LEVEL
    every_s: float = EVERY_S
    drift: Drift = field(default=Drift(), init=False)
    alarmed: Drift | None = field(default=None, init=False)  # what the stream said when the alarm went off

    def __post_init__(self) -> None:
        self._test = ShiftTest(list(self.usual), level=self.level)
        self._times: list[float] = []

    def take(self, scores: Sequence[float], now_s: float | None = None) -> Drift:
        """Count the scores that are due, in their order; return what the stream says then.

        Args:
            scores: of images that came until now, NaN for the most unusual.
            now_s: seconds since 1970; None asks the clock.
        """
        now_s = time.time() if now_s is None else now_s
        for score in scores:
            if self._times and now_s - self._times[-1] < self.every_s:
                break
            self._times.append(now_s)
            state = self._test.add(score)
            self.drift = Drift(state.number, state.evidence, state.alarm, self._times[state.since - 1])
            if state.alarm and self.alarmed is None:
                self.alarmed = self.drift
        return self.drift
