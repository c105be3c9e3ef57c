"""Fetches the champion's member of the same name for a warm start. It is never a reason to train.

No stage depends on the champion: it changes when a member's own result is promoted, and nothing would ever be up to
date. A member is out of date where its data, parameters or code changed; then it starts from the champion of that time,
and `member.json` records which. A result that is known for the same data, parameters and code is taken from the cache.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from segmill import tracking
from segmill.data.packing.packed import read_pack
from segmill.params import Params
from segmill.promotion import registry
from segmill.training.job import Start
from segmill.workspace import Workspace


def champion_start(workspace: Workspace, params: Params, name: str, *, model: str) -> Start | None:
    """Fetch the member ``name`` of the champion of the registered ``model``, once per version.

    None where there is no champion, it has no such network, or it knows other classes. Nor where it was made under
    another ``split``: it may have been trained on what now is val or test.

    Raises InfrastructureError where MLflow does not answer.
    """
    uri = tracking.address(workspace.root, params.mlflow.tracking_uri)
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():
        return None
    champion = registry.aliased(uri, model, registry.CHAMPION)
    if champion is None:
        return None
    if json.loads(champion.tags[registry.CLASSES_TAG]) != list(read_pack(workspace.packed).class_names):
        return None
    folder = workspace.scratch / "champion" / name / f"{model}-{champion.version}"
    if not folder.is_dir():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of former champions
        if not registry.fetch_member(uri, model, champion.version, name, folder):
            return None
    facts = json.loads((folder / "member.json").read_text())
    if facts.get("kind", "network") != "network" or facts["params"].get("split") != params.split.model_dump():
        return None
    return Start(folder, f"champion:{model}/{champion.version}")
