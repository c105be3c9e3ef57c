"""What training minimises: cross-entropy plus soft Dice, pixels to ignore left out of both."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F


def segmentation_loss(
    logits_BKHW: Tensor,
    mask_BHW: Tensor,
    *,
    ignore_id: int,
    class_weights: Tensor | None = None,
    dice_weight: float,
) -> Tensor:
    """Return cross-entropy + ``dice_weight`` x Dice loss, a float32 scalar.

    Cross-entropy is the (weighted) mean over labelled pixels. Dice is 1 - 2|p t| / (|p| + |t|) with
    probabilities p and one-hot truth t summed over the whole batch (V-Net's, Milletari et al. 2016, without
    the squares), averaged over the classes that the batch's truth holds. A batch without a labelled pixel
    costs 0.

    Args:
        logits_BKHW: any float type; computed in float32.
        mask_BHW: class ids of any integer type, or ``ignore_id``.
        ignore_id: the id of unlabelled pixels.
        class_weights: K floats for the cross-entropy; None weighs all classes alike.
        dice_weight: 0 leaves Dice out.
    """
    labels_BHW = mask_BHW.long()
    log_probs_BKHW = F.log_softmax(logits_BKHW.float(), dim=1)
    labelled_BHW = labels_BHW != ignore_id
    weight_sum = labelled_BHW.sum() if class_weights is None else class_weights[labels_BHW[labelled_BHW]].sum()
    cross_entropy = F.nll_loss(
        log_probs_BKHW, labels_BHW, class_weights, ignore_index=ignore_id, reduction="sum"
    ) / weight_sum.clamp(min=torch.finfo(torch.float32).tiny)
    if not dice_weight:
        return cross_entropy
    return cross_entropy + dice_weight * _dice_loss(log_probs_BKHW.exp(), labels_BHW, labelled_BHW)


def _dice_loss(probs_BKHW: Tensor, labels_BHW: Tensor, labelled_BHW: Tensor) -> Tensor:
    labelled_B1HW = labelled_BHW.unsqueeze(1)
    truth_B1HW = labels_BHW.unsqueeze(1).where(labelled_B1HW, 0)
    truth_BKHW = torch.zeros_like(probs_BKHW).scatter_(1, truth_B1HW, labelled_B1HW.to(probs_BKHW.dtype))
    probs_BKHW = probs_BKHW * labelled_B1HW
    overlap_K = (probs_BKHW * truth_BKHW).sum((0, 2, 3))
    truth_K = truth_BKHW.sum((0, 2, 3))
    size_K = probs_BKHW.sum((0, 2, 3)) + truth_K
    present_K = truth_K > 0
    dice_K = 2 * overlap_K / size_K.clamp(min=torch.finfo(torch.float32).tiny)
    return ((1 - dice_K) * present_K).sum() / present_K.sum().clamp(min=1)
