"""What is served and how: what every process of the service is started with."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path

from segmill.monitoring.drift import EVERY_S, LEVEL
from segmill.monitoring.samples import Samples
from segmill.monitoring.windows import WindowSettings
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.ledger_url import URL_VARIABLE
from segmill.serving.decoding import DecodingLimits
from segmill.serving.limits import RequestLimits
from segmill.serving_params import Engine, LimitParams, ServingParams, WindowParams

DAY_S = 86_400.0
LOOK_EVERY_S = 10.0  # without any hint another version is noticed within 30 s, its loading not counted


@dataclass(frozen=True, kw_only=True)
class ServiceJob:
    """What is served and how. It holds no secret: Ray keeps it in its own storage.

    Attributes:
        model: the registered model's name.
        uri: of MLflow; "" takes MLFLOW_TRACKING_URI of each process.
        ledger_url: "" takes SEGMILL_LEDGER_URL of each process.
        trusted: whose signatures are believed.
        limits: of a request.
        hint_secrets: variables with the secrets of webhooks that may hint at a change without a key.
        doors, replicas: how many processes answer HTTP, and how many a version has.
        cpus, gpus: that one replica of a version takes of the cluster.
        decoders: processes that decode, for each door.
        windows: what is kept of served images; None: nothing.
        batch: requests that a replica computes together, at most.
        engine: of ServingParams.
        drift_level, drift_every_s: of the ``StreamWatch``.
    """

    model: str
    trusted: TrustedKeys
    uri: str = ""
    ledger_url: str = ""
    limits: RequestLimits = field(default_factory=RequestLimits)
    hint_secrets: tuple[str, ...] = ()
    doors: int = 1
    replicas: int = 1
    cpus: float = 1.0
    gpus: float = 0.0
    decoders: int = 2
    windows: WindowSettings | None = field(default_factory=WindowSettings)
    batch: int = 8
    engine: Engine = "auto"
    look_every_s: float = LOOK_EVERY_S
    drift_level: float = LEVEL
    drift_every_s: float = EVERY_S

    def app(self, what: str) -> str:
        """Return the name of an application of Ray Serve: ``service``, or that of a version."""
        return f"{self.model}-{what}"

    def mlflow(self) -> str:
        return self.uri or os.environ.get("MLFLOW_TRACKING_URI", "")

    def ledger(self) -> str:
        return self.ledger_url or os.environ.get(URL_VARIABLE, "")


def job_of(
    serving: ServingParams,
    *,
    model: str,
    trusted: TrustedKeys,
    uri: str = "",
    ledger_url: str = "",
    hint_secrets: tuple[str, ...] = (),
) -> ServiceJob:
    """Return the job of the settings' block ``serving``; the other arguments are as in ``ServiceJob``."""
    return ServiceJob(
        model=model, trusted=trusted, uri=uri, ledger_url=ledger_url, hint_secrets=hint_secrets,
        limits=_limits(serving.limits),
        doors=serving.doors, replicas=serving.replicas, cpus=serving.cpus_per_replica, gpus=serving.gpus_per_replica,
        decoders=serving.decoders, batch=serving.batch, engine=serving.engine,
        windows=_windows(serving.windows),
        drift_level=serving.drift_level, drift_every_s=serving.drift_every_seconds,
    )  # fmt: skip


def _windows(windows: WindowParams | None) -> WindowSettings | None:
    if windows is None:
        return None
    samples = None
    if windows.samples:
        samples = Samples(folder=Path(windows.samples), share=windows.sample_share, keep_s=windows.sample_days * DAY_S)
    return WindowSettings(length_s=60 * windows.minutes, keep_s=windows.days * DAY_S, samples=samples)


def _limits(limits: LimitParams) -> RequestLimits:
    return RequestLimits(
        per_minute=limits.per_minute, images=limits.images, pixels=limits.pixels, body_bytes=limits.body_bytes,
        body_s=limits.body_seconds, seconds=limits.seconds, at_once=limits.at_once,
        decoding=DecodingLimits(
            pixels=limits.image_pixels, bytes=limits.image_bytes, memory_bytes=limits.image_memory_bytes,
            seconds=limits.image_seconds,
        ),
    )  # fmt: skip
