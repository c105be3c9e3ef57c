"""Versions are fetched, verified and loaded from that copy: what was changed in the store is refused and never runs."""

from __future__ import annotations

import json
import os
import shutil
import stat
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from registering import NAME, Registered, register_unsigned

from segmill import tracking
from segmill.anomaly.detector import Detector, save_detector
from segmill.anomaly.policy import AnomalyPolicy
from segmill.anomaly.scores import Usual
from segmill.metrics.conformal import usual_scores
from segmill.promotion import registry, signing, versions
from segmill.promotion.keys import SignatureError, TrustedKeys
from segmill.promotion.registered import loaded, score_registered
from segmill.promotion.score_job import ScoreJob

IMAGE_BHWC = np.zeros((1, 32, 32, 3), np.uint8)


@pytest.fixture
def store(registered: Registered, tmp_path: Path) -> Iterator[Path]:
    """The version's files, to change; they are put back."""
    kept = tmp_path / "kept"
    shutil.copytree(registered.folder, kept)
    yield registered.folder
    shutil.rmtree(registered.folder)
    shutil.copytree(kept, registered.folder)


def refuse(registered: Registered, to: Path, says: str, version: str = "1") -> None:
    with pytest.raises(SignatureError, match=says) as refused:
        versions.fetch_verified(registered.uri, NAME, version, registered.trusted, to=to)
    assert "\n" not in str(refused.value)


def test_a_copy_is_whole_and_private(registered: Registered, tmp_path: Path) -> None:
    folder = versions.fetch_verified(registered.uri, NAME, "1", registered.trusted, to=tmp_path / "copy")
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    stored = {path.relative_to(registered.folder) for path in registered.files}
    assert {path.relative_to(folder) for path in folder.rglob("*") if path.is_file()} == stored
    manifest = signing.read_manifest(folder, registered.trusted)
    assert manifest.sha256 == versions.check_signed(registered.uri, NAME, "1", registered.trusted)
    assert len(manifest.files) == len(stored) - 2
    assert not any(os.path.samefile(folder / path, registered.folder / path) for path in stored)


@pytest.mark.slow
def test_flipped_weights_and_an_added_line_are_refused_and_the_line_never_runs(
    registered: Registered, store: Path, judging: Path, tmp_path: Path
) -> None:
    ran = tmp_path / "ran"
    served, weights = store / "served.py", next(store.rglob("weights.safetensors"))
    with served.open("a") as file:
        file.write(f"\nopen({str(ran)!r}, 'w').close()\n")
    refused = pytest.raises(SignatureError, match=r"version 1 of .* is not used: served.py was changed after")
    with refused, loaded(registered.uri, NAME, "1", registered.trusted):
        raise AssertionError("it was loaded")
    content = bytearray(weights.read_bytes())
    content[-7] ^= 16
    weights.write_bytes(content)
    job = ScoreJob(
        uri=registered.uri, model_name=NAME, version="1", trusted=registered.trusted, packed_dir=judging / "packed"
    )
    with pytest.raises(SignatureError, match="was changed after"):
        score_registered(job)
    served.write_bytes(served.read_bytes().rpartition(b"\nopen")[0])
    refuse(registered, tmp_path / "copy", r"weights\.safetensors was changed")
    member = weights.parent.name
    with pytest.raises(SignatureError, match=r"weights\.safetensors was changed"):
        versions.fetch_member(registered.uri, NAME, "1", member, registered.trusted, to=tmp_path / "member")
    assert not ran.exists() and not (tmp_path / "member").exists()


@pytest.mark.slow
@pytest.mark.long
def test_loading_leaves_the_store_as_it_was_and_shows_no_address(registered: Registered, store: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in store.parent.rglob("*")}
    with loaded(registered.uri, NAME, "1", registered.trusted) as ask:
        assert ask(IMAGE_BHWC).shape == (1, 32, 32)
        ids_BHW, judged = ask.judged(IMAGE_BHWC)
        assert np.array_equal(ids_BHW, ask(IMAGE_BHWC)) and judged == [None], "it has no detector"
        children = Path(f"/proc/self/task/{os.getpid()}/children").read_text().split()
        shown = [Path(f"/proc/{child}/cmdline").read_bytes() for child in children]
        replay = next(line for line in shown if b"replay.py" in line)
        assert registered.uri.encode() not in replay and b"sqlite" not in replay
    assert {path: path.stat().st_mtime_ns for path in store.parent.rglob("*")} == before


def unusual_is_everything() -> Detector:
    """Return a detector that takes every image for more unusual than those it was calibrated with."""
    scores = np.linspace(-2, -1, 40)
    return Detector(
        policy=AnomalyPolicy(0.05, abstain=True), image_score="entropy", pixel_score="entropy", member="",
        usual={"entropy": Usual(0.0, 1.0)}, space=None,
        calibration={"": usual_scores(scores, [f"g{number}" for number in range(40)])}, group_scores_G=scores,
        pixel_levels_Q=np.linspace(0, 1, 255).astype(np.float32),
    )  # fmt: skip


@pytest.mark.slow
def test_a_loaded_version_says_how_unusual_an_image_is_where_it_has_a_detector(
    registered: Registered, judging: Path, tmp_path: Path
) -> None:
    shutil.copytree(judging / "ensemble", tmp_path / "ensemble")
    save_detector(tmp_path / "ensemble", unusual_is_everything())
    version = registry.register(
        registered.uri, registered.run_id, tmp_path / "ensemble", "detecting", key=registered.key
    )
    with loaded(registered.uri, "detecting", version, registered.trusted) as ask:
        ids_BHW, judged = ask.judged(np.repeat(IMAGE_BHWC, 2, axis=0))
        assert ids_BHW.shape == (2, 32, 32)
        assert [(one["p_value"], one["abstain"]) for one in judged if one] == [(round(1 / 41, 6), True)] * 2
        assert np.array_equal(ask(IMAGE_BHWC)[0], ids_BHW[0])


