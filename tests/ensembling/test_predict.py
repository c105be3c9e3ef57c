"""An ensemble's arithmetic, with members whose answer is known, and its way back from disk with real ones."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from segmill.ensembling.predict import Ensemble, as_images, batches, read_ensemble
from segmill.errors import InputError


class Constant:
    """Says the same probabilities everywhere."""

    def __init__(self, *probs: float) -> None:
        self.probs_K = np.array(probs, np.float32)
        self.batches: list[tuple[int, ...]] = []

    def predict_probs(self, image_BHWC: np.ndarray) -> np.ndarray:
        self.batches.append(image_BHWC.shape)
        shape = (len(image_BHWC), len(self.probs_K), *image_BHWC.shape[1:3])
        return np.broadcast_to(self.probs_K[:, None, None], shape).copy()


class LeftIsOne:
    """Says class 1 left of the middle, class 0 right of it, whatever the image."""

    def predict_probs(self, image_BHWC: np.ndarray) -> np.ndarray:
        probs = np.zeros((len(image_BHWC), 2, *image_BHWC.shape[1:3]), np.float32)
        middle = image_BHWC.shape[2] // 2
        probs[:, 1, :, :middle] = 1
        probs[:, 0, :, middle:] = 1
        return probs


class WithHeads(Constant):
    """Says how bright an image is, as the presence of both classes, and that all of it is boundary."""

    kept_heads = ("presence", "boundary")

    def predict_heads(self, image_BHWC: np.ndarray) -> dict[str, np.ndarray]:
        brightness_B1 = image_BHWC.mean(axis=(1, 2, 3), keepdims=False)[:, None].astype(np.float32)
        boundary = np.ones((len(image_BHWC), 1, *image_BHWC.shape[1:3]), np.float32)
        return {"presence": brightness_B1.repeat(2, axis=1), "boundary": boundary}


def images(*sizes: tuple[int, int]) -> list[np.ndarray]:
    return [np.zeros((*size, 3), np.uint8) for size in sizes]


def test_probabilities_are_the_weighted_mean() -> None:
    members = {"a": Constant(0.9, 0.1), "b": Constant(0.2, 0.8)}
    ensemble = Ensemble(members, {"a": 0.25, "b": 0.75}, tta_hflip=False, facts={})
    probs = ensemble.predict_probs(np.zeros((2, 3, 4, 3), np.uint8))
    assert probs.shape == (2, 2, 3, 4) and probs.dtype == np.float32
    np.testing.assert_allclose(probs[1, :, 2, 3], [0.25 * 0.9 + 0.75 * 0.2, 0.25 * 0.1 + 0.75 * 0.8], rtol=1e-6)


def test_flips_average_with_the_mirror_image() -> None:
    ensemble = Ensemble({"a": LeftIsOne()}, {"a": 1.0}, tta_hflip=True, facts={})
    probs = ensemble.predict_probs(np.zeros((1, 2, 4, 3), np.uint8))
    assert np.array_equal(probs, np.full((1, 2, 2, 4), 0.5))
    plain = Ensemble({"a": LeftIsOne()}, {"a": 1.0}, tta_hflip=False, facts={})
    assert plain.predict(np.zeros((1, 1, 4, 3), np.uint8)).tolist() == [[[1, 1, 0, 0]]]


def test_a_list_of_sizes_comes_back_in_its_order_and_sizes() -> None:
    ensemble = Ensemble({"a": LeftIsOne()}, {"a": 1.0}, tta_hflip=False, facts={})
    maps = ensemble.predict(images((2, 4), (2, 4), (3, 6), (2, 4)))
    assert [one.shape for one in maps] == [(2, 4), (2, 4), (3, 6), (2, 4)]
    assert all(one.dtype == np.uint8 for one in maps)
    assert maps[2].tolist() == [[1, 1, 1, 0, 0, 0]] * 3
    ids, probs = ensemble.predict_both(images((2, 4), (3, 6)))
    assert ids[1].tolist() == maps[2].tolist() and probs[1].shape == (2, 3, 6)


def test_equal_sizes_go_together_up_to_the_limit() -> None:
    stacks = [stack.shape[:3] for stack in batches(images((2, 2), (2, 2), (2, 2), (1, 4), (2, 2)), pixels=8)]
    assert stacks == [(2, 2, 2), (1, 2, 2), (1, 1, 4), (1, 2, 2)]
    assert [stack.shape[0] for stack in batches(images((9, 9), (9, 9)), pixels=8)] == [1, 1]


def test_grey_is_repeated_and_json_lists_are_read() -> None:
    grey = np.full((2, 2, 1), 7, np.uint8)
    assert as_images([grey])[0].tolist() == [[[7, 7, 7]] * 2] * 2
    assert as_images([[[[1, 2, 3]]]])[0].dtype == np.uint8
    assert as_images([np.array([[[1, 2, 3, 99]]], np.uint8)])[0].tolist() == [[[1, 2, 3]]], "alpha is dropped"
    assert as_images([np.array([[[7, 99]]], np.uint8)])[0].tolist() == [[[7, 7, 7]]]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (np.zeros((2, 2, 3), np.uint8), r"give a batch B x H x W x C"),
        ([], "No image came"),
        ([np.zeros((2, 2), np.uint8)], r"Image 0 has shape \(2, 2\)"),
        ([np.zeros((2, 2, 3), np.uint8), np.zeros((2, 2, 5), np.uint8)], r"Image 1 has shape \(2, 2, 5\)"),
        ([np.full((2, 2, 3), 0.5)], r"Image 0 is float64 .* not scaled to 0\.\.1"),
        ([np.full((2, 2, 3), 300)], r"Image 0 is int64 in 300\.\.300"),
        ([[[1, 2], [3]]], "Image 0 is no array"),
        ([np.zeros((0, 2, 3), np.uint8)], r"Image 0 has shape \(0, 2, 3\)"),
    ],
)
def test_refuses_what_is_no_image(given: object, message: str) -> None:
    with pytest.raises(InputError, match=message):
        as_images(given)


def test_a_folder_that_is_no_ensemble(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the ensemble stage first"):
        read_ensemble(tmp_path)
    (tmp_path / "ensemble.json").write_text('{"format": 99}')
    with pytest.raises(InputError, match="format 99; this segmill reads 1"):
        read_ensemble(tmp_path)


def test_auxiliary_heads_are_answered_by_member_for_an_array_and_for_a_list() -> None:
    members = {"plain": Constant(0.5, 0.5), "rich": WithHeads(0.5, 0.5)}
    ensemble = Ensemble(members, {"plain": 0.5, "rich": 0.5}, tta_hflip=True, facts={})
    batch = np.stack([np.full((3, 4, 3), 10, np.uint8), np.full((3, 4, 3), 20, np.uint8)])
    said = ensemble.predict_aux(batch)
    assert set(said) == {"rich"} and set(said["rich"]) == {"presence", "boundary"}
    assert said["rich"]["presence"].tolist() == [[10, 10], [20, 20]]
    assert said["rich"]["boundary"].shape == (2, 1, 3, 4)
    listed = ensemble.predict_aux([batch[0], np.full((5, 2, 3), 30, np.uint8), batch[1]])["rich"]
    assert [one.tolist() for one in listed["presence"]] == [[10, 10], [30, 30], [20, 20]]
    assert [one.shape for one in listed["boundary"]] == [(1, 3, 4), (1, 5, 2), (1, 3, 4)]


def test_a_model_without_auxiliary_heads_says_how_to_get_them() -> None:
    bare = WithHeads(0.5, 0.5)
    bare.kept_heads = ()  # type: ignore[assignment]
    ensemble = Ensemble({"a": Constant(1.0), "b": bare}, {"a": 0.5, "b": 0.5}, tta_hflip=False, facts={})
    with pytest.raises(InputError, match="no member of this model has auxiliary heads; train one with aux_heads"):
        ensemble.predict_aux(np.zeros((1, 2, 2, 3), np.uint8))
