"""Fitting a detector: chosen on val, calibrated on its own groups, found again with the ensemble."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from segmill.anomaly.corruptions import corrupt
from segmill.anomaly.detector import AnomalyPolicy, load_detector, save_detector
from segmill.data.ingest.builtin import draw_street
from segmill.data.packing.calibration import write_values
from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.ensembling.detecting import fit_detector, watched_member
from segmill.ensembling.predict import Ensemble
from segmill.errors import InputError
from segmill.models.members import Member, MemberSpec, build

SIZE = (64, 80)
POLICY = AnomalyPolicy(0.1, abstain=True, by="camera")


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for split, sequences in {"train": range(0, 6), "val": range(6, 16), "calibration": range(16, 46)}.items():
        with SplitWriter(folder / split) as writer:
            for sequence in sequences:
                for frame in range(2):
                    image, mask = draw_street(SIZE, seed=0, sequence=sequence, frame=frame)
                    writer.add(Sample(f"s{sequence:02d}_{frame}", f"s{sequence:02d}", image, mask))
    (folder / "pack.json").write_text(
        '{"name": "street", "class_names": ["a", "b", "c"], "colors": ["#000000", "#111111", "#222222"], '
        '"ignore_id": 255, "size": null, "mean": [0.5, 0.5, 0.5], "std": [0.2, 0.2, 0.2], '
        '"class_pixels": [1, 1, 1], "samples": {}}'
    )
    ids = PackedSplit(folder / "calibration").ids
    write_values(folder, {one: "front" if one < "s40" else "rear" for one in ids})
    return folder


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    members = {}
    for seed, name in enumerate(("light", "heavy")):
        torch.manual_seed(seed)
        spec = MemberSpec(name, "resnet18", "unet", num_classes=3, decoder_width=0.25)
        members[name] = Member(spec, build(spec), torch.device("cpu"))
    return Ensemble(members, {"light": 0.3, "heavy": 0.7}, tta_hflip=False, facts={})


def test_a_detector_tells_corrupted_images_from_usual_ones(packed: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    detector = fit_detector(ensemble, packed, POLICY)
    assert watched_member(ensemble) == "heavy"
    aurocs = detector.facts["image_auroc"]
    assert set(aurocs) == {"energy", "max_logit", "entropy", "disagreement", "mahalanobis", "largest"}
    assert aurocs[detector.image_score] == max(aurocs.values()) > 0.65
    assert detector.groups == 30 and set(detector.calibration) == {"", "front"}, (
        "rear has 6 groups, a rate of 0.1 takes 9"
    )
    assert detector.space is not None and detector.embedding_NE is not None
    assert len(detector.embedding_NE) == 60 and len(np.unique(detector.group_N)) == 30
    first_HWC = PackedSplit(packed / "calibration").image(0)
    assert detector.confidence_N[0] == pytest.approx(
        ensemble.predict_probs(first_HWC[None]).max(axis=1).mean(), abs=1e-5
    )
    assert np.abs(detector.embedding_NE).max() < 8
    save_detector(tmp_path, detector)
    guarded = Ensemble(ensemble.members, ensemble.weights, tta_hflip=False, facts={}, detector=load_detector(tmp_path))

    new = [draw_street(SIZE, seed=0, sequence=sequence, frame=0)[0] for sequence in range(50, 80)]
    noisy = [corrupt(image, "shot_noise", 5, seed) for seed, image in enumerate(new)]
    usual, unusual = (guarded.predict_anomaly(images, value="front") for images in (new, noisy))
    assert np.mean(usual["abstain"]) <= 0.3 and np.mean(unusual["abstain"]) >= 0.9
    assert np.median(usual["p_value"]) > 0.2 and min(unusual["p_value"]) > 0

    probs, judged = guarded.predict_judged(np.stack(new[:2]), maps=True)
    assert np.array_equal(probs, ensemble.predict_probs(np.stack(new[:2])))
    assert all(one is not None and one.map_HW is not None and one.map_HW.shape == SIZE for one in judged)


def test_the_same_inputs_make_the_same_files(packed: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        save_detector(tmp_path / name, fit_detector(ensemble, packed, POLICY))
    first, second = ({path.name: path.read_bytes() for path in (tmp_path / name).iterdir()} for name in ("a", "b"))
    assert first == second


def test_without_groups_there_is_nothing_to_calibrate_with(packed: Path, ensemble: Ensemble, tmp_path: Path) -> None:
    (tmp_path / "val").symlink_to(packed / "val")
    with SplitWriter(tmp_path / "calibration"):
        pass
    with pytest.raises(InputError, match=r"calibration split is empty.*split\.calibration"):
        fit_detector(ensemble, tmp_path, POLICY)
    with pytest.raises(InputError, match="no anomaly detector"):
        ensemble.predict_anomaly([np.zeros((*SIZE, 3), np.uint8)])
