"""Validation during training: a network's counts on a split, the same on one rank or many."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import distributed

from segmill.data.loading.batches import EvalSamples
from segmill.data.packing.packed import PackedSplit
from segmill.enhancement import enhance_all
from segmill.models.members import MemberModule
from segmill.models.precision import autocast
from segmill.training.clock import Rank
from segmill.training.settings import Settings

VAL_BATCH = 8


def validate(
    module: MemberModule,
    val: PackedSplit,
    settings: Settings,
    *,
    device: torch.device,
    rank: Rank,
    dtype: torch.dtype | None,
) -> NDArray[np.int64]:
    """Return the K x K counts (row truth) of all ranks together: each val image once, at original size.

    The images are packed as they came, so they are enhanced here, as ``Member.predict_probs`` does.
    """
    module.eval()
    classes = settings.num_classes
    counts = torch.zeros(classes * classes, dtype=torch.int64, device=device)
    with torch.inference_mode():
        for _, images_BHWC, masks_BHW in EvalSamples(val, rank=rank.index, world_size=rank.count).batches(VAL_BATCH):
            seen_BHWC = enhance_all(images_BHWC, grayscale=settings.grayscale, clahe=settings.clahe)
            with autocast(dtype, device):
                logits_BKHW = module(torch.from_numpy(seen_BHWC).to(device))["logits"]
            truth_BHW = torch.from_numpy(masks_BHW).to(device).long()
            labelled_BHW = truth_BHW != settings.ignore_id
            cells = (truth_BHW * classes + logits_BKHW.argmax(dim=1))[labelled_BHW]
            counts += torch.bincount(cells, minlength=classes * classes)
    if rank.count > 1:
        distributed.all_reduce(counts)
    return counts.cpu().numpy().reshape(classes, classes)


def share_statistics(module: MemberModule, rank: Rank) -> None:
    """Average normalisation's running statistics over the ranks, so that all validate and save the same model."""
    if rank.count > 1:
        for name, buffer in module.named_buffers():
            if name.endswith(("running_mean", "running_var")):
                distributed.all_reduce(buffer)
                buffer /= rank.count
