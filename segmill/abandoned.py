"""Ends MLflow's runs whose process is gone: killed, it could not say so itself."""

from __future__ import annotations

import time

from segmill import owner
from segmill.tracking import reaching

PAGE = 1000  # runs in one answer


def end_abandoned_runs(uri: str, experiment: str) -> int:
    """End the runs in state RUNNING of an experiment whose process is gone, as KILLED; return how many.

    A run says whose it is in its tags, and a nested one is alive while the run above it is; ``owner.is_over`` decides.
    Nothing where there is no such experiment.

    Raises:
        InfrastructureError: MLflow does not answer.
    """
    with reaching(uri) as client:
        found = client.get_experiment_by_name(experiment)
        if found is None:
            return 0
        running = client.search_runs([found.experiment_id], "attributes.status = 'RUNNING'", max_results=PAGE)
        alive = {run.info.run_id: run.data.tags.get(owner.ALIVE, "") for run in running}
        gone = []
        for run in running:
            above = alive.get(run.data.tags.get("mlflow.parentRunId", ""))
            if owner.is_over(run.data.tags | ({owner.ALIVE: above} if above else {})):
                gone.append(run.info.run_id)
        for run_id in gone:
            client.set_terminated(run_id, status="KILLED", end_time=int(time.time() * 1000))
    return len(gone)
