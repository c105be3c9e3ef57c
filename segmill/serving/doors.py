"""The doors: replicas of the HTTP interface, which ask the replicas of the version that the keeper named last."""

from __future__ import annotations

import asyncio
import uuid
from collections import Counter, deque
from collections.abc import AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from ray import serve
from ray.exceptions import RayActorError
from ray.serve.exceptions import BackPressureError, DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle
from starlette.types import ASGIApp

from segmill.alongside import alongside
from segmill.cluster.work import first_line
from segmill.errors import InfrastructureError, InputError
from segmill.monitoring.windows import served_windows
from segmill.serving.access import KeyRing, Refused
from segmill.serving.answers import Segmented, Wanted
from segmill.serving.app import Parts, make_app
from segmill.serving.audit import audit_log
from segmill.serving.decoding import decoders
from segmill.serving.figures import ServiceFigures
from segmill.serving.hints import WebhookHints, webhook_hints
from segmill.serving.job import ServiceJob
from segmill.serving.keeper import Serving
from segmill.serving.keys import ApiKeys
from segmill.serving.lines import log_here, say
from segmill.serving.model import ModelFacts
from segmill.serving.replica import Asked

Pixels = NDArray[np.uint8]

TELLS_EVERY_S = 0.5
MOST_SCORES = 1000  # that wait to be sent to the keeper


class Doors:
    """A replica of the HTTP interface."""

    def __init__(self, job: ServiceJob, keeper: DeploymentHandle) -> None:
        self._job, self._keeper = job, keeper
        log_here()

    def __serve_build_asgi_app__(self) -> ASGIApp:
        """Return the application; Ray Serve calls it in the replica."""
        job, stack = self._job, ExitStack()
        ring = KeyRing(ApiKeys(job.ledger()).all)
        with suppress(InfrastructureError):  # read again soon; until then nobody is admitted
            ring.refresh()
        stack.enter_context(alongside(ring.watch))
        backend = OnRay()
        keeper = self._keeper

        @asynccontextmanager
        async def while_it_runs(app: Any) -> AsyncIterator[None]:
            tasks = [asyncio.create_task(one) for one in (backend.follow(keeper), backend.tell(keeper))]
            try:
                yield
            finally:
                for task in tasks:
                    task.cancel()
                await asyncio.to_thread(stack.close)

        async def hint() -> None:
            await keeper.hint.remote()

        processes = stack.enter_context(decoders(job.decoders, job.limits.decoding))
        audit = stack.enter_context(audit_log(job.ledger()))
        windows = stack.enter_context(served_windows(job.ledger(), job.windows)) if job.windows else None
        parts = Parts(backend, ring, processes, job.limits, backend.figures, audit, hint, _webhooks(job), windows)
        return make_app(parts, lifespan=while_it_runs)


def _webhooks(job: ServiceJob) -> WebhookHints | None:
    try:
        return webhook_hints(job.hint_secrets)
    except InputError as error:  # the keeper looks again and again without any hint
        say("hints by webhook are refused", why=str(error))
        return None


@dataclass
class OnRay:
    """The backend of a door: the version that the keeper named last."""

    figures: ServiceFigures = field(default_factory=ServiceFigures)
    _serving: Serving = field(default=Serving(0, "", None), init=False)
    _handle: DeploymentHandle | None = field(default=None, init=False)
    _waiting: Counter[int] = field(default_factory=Counter, init=False)  # requests, by the number of what was asked
    _scores: deque[float] = field(default_factory=lambda: deque(maxlen=MOST_SCORES), init=False)

    def facts(self) -> ModelFacts | None:
        return self._serving.facts

    async def follow(self, keeper: DeploymentHandle) -> None:
        """Learn from the keeper which version serves, again and again."""
        door = uuid.uuid4().hex
        while True:
            number = self._serving.number
            still = any(count for asked, count in self._waiting.items() if asked != number)
            try:
                found: Serving = await keeper.after.remote(number, door, still=still)
            except Exception as error:  # it is started again by Ray Serve; what serves continues
                say("the keeper does not answer", why=first_line(error))
                await asyncio.sleep(1)
                continue
            self.figures.refused.set(found.refused)
            self.figures.drift_evidence.set(found.drift.evidence)
            self.figures.drift_alarm.set(found.drift.alarm)
            if found.number not in (0, self._serving.number):
                self._change(found)

    async def tell(self, keeper: DeploymentHandle) -> None:
        """Tell the keeper the anomaly scores of the images that were answered, again and again."""
        while True:
            await asyncio.sleep(TELLS_EVERY_S)
            facts, scores = self._serving.facts, list(self._scores)
            self._scores.clear()
            if facts and scores:
                with suppress(Exception):  # while it is started again these images do not count
                    await keeper.saw.remote(facts.version, scores)

    async def segment(self, images: Sequence[Pixels], wanted: Wanted) -> tuple[ModelFacts, list[Segmented]]:
        """Ask a replica; where it dies, another one, once: to segment twice does no harm."""
        asked = Asked(list(images), wanted)
        for last in (False, True):
            serving, handle = self._serving, self._handle
            if serving.facts is None or handle is None:
                raise Refused(503, "no model serves yet", retry_after_s=5)
            self._waiting[serving.number] += 1
            try:
                found: list[Segmented] = await handle.segment.remote(asked)
                if found[0].anomaly and serving is self._serving:  # images of one request are alike
                    self._scores.append(found[0].anomaly.score)
                return serving.facts, found
            except BackPressureError:
                raise Refused(503, "all replicas are busy; try again", retry_after_s=1) from None
            except (RayActorError, DeploymentUnavailableError):
                if last:
                    raise Refused(503, "the model's replica ended; try again", retry_after_s=5) from None
            finally:
                self._waiting[serving.number] -= 1
        raise AssertionError

    def _change(self, found: Serving) -> None:
        if self._serving.facts:
            self.figures.version.remove(self._serving.facts.name, self._serving.facts.version)
            self.figures.swaps.inc()
        self._scores.clear()
        self._waiting = +self._waiting  # without those that wait for nothing
        self._serving = found
        self._handle = serve.get_app_handle(found.app) if found.facts else None
        if found.facts:
            self.figures.version.labels(found.facts.name, found.facts.version).set(1)
