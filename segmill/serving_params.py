"""The block ``serving`` of params.yaml: how `segmill serve` answers, and what a request may take. Light to import."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from segmill.params_block import Block

Engine = Literal["auto", "pytorch"]


class LimitParams(Block):
    """What one request and one image may take of the service."""

    per_minute: int = Field(600, ge=1, description="Requests of one key in any 60 s, at each door.")
    images: int = Field(32, ge=1, description="Images in one request.")
    pixels: int = Field(2**25, ge=1, description="Pixels of all images of a request together.")
    body_bytes: int = Field(2**26, ge=1, description="Bytes of a request's body.")
    body_seconds: float = Field(20.0, gt=0, description="Seconds from the first to the last byte of a body.")
    seconds: float = Field(30.0, gt=0, description="Seconds until the answer begins.")
    at_once: int = Field(64, ge=1, description="Requests that a door answers at once; more get 503.")
    image_pixels: int = Field(2**24, ge=1, description="Pixels that the header of an image may claim.")
    image_bytes: int = Field(2**25, ge=1, description="Bytes of one image's file.")
    image_memory_bytes: int = Field(2**29, ge=2**26, description="Memory to decode one image, beside the program.")
    image_seconds: float = Field(10.0, gt=0, description="Seconds to decode one image, or to wait for a decoder.")


class WindowParams(Block):
    """What is kept of served images, and for how long."""

    minutes: int = Field(60, ge=1, description="Minutes of a window; statistics are summed over it.")
    days: float = Field(90.0, gt=0, description="Days for which windows are kept.")
    samples: str | None = Field(
        None, description="Folder for a share of the images themselves, on each machine with a door; null keeps none."
    )
    sample_share: float = Field(0.001, gt=0, le=1, description="Share of the images that is kept there.")
    sample_days: float = Field(7.0, gt=0, description="Days after which a kept image is deleted.")


class ServingParams(Block):
    """How `segmill serve` answers; its options win."""

    host: str = Field(
        "127.0.0.1", description="Address to listen at; beyond loopback it needs TLS or --allow-plain-http."
    )
    port: int = Field(8000, ge=1, le=65535, description="Port to listen at.")
    doors: int = Field(1, ge=1, description="Processes that take requests.")
    replicas: int = Field(
        1, ge=1, description="Processes that predict; the next version starts as many beside them, and needs the room."
    )
    cpus_per_replica: float = Field(1.0, gt=0, description="CPU cores of a replica, and its threads.")
    gpus_per_replica: float = Field(0.0, ge=0, description="GPUs of a replica.")
    decoders: int = Field(2, ge=1, description="Processes that decode images, for each door.")
    batch: int = Field(8, ge=1, description="Requests that a replica predicts together, at most.")
    engine: Engine = Field(
        "auto",
        description="auto: OpenVINO on CPUs where it is installed, equal and faster, else PyTorch.",
    )
    drift_level: float = Field(
        0.05, gt=0, lt=1, description="Probability of a false alarm that images changed, over the life of a version."
    )
    drift_every_seconds: float = Field(
        10.0, ge=0, description="Seconds between two images that count for that alarm; 0 counts all."
    )
    windows: WindowParams | None = Field(
        WindowParams(), description="Statistics of served images; null keeps none; see serving.windows."
    )
    limits: LimitParams = Field(LimitParams(), description="What a request may take; see serving.limits.")
