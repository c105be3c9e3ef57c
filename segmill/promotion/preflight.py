"""The check before a version serves: it is what was signed, loads, and predicts what it predicted when registered."""

from __future__ import annotations

import time
from dataclasses import dataclass

from segmill.promotion.golden import prove, read_golden
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.registered import running
from segmill.promotion.signing import read_manifest
from segmill.promotion.versions import verified_copy


@dataclass(frozen=True)
class Preflight:
    """What a check found: ``pixels`` were predicted, of which ``differing`` have another class than at registration.

    ``load_s`` is of importing and loading alone, ``seconds`` of all.
    """

    manifest_sha256: str
    pixels: int
    differing: int
    load_s: float
    seconds: float


def preflight(uri: str, model: str, version: str, trusted: TrustedKeys) -> Preflight:
    """Verify a version, load it in a fresh process, and let it predict its golden images.

    A version of an earlier segmill has none; then it has to predict a black image.

    Raises:
        SignatureError, InputError, InfrastructureError: as for ``versions.fetch_verified``.
        SegmillError: it does not load, or more than 1 pixel in 10,000 gets another class than at registration.
    """
    began = time.monotonic()
    with verified_copy(uri, model, version, trusted) as folder:
        sha256 = read_manifest(folder, trusted, model=model).sha256
        golden = read_golden(folder)
        loading = time.monotonic()
        with running(folder, model, version) as predict:
            load_s = time.monotonic() - loading
            pixels, differing = prove(golden, predict, model=model, version=version)
    return Preflight(sha256, pixels, differing, load_s, time.monotonic() - began)
