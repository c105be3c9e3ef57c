"""Before a version serves: it loads in a fresh process and predicts what it predicted when it was registered."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from registering import NAME, Registered, register_unsigned

from segmill.data.packing.packed import PackedSplit
from segmill.errors import SegmillError
from segmill.promotion import registry, versions
from segmill.promotion.golden import read_golden
from segmill.promotion.preflight import preflight

pytestmark = pytest.mark.slow


@pytest.mark.long
def test_a_sound_version_passes(registered: Registered, judging: Path) -> None:
    found = preflight(registered.uri, NAME, registered.version, registered.trusted)
    images = [image for image, _ in read_golden(registered.folder)]
    test = PackedSplit(judging / "packed" / "test")
    assert all((image == test.image(index)).all() for index, image in enumerate(images))
    assert found.pixels == sum(image.shape[0] * image.shape[1] for image in images) > 0
    assert found.differing <= 1e-4 * found.pixels and 0 < found.load_s < found.seconds
    assert found.manifest_sha256 == versions.check_signed(registered.uri, NAME, "1", registered.trusted)


@pytest.mark.long
def test_another_prediction_than_at_registration_is_refused(
    registered: Registered, judging: Path, tmp_path: Path
) -> None:
    shutil.copytree(judging / "ensemble", tmp_path / "ensemble")
    (tmp_path / "ensemble" / "note.txt").write_text("another digest")
    image_HWC = PackedSplit(judging / "packed" / "test").image(0)
    wrong = [(image_HWC, np.full(image_HWC.shape[:2], 4, np.uint8))]
    run_id, key = registered.run_id, registered.key
    version = registry.register(registered.uri, run_id, tmp_path / "ensemble", NAME, key=key, golden=wrong)
    with pytest.raises(SegmillError, match=r"predicts other classes here than when .* of 4,096 pixels differ"):
        preflight(registered.uri, NAME, version, registered.trusted)


@pytest.mark.long
def test_a_version_that_does_not_load_says_its_last_words(
    registered: Registered, judging: Path, tmp_path: Path
) -> None:
    shutil.copytree(judging / "ensemble", tmp_path / "ensemble")
    next((tmp_path / "ensemble").rglob("weights.safetensors")).write_bytes(b"no weights")
    run_id, key = registered.run_id, registered.key
    version = registry.register(registered.uri, run_id, tmp_path / "ensemble", NAME, key=key)
    with pytest.raises(SegmillError, match=rf"Version {version} of {NAME} did not predict: .*\w+Error"):
        preflight(registered.uri, NAME, version, registered.trusted)


@pytest.mark.long
def test_a_version_of_before_has_to_load_and_predict(registered: Registered, judging: Path, tmp_path: Path) -> None:
    uri = registered.uri
    version = register_unsigned(uri, registered.run_id, judging / "ensemble", "before", tmp_path)
    versions.sign_registered(uri, "before", version, registered.key, registered.trusted)
    assert preflight(uri, "before", version, registered.trusted).pixels == 0
