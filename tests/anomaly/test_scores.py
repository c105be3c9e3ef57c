"""Scores of a network's logits are pytorch-ood's; watching changes no bit of a prediction."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from pytorch_ood.detector import EnergyBased, MaxLogit
from sklearn.metrics import roc_auc_score

from segmill.anomaly.scores import auroc, entropy, usual
from segmill.ensembling.predict import Ensemble
from segmill.models.members import Member, MemberSpec, build


@pytest.fixture(scope="module")
def ensemble() -> Ensemble:
    members = {}
    for seed, name in enumerate(("one", "two")):
        torch.manual_seed(seed)
        spec = MemberSpec(name, "resnet18", "unet", num_classes=3, decoder_width=0.25)
        members[name] = Member(spec, build(spec), torch.device("cpu"))
    return Ensemble(members, {"one": 0.75, "two": 0.25}, tta_hflip=True, facts={})


@pytest.fixture(scope="module")
def image_BHWC() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (2, 48, 70, 3), dtype=np.uint8)


def test_logit_scores_are_those_of_pytorch_ood(ensemble: Ensemble, image_BHWC: np.ndarray) -> None:
    probs_BKHW, watched = ensemble.watch(image_BHWC, ("energy", "max_logit", "entropy", "disagreement"), "one")
    module = ensemble.members["one"].module
    with torch.inference_mode():
        logits = module(torch.from_numpy(image_BHWC), heads=False)["logits"].float()
    assert watched.pixel["energy"] == pytest.approx(EnergyBased.score(logits).numpy(), abs=1e-4)
    assert watched.pixel["max_logit"] == pytest.approx(MaxLogit.score(logits).numpy(), abs=1e-4)
    assert watched.image("energy") == pytest.approx(EnergyBased.score(logits).mean(dim=(1, 2)).numpy(), abs=1e-4)
    assert np.array_equal(probs_BKHW, ensemble.predict_probs(image_BHWC))
    assert watched.features_BD is not None and watched.features_BD.shape[0] == 2


def test_a_detector_of_features_alone_computes_no_logit_scores(ensemble: Ensemble, image_BHWC: np.ndarray) -> None:
    probs_BKHW, watched = ensemble.watch(image_BHWC, (), "one")
    _, whole = ensemble.watch(image_BHWC, ("energy",), "one")
    assert watched.pixel == {} and np.array_equal(watched.features_BD, whole.features_BD)
    assert np.array_equal(probs_BKHW, ensemble.predict_probs(image_BHWC))


def test_disagreement_is_what_is_left_of_the_entropy(ensemble: Ensemble, image_BHWC: np.ndarray) -> None:
    _, watched = ensemble.watch(image_BHWC, ("entropy", "disagreement"))
    mean = ensemble.predict_probs(image_BHWC).astype(np.float64)
    own = {name: probs.astype(np.float64) for name, probs in ensemble.member_probs(image_BHWC)}
    kl = sum(
        ensemble.weights[name] * (probs * np.log(probs / mean)).sum(axis=1)  # Jensen-Shannon: another way to it
        for name, probs in own.items()
    )
    assert watched.pixel["disagreement"] == pytest.approx(kl, abs=1e-5)
    assert (watched.pixel["entropy"] >= watched.pixel["disagreement"] - 1e-6).all()


def test_entropy_of_certainty_and_of_none() -> None:
    probs = np.zeros((1, 4, 1, 2), np.float32)
    probs[0, 0, 0, 0], probs[0, :, 0, 1] = 1, 0.25
    assert entropy(probs)[0, 0] == pytest.approx([0, np.log(4)], abs=1e-6)


@pytest.mark.parametrize("seed", range(5))
def test_auroc_is_that_of_scikit_learn(seed: int) -> None:
    random = np.random.default_rng(seed)
    usual_N, unusual_M = random.integers(0, 6, 30).astype(float), random.integers(1, 8, 17).astype(float)
    truth = [0] * 30 + [1] * 17
    assert auroc(usual_N, unusual_M) == pytest.approx(roc_auc_score(truth, np.concatenate([usual_N, unusual_M])))


def test_what_is_usual_does_not_move_with_an_outlier() -> None:
    scores = np.random.default_rng(1).normal(5, 2, 1000)
    found, with_outlier = usual(scores), usual(np.append(scores, 1e9))
    assert found.median == pytest.approx(5, abs=0.2) and found.spread == pytest.approx(2, rel=0.1)
    assert with_outlier.median == pytest.approx(found.median, abs=0.02)
    assert found.distance(np.array([found.median - 3 * found.spread]))[0] == pytest.approx(3)
    assert usual(np.full(4, 7.0)).spread > 0
