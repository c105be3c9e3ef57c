"""The model as MLflow serves it: code that rebuilds the ensemble from its folder, so that nothing is pickled.

MLflow copies this file into the model and runs it to load the model (models from code); the package it
imports from is stored in the model too.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from mlflow.models import set_model
from mlflow.pyfunc import PythonModel


class ServedEnsemble(PythonModel):  # type: ignore[misc]
    """An ensemble behind ``mlflow.pyfunc``."""

    def load_context(self, context: Any) -> None:
        """Rebuild the ensemble from the artifact ``ensemble``."""
        from segmill.ensembling.predict import Ensemble

        self.ensemble = Ensemble.load(Path(context.artifacts["ensemble"]))

    # The hint leaves out lists: it is the one that MLflow takes without adding checks or warnings of its own.
    def predict(
        self,
        context: Any,
        model_input: np.ndarray,
        params: dict[str, Any] | None = None,
    ) -> Any:
        """Return the class ids of each image.

        Args:
            context: MLflow's.
            model_input: B x H x W x C uint8, or a list of H x W x C uint8 of any sizes; C is 3, or 1 for
                grey. Nested lists of integers, as JSON brings them, do too.
            params: ``{"probabilities": True}`` asks for them too, ``{"aux": True}`` for what the auxiliary heads say,
                ``{"anomaly": True}`` for how unusual each image is, held against images of the manifest's column value
                ``anomaly_value`` where the detector is calibrated by a column.

        Returns:
            Class ids, uint8: B x H x W for an array, a list of H x W for a list. Where more is asked for, a dict of
            ``classes`` (those ids), ``probabilities`` (float32, B x K x H x W or a list of K x H x W), ``aux``
            (by member and head, as ``Ensemble.predict_aux`` returns it) and ``anomaly`` (``score``, ``p_value`` and
            ``abstain`` of each image).

        Raises:
            InputError: the images are something else, no member was saved with its heads (``keep_heads``), or the
                model has no anomaly detector.
        """
        asked = params or {}
        probabilities, aux, anomaly = (asked.get(name, False) for name in ("probabilities", "aux", "anomaly"))
        answer: dict[str, Any] = {}
        if probabilities:
            answer["classes"], answer["probabilities"] = self.ensemble.predict_both(model_input)
        else:
            answer["classes"] = self.ensemble.predict(model_input)
        if aux:
            answer["aux"] = self.ensemble.predict_aux(model_input)
        if anomaly:
            answer["anomaly"] = self.ensemble.predict_anomaly(model_input, value=asked.get("anomaly_value", ""))
        return answer if len(answer) > 1 else answer["classes"]


set_model(ServedEnsemble())
