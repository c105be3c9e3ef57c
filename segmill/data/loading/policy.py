"""A settled augmentation recipe, as recipe.json keeps it; light to import."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from segmill.errors import InputError

Recipe = list[dict[str, Any]]  # transforms in their order: {name: parameters}
OWN = "own"  # the name of a recipe that is written out in params.yaml
COMPOSITIONS = ("OneOf", "SomeOf", "RandomOrder", "Sequential")


@dataclass(frozen=True)
class Policy:
    """A checked recipe, as recipe.json keeps it.

    ``name`` is a preset's, or ``own`` with ``version`` None. ``sha256`` is of ``transforms`` as JSON with sorted keys.
    ``extra``: how many extra samples of each kind were made to go with it.
    """

    name: str
    version: int | None
    transforms: Recipe
    sha256: str
    extra: dict[str, int] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """The name as params.yaml would hold it: ``medical@1``."""
        return self.name if self.version is None else f"{self.name}@{self.version}"

    @property
    def mirrors(self) -> bool:
        """Tell whether left and right may be exchanged."""
        return any("HorizontalFlip" in leaf for leaf in recipe_leaves(self.transforms))

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=2) + "\n")


def read_policy(path: Path) -> Policy:
    """Read recipe.json; InputError where there is none."""
    try:
        return Policy(**json.loads(path.read_text()))
    except FileNotFoundError as error:
        raise InputError(f"there is no {path}", "run the augment stage first") from error


def recipe_leaves(recipe: Sequence[Any]) -> Iterator[dict[str, Any]]:
    """Yield the entries that are transforms, those inside compositions included."""
    for entry in recipe:
        ((name, params),) = entry.items()
        if name in COMPOSITIONS:
            yield from recipe_leaves(params["transforms"])
        else:
            yield entry
