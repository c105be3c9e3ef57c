"""What is done to an image before a network sees it, the same in training and in every prediction."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError

CLAHE_TILES = (8, 8)  # OpenCV's own choice; they divide an image of any size, so the effect does not hang on its scale


def enhance(image_HWC: NDArray[np.uint8], *, grayscale: bool, clahe: float) -> NDArray[np.uint8]:
    """Return the image as a member sees it that was trained so: HWC uint8 RGB. Nothing on: the image itself.

    Args:
        image_HWC: uint8 RGB, left as it is.
        grayscale: replace colour by its luma (ITU-R BT.601), in all three channels.
        clahe: clip limit of contrast-limited adaptive histogram equalisation (Zuiderveld 1994, Graphics Gems IV),
            on the lightness of CIELAB, or on the luma where colour goes; 0 is off.
    """
    if not grayscale and not clahe:
        return image_HWC
    import cv2

    equaliser = cv2.createCLAHE(clahe, CLAHE_TILES)
    if grayscale:
        luma_HW = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2GRAY)
        return np.repeat((equaliser.apply(luma_HW) if clahe else luma_HW)[:, :, None], 3, axis=2)
    lab_HWC = cv2.cvtColor(image_HWC, cv2.COLOR_RGB2LAB)
    lab_HWC[:, :, 0] = equaliser.apply(lab_HWC[:, :, 0])
    enhanced_HWC: NDArray[np.uint8] = cv2.cvtColor(lab_HWC, cv2.COLOR_LAB2RGB)
    return enhanced_HWC


def check_images(image_BHWC: NDArray[np.uint8]) -> None:
    """Raise InputError where a batch is not uint8 of shape (images, height, width, 3)."""
    if image_BHWC.dtype != np.uint8 or image_BHWC.ndim != 4 or image_BHWC.shape[3] != 3:
        raise InputError(
            f"images came as {image_BHWC.dtype} of shape {image_BHWC.shape}; a batch is uint8 of shape "
            "(images, height, width, 3)"
        )


def enhance_all(image_BHWC: NDArray[np.uint8], *, grayscale: bool, clahe: float) -> NDArray[np.uint8]:
    """Return every image of a batch as ``enhance`` does: BHWC uint8 RGB. Nothing on: the batch itself."""
    if not grayscale and not clahe:
        return image_BHWC
    return np.stack([enhance(image, grayscale=grayscale, clahe=clahe) for image in image_BHWC])
