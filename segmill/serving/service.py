"""The service on Ray Serve: doors that answer HTTP, a set of replicas for each version, and a keeper between them.

Each version is an application of its own. The keeper starts the next one, which has to prove itself before it is
named to the doors; these change over between two requests, and the former one is deleted when it has answered what it
was asked. A version that fails in any of that never answered anybody.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import threading
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError, RayError
from ray.serve import Application
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError, RayServeException
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from segmill.alongside import alongside
from segmill.cluster.work import first_line
from segmill.errors import InfrastructureError, SegmillError
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.ledger import open_ledger
from segmill.promotion.ledger_url import URL_VARIABLE
from segmill.promotion.versions import verified_copy
from segmill.serving.access import KeyRing, Refused
from segmill.serving.answers import Segmented
from segmill.serving.app import Parts, make_app
from segmill.serving.audit import audit_log
from segmill.serving.decoding import decoders
from segmill.serving.figures import ServiceFigures
from segmill.serving.head import Head, read_head
from segmill.serving.keys import ApiKeys
from segmill.serving.limits import RequestLimits
from segmill.serving.model import ModelFacts, load_version

Pixels = NDArray[np.uint8]

LOOK_EVERY_S = 10.0  # without any hint another version is noticed within 30 s, its loading not counted
AGAIN_S = 300.0  # a version that was refused is tried again
ANSWERS_WITHIN_S = 60.0


@dataclass(frozen=True, kw_only=True)
class ServiceJob:
    """What is served and how. It holds no secret: Ray keeps it in its own storage.

    Attributes:
        model: the registered model's name.
        uri: of MLflow; "" takes MLFLOW_TRACKING_URI of each process.
        ledger_url: "" takes SEGMILL_LEDGER_URL of each process.
        trusted: whose signatures are believed.
        limits: of a request.
        doors, replicas: how many processes answer HTTP, and how many a version has.
        cpus, gpus: that one replica of a version takes of the cluster.
        decoders: processes that decode, for each door.
        batch: images at once, at most; ``batch_wait_s``: how long the first waits for others.
    """

    model: str
    trusted: TrustedKeys
    uri: str = ""
    ledger_url: str = ""
    limits: RequestLimits = field(default_factory=RequestLimits)
    doors: int = 1
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    decoders: int = 2
    batch: int = 8
    batch_wait_s: float = 0.002
    look_every_s: float = LOOK_EVERY_S

    def app(self, what: str) -> str:
        """Return the name of an application of Ray Serve: ``door``, ``keeper``, or that of a version."""
        return f"{self.model}-{what}"

    def mlflow(self) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")

    def ledger(self) -> str:
        return self.ledger_url or os.environ.get(URL_VARIABLE, "")


@dataclass(frozen=True)
class Serving:
    """Which version serves: ``app`` is its application, ``row`` the ledger's that made it the champion.

    ``number`` grows with each change; at 0 the ledger was not read yet. ``refused``: versions not put into service.
    """

    number: int
    app: str
    facts: ModelFacts | None
    row: int
    refused: int = 0


@dataclass(frozen=True, eq=False)
class Asked:
    """One request's images HWC uint8, C = 3."""

    images: list[Pixels]
    probabilities: bool


class Replica:
    """A replica of one version. It starts only where the version is what was signed and proves itself."""

    def __init__(self, job: ServiceJob, version: str) -> None:
        import torch

        if job.cpus >= 1:
            torch.set_num_threads(int(job.cpus))
        self._model = load_version(job.mlflow(), job.model, version, job.trusted)
        self.segment.set_max_batch_size(job.batch)
        self.segment.set_batch_wait_timeout_s(job.batch_wait_s)

    async def facts(self) -> ModelFacts:
        return self._model.facts

    @serve.batch  # type: ignore[untyped-decorator]
    async def segment(self, asked: list[Asked]) -> list[list[Segmented]]:
        """Segment the images of several requests together."""
        images = [image for one in asked for image in one.images]
        wanted = [one.probabilities for one in asked for _ in one.images]
        found = iter(await asyncio.to_thread(self._model.segment, images, probabilities=wanted))
        return [[next(found) for _ in one.images] for one in asked]


