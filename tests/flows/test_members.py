"""What becomes of a run where members fail, by how many must be left."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest

from flows.members import every_result, may_continue, raise_all, reason
from segmill.cluster.waiting import ClusterLost
from segmill.errors import InfrastructureError, InputError, Interrupted
from segmill.params import Params, parse_params, read_params
from segmill.workspace import template

WRONG, LOST = InputError("a is wrong"), InfrastructureError("b lost its worker")


def ended(result: Any) -> Any:
    future: Future[Any] = Future()
    if isinstance(result, Exception):
        future.set_exception(result)
    else:
        future.set_result(result)
    return future


def three_members(**ensemble: Any) -> Params:
    values = read_params(template("params.yaml")).model_dump(mode="json")
    member = next(iter(values["members"].values()))
    members = {name: member for name in ("a", "b", "c")}
    return parse_params(values | {"members": members, "ensemble": values["ensemble"] | ensemble}, "params.yaml")


def test_a_fault_of_one_member_waits_for_the_others() -> None:
    futures = {"a": ended("fresh"), "b": ended(LOST), "c": ended("ran")}
    assert every_result(futures) == (["fresh", "ran"], {"b": LOST})


def test_by_default_all_members_must_be_there() -> None:
    assert may_continue(three_members(), {})
    assert not may_continue(three_members(), {"b": LOST})


def test_min_members_says_how_many_must_be_left() -> None:
    params = three_members(min_members=2)
    assert may_continue(params, {"b": LOST})
    assert not may_continue(params, {"a": WRONG, "b": LOST})
    assert may_continue(three_members(min_members=1), {"a": WRONG, "b": LOST})
    assert not may_continue(three_members(min_members=1), {name: LOST for name in "abc"})


@pytest.mark.parametrize("fault", [Interrupted(), ClusterLost("the cluster is gone")])
def test_a_run_that_is_stopped_or_has_no_cluster_makes_no_smaller_ensemble(fault: Exception) -> None:
    assert not may_continue(three_members(min_members=1), {"b": fault})


def test_faults_are_said_together_and_the_exit_code_is_whose_turn_it_is() -> None:
    with pytest.raises(InfrastructureError, match=r"^b lost its worker$"):
        raise_all({"b": LOST})
    with pytest.raises(InputError, match=r"^a is wrong\nb lost its worker$"):
        raise_all({"a": WRONG, "b": LOST})
    with pytest.raises(InfrastructureError, match=r"^b lost its worker\nc did$") as both:
        raise_all({"b": LOST, "c": InfrastructureError("c did")})
    assert both.value.exit_code == 4
    gone = [ClusterLost("Ray's raylet is gone") for _ in range(3)]
    with pytest.raises(ClusterLost, match=r"^Ray's raylet is gone$"):
        raise_all(dict(zip("abc", gone, strict=True)))
    with pytest.raises(RuntimeError, match="a bug"):
        raise_all({"a": WRONG, "b": RuntimeError("a bug")})


def test_the_reason_is_one_line() -> None:
    assert reason(RuntimeError("member a failed: Traceback ...\n  File x\nKeyError: 1\n")) == "KeyError: 1"
    assert reason(InputError("two\nlines")) == "two lines"
    assert reason(KeyError()) == "KeyError"
