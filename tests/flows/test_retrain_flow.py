"""What the flow does with faults of its steps: which are tried again, and how several are said at once."""

from __future__ import annotations

import asyncio
from concurrent.futures import Future
from typing import Any

import pytest
from prefect.states import Completed, exception_to_failed_state

from flows.retrain import _is_retryable, every_result
from segmill.errors import InfrastructureError, InputError


def ended(result: Any) -> Any:
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def test_the_fault_of_one_member_waits_for_the_others_and_several_are_said_together() -> None:
    assert every_result([ended("a"), ended("b")]) == ["a", "b"]
    with pytest.raises(InfrastructureError, match=r"^b lost its worker$"):
        every_result([ended("a"), ended(InfrastructureError("b lost its worker"))])
    with pytest.raises(InputError, match=r"^a is wrong\nb lost its worker$"):
        every_result([ended(InputError("a is wrong")), ended(InfrastructureError("b lost its worker"))])


@pytest.mark.parametrize(
    ("error", "again"), [(InfrastructureError("no answer"), True), (InputError("yours"), False), (KeyError(1), False)]
)
def test_only_what_did_not_answer_is_tried_again(error: Exception, again: bool) -> None:
    state = asyncio.run(exception_to_failed_state(error))
    nothing: Any = None  # neither the task nor its run is looked at
    assert _is_retryable(nothing, nothing, state) is again
    assert _is_retryable(nothing, nothing, Completed(data=1)) is False
