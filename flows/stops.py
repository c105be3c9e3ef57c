"""Ends a deployed run in time: cancelled, too long, its lease lost, its worker gone; what takes longer is cut off."""

from __future__ import annotations

import os
import signal
import threading
import time
from contextlib import suppress
from types import TracebackType
from uuid import UUID

import psutil
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import FlowRunFilter, FlowRunFilterParentFlowRunId, FlowRunFilterState
from prefect.client.schemas.filters import FlowRunFilterStateType as StateTypeFilter
from prefect.client.schemas.objects import StateType
from prefect.runtime import flow_run
from prefect.states import Cancelled, Crashed, Failed

from segmill import owner
from segmill.errors import InfrastructureError
from segmill.promotion.lease import LeaseLost

PATIENCE_S = 6.0  # a cancelled run is to have ended within 30 s; Prefect notices within 10, orphans take 10
API_S = 5.0
LOOK_S = 5.0  # between two looks whether the run is cancelled
WORKER_GONE = "the Prefect worker that started it is gone; the next run resumes what was begun"


class Stops:
    """While the block runs, SIGTERM ends the process within ``PATIENCE_S``, also where it waits in a library.

    Prefect's handler raises an exception in the main thread once that runs Python code. Prefect's worker sends the
    signal for a run that is cancelled on its page; where that is gone or did not hear of it, this process does.

    Attributes:
        reason: why this process sent itself the signal, "" where it did not.
        cancelled: whether that was because the run is cancelled.
    """

    def __init__(self, max_hours: float | None) -> None:
        self.reason = ""
        self.cancelled = False
        self._lost = False
        self._max_hours = max_hours
        self._over = threading.Event()
        self._worker = _worker()
        self._run = UUID(flow_run.id or "0" * 32)  # without Prefect there is no run, and nothing to ask about

    def __enter__(self) -> Stops:
        self._heard, hears = os.pipe()
        os.set_blocking(hears, False)
        self._hears, self._before = hears, signal.set_wakeup_fd(hears, warn_on_full_buffer=False)
        for watch in (self._cut_off, self._watch):
            threading.Thread(target=watch, daemon=True).start()
        if self._max_hours:
            self._timer = threading.Timer(self._max_hours * 3600, self._too_long, [self._max_hours])
            self._timer.daemon = True
            self._timer.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._over.set()
        if self._max_hours:
            self._timer.cancel()
        signal.set_wakeup_fd(self._before)
        os.close(self._hears)

    def lease_lost(self) -> None:
        """Stop the run: another one took its lease over."""
        self._lost = True
        self._stop("another run took its lease over, since it was not heard of for too long")

    def silenced(self) -> None:
        """Note that nobody reads what this process prints: that was its worker, which is gone."""
        self.reason = self.reason or WORKER_GONE

    def error(self) -> InfrastructureError:
        """Return what to raise instead of the signal's exception."""
        kind = LeaseLost if self._lost else InfrastructureError
        return kind(f"the run was stopped: {self.reason}")

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            if owner.is_gone(self._worker):
                self._stop(WORKER_GONE)
                return
            with suppress(Exception), get_client({"timeout": API_S}, sync_client=True) as client:
                state = client.read_flow_run(self._run).state
                if state and (state.is_cancelling() or state.is_final()) and not self._over.wait(LOOK_S):
                    self.cancelled = True
                    self._stop(f"it was set to {state.name} at Prefect's server")
                    return

    def _too_long(self, hours: float) -> None:
        self._stop(f"it took longer than schedule.max_hours ({hours:g}); what was finished is recorded")

    def _stop(self, reason: str) -> None:
        self.reason = self.reason or reason
        os.kill(os.getpid(), signal.SIGTERM)

    def _cut_off(self) -> None:
        while (heard := os.read(self._heard, 1)) and heard[0] != signal.SIGTERM:
            pass
        if heard:
            threading.Thread(target=_hold_alarm, daemon=True).start()
        if not heard or self._over.wait(PATIENCE_S):
            os.close(self._heard)
            return
        with suppress(Exception):
            end_children(str(self._run))
            if self.reason:
                end = Cancelled if self.cancelled else Failed
                with get_client({"timeout": API_S}, sync_client=True) as client:
                    client.set_flow_run_state(self._run, end(message=str(self.error())), force=True)
        os._exit(1)


def _worker() -> str:
    """Name the process of Prefect's worker that started this one, as ``owner`` does; "" where none did."""
    with suppress(psutil.Error):
        for process in psutil.Process().parents():
            words = process.cmdline()
            if "worker" in words and any("prefect" in word for word in words[:3]):
                return owner.process(process.pid)
    return ""


def _hold_alarm() -> None:
    """Keep Ray's handler, which comes before Prefect's at each SIGTERM, from aborting the process after 3 s."""
    while True:
        signal.alarm(0)
        time.sleep(1)


def end_children(run: str) -> None:
    """End the flow runs that a run began and that did not come to their end with it; what can't be ended stays."""
    unfinished = [StateType.RUNNING, StateType.PENDING, StateType.SCHEDULED, StateType.CANCELLING]
    children = FlowRunFilter(
        parent_flow_run_id=FlowRunFilterParentFlowRunId(any_=[run]),
        state=FlowRunFilterState(type=StateTypeFilter(any_=unfinished)),
    )
    with suppress(Exception), get_client({"timeout": API_S}, sync_client=True) as client:
        for child in client.read_flow_runs(flow_run_filter=children):
            client.set_flow_run_state(child.id, Crashed(message="it ended with the run that began it"), force=True)
