"""The losses of the auxiliary heads: presence of classes, borders, distances to borders."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from segmill.training.targets import borders, presence

HEADS = ("presence", "boundary", "distance")


def presence_loss(logits_BK: Tensor, mask_BHW: Tensor, *, ignore_id: int) -> Tensor:
    """Return the mean binary cross-entropy of the classes present in each image (Zhang et al. 2018, EncNet)."""
    present_BK = presence(mask_BHW, num_classes=logits_BK.shape[1], ignore_id=ignore_id)
    return F.binary_cross_entropy_with_logits(logits_BK.float(), present_BK)


def border_loss(logits_B1HW: Tensor, mask_BHW: Tensor, *, ignore_id: int) -> Tensor:
    """Return the class-balanced binary cross-entropy of border pixels (Xie & Tu 2015, HED), over labelled pixels.

    Border pixels weigh by the share of the others and vice versa, counted over the batch.
    """
    labelled_BHW = (mask_BHW != ignore_id).float()
    border_BHW = borders(mask_BHW, ignore_id=ignore_id).float()
    pixels = labelled_BHW.sum().clamp(min=1)
    share = border_BHW.sum() / pixels
    weight_BHW = torch.where(border_BHW > 0, 1 - share, share) * labelled_BHW
    cost_BHW = F.binary_cross_entropy_with_logits(logits_B1HW.float().squeeze(1), border_BHW, reduction="none")
    return (cost_BHW * weight_BHW).sum() / pixels


def distance_loss(output_BKHW: Tensor, distance_BKHW: Tensor, mask_BHW: Tensor, *, ignore_id: int) -> Tensor:
    """Return the mean smooth L1 distance to the signed distance as a share of the largest (Xue et al. 2020).

    The target is -1 where a class is deepest inside and 1 where it is farthest, per image and class; classes
    without a border in an image, and unlabelled pixels, do not count. ``distance_BKHW``: targets.signed_distance.
    """
    distance_BKHW = distance_BKHW.float()
    deepest_BK11 = -distance_BKHW.amin((2, 3), keepdim=True)
    farthest_BK11 = distance_BKHW.amax((2, 3), keepdim=True)
    # A class one pixel deep has only 0 inside: nothing to divide by.
    share_BKHW = distance_BKHW / torch.where(distance_BKHW > 0, farthest_BK11, deepest_BK11.clamp(min=1))
    counted_BKHW = (farthest_BK11 > 0) & (mask_BHW != ignore_id).unsqueeze(1)
    cost_BKHW = F.smooth_l1_loss(output_BKHW.float(), share_BKHW, reduction="none") * counted_BKHW
    return cost_BKHW.sum() / counted_BKHW.sum().clamp(min=1)
