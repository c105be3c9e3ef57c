"""Stage augment: settle the training policy as a checked, written-out recipe, and make the extra samples."""

from __future__ import annotations

import functools
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from segmill import progress
from segmill.data.loading.extras import make_extras
from segmill.data.loading.policy import Policy
from segmill.data.loading.recipes import settle_own_policy, settle_policy
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.data.storage.parallel import map_ordered
from segmill.files import replacing
from segmill.params import Params
from segmill.workspace import Workspace


def augment(workspace: Workspace, params: Params) -> None:
    """Write ``data/augmented``: recipe.json and, where params ask for extra samples, ``extra``.

    Raises:
        InputError: the recipe names what does not exist, or has a transform that training can't use.
    """
    block = params.augment
    policy = settled(block.recipe, workspace.packed)
    with replacing(workspace.augmented) as draft:
        draft.mkdir()
        made = make_extras(
            workspace.packed,
            draft / "extra",
            copy_paste=block.copy_paste,
            oversample=block.oversample,
            rare_below=block.rare_below,
            seed=block.seed,
            mirror=policy.mirrors,
            on_progress=progress.counter(workspace.count("augment")),
        )
        replace(policy, extra=made).write(draft / "recipe.json")


def settled(recipe: str | list[dict[str, Any]], packed_dir: Path) -> Policy:
    """Return the checked policy. A written-out recipe is tried on samples of train's sizes, in a process of its own:
    that takes albumentations and torch, which this one stays free of."""
    if isinstance(recipe, str):
        return settle_policy(recipe)
    sizes = sorted(PackedSplit(packed_dir / "train").sizes(), key=lambda size: size[0] * size[1])
    settle = functools.partial(
        settle_own_policy, shapes=sorted({*sizes[:1], *sizes[-1:]}), ignore_id=read_pack(packed_dir).ignore_id
    )
    plain = json.loads(json.dumps(recipe, default=str))
    (policy,) = map_ordered(settle, [plain], jobs=2)
    return policy
