"""Stage augment: settle the training policy as a checked, written-out recipe."""

from __future__ import annotations

import json

from segmill.data.augmentation import resolve_recipe
from segmill.params import Params
from segmill.workspace import Workspace
from tasks.stage import replacing


def augment(workspace: Workspace, params: Params) -> None:
    """Write ``data/augmented/recipe.json``. InputError names a transform that does not exist, and its near miss."""
    recipe = resolve_recipe(params.augment.recipe)
    with replacing(workspace.augmented) as draft:
        draft.mkdir()
        (draft / "recipe.json").write_text(json.dumps(recipe, indent=2) + "\n")
