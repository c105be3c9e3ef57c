"""Weights: the evidence counts what the ensemble would predict, and the search finds the best."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.ensembling import select
from segmill.ensembling.job import EnsembleJob
from segmill.ensembling.predict import Ensemble
from segmill.ensembling.select import ValEvidence, build_ensemble, choose_weights, gather_evidence
from segmill.errors import InputError
from segmill.metrics.counts import confusion_counts
from segmill.metrics.scores import miou

CLASSES, IGNORE = 3, 255


class Seeded:
    """Probabilities that depend on the image's bytes and a seed only; ``skill`` pulls them to red // 64."""

    def __init__(self, seed: int, skill: float) -> None:
        self.seed, self.skill = seed, skill

    def predict_probs(self, image_BHWC: np.ndarray) -> np.ndarray:
        probs = []
        for image in image_BHWC:
            random = np.random.default_rng([self.seed, int(image.sum())])
            scores = random.random((CLASSES, *image.shape[:2])).astype(np.float32)
            scores += self.skill * (image[:, :, 0] // 64 == np.arange(CLASSES)[:, None, None])
            probs.append(scores / scores.sum(axis=0))
        return np.stack(probs)


@pytest.fixture
def split(tmp_path: Path) -> PackedSplit:
    """Six images of two sizes; the class is red // 64, a few pixels are unlabelled."""
    random = np.random.default_rng(0)
    with SplitWriter(tmp_path / "val") as writer:
        for index, size in enumerate([(16, 20)] * 4 + [(12, 12)] * 2):
            image = random.integers(0, 192, (*size, 3), dtype=np.uint8)
            mask = (image[:, :, 0] // 64).astype(np.uint8)
            mask[random.random(size) < 0.1] = IGNORE
            writer.add(Sample(f"s{index}", f"g{index}", image, mask))
    return PackedSplit(tmp_path / "val")


def brute_force(members: dict[str, Seeded], weights: np.ndarray, split: PackedSplit, tta_hflip: bool) -> np.ndarray:
    ensemble = Ensemble(members, dict(zip(members, weights, strict=True)), tta_hflip=tta_hflip, facts={})
    maps = ensemble.predict([split.image(i) for i in range(len(split))])
    return sum(confusion_counts(split.mask(i), ids, CLASSES, IGNORE) for i, ids in enumerate(maps))


@pytest.mark.parametrize("tta_hflip", [False, True])
def test_evidence_counts_what_the_ensemble_would_predict(split: PackedSplit, tta_hflip: bool) -> None:
    members = {"a": Seeded(1, 0.3), "b": Seeded(2, 0.6), "c": Seeded(3, 0.1)}
    evidence = gather_evidence(members, split, num_classes=CLASSES, ignore_id=IGNORE, tta_hflip=tta_hflip)
    assert 0 < evidence.agreed_KK.sum() < sum((split.mask(i) != IGNORE).sum() for i in range(len(split)))
    for weights in np.array([[1, 0, 0], [0.2, 0.5, 0.3], [1 / 3] * 3]):
        difference = evidence.counts(weights, pixels_at_once=100) - brute_force(members, weights, split, tta_hflip)
        # float16 may turn a pixel whose classes are within a thousandth of each other.
        assert np.abs(difference).sum() <= 2 * 3


def test_the_best_weights_beat_every_member_and_equal_weights(split: PackedSplit) -> None:
    members = {"poor": Seeded(1, 0.0), "fair": Seeded(2, 0.5), "good": Seeded(3, 0.6)}
    evidence = gather_evidence(members, split, num_classes=CLASSES, ignore_id=IGNORE, tta_hflip=False)
    weights = choose_weights(evidence)
    assert weights.sum() == pytest.approx(1) and (weights >= 0).all()
    assert weights[0] < min(weights[1:])
    rivals = [*np.eye(3), np.full(3, 1 / 3)]
    assert evidence.miou(weights) > max(evidence.miou(rival) for rival in rivals)
    assert np.array_equal(weights, choose_weights(evidence))


def test_a_hopeless_member_gets_no_vote() -> None:
    """One member is always right, the other always wrong, and louder."""
    truth = np.array([0, 1] * 50, np.uint8)
    right = np.stack([truth == 0, truth == 1]) * 0.2 + 0.4
    wrong = np.stack([truth == 1, truth == 0]).astype(float)
    evidence = ValEvidence(np.zeros((2, 2), np.int64), truth, np.stack([right, wrong]).astype(np.float16))
    weights = choose_weights(evidence)
    assert evidence.miou(weights) == 1 and weights[0] > 0.8


def test_members_that_agree_share_the_vote() -> None:
    evidence = ValEvidence(np.diag([5, 5]), np.zeros(0, np.uint8), np.zeros((3, 2, 0), np.float16))
    assert choose_weights(evidence).tolist() == [1 / 3] * 3
    assert evidence.miou(np.eye(3)[0]) == 1


def test_a_large_split_is_sampled_within_bounds(split: PackedSplit, monkeypatch: pytest.MonkeyPatch) -> None:
    members = {"a": Seeded(1, 0.3), "b": Seeded(2, 0.6)}
    monkeypatch.setattr(select, "MAX_VALUES", 2 * CLASSES * len(split) * 50)
    evidence = gather_evidence(members, split, num_classes=CLASSES, ignore_id=IGNORE, tta_hflip=False)
    assert evidence.agreed_KK.sum() + len(evidence.truth_P) == 50 * len(split)
    again = gather_evidence(members, split, num_classes=CLASSES, ignore_id=IGNORE, tta_hflip=False)
    assert np.array_equal(evidence.probs_MKP, again.probs_MKP)


def test_refuses_an_empty_split_and_other_classes(split: PackedSplit, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="Member a knows 3 classes, the data 4"):
        gather_evidence({"a": Seeded(1, 0)}, split, num_classes=4, ignore_id=IGNORE, tta_hflip=False)
    with SplitWriter(tmp_path / "blank") as writer:
        writer.add(Sample("s", "g", np.zeros((4, 4, 3), np.uint8), np.full((4, 4), IGNORE, np.uint8)))
    with pytest.raises(InputError, match="val split has no labelled pixel"):
        gather_evidence(
            {"a": Seeded(1, 0)}, PackedSplit(tmp_path / "blank"), num_classes=3, ignore_id=IGNORE, tta_hflip=False
        )
    with SplitWriter(tmp_path / "empty"):
        pass
    with pytest.raises(InputError, match="val split is empty"):
        gather_evidence(
            {"a": Seeded(1, 0)}, PackedSplit(tmp_path / "empty"), num_classes=3, ignore_id=IGNORE, tta_hflip=False
        )


def test_the_folder_holds_everything_and_loads(judging: Path) -> None:
    """Real members: what ensemble.json promises on val is what the loaded ensemble does there."""
    facts = json.loads((judging / "ensemble" / "ensemble.json").read_text())
    assert list(facts["weights"]) == ["small", "other"]
    assert facts["val"]["ensemble"] >= max(facts["val"]["members"].values())
    ensemble = Ensemble.load(judging / "ensemble")
    val = PackedSplit(judging / "packed" / "val")
    maps = ensemble.predict([val.image(i) for i in range(len(val))])
    counts = sum(confusion_counts(val.mask(i), ids, 5, 255) for i, ids in enumerate(maps))
    assert miou(counts) == pytest.approx(facts["val"]["ensemble"], abs=0.002)
    assert {path.name for path in (judging / "ensemble" / "members" / "small").iterdir()} >= {
        "weights.safetensors", "member.json", "curves.csv",
    }  # fmt: skip


def test_idle_members_load_only_when_asked_for(judging: Path, tmp_path: Path) -> None:
    folders = {name: judging / "members" / name for name in ("small", "other")}
    out_dir = tmp_path / "ensemble"
    job = EnsembleJob(member_dirs=folders, packed_dir=judging / "packed", out_dir=out_dir, tta_hflip=False)
    build_ensemble(job)
    path = tmp_path / "ensemble" / "ensemble.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": {"small": 1.0, "other": 0.0}}))
    assert list(Ensemble.load(tmp_path / "ensemble").members) == ["small"]
    assert list(Ensemble.load(tmp_path / "ensemble", idle=True).members) == ["small", "other"]