@dataclass
class Keeper:
    """Follows the ledger: starts the version that it promotes, names it to the doors, and ends the one before."""

    job: ServiceJob
    _serving: Serving = field(default=Serving(0, "", None, 0), init=False)
    _head: Head | None = field(default=None, init=False)
    _starting: str = field(default="", init=False)
    _refused: dict[str, float] = field(default_factory=dict, init=False)
    _events: list[dict[str, Any]] = field(default_factory=list, init=False)
    _trouble: str = field(default="", init=False)

    def __post_init__(self) -> None:
        self._ledger = open_ledger(self.job.ledger(), trusted=self.job.trusted)
        self._hinted = threading.Event()
        _log_here()
        threading.Thread(target=self._follow, name="keeper", daemon=True).start()

    async def hint(self) -> None:
        """Look at the ledger now."""
        self._hinted.set()

    async def after(self, number: int) -> Serving:
        """Return what serves, as soon as that is another than ``number``, or after some seconds."""
        until = time.monotonic() + 10
        while self._serving.number in (0, number) and time.monotonic() < until:
            await asyncio.sleep(0.02)
        return replace(self._serving, refused=len(self._refused))

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
                self._put("", None, head.since)
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
            facts = self._started(name, head.version)
        except InfrastructureError as error:
            raise InfrastructureError(f"version {head.version} can't be fetched: {error}") from None
        except SegmillError as error:
            self._refused[name] = time.time()
            self._note("a version was refused", version=head.version, ledger_row=head.since, why=str(error))
            return
        self._put(name, facts, head.since)
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
        self._put(name, facts, int(name.rpartition("-")[2]))
        self._note("the keeper was started again; a version continues to answer", version=facts.version)

    def _started(self, name: str, version: str) -> ModelFacts:
        """Start a version's application and return its facts; SegmillError where it does not prove itself."""
        job = self.job
        deployment = serve.deployment(
            Replica, name="version", num_replicas=job.replicas, max_ongoing_requests=4 * job.batch,
            ray_actor_options={"num_cpus": job.cpus, "num_gpus": job.gpus}, max_constructor_retry_count=1,
            graceful_shutdown_timeout_s=job.limits.seconds, health_check_period_s=5,
        )  # fmt: skip
        self._starting = name
        try:
            found = serve.status().applications.get(name)
            if found and found.status == "RUNNING":  # a keeper before this one started it
                handle = serve.get_app_handle(name)
            else:
                handle = serve.run(deployment.bind(job, version), name=name, route_prefix=None)
            facts: ModelFacts = handle.facts.remote().result(timeout_s=ANSWERS_WITHIN_S)
        except Exception as error:
            why = _why(name) or first_line(error)
            with suppress(Exception):
                serve.delete(name)
            raise SegmillError(why) from None
        return facts

    def _put(self, app: str, facts: ModelFacts | None, since: int) -> None:
        """Name a version to the doors, and end all others when these have answered what they were asked."""
        # The number is also larger than any of a keeper before this one.
        self._serving = Serving(time.time_ns(), app, facts, since)
        later = threading.Timer(self.job.limits.seconds, self._end_others)
        later.daemon = True
        later.start()

    def _end_others(self) -> None:
        """End the versions before: the doors ask them nothing any more, and what they asked is answered."""
        for name in serve.status().applications:
            if name.startswith(self.job.app("version-")) and name not in (self._serving.app, self._starting):
                _end(name)

    def _note_once(self, what: str, why: str) -> None:
        if why != self._trouble:
            self._note(what, why=why)
        self._trouble = why

    def _note(self, what: str, **facts: Any) -> None:
        when = datetime.now(UTC).isoformat(timespec="seconds")
        self._events.append({"number": time.time_ns(), "event": what, "time": when, **facts})
        say(what, **facts)


