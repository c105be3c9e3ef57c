"""The figures of one replica, for Prometheus."""

from __future__ import annotations

from dataclasses import dataclass, field

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


@dataclass
class ServiceFigures:
    """Counters and gauges in a registry of their own, so that a process may have several."""

    registry: CollectorRegistry = field(default_factory=CollectorRegistry)

    def __post_init__(self) -> None:
        own = self.registry
        self.requests = Counter("segmill_requests", "Requests answered.", ["route", "status"], registry=own)
        self.seconds = Histogram(
            "segmill_request_seconds", "Seconds until the answer.", ["route"], buckets=SECONDS, registry=own
        )
        self.images = Counter("segmill_images", "Images segmented.", ["version"], registry=own)
        self.in_flight = Gauge("segmill_requests_in_flight", "Requests that are being answered.", registry=own)
        self.version = Gauge(
            "segmill_model_version", "1 for the version that serves.", ["model", "version"], registry=own
        )
        self.refused = Gauge("segmill_versions_refused", "Versions that were not put into service.", registry=own)
        self.swaps = Counter("segmill_swaps", "Times that another version took over.", registry=own)
        self.windows_lost = Gauge("segmill_windows_images_lost", "Images that are in no window.", registry=own)
        self.drift_evidence = Gauge(
            "segmill_drift_evidence", "Evidence that images changed; 1 at first, an alarm at 1 / level.", registry=own
        )
        self.drift_alarm = Gauge(
            "segmill_drift_alarm", "1 where the model no longer sees what it learned.", registry=own
        )
        self.audit_lost = Gauge("segmill_audit_rows_lost", "Rows of the audit log that were lost.", registry=own)

    def text(self) -> bytes:
        """Return them in Prometheus' text format."""
        return bytes(generate_latest(self.registry))
