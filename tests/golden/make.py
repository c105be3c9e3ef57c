"""Record the golden values anew: ``python -m tests.golden.make``, for a change that is meant to change them."""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

from tests.golden.recipes import RECIPES
from tests.golden.runs import fit_classical, make_street, stage_hashes, train_recipe

GOLDEN = Path(__file__).with_name("golden.json")


def record() -> dict[str, object]:
    """Run everything; return what golden.json holds."""
    with tempfile.TemporaryDirectory() as scratch:
        street = make_street(Path(scratch) / "street")
        curves = {}
        for number, recipe in enumerate(RECIPES):
            print(f"{number + 1}/{len(RECIPES)} {recipe}", file=sys.stderr)
            curves[recipe] = train_recipe(recipe, street, Path(scratch) / str(number))
        return {
            "stages": stage_hashes(street, Path(scratch)),
            "svm": fit_classical(street, Path(scratch) / "svm"),
            "curves": curves,
        }


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(record(), indent=1) + "\n")
