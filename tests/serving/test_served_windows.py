"""What the service answered is described in a window; what it refused is not."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import httpx
import numpy as np
import pytest
from answering import FACTS, LIMITS, Brightness, Here
from numpy.typing import NDArray

from segmill.anomaly.detector import Anomaly
from segmill.data.storage.images import encode_png, read_image
from segmill.monitoring.samples import Samples
from segmill.monitoring.statistics import image_statistics
from segmill.monitoring.sums import Sums
from segmill.monitoring.windows import WindowSettings, read_windows, served_windows
from segmill.serving.access import KeyRing
from segmill.serving.answers import Segmented, Wanted
from segmill.serving.app import Parts, make_app
from segmill.serving.decoding import decoders
from segmill.serving.figures import ServiceFigures
from segmill.serving.keys import ApiKeys, Scope


class Embedding(Brightness):
    """Its detector goes by features."""

    def segment(self, images: Sequence[NDArray[np.uint8]], wanted: Sequence[Wanted]) -> list[Segmented]:
        place_E = np.array([0.5, -2.0], np.float32)
        return [
            replace(one, anomaly=Anomaly(1.0, 0.5, False, None, place_E)) for one in super().segment(images, wanted)
        ]


def test_what_is_served_is_described_in_a_window(tmp_path: Path) -> None:
    image = np.random.default_rng(16).integers(0, 256, (64, 48, 3), dtype=np.uint8)
    url, model = f"sqlite:///{tmp_path / 'ledger.db'}", Embedding()
    keys, samples = ApiKeys(url), Samples(folder=tmp_path / "kept", share=1.0)
    _, text = keys.create("a test", {Scope.SEGMENT}, None)
    ring, header = KeyRing(keys.all), {"authorization": f"Bearer {text}", "content-type": "image/png"}
    ring.refresh()
    settings = WindowSettings(samples=samples)
    with served_windows(url, settings) as windows, decoders(1, LIMITS.decoding) as processes:
        app = make_app(Parts(Here(model), ring, processes, LIMITS, ServiceFigures(), windows=windows))

        async def ask() -> list[int]:
            async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://here") as client:
                sent = (encode_png(image), encode_png(image[:32]), b"no image")
                return [(await client.post("/v1/segment", content=one, headers=header)).status_code for one in sent]

        assert asyncio.run(ask()) == [200, 200, 422]
    (window,) = read_windows(url, FACTS.name)
    every = model.segment([image, image[:32]], [Wanted(), Wanted()])
    expected = Sums.of(
        image_statistics(pixels, one.ids_HW, FACTS.classes.names, confidence=one.confidence, embedding=(0.5, -2.0))
        for pixels, one in zip((image, image[:32]), every, strict=True)
    )
    assert (window.version, window.sums.images, windows.lost) == (FACTS.version, 2, 0)
    assert {"embedding.1", "embedding.2"} < set(window.sums.values) == set(expected.values)
    for name, value in expected.values.items():
        assert window.sums.values[name].mean == pytest.approx(value.mean), name
    kept = [read_image(path) for path in samples.kept()]
    assert len(kept) == 2 and (kept[0] == image).all() and (kept[1] == image[:32]).all()