class Doors:
    """A replica of the HTTP interface."""

    def __init__(self, job: ServiceJob) -> None:
        self._job = job
        _log_here()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray Serve calls it in the replica."""
        job, stack = self._job, ExitStack()
        ring = KeyRing(ApiKeys(job.ledger()).all)
        with suppress(InfrastructureError):  # read again soon; until then nobody is admitted
            ring.refresh()
        stack.enter_context(alongside(ring.watch))
        backend = OnRay()
        keeper = serve.get_app_handle(job.app("keeper"))

        @asynccontextmanager
        async def while_it_runs(app: Any) -> AsyncIterator[None]:
            following = asyncio.create_task(backend.follow(keeper))
            try:
                yield
            finally:
                following.cancel()
                await asyncio.to_thread(stack.close)

        async def hint() -> None:
            await keeper.hint.remote()

        processes = stack.enter_context(decoders(job.decoders, job.limits.decoding))
        audit = stack.enter_context(audit_log(job.ledger()))
        parts = Parts(backend, ring, processes, job.limits, backend.figures, audit, hint)
        return make_app(parts, lifespan=while_it_runs)


@dataclass
class OnRay:
    """The backend of a door: the version that the keeper named last."""

    figures: ServiceFigures = field(default_factory=ServiceFigures)
    _serving: Serving = field(default=Serving(0, "", None, 0), init=False)
    _handle: DeploymentHandle | None = field(default=None, init=False)

    def facts(self) -> ModelFacts | None:
        return self._serving.facts

    async def follow(self, keeper: DeploymentHandle) -> None:
        """Learn from the keeper which version serves, again and again."""
        while True:
            try:
                found: Serving = await keeper.after.remote(self._serving.number)
            except Exception as error:  # it is started again by Ray Serve; what serves continues
                say("the keeper does not answer", why=first_line(error))
                await asyncio.sleep(1)
                continue
            self.figures.refused.set(found.refused)
            if found.number not in (0, self._serving.number):
                self._change(found)

    async def segment(self, images: Sequence[Pixels], *, probabilities: bool) -> tuple[ModelFacts, list[Segmented]]:
        """Ask a replica; where it dies, another one, once: to segment twice does no harm."""
        asked = Asked(list(images), probabilities)
        for last in (False, True):
            serving, handle = self._serving, self._handle
            if serving.facts is None or handle is None:
                raise Refused(503, "no model serves yet", retry_after_s=5)
            try:
                found: list[Segmented] = await handle.segment.remote(asked)
                return serving.facts, found
            except BackPressureError:
                raise Refused(503, "all replicas are busy; try again", retry_after_s=1) from None
            except (RayActorError, DeploymentUnavailableError):
                if last:
                    raise Refused(503, "the model's replica ended; try again", retry_after_s=5) from None
        raise AssertionError

    def _change(self, found: Serving) -> None:
        if self._serving.facts:
            self.figures.version.remove(self._serving.facts.name, self._serving.facts.version)
            self.figures.swaps.inc()
        self._serving = found
        self._handle = serve.get_app_handle(found.app) if found.facts else None
        if found.facts:
            self.figures.version.labels(found.facts.name, found.facts.version).set(1)


def start(job: ServiceJob, **http: Any) -> DeploymentHandle:
    """Start the service on the Ray that this process is connected to; return the keeper.

    ``http``: of Ray Serve's ``HTTPOptions``.
    """
    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    serve.start(http_options={"keep_alive_timeout_s": 30, **http})
    found = serve.run(keeper(job), name=job.app("keeper"), route_prefix=None)
    serve.run(door(job), name=job.app("door"), route_prefix="/")
    return found


def keeper(job: ServiceJob) -> Application:
    """Return the application of the keeper."""
    options: dict[str, Any] = {"num_cpus": 0}
    return serve.deployment(
        Keeper, name="keeper", ray_actor_options=options, max_ongoing_requests=1000, health_check_period_s=5
    ).bind(job)


def door(job: ServiceJob) -> Application:
    """Return the application of the doors. One more starts before one ends, so that no request finds none."""
    options: dict[str, Any] = {"num_cpus": 0}
    return serve.deployment(
        serve.ingress()(Doors), name="door", num_replicas=job.doors, ray_actor_options=options, max_surge_percent=100,
        max_ongoing_requests=2 * job.limits.at_once, health_check_period_s=5,
        graceful_shutdown_timeout_s=job.limits.seconds,
    ).bind(job)  # fmt: skip


def events(keeper: DeploymentHandle, after: int) -> list[dict[str, Any]]:
    """Return what the keeper says that happened after event number ``after``; nothing while it is started again."""
    with suppress(RayError, RayServeException, TimeoutError):
        found: list[dict[str, Any]] = keeper.events.remote(after).result(timeout_s=ANSWERS_WITHIN_S)
        return found
    return []


def stop(job: ServiceJob) -> None:
    """End the service on the Ray that this process is connected to: first what lets requests in."""
    ours = [name for name in serve.status().applications if name.startswith(job.app("version-"))]
    for name in (job.app("door"), job.app("keeper"), *ours):
        _end(name)


def _end(app: str) -> None:
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


def say(what: str, **facts: Any) -> None:
    """Write a line of JSON to the log."""
    logging.getLogger("segmill.serving").info(json.dumps({"event": what, **facts}))


def _log_here() -> None:
    """Let this process write the service's lines to its standard error, which Ray keeps in a file."""
    log = logging.getLogger("segmill.serving")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.propagate = False
