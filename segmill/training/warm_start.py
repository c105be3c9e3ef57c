"""Warm start: a member begins with the weights of the champion's member of the same name."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, fields, replace
from pathlib import Path

from safetensors.torch import load_file

from segmill.errors import InputError
from segmill.models.members import MemberModule, MemberSpec
from segmill.models.weights import Weights

ONLY_IN_TRAINING = ("net.heads.", "net.deep.")
# Another network, or other classes or channels: no warm start.
MUST_BE_THE_SAME = ("backbone", "decoder", "num_classes", "in_channels", "decoder_width", "attention", "context")
DEFAULTS = {field.name: field.default for field in fields(MemberSpec)}  # of keys that older members lack


def adopt(spec: MemberSpec, folder: Path) -> MemberSpec | None:
    """Return ``spec`` with the normalisation of the member in ``folder``; None where that is another network."""
    facts = json.loads((folder / "member.json").read_text())
    theirs = facts["spec"]
    mine = asdict(spec)
    if any(mine[key] != theirs.get(key, DEFAULTS[key]) for key in MUST_BE_THE_SAME):
        return None
    return replace(spec, mean=tuple(theirs["mean"]), std=tuple(theirs["std"]))


def begin_with(module: MemberModule, folder: Path, source: str) -> Weights:
    """Copy the weights of the member in ``folder`` into ``module`` and return what they are, as ``source``.

    What only training needs (auxiliary heads, coarser stages) may be missing there and stays random. Raises InputError
    where anything else does.
    """
    path = folder / "weights.safetensors"
    missing = [
        name
        for name in module.load_state_dict(load_file(path), strict=False).missing_keys
        if not name.startswith(ONLY_IN_TRAINING)
    ]
    if missing:
        raise InputError(
            f"the champion's weights lack {missing[0]}: other versions of timm or segmentation-models-pytorch wrote "
            "them; set train.warm_start to false"
        )
    with path.open("rb") as file:
        return Weights(source, hashlib.file_digest(file, "sha256").hexdigest(), path)
