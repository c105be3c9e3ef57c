"""The losses over pixels: six losses and their weighted sum; ignored pixels count in none.

Everything is computed in float32, and nothing waits for the device: counts of pixels stay tensors.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from segmill.errors import InputError, near_miss

LOSSES = ("ce", "focal", "dice", "tversky", "lovasz", "boundary")
CLASS_WEIGHTS = ("none", "sqrt_inverse", "inverse", "effective")
_TINY = torch.finfo(torch.float32).tiny


def check_names(what: str, names: Iterable[str], allowed: Sequence[str]) -> None:
    """Raise InputError, with the near miss, for the first of ``names`` that is not ``allowed``."""
    for name in names:
        if name not in allowed:
            raise InputError(f"unknown {what} {name}{near_miss(name, tuple(allowed))} ({', '.join(allowed)})")


def segmentation_loss(
    logits_BKHW: Tensor,
    mask_BHW: Tensor,
    *,
    ignore_id: int,
    loss: Mapping[str, float],
    class_weights: Tensor | None = None,
    focal_gamma: float = 2.0,
    tversky_alpha: float = 0.3,
    ohem: float = 1.0,
    distance_BKHW: Tensor | None = None,
) -> Tensor:
    """Return the sum of the losses named in ``loss``, each times its number: a float32 scalar.

    Sums over pixels and classes go over the whole batch. A batch without a labelled pixel costs 0. More than eight
    parameters: a pure function of the batch and of the settings of six losses.

    Args:
        logits_BKHW: any float type.
        mask_BHW: class ids of any integer type, or ``ignore_id``.
        ignore_id: the id of unlabelled pixels.
        loss: names of LOSSES to their weights.
        class_weights: K floats for ce and focal; None weighs all classes equally.
        focal_gamma, tversky_alpha: as for ``pixel_loss`` and ``overlap_loss``; dice is the Tversky loss of 0.5.
        ohem: the share of the labelled pixels, the hardest, that ce and focal count.
        distance_BKHW: targets.signed_distance of each mask; only ``boundary`` needs it.
    """
    # Contiguous: on the CPU what follows takes a quarter less time than in channels-last.
    log_probs_BKHW = F.log_softmax(logits_BKHW.contiguous().float(), dim=1)
    labels_BHW = mask_BHW.long()
    labelled_BHW = labels_BHW != ignore_id
    labels_BHW = labels_BHW.where(labelled_BHW, 0)
    total = log_probs_BKHW.new_zeros(())
    if loss.keys() - {"ce", "focal"}:
        probs_BKHW = log_probs_BKHW.exp() * labelled_BHW.unsqueeze(1)
    for name, weight in loss.items():
        match name:
            case "ce" | "focal":
                gamma = focal_gamma if name == "focal" else 0.0
                value = pixel_loss(
                    log_probs_BKHW, labels_BHW, labelled_BHW, class_weights=class_weights, gamma=gamma, share=ohem
                )
            case "dice" | "tversky":
                alpha = tversky_alpha if name == "tversky" else 0.5
                value = overlap_loss(probs_BKHW, labels_BHW, labelled_BHW, alpha=alpha)
            case "lovasz":
                value = lovasz_loss(probs_BKHW, one_hot(labels_BHW, labelled_BHW, classes=probs_BKHW.shape[1]))
            case "boundary":
                assert distance_BKHW is not None
                value = boundary_loss(probs_BKHW, distance_BKHW, labelled_BHW)
            case _:
                raise InputError(f"unknown loss {name}{near_miss(name, LOSSES)} ({', '.join(LOSSES)})")
        total = total + weight * value
    return total


def pixel_loss(
    log_probs_BKHW: Tensor,
    labels_BHW: Tensor,
    labelled_BHW: Tensor,
    *,
    class_weights: Tensor | None,
    gamma: float,
    share: float,
) -> Tensor:
    """Return the mean of (1 - p)^gamma x -log p over pixels, p being the probability of the target class.

    ``gamma`` 0 is cross-entropy, above it the focal loss (Lin et al. 2017). With ``class_weights`` it is the
    weighted mean. ``share`` below 1 counts the hardest pixels only (Shrivastava et al. 2016, for pixels).
    """
    log_p_BHW = log_probs_BKHW.gather(1, labels_BHW.unsqueeze(1)).squeeze(1)
    weight_BHW = labelled_BHW.float()
    if class_weights is not None:
        weight_BHW = weight_BHW * class_weights[labels_BHW]
    cost_BHW = -log_p_BHW * weight_BHW
    if gamma:
        cost_BHW = cost_BHW * (1 - log_p_BHW.exp()).clamp(min=1e-6) ** gamma
    if share < 1:
        hard_BHW = hardest(cost_BHW, labelled_BHW, share)
        cost_BHW, weight_BHW = cost_BHW * hard_BHW, weight_BHW * hard_BHW
    return cost_BHW.sum() / weight_BHW.sum().clamp(min=_TINY)


@torch.no_grad()
def hardest(cost_BHW: Tensor, labelled_BHW: Tensor, share: float) -> Tensor:
    """Return hard_BHW bool: the ``share`` of the labelled pixels that cost most, and all that cost as much as these."""
    ranked_P = cost_BHW.where(labelled_BHW, -torch.inf).flatten().sort(descending=True).values
    count = (share * labelled_BHW.sum()).ceil().long().clamp(min=1)
    return labelled_BHW & (cost_BHW >= ranked_P.gather(0, (count - 1).view(1)))


def overlap_loss(probs_BKHW: Tensor, labels_BHW: Tensor, labelled_BHW: Tensor, *, alpha: float) -> Tensor:
    """Return 1 minus the Tversky index (Salehi et al. 2017), the mean over the classes in the target.

    The index of a class is overlap / (overlap + alpha x false positives + (1 - alpha) x false negatives), all of them
    soft sums over the batch; ``alpha`` 0.5 makes it Dice (Milletari et al. 2016, without the squares).
    ``probs_BKHW`` is 0 where nothing is labelled.
    """
    p_BHW = probs_BKHW.gather(1, labels_BHW.unsqueeze(1)).squeeze(1)
    classes = probs_BKHW.shape[1]
    overlap_K = _sums_by_class(p_BHW, labels_BHW, classes)
    truth_K = _sums_by_class(labelled_BHW.float(), labels_BHW, classes)
    size_K = alpha * probs_BKHW.sum((0, 2, 3)) + (1 - alpha) * truth_K
    return _mean_of_present(1 - overlap_K / size_K.clamp(min=_TINY), truth_K)


def lovasz_loss(probs_BKHW: Tensor, truth_BKHW: Tensor) -> Tensor:
    """Return the Lovász-Softmax loss (Berman et al. 2018), the mean over the classes in the batch's target.

    It is the convex extension of 1 - IoU: errors, sorted, each times what it adds to the Jaccard loss. Unlabelled
    pixels are errors of 0 in both arguments, come last and add nothing.
    """
    probs_KP, truth_KP = (tensor.transpose(0, 1).flatten(1) for tensor in (probs_BKHW, truth_BKHW))
    error_KP, order_KP = (truth_KP - probs_KP).abs().sort(dim=1, descending=True)
    truth_KP = truth_KP.gather(1, order_KP)
    truth_K = truth_KP.sum(1)
    missed_KP = truth_K.unsqueeze(1) - truth_KP.cumsum(1)
    united_KP = truth_K.unsqueeze(1) + (1 - truth_KP).cumsum(1)
    jaccard_KP = 1 - missed_KP / united_KP
    slope_KP = torch.cat([jaccard_KP[:, :1], jaccard_KP.diff(dim=1)], dim=1)
    return _mean_of_present((error_KP * slope_KP).sum(1), truth_K)


def boundary_loss(probs_BKHW: Tensor, distance_BKHW: Tensor, labelled_BHW: Tensor) -> Tensor:
    """Return the boundary loss (Kervadec et al. 2019): the mean of probability x signed distance.

    In px, over labelled pixels and classes; below 0 where the prediction is inside. It says nothing about
    classes without a border, so combine it with a region loss, with a small weight (the paper: 0.01 to 1).
    ``probs_BKHW`` is 0 where nothing is labelled; ``distance_BKHW`` is targets.signed_distance.
    """
    pixels = labelled_BHW.sum() * probs_BKHW.shape[1]
    return (probs_BKHW * distance_BKHW.float()).sum() / pixels.clamp(min=1)


def one_hot(labels_BHW: Tensor, labelled_BHW: Tensor, *, classes: int) -> Tensor:
    """Return truth_BKHW float32, 0 for every class where nothing is labelled."""
    batch, height, width = labels_BHW.shape
    truth_BKHW = torch.zeros(batch, classes, height, width, device=labels_BHW.device)
    return truth_BKHW.scatter_(1, labels_BHW.unsqueeze(1), labelled_BHW.unsqueeze(1).float())


def class_weights(kind: str, class_pixels: Sequence[int], device: torch.device) -> Tensor | None:
    """Return K weights for ce and focal, from the pixels that each class has in train; None for ``none``.

    ``inverse`` is one over a class's pixels and ``sqrt_inverse`` over their root. ``effective`` is one over the
    effective number (1 - b^n) / (1 - b) of n pixels (Cui et al. 2019), with 1 / (1 - b) the pixels of an average
    class: classes that are rarer count as with ``inverse``, those far more common all alike. Weights average 1
    over the classes that occur; a class that does not occur weighs 0. InputError for another ``kind``.
    """
    check_names("class_weights", [kind], CLASS_WEIGHTS)
    if kind == "none":
        return None
    pixels_K = torch.tensor(class_pixels, dtype=torch.float64)
    present_K = pixels_K > 0
    match kind:
        case "inverse":
            size_K = pixels_K
        case "sqrt_inverse":
            size_K = pixels_K.sqrt()
        case _:
            decay = 1 - 1 / pixels_K[present_K].mean()
            size_K = 1 - decay**pixels_K
    inverse_K = torch.where(present_K, 1 / size_K.where(present_K, 1), 0.0)
    return (inverse_K / inverse_K[present_K].mean()).float().to(device)


def _sums_by_class(value_BHW: Tensor, labels_BHW: Tensor, classes: int) -> Tensor:
    """Return sum_K: row by row first, which keeps float32 sums of millions of pixels exact enough."""
    rows_BH1 = torch.arange(labels_BHW.shape[:2].numel(), device=labels_BHW.device).view(*labels_BHW.shape[:2], 1)
    sum_RK = value_BHW.new_zeros(rows_BH1.numel() * classes)
    sum_RK = sum_RK.index_add(0, (labels_BHW + classes * rows_BH1).flatten(), value_BHW.flatten())
    return sum_RK.view(-1, classes).sum(0)


def _mean_of_present(value_K: Tensor, truth_K: Tensor) -> Tensor:
    present_K = truth_K > 0
    return (value_K * present_K).sum() / present_K.sum().clamp(min=1)
