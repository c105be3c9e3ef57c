"""What can't be judged is refused when the data are packed: slices that are none, and a champion of other classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from segmill import tracking
from segmill.data.packing.packed import PackedSplit
from segmill.data.schema.manifest import manifest_info, read_manifest
from segmill.errors import InputError
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.promotion import registry
from segmill.promotion.keys import make_signing_key
from segmill.workspace import Workspace
from tasks.comparable import comparable_classes, refuse_what_cannot_be_judged, slices_of
from tasks.stage import bring_up_to_date
from tests.tasks.test_stage import _brought, brought

__all__ = ["_brought", "brought"]
MODEL = "segmill-street"


@pytest.mark.slow
def test_it_is_refused_before_anything_is_trained(brought: Workspace, judging: Path, tmp_path: Path) -> None:
    uri = f"sqlite:///{tmp_path}/mlflow.db"

    def refuse() -> None:
        refuse_what_cannot_be_judged(brought, read_params(brought.params), uri, MODEL)

    today = list(manifest_info(read_manifest(brought.manifest)).class_names)
    run = tracking.start_run(uri, "e", "r", artifacts=str(tmp_path / "artifacts"))
    refuse()
    assert list(comparable_classes(brought, uri, MODEL, None).names) == today
    set_params(brought.params, ["promotion.guards.slices={hieght: 0.1}"])
    with pytest.raises(InputError, match="slices names 'hieght', which is no column of the manifest"):
        refuse()
    set_params(brought.params, ["promotion.guards.slices={height: 0.1}"])
    refuse()
    ids = PackedSplit(brought.packed / "test").ids
    assert slices_of(brought, read_params(brought.params), ids) == {"height": ["64"] * len(ids)}

    ensemble = tmp_path / "ensemble"
    shutil.copytree(judging / "ensemble", ensemble)
    facts = json.loads((ensemble / "ensemble.json").read_text())
    facts["classes"][0]["name"] = "street"
    (ensemble / "ensemble.json").write_text(json.dumps(facts))
    version = registry.register(uri, run, ensemble, MODEL, key=make_signing_key())
    registry.set_alias(uri, MODEL, registry.CHAMPION, version)
    with pytest.raises(
        InputError, match=rf"Version {version} of {MODEL} can't be compared: it knows the class 'street'"
    ):
        refuse()
    with (brought.root / "data" / "raw" / "dataset.yaml").open("a") as file:
        file.write("former_classes: {street: road}\n")
    for name in ("validate", "prepare"):
        bring_up_to_date(brought, name)
    refuse()
    assert list(comparable_classes(brought, uri, MODEL, version).names) == today
