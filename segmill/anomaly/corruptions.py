"""Corruptions of images at severities 1 to 5, to measure what a detector notices.

The kinds, and how strong each severity is, follow Hendrycks and Dietterich, "Benchmarking neural network robustness to
common corruptions and perturbations" (2019).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import cv2
import numpy as np
from numpy.typing import NDArray

Image = NDArray[np.uint8]
Random = np.random.Generator
SEVERITIES = (1, 2, 3, 4, 5)


def corrupt(image_HWC: Image, kind: str, severity: int, seed: int = 0) -> Image:
    """Return a corrupted copy of an image HWC uint8, C = 3; the same one for the same arguments.

    Raises KeyError for an unknown kind, IndexError for a severity outside 1 to 5.
    """
    function, strengths = _KINDS[kind]
    if not 1 <= severity <= len(strengths):
        raise IndexError(f"severity {severity} is not among 1 to 5")
    found = function(np.asarray(image_HWC / 255, np.float32), strengths[severity - 1], np.random.default_rng(seed))
    return (np.clip(found, 0, 1) * 255).round().astype(np.uint8)


Floats = NDArray[np.float32]


def _gaussian_noise(image: Floats, strength: float, random: Random) -> Floats:
    return image + random.normal(0, strength, image.shape).astype(np.float32)


def _shot_noise(image: Floats, strength: float, random: Random) -> Floats:
    return np.asarray(random.poisson(image * strength) / strength, np.float32)


def _impulse_noise(image: Floats, strength: float, random: Random) -> Floats:
    hit = random.random(image.shape) < strength
    return np.where(hit, random.integers(0, 2, image.shape), image).astype(np.float32)


def _defocus_blur(image: Floats, strength: float, random: Random) -> Floats:
    radius = int(strength)
    rows, columns = np.mgrid[-radius : radius + 1, -radius : radius + 1]
    disc = (rows**2 + columns**2 <= radius**2).astype(np.float32)
    return np.asarray(cv2.filter2D(image, -1, disc / disc.sum(), borderType=cv2.BORDER_REFLECT), np.float32)


def _motion_blur(image: Floats, strength: float, random: Random) -> Floats:
    length = 2 * int(strength) + 1
    line = np.zeros((length, length), np.float32)
    line[length // 2] = 1
    turned = cv2.warpAffine(
        line, cv2.getRotationMatrix2D((length // 2, length // 2), float(random.uniform(-45, 45)), 1), (length, length)
    )
    return np.asarray(cv2.filter2D(image, -1, turned / turned.sum(), borderType=cv2.BORDER_REFLECT), np.float32)


def _pixelate(image: Floats, strength: float, random: Random) -> Floats:
    height, width = image.shape[:2]
    small = cv2.resize(
        image, (max(1, int(width * strength)), max(1, int(height * strength))), interpolation=cv2.INTER_AREA
    )
    return np.asarray(cv2.resize(small, (width, height), interpolation=cv2.INTER_NEAREST), np.float32)


def _jpeg(image: Floats, strength: float, random: Random) -> Floats:
    done, content = cv2.imencode(".jpg", (image * 255).astype(np.uint8), [cv2.IMWRITE_JPEG_QUALITY, int(strength)])
    pixels = cv2.imdecode(content, cv2.IMREAD_COLOR) if done else None
    assert pixels is not None
    return np.asarray(pixels / 255, np.float32)


def _brighter(image: Floats, strength: float, random: Random) -> Floats:
    return image + np.float32(strength)


def _darker(image: Floats, strength: float, random: Random) -> Floats:
    return np.asarray(image * np.float32(1 - strength))


def _contrast(image: Floats, strength: float, random: Random) -> Floats:
    mean = image.mean(axis=(0, 1), keepdims=True)
    return np.asarray((image - mean) * np.float32(strength) + mean)


def _fog(image: Floats, strength: float, random: Random) -> Floats:
    height, width = image.shape[:2]
    cloud = np.zeros((height, width), np.float32)
    for side in (2, 4, 8, 16, 32):
        grid = random.random((side, side)).astype(np.float32) / side
        cloud += cv2.resize(grid, (width, height), interpolation=cv2.INTER_CUBIC)
    cloud = (cloud - cloud.min()) / max(float(np.ptp(cloud)), 1e-6)
    most = max(float(image.max()), 1e-6)
    mixed = (image + np.float32(strength) * cloud[..., None]) * np.float32(most / (most + strength))
    return np.asarray(mixed, np.float32)


def _colour_shift(image: Floats, strength: float, random: Random) -> Floats:
    gains = 1 + np.float32(strength) * random.choice([-1, 1], 3).astype(np.float32)
    return np.asarray(image * gains, np.float32)


_KINDS: Mapping[str, tuple[Callable[[Floats, float, Random], Floats], tuple[float, ...]]] = {
    "gaussian_noise": (_gaussian_noise, (0.08, 0.12, 0.18, 0.26, 0.38)),
    "shot_noise": (_shot_noise, (60, 25, 12, 5, 3)),
    "impulse_noise": (_impulse_noise, (0.03, 0.06, 0.09, 0.17, 0.27)),
    "defocus_blur": (_defocus_blur, (3, 4, 6, 8, 10)),
    "motion_blur": (_motion_blur, (5, 7, 9, 12, 15)),
    "pixelate": (_pixelate, (0.6, 0.5, 0.4, 0.3, 0.25)),
    "jpeg": (_jpeg, (25, 18, 15, 10, 7)),
    "brighter": (_brighter, (0.1, 0.2, 0.3, 0.4, 0.5)),
    "darker": (_darker, (0.3, 0.45, 0.6, 0.75, 0.85)),
    "contrast": (_contrast, (0.4, 0.3, 0.2, 0.1, 0.05)),
    "fog": (_fog, (1.5, 2.0, 2.5, 2.5, 3.0)),
    "colour_shift": (_colour_shift, (0.1, 0.2, 0.3, 0.4, 0.5)),
}
KINDS = tuple(_KINDS)
# Scores are chosen with some kinds alone, so that the report shows what the others say of them.
CHOOSE_WITH = ("gaussian_noise", "motion_blur", "darker", "jpeg")
