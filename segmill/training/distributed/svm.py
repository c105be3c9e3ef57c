"""A classical member's fit on Ray: says how it goes in the progress file. Light to import."""

from __future__ import annotations

import os
import time
from dataclasses import replace
from typing import Any

from segmill import progress
from segmill.training.distributed.run_folder import finishing
from segmill.training.svm.job import SvmJob

PROGRESS_EVERY_S = 0.5


def fit_on_ray(job: SvmJob) -> dict[str, Any]:
    """Be what Ray runs: fit the member, keep it in the folder ``out_dir`` (see run_folder) and return its metrics.

    Raises:
        InputError: as of fitting.fit_svm.
    """
    from segmill.training.svm.fitting import fit_svm

    last_state, said_at = "", 0.0

    def on_progress(state: str, done: int | None = None, total: int | None = None) -> None:
        nonlocal last_state, said_at
        if done is not None and state == last_state and time.monotonic() - said_at < PROGRESS_EVERY_S:
            return
        last_state, said_at = state, time.monotonic()
        facts = {} if done is None else {"done": done, "total": total}
        progress.report(job.progress_path, member=job.name, state=state, **facts, time=time.time(), pid=os.getpid())

    with finishing(job.out_dir) as draft:
        return fit_svm(replace(job, out_dir=draft), on_progress)
