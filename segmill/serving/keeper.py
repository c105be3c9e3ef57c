"""The keeper: follows the ledger, starts the version that it promotes beside the one that answers, and ends that."""

from __future__ import annotations

import asyncio
import threading
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import ray
from ray import serve
from ray.serve import Application, RunTarget
from ray.serve.schema import ApplicationStatusOverview

from segmill.cluster.work import first_line
from segmill.errors import InfrastructureError, SegmillError
from segmill.monitoring.drift import Drift, StreamWatch
from segmill.promotion.ledger import open_ledger
from segmill.promotion.outbox import add_drift, add_not_served
from segmill.promotion.versions import verified_copy
from segmill.serving.head import Head, read_head
from segmill.serving.job import ServiceJob
from segmill.serving.lines import log_here, say
from segmill.serving.model import ModelFacts
from segmill.serving.replica import Replica

AGAIN_S = 300.0  # a version that was refused is tried again
REFUSED = "a version was refused"
DRIFTED = "the model no longer sees what it learned"
MOST_EVENTS = 1000
LOOKS_S = 0.25  # between two looks at a version that starts, or at what doors still wait for
ANSWERS_WITHIN_S = 60.0


@dataclass(frozen=True)
class Serving:
    """Which version serves: ``app`` is its application.

    ``number`` grows with each change; at 0 the ledger was not read yet. ``refused``: versions not put into service.
    ``drift``: what the stream of its images says.
    """

    number: int
    app: str
    facts: ModelFacts | None
    refused: int = 0
    drift: Drift = field(default_factory=Drift)


