"""The edges of dvc.yaml on the page of a Prefect run, and the run's name there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefect import Task
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.futures import PrefectFuture
from prefect.runtime import flow_run
from prefect.utilities.annotations import quote


class PipelineGraph:
    """Runs each step after those that it depends on, so that Prefect's page draws these edges and no others.

    ``upstream``: the direct dependencies of each step, by name. A step comes after all it depends on.
    """

    def __init__(self, upstream: Mapping[str, set[str]]) -> None:
        self._upstream = upstream
        self._done: dict[str, State[Any] | PrefectFuture[Any]] = {}

    def run(self, step: str, task: Task[..., Any], *args: Any) -> Any:
        """Run the step in this thread, where a signal ends it at once; return its result, or raise what it raised."""
        state = task(*self._opaque(args), return_state=True, wait_for=self._before(step))
        self._done[step] = state
        return state.result()

    def submit(self, step: str, task: Task[..., Any], *args: Any) -> PrefectFuture[Any]:
        """Begin the step in another thread."""
        future = task.submit(*self._opaque(args), wait_for=self._before(step))
        self._done[step] = future
        return future

    def leave_out(self, step: str) -> None:
        """Let the run continue without a step that failed: no later one waits for it."""
        del self._done[step]
        self._upstream = {name: before - {step} for name, before in self._upstream.items()}

    def _before(self, step: str) -> list[State[Any] | PrefectFuture[Any]]:
        return [self._done[name] for name in sorted(self._upstream[step])]

    @staticmethod
    def _opaque(args: tuple[Any, ...]) -> list[Any]:
        """Hide values from Prefect, which would draw an edge from every step whose result is among them."""
        return [quote(arg) for arg in args]


def name_run(name: str) -> None:
    """Give the flow run that this is called in another name."""
    with get_client(sync_client=True) as client:
        client.update_flow_run(flow_run.id, name=name)
