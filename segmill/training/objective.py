"""The training objective: all losses of a member's outputs as one number to minimise."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from segmill.models.members import MemberModule
from segmill.models.precision import autocast
from segmill.training.auxiliary import HEADS, border_loss, distance_loss, presence_loss
from segmill.training.losses import LOSSES, check_names, segmentation_loss


class Objective(nn.Module):
    """The loss of the segmentation, of its coarser stages and of the auxiliary heads, summed by weight.

    With ``learned`` the tasks weigh by their uncertainty (Kendall et al. 2018): each costs
    exp(-s) x loss + s / 2, and its s, the log of a variance, is a parameter that starts where exp(-s) is the
    weight given; the segmentation itself starts at 1. The coarser stages belong to the segmentation.
    More than eight parameters: the settings of the losses and those of the heads.

    Args:
        ignore_id: the id of unlabelled pixels.
        loss, focal_gamma, tversky_alpha, ohem, class_weights: as for ``losses.segmentation_loss``.
        aux_heads: names of HEADS to their weights.
        learned: whether these are only the initial weights.
        deep_supervision: weight of the mean over the coarser stages (Lee et al. 2015).

    Raises:
        InputError: an unknown loss or head, with the near miss.
    """

    def __init__(
        self,
        *,
        ignore_id: int,
        loss: Mapping[str, float],
        class_weights: Tensor | None = None,
        focal_gamma: float = 2.0,
        tversky_alpha: float = 0.3,
        ohem: float = 1.0,
        aux_heads: Mapping[str, float] | None = None,
        learned: bool = False,
        deep_supervision: float = 0.0,
    ):
        super().__init__()
        self.aux_heads = dict(aux_heads or {})
        check_names("loss", loss, LOSSES)
        check_names("head", self.aux_heads, HEADS)
        self.ignore_id = ignore_id
        self.loss = dict(loss)
        self.focal_gamma, self.tversky_alpha, self.ohem = focal_gamma, tversky_alpha, ohem
        self.deep_supervision = deep_supervision
        self.class_weights: Tensor | None
        self.register_buffer("class_weights", class_weights, persistent=False)
        self.log_variances: nn.Parameter | None = None
        if learned and self.aux_heads:
            starts = [-math.log(weight) for weight in (1.0, *self.aux_heads.values())]
            self.log_variances = nn.Parameter(torch.tensor(starts))

    @property
    def needs_distances(self) -> bool:
        """Whether ``forward`` must be given distance_BKHW."""
        return "boundary" in self.loss or "distance" in self.aux_heads

    def forward(self, outputs: dict[str, Tensor], mask_BHW: Tensor, distance_BKHW: Tensor | None = None) -> Tensor:
        """Return the float32 scalar for what a MemberModule returned in training mode."""
        tasks = [self._segmentation(outputs, mask_BHW, distance_BKHW)]
        tasks += [self._head(name, outputs[name], mask_BHW, distance_BKHW) for name in self.aux_heads]
        if self.log_variances is not None:
            return ((-self.log_variances).exp() * torch.stack(tasks) + self.log_variances / 2).sum()
        return tasks[0] + sum(weight * task for weight, task in zip(self.aux_heads.values(), tasks[1:], strict=True))

    def _segmentation(self, outputs: dict[str, Tensor], mask_BHW: Tensor, distance_BKHW: Tensor | None) -> Tensor:
        total = self._at_one_size(outputs["logits"], mask_BHW, distance_BKHW)
        coarser = [logits_BKhw for name, logits_BKhw in outputs.items() if name.startswith("deep")]
        for logits_BKhw in coarser:
            size = logits_BKhw.shape[2:]
            mask_Bhw = F.interpolate(mask_BHW.unsqueeze(1), size, mode="nearest-exact").squeeze(1)
            distance_BKhw = distance_BKHW
            if distance_BKhw is not None:
                distance_BKhw = F.interpolate(distance_BKhw.float(), size, mode="nearest-exact")
            value = self._at_one_size(logits_BKhw, mask_Bhw, distance_BKhw)
            total = total + self.deep_supervision / len(coarser) * value
        return total

    def _at_one_size(self, logits_BKHW: Tensor, mask_BHW: Tensor, distance_BKHW: Tensor | None) -> Tensor:
        return segmentation_loss(
            logits_BKHW,
            mask_BHW,
            ignore_id=self.ignore_id,
            loss=self.loss,
            class_weights=self.class_weights,
            focal_gamma=self.focal_gamma,
            tversky_alpha=self.tversky_alpha,
            ohem=self.ohem,
            distance_BKHW=distance_BKHW,
        )

    def _head(self, name: str, output: Tensor, mask_BHW: Tensor, distance_BKHW: Tensor | None) -> Tensor:
        if name == "presence":
            return presence_loss(output, mask_BHW, ignore_id=self.ignore_id)
        if name == "boundary":
            return border_loss(output, mask_BHW, ignore_id=self.ignore_id)
        assert distance_BKHW is not None
        return distance_loss(output, distance_BKHW, mask_BHW, ignore_id=self.ignore_id)


class Learner(nn.Module):
    """A member and its objective as one module, images to loss, so that ranks share the gradients of both."""

    def __init__(self, module: MemberModule, objective: Objective, dtype: torch.dtype | None):
        super().__init__()
        self.module, self.objective, self.dtype = module, objective, dtype

    def forward(self, image_BHWC: Tensor, mask_BHW: Tensor, distance_BKHW: Tensor | None = None) -> Tensor:
        """Return the float32 loss of a batch; the network computes in ``dtype``, the loss in float32."""
        with autocast(self.dtype, image_BHWC.device):
            outputs = self.module(image_BHWC)
        loss: Tensor = self.objective(outputs, mask_BHW, distance_BKHW)
        return loss