def test_compiled_code_in_the_store_is_not_copied(registered: Registered, store: Path, tmp_path: Path) -> None:
    """A plain `mlflow.pyfunc.load_model` leaves it there."""
    (store / "__pycache__").mkdir(exist_ok=True)
    (store / "__pycache__" / "served.cpython-311.pyc").write_bytes(b"no code")
    folder = versions.fetch_verified(registered.uri, NAME, "1", registered.trusted, to=tmp_path / "copy")
    assert not list(folder.rglob("__pycache__"))


def test_the_folder_of_another_version_is_refused(
    registered: Registered, store: Path, judging: Path, tmp_path: Path
) -> None:
    """Each folder is signed; which one is a version's is said, signed, in its tag."""
    changed = tmp_path / "ensemble"
    shutil.copytree(judging / "ensemble", changed)
    facts = json.loads((changed / "ensemble.json").read_text())
    (changed / "ensemble.json").write_text(json.dumps(facts | {"flips": True}))
    other = registry.register(registered.uri, registered.run_id, changed, NAME, key=registered.key)
    with tracking.reaching(registered.uri) as client:
        source = Path(client.get_model_version_download_uri(NAME, other).removeprefix("file://"))
        tags = client.get_model_version(NAME, other).tags
    versions.fetch_verified(registered.uri, NAME, other, registered.trusted, to=tmp_path / "other")
    shutil.rmtree(store)
    shutil.copytree(source, store)
    refuse(registered, tmp_path / "copy", "signed, but as another version's")
    with tracking.reaching(registered.uri) as client:
        own = client.get_model_version(NAME, "1").tags[versions.SIGNATURE_TAG]
        client.set_model_version_tag(NAME, "1", versions.SIGNATURE_TAG, tags[versions.SIGNATURE_TAG])
        refuse(registered, tmp_path / "copy", "does not fit")
        client.set_model_version_tag(NAME, "1", versions.SIGNATURE_TAG, own)


def test_a_version_that_nobody_signed_says_what_helps(registered: Registered, judging: Path, tmp_path: Path) -> None:
    """As versions of an earlier segmill are: no manifest, no tag."""
    uri, run_id = registered.uri, registered.run_id
    assert register_unsigned(uri, run_id, judging / "ensemble", "old", tmp_path) == "1"
    with pytest.raises(
        SignatureError, match=r"version 1 of old is not used: it is not signed; `segmill signing sign 1`"
    ):
        versions.fetch_verified(uri, "old", "1", registered.trusted, to=tmp_path / "copy")
    with pytest.raises(SignatureError, match="`segmill signing sign 1` signs it as it is now"):
        registry.register(uri, run_id, judging / "ensemble", "old", key=registered.key)
    manifest, signed = versions.sign_registered(uri, "old", "1", registered.key, registered.trusted)
    assert signed
    folder = versions.fetch_verified(uri, "old", "1", registered.trusted, to=tmp_path / "signed")
    assert signing.read_manifest(folder, registered.trusted) == manifest
    assert registry.register(uri, run_id, judging / "ensemble", "old", key=registered.key) == "1"
    assert versions.sign_registered(uri, "old", "1", registered.key, registered.trusted) == (manifest, False)
    stored = next(registered.artifacts.rglob("old/served.py"))
    stored.write_text(f"{stored.read_text()}\nimport os\n")
    with tracking.reaching(uri) as client:
        client.delete_model_version_tag("old", "1", versions.SIGNATURE_TAG)  # so that it looks like one of before
    with pytest.raises(SignatureError, match=r"served\.py was changed after it was signed"):
        versions.sign_registered(uri, "old", "1", registered.key, registered.trusted)


def test_a_registration_that_was_cut_short_is_repaired(registered: Registered, judging: Path, tmp_path: Path) -> None:
    with tracking.reaching(registered.uri) as client:
        client.delete_model_version_tag(NAME, "1", versions.SIGNATURE_TAG)
    refuse(registered, tmp_path / "copy", "it is not signed")
    run_id, ensemble = registered.run_id, judging / "ensemble"
    assert registry.register(registered.uri, run_id, ensemble, NAME, key=registered.key) == "1"
    versions.fetch_verified(registered.uri, NAME, "1", registered.trusted, to=tmp_path / "copy")


def test_a_key_that_is_not_listed_is_named(registered: Registered, tmp_path: Path) -> None:
    with pytest.raises(SignatureError, match=r"which my list does not list .*; `segmill signing trust`"):
        versions.fetch_verified(registered.uri, NAME, "1", TrustedKeys((), "my list"), to=tmp_path / "copy")


def test_a_member_is_fetched_alone(registered: Registered, judging: Path, tmp_path: Path) -> None:
    fetched = versions.fetch_member(registered.uri, NAME, "1", "small", registered.trusted, to=tmp_path / "small")
    assert fetched
    expected = judging / "ensemble" / "members" / "small"
    assert signing.ensemble_digest(tmp_path / "small") == signing.ensemble_digest(expected)
    assert not versions.fetch_member(registered.uri, NAME, "1", "none", registered.trusted, to=tmp_path / "none")
