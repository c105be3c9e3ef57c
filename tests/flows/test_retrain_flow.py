"""What the flow does with faults of its steps: which are tried again, and how several are said at once."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
from prefect.states import Completed, exception_to_failed_state

from flows.retrain import _is_retryable
from segmill.cluster.waiting import ClusterLost
from segmill.errors import InfrastructureError, InputError
from segmill.training.distributed.launch import WorkersLost


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (InfrastructureError("no answer"), True),
        (ClusterLost("it is gone"), False),
        (WorkersLost("three times"), False),
        (InputError("yours"), False),
        (KeyError(1), False),
    ],
)
def test_only_what_did_not_answer_is_tried_again(error: Exception, again: bool) -> None:
    state = asyncio.run(exception_to_failed_state(error))
    nothing: Any = None  # neither the task nor its run is looked at
    assert _is_retryable(nothing, nothing, state) is again
    assert _is_retryable(nothing, nothing, Completed(data=1)) is False