@dataclass
class Keeper:
    """Follows the ledger: starts the version that it promotes, names it to the doors, and ends the one before."""

    job: ServiceJob
    _serving: Serving = field(default=Serving(0, "", None), init=False)
    _head: Head | None = field(default=None, init=False)
    _starting: str = field(default="", init=False)
    _refused: dict[str, float] = field(default_factory=dict, init=False)
    _events: list[dict[str, Any]] = field(default_factory=list, init=False)
    _trouble: str = field(default="", init=False)
    _watch: StreamWatch | None = field(default=None, init=False)
    # By door: the number that it asks, and when it said so last.
    _doors: dict[str, tuple[int, float]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self._ledger = open_ledger(self.job.ledger(), trusted=self.job.trusted)
        self._hinted = threading.Event()
        log_here()
        threading.Thread(target=self._follow, name="keeper", daemon=True).start()

    async def hint(self) -> None:
        """Look at the ledger now."""
        self._hinted.set()

    async def after(self, number: int, door: str, *, still: bool) -> Serving:
        """Return what serves, as soon as that is another than ``number``, or after some seconds.

        ``still``: the door waits for answers of versions before that one, too.
        """
        self._doors[door] = (0 if still else number, time.monotonic())
        until = time.monotonic() + (LOOKS_S if still else 10)
        while self._serving.number in (0, number) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        drift = self._watch.drift if self._watch else Drift()
        return replace(self._serving, refused=len(self._refused), drift=drift)

    async def saw(self, version: str, scores: list[float]) -> None:
        """Take the anomaly scores of images that a version answered; say once where they show a change."""
        facts, watch = self._serving.facts, self._watch
        if facts is None or watch is None or facts.version != version:
            return
        before = watch.alarmed
        watch.take(scores)
        if (found := watch.alarmed) and before is None:
            since = datetime.fromtimestamp(found.since_s, UTC).isoformat(timespec="seconds")
            said = {"since": since, "images": found.images, "evidence": round(found.evidence, 2)}
            self._note(DRIFTED, version=version, **said, why=f"since {since}; {found.images} images were counted")
            await asyncio.to_thread(self._notify_of_drift, facts, said)

    def _notify_of_drift(self, facts: ModelFacts, said: dict[str, Any]) -> None:
        try:
            add_drift(self.job.ledger(), model=facts.name, version=facts.version, **said)
        except SegmillError as error:
            self._note("the notice of it can't be kept", why=str(error))

    async def events(self, after: int) -> list[dict[str, Any]]:
        """Return what happened after the event of that number: versions loaded, refused, taken over, and trouble."""
        return [event for event in self._events if event["number"] > after]

    def _follow(self) -> None:
        while True:
            try:
                self.look()
                self._trouble = ""
            except SegmillError as error:  # what serves continues
                self._note_once("the ledger can't be followed", str(error))
            except Exception as error:
                self._note_once("the keeper failed", f"{type(error).__name__}: {first_line(error)}")
            self._hinted.wait(self.job.look_every_s)
            self._hinted.clear()

    def look(self) -> None:
        """Bring the service in line with the ledger.

        Raises LedgerError, InfrastructureError where the ledger does not say who serves.
        """
        self._head = head = read_head(self._ledger, self.job.model, last=self._head)
        if not self._serving.number:
            self._adopt(head)
        if head.version is None:
            if self._serving.facts or not self._serving.number:
                self._put("", None)
            return
        if self._serving.facts and self._serving.facts.version == head.version:
            return
        name = self.job.app(f"version-{head.version}-{head.since}")
        if time.time() - self._refused.get(name, 0.0) < AGAIN_S:
            return
        self._note("a version is loaded", version=head.version, ledger_row=head.since)
        began = time.monotonic()
        try:
            with verified_copy(self.job.mlflow(), self.job.model, head.version, self.job.trusted):
                pass  # a version that is not what was signed is not even started
            facts = self._started(name, head)
        except InfrastructureError as error:
            raise InfrastructureError(f"version {head.version} can't be fetched: {error}") from None
        except SegmillError as error:
            self._refuse(name, head, str(error))
            return
        if facts is None:
            return
        self._put(name, facts)
        self._note("a version took over", version=head.version, ledger_row=head.since, seconds=time.monotonic() - began)

    def _adopt(self, head: Head) -> None:
        """Continue with what a keeper before this one, which ended, had put into service."""
        ours = self.job.app("version-")
        running = [
            name
            for name, found in serve.status().applications.items()
            if name.startswith(ours) and found.status == "RUNNING"
        ]
        if not running:
            return
        name = max(running, key=lambda name: (name.startswith(f"{ours}{head.version}-"), name))
        facts = serve.get_app_handle(name).facts.remote().result(timeout_s=ANSWERS_WITHIN_S)
        self._put(name, facts)
        self._note("the keeper was started again; a version continues to answer", version=facts.version)

    def _started(self, name: str, head: Head) -> ModelFacts | None:
        """Start a version's application and return its facts; None where another one is promoted before it has room.

        Raises SegmillError where it does not prove itself.
        """
        self._starting = name
        try:
            found = serve.status().applications.get(name)
            if not found or found.status != "RUNNING":  # else a keeper before this one started it
                target = RunTarget(version_application(self.job, str(head.version)), name, route_prefix=None)
                serve.run_many([target], wait_for_applications_running=False)
                if not self._runs(name, head):
                    end(name)
                    return None
            facts: ModelFacts = serve.get_app_handle(name).facts.remote().result(timeout_s=ANSWERS_WITHIN_S)
        except Exception as error:
            why = _why(name) or first_line(error)
            end(name)
            raise SegmillError(why) from None
        return facts

    def _runs(self, name: str, head: Head) -> bool:
        """Wait until an application runs; False where, while it waits for room, the ledger promotes another version.

        Raises SegmillError where it failed.
        """
        looked = 0.0  # while there is room, nothing is looked at: a version takes seconds
        while True:
            found = serve.status().applications.get(name)
            if found is None or found.status == "DEPLOY_FAILED":
                raise SegmillError(_why(name) or "it did not start")
            if found.status == "RUNNING":
                return True
            if not looked and _waits_for_room(found):
                looked = time.monotonic()
                self._note("a version waits for room", version=head.version, why=self._room())
            if looked and (self._hinted.is_set() or time.monotonic() - looked > self.job.look_every_s):
                self._hinted.clear()
                looked = time.monotonic()
                with suppress(SegmillError):  # it waits until the ledger can be followed again
                    if read_head(self._ledger, self.job.model, last=self._head).version != head.version:
                        self._note("a version no longer waits: the ledger promotes another", version=head.version)
                        self._hinted.set()
                        return False
            time.sleep(LOOKS_S)

    def _room(self) -> str:
        """Say what a version's replicas take, what is free, and what to do."""
        job, free = self.job, ray.available_resources()
        takes = f"{job.cpus:g} cores" + (f" and {job.gpus:g} GPUs" if job.gpus else "")
        left = f"{free.get('CPU', 0.0):g} cores" + (f" and {free.get('GPU', 0.0):g} GPUs" if job.gpus else "")
        return (
            f"it takes {job.replicas} x {takes}, and the cluster has {left} free; serve with fewer replicas, or add "
            "cores to the cluster"
        )

    def _refuse(self, name: str, head: Head, why: str) -> None:
        """Note that a version is not served, for now, and have a notice of it sent."""
        self._refused[name] = time.time()
        self._note(REFUSED, version=head.version, ledger_row=head.since, why=why)
        facts = self._serving.facts
        try:
            add_not_served(
                self.job.ledger(), model=self.job.model, number=head.since, version=str(head.version),
                champion=facts.version if facts else None, why=why,
            )  # fmt: skip
        except SegmillError as error:
            self._note("no notice of that can be kept", version=head.version, why=str(error))

    def _put(self, app: str, facts: ModelFacts | None) -> None:
        """Name a version to the doors, and end all others when these have answered what they were asked."""
        # The number is also larger than any of a keeper before this one.
        self._serving = Serving(time.time_ns(), app, facts)
        usual = facts.usual_G if facts else ()
        self._watch = StreamWatch(usual, self.job.drift_level, self.job.drift_every_s) if usual else None
        threading.Thread(target=self._end_others, args=(self._serving.number,), name="ending", daemon=True).start()

    def _end_others(self, number: int) -> None:
        """End the versions before: when no door asks them anything any more, or every answer is overdue."""
        until = time.monotonic() + self.job.limits.seconds
        while time.monotonic() < until and not self._all_ask(number):
            time.sleep(LOOKS_S)
        for name in serve.status().applications:
            if name.startswith(self.job.app("version-")) and name not in (self._serving.app, self._starting):
                end(name)

    def _all_ask(self, number: int) -> bool:
        """Tell whether every door, but for those that are gone, asks what serves and waits for nothing before it."""
        since = time.monotonic() - self.job.limits.seconds
        asked = [what for what, when in list(self._doors.values()) if when > since]
        return len(asked) >= self.job.doors and set(asked) == {number}

    def _note_once(self, what: str, why: str) -> None:
        if why != self._trouble:
            self._note(what, why=why)
        self._trouble = why

    def _note(self, what: str, **facts: Any) -> None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self._events = [
            *self._events[-MOST_EVENTS:], {"number": time.time_ns(), "event": what, "time": when, **facts}
        ]  # fmt: skip
        say(what, **facts)


def version_application(job: ServiceJob, version: str) -> Application:
    """Return the application of a version: its replicas."""
    options: dict[str, Any] = {"num_cpus": job.cpus, "num_gpus": job.gpus}
    return serve.deployment(
        Replica, name="version", num_replicas=job.replicas, max_ongoing_requests=4 * job.batch,
        ray_actor_options=options, max_constructor_retry_count=1, graceful_shutdown_timeout_s=job.limits.seconds,
        health_check_period_s=5,
    ).bind(job, version)  # fmt: skip


def end(app: str) -> None:
    with suppress(Exception):
        serve.delete(app)


def _why(name: str) -> str:
    """Return why an application did not start, as its replica said."""
    with suppress(Exception):
        for one in serve.status().applications[name].deployments.values():
            if said := [line for line in str(one.message).splitlines() if "segmill." in line and "Error: " in line]:
                return said[-1].partition(": ")[2]
            return str(one.message).partition("\n")[0]
    return ""


def _waits_for_room(found: ApplicationStatusOverview) -> bool:
    """Tell whether replicas were not placed for 30 s: Ray Serve says so in a sentence alone."""
    return any("to be scheduled" in one.message for one in found.deployments.values())
