"""Targets of the boundary loss and the auxiliary heads, computed from the masks alone."""

from __future__ import annotations

from dataclasses import dataclass

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor


@dataclass(frozen=True)
class SignedDistances:
    """Turns mask_HW uint8 into the distance_KHW of ``signed_distance``; made for a loader's thread or processes."""

    num_classes: int
    ignore_id: int

    def __call__(self, mask_HW: NDArray[np.uint8]) -> NDArray[np.float16]:
        return signed_distance(mask_HW, num_classes=self.num_classes, ignore_id=self.ignore_id)


def signed_distance(mask_HW: NDArray[np.uint8], *, num_classes: int, ignore_id: int) -> NDArray[np.float16]:
    """Return distance_KHW float16: how far, in px, each pixel is from the border of each class.

    Outside a class it is the Euclidean distance to the class's nearest pixel (1 and more); inside, minus the
    distance to the nearest pixel of another class, plus 1 (0 at the border, negative inside), as in the code
    of Kervadec et al. 2019. Unlabelled pixels are of no class and border on none. A class that the mask lacks,
    or that has it all, is 0 everywhere.
    """
    distance_KHW = np.zeros((num_classes, *mask_HW.shape), np.float16)
    labelled_HW = mask_HW != ignore_id
    for label in np.unique(mask_HW[labelled_HW]):
        inside_HW = mask_HW == label
        others_HW = labelled_HW & ~inside_HW
        if others_HW.any():
            distance_KHW[label] = np.where(inside_HW, 1 - _distance_to(others_HW), _distance_to(inside_HW))
    return distance_KHW


def presence(mask_BHW: Tensor, *, num_classes: int, ignore_id: int) -> Tensor:
    """Return present_BK float32: 1 for the classes that an image's mask holds."""
    labels_BP = mask_BHW.long().flatten(1)
    labels_BP = labels_BP.where(labels_BP != ignore_id, num_classes)
    present_BK = torch.zeros(len(mask_BHW), num_classes + 1, device=mask_BHW.device)
    return present_BK.scatter_(1, labels_BP, 1.0)[:, :num_classes]


def borders(mask_BHW: Tensor, *, ignore_id: int) -> Tensor:
    """Return border_BHW bool: pixels beside, above or below one that is labelled as another class."""
    labelled_BHW = mask_BHW != ignore_id
    border_BHW = torch.zeros_like(labelled_BHW)
    for axis in (1, 2):
        length = mask_BHW.shape[axis] - 1
        first, second = (slice(None),) * axis + (slice(length),), (slice(None),) * axis + (slice(1, None),)
        differ = (mask_BHW[first] != mask_BHW[second]) & labelled_BHW[first] & labelled_BHW[second]
        border_BHW[first] |= differ
        border_BHW[second] |= differ
    return border_BHW


def _distance_to(some_HW: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return every pixel's exact Euclidean distance to the nearest one of ``some_HW``, which must hold one."""
    distance_HW: NDArray[np.float32] = cv2.distanceTransform(
        (~some_HW).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE
    )
    return distance_HW
