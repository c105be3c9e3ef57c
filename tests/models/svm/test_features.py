from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch.nn import functional as F

from segmill.errors import InputError
from segmill.models.svm.features import FrozenBackbone, Views, all_channels, pixel_features, spatial, texture
from segmill.models.weights import Weights

GENERATOR = np.random.default_rng(0)
IMAGE_HWC = GENERATOR.integers(0, 256, (20, 30, 3), np.uint8)


@pytest.fixture(scope="module")
def cnn() -> FrozenBackbone:
    torch.manual_seed(0)
    backbone = FrozenBackbone("mobilenetv3_small_050", (0.5,) * 3, (0.25,) * 3)
    backbone.fit_projections([GENERATOR.integers(0, 256, (64, 96, 3), np.uint8) for _ in range(3)])
    return backbone


def of_lightness(lightness_HW: np.ndarray) -> Views:
    rgb_HWC = np.repeat(lightness_HW[:, :, None], 3, axis=2).astype(np.float32)
    lab_HWC = np.stack([100 * lightness_HW, 0 * lightness_HW, 0 * lightness_HW], axis=2).astype(np.float32)
    return Views(rgb_HWC, rgb_HWC, lab_HWC)


def test_colour_of_pure_red() -> None:
    features_CHW = pixel_features(np.full((2, 3, 3), (255, 0, 0), np.uint8), all_channels(["colour"]))
    # R G B; hue 0 and saturation 1; value 1; Lab of sRGB red under D65
    expected = [1, 0, 0, 1, 0, 1, 53.24, 80.09, 67.20]
    np.testing.assert_allclose(features_CHW[:, 1, 2], expected, atol=0.1)


def test_channels_are_as_documented(cnn: FrozenBackbone) -> None:
    channels = all_channels(["colour", "texture", "spatial", "cnn"], cnn)
    assert {family: len(numbers) for family, numbers in channels.items()} == {
        "colour": 9, "texture": 36, "spatial": 3, "cnn": cnn.channels,
    }  # fmt: skip
    assert cnn.channels <= 4 * 12
    features_CHW = pixel_features(IMAGE_HWC, channels, cnn)
    assert features_CHW.shape == (48 + cnn.channels, 20, 30) and features_CHW.dtype == np.float32
    assert np.isfinite(features_CHW).all()


def test_only_what_is_wanted_comes_in_its_order(cnn: FrozenBackbone) -> None:
    whole = pixel_features(IMAGE_HWC, all_channels(["colour", "texture"]))
    some = pixel_features(IMAGE_HWC, {"texture": (3, 0), "colour": (8,)})
    np.testing.assert_array_equal(some, whole[[9 + 3, 9 + 0, 8]])


def test_spatial_runs_from_edge_to_edge() -> None:
    x, y, distance = spatial(of_lightness(np.zeros((3, 5))))
    assert x[0].tolist() == [-1, -0.5, 0, 0.5, 1] and y[:, 0].tolist() == [-1, 0, 1]
    assert distance[1, 2] == 0 and distance[0, 4] == pytest.approx(2**0.5)


@pytest.mark.parametrize("size", [(1, 1), (1, 7), (3, 2)])
def test_images_of_few_pixels_have_features(size: tuple[int, int]) -> None:
    features_CHW = pixel_features(np.full((*size, 3), 90, np.uint8), all_channels(["colour", "texture", "spatial"]))
    assert features_CHW.shape == (48, *size) and np.isfinite(features_CHW).all()


def test_a_ramp_has_its_slope_as_gradient_at_every_scale() -> None:
    maps = texture(of_lightness(np.tile(np.linspace(0, 1, 201), (201, 1))))
    middle = [plane[100, 100] for plane in maps]
    for number, sigma in enumerate((1, 2, 4, 8)):
        gradient, hessian_1, hessian_2, tensor_1, tensor_2 = middle[5 * number : 5 * number + 5]
        assert gradient == pytest.approx(sigma / 200, rel=1e-3)
        assert tensor_1 == pytest.approx(sigma / 200, rel=1e-3)  # root of the larger eigenvalue: the slope again
        assert max(abs(hessian_1), abs(hessian_2), tensor_2) < 2e-3 * sigma


def test_a_parabola_has_its_curvature_as_hessian() -> None:
    x = np.arange(101) - 50
    maps = texture(of_lightness(np.tile(x * x / 5000, (101, 1))))
    assert maps[1][50, 50] == pytest.approx(2 / 5000, rel=1e-2)  # second derivative across, at scale 1
    assert maps[2][50, 50] == pytest.approx(0, abs=1e-5)


def test_local_mean_and_deviation_are_those_of_the_window() -> None:
    lightness_HW = np.random.default_rng(1).random((31, 31))
    maps = texture(of_lightness(lightness_HW))
    mean, deviation = maps[20], maps[21]
    window = lightness_HW[13:18, 8:13]
    assert mean[15, 10] == pytest.approx(window.mean(), rel=1e-4)
    assert deviation[15, 10] == pytest.approx(window.std(), rel=1e-3)


def test_projecting_before_enlarging_is_projecting_after(cnn: FrozenBackbone) -> None:
    image_HWC = GENERATOR.integers(0, 256, (64, 96, 3), np.uint8)
    with torch.inference_mode():
        maps = np.stack(cnn(image_HWC))
        wide = [
            projection(F.interpolate(stage, (64, 96), mode="bilinear", align_corners=False))
            for projection, stage in zip(cnn.projections, cnn.stages(image_HWC), strict=True)
        ]
    np.testing.assert_allclose(maps, torch.cat(wide, dim=1)[0].numpy(), atol=1e-3)


def test_projections_are_sklearns_principal_components() -> None:
    from sklearn.decomposition import PCA

    torch.manual_seed(0)
    cnn = FrozenBackbone("mobilenetv3_small_050", (0.5,) * 3, (0.25,) * 3)
    images = [GENERATOR.integers(0, 256, (64, 64, 3), np.uint8) for _ in range(4)]
    cnn.fit_projections(images)
    stages = [cnn.stages(image)[0] for image in images]
    points_PC = np.concatenate([stage[0].flatten(1).T.numpy() for stage in stages]).astype(np.float64)
    expected = PCA(3).fit_transform(points_PC)
    projected = np.concatenate([cnn.projections[0](stage)[0].flatten(1).T.numpy() for stage in stages])[:, :3]
    np.testing.assert_allclose(np.abs(projected), np.abs(expected), atol=1e-3 * np.abs(expected).max())


def test_the_backbone_takes_pretrained_weights_and_any_size(cnn: FrozenBackbone, tmp_path: Path) -> None:
    save_file(cnn.encoder.state_dict(), tmp_path / "w.safetensors")
    torch.manual_seed(9)
    other = FrozenBackbone("mobilenetv3_small_050", (0.5,) * 3, (0.25,) * 3)
    other.load_pretrained(Weights("file:w", None, tmp_path / "w.safetensors"))
    for mine, theirs in zip(other.stages(IMAGE_HWC), cnn.stages(IMAGE_HWC), strict=True):
        torch.testing.assert_close(mine, theirs)
    assert len(cnn(IMAGE_HWC)) == cnn.channels and cnn(IMAGE_HWC)[0].shape == (20, 30)


def test_an_unknown_backbone_is_one_sentence() -> None:
    with pytest.raises(InputError, match="did you mean 'resnet18'"):
        FrozenBackbone("resnet188", (0.5,) * 3, (0.25,) * 3)
