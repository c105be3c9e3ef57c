"""Which values a search tries next: Optuna's TPE behind Ray Tune's interface."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    IntDistribution,
)
from ray.tune.search import Searcher

from segmill.tuning.space import Dimension
from segmill.tuning.trials import Trial, trial_key

TRIES = 50  # proposals of known values in a row after which the space counts as exhausted


class Proposals(Searcher):  # type: ignore[misc]
    """Optuna's TPE behind Ray Tune's interface; no values are proposed twice.

    Source: Bergstra et al., "Algorithms for Hyper-Parameter Optimization", NeurIPS 2011; Akiba et al.,
    "Optuna", KDD 2019.

    Args:
        space: what is searched.
        over: trials of earlier searches, which it learns from.
        seed: of the search; what is proposed also depends on how many there were before.
        most: proposals that it may still make; None has no limit.
        first: values to begin with.
    """

    def __init__(
        self,
        space: Sequence[Dimension],
        over: Sequence[Trial],
        *,
        seed: int,
        most: int | None,
        first: Sequence[dict[str, Any]],
    ) -> None:
        super().__init__(metric="miou", mode="max")
        optuna.logging.set_verbosity(optuna.logging.ERROR)
        self._dimensions = {dimension.key: dimension for dimension in space}
        self._distributions = {dimension.key: distribution(dimension) for dimension in space}
        self._seed = seed
        self._left = most
        self._asked: dict[str, optuna.trial.Trial] = {}
        self._known = {trial_key(trial.values, seed) for trial in over}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # multivariate and constant_liar are called experimental
            sampler = optuna.samplers.TPESampler(seed=seed + len(over), multivariate=True, constant_liar=True)
        self._study = optuna.create_study(direction="maximize", sampler=sampler)
        for trial in over:
            self._study.add_trial(
                optuna.trial.create_trial(
                    state=optuna.trial.TrialState.FAIL if trial.best is None else optuna.trial.TrialState.COMPLETE,
                    value=trial.best,
                    params=encoded(trial.values, space),
                    distributions=self._distributions,
                )
            )
        for values in first:
            self._study.enqueue_trial(encoded(values, space))

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial's configuration, or Searcher.FINISHED."""
        for _ in range(TRIES):
            if self._left is not None and self._left <= 0:
                return Searcher.FINISHED
            asked = self._study.ask(self._distributions)
            values = {key: self._decoded(key, value) for key, value in asked.params.items()}
            key = trial_key(values, self._seed)
            if key in self._known:
                self._study.tell(asked, state=optuna.trial.TrialState.FAIL)  # known already: nothing to learn
                continue
            self._known.add(key)
            self._asked[trial_id] = asked
            if self._left is not None:
                self._left -= 1
            return {"values": values}
        return Searcher.FINISHED

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Tell Optuna how a trial ended; one that was stopped counts with what it had."""
        asked = self._asked.pop(trial_id, None)
        if asked is None:
            return
        value = None if error or not result else result.get("miou")
        if value is None:
            self._study.tell(asked, state=optuna.trial.TrialState.FAIL)
        else:
            self._study.tell(asked, value)

    def on_trial_result(self, trial_id: str, result: dict[str, Any]) -> None:
        """TPE learns from what a trial ends with."""

    def save(self, checkpoint_path: str) -> None:
        """A search resumes from the trials' files."""

    def restore(self, checkpoint_path: str) -> None:
        """As ``save``."""

    def _decoded(self, key: str, value: Any) -> Any:
        dimension = self._dimensions[key]
        return json.loads(value) if dimension.kind == "choice" else dimension.tidy(value)


def distribution(dimension: Dimension) -> BaseDistribution:
    """Return Optuna's counterpart; choices are their JSON text, since Optuna takes no lists."""
    if dimension.kind == "choice":
        return CategoricalDistribution([json.dumps(choice, sort_keys=True) for choice in dimension.choices])
    if dimension.kind == "int":
        return IntDistribution(int(dimension.low), int(dimension.high), log=dimension.log)
    return FloatDistribution(dimension.low, dimension.high, log=dimension.log)


def encoded(values: dict[str, Any], space: Sequence[Dimension]) -> dict[str, Any]:
    """Return a trial's values as Optuna holds them."""
    choices = {dimension.key for dimension in space if dimension.kind == "choice"}
    return {key: json.dumps(value, sort_keys=True) if key in choices else value for key, value in values.items()}
