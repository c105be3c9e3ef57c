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
from segmill.promotion.keys import trusted_keys
from segmill.promotion.versions import check_signed, fetch_member
from segmill.training.job import Start
from segmill.workspace import Workspace


def champion_start(workspace: Workspace, params: Params, name: str, *, model: str) -> Start | None:
    """Fetch the member ``name`` of the champion of the registered ``model``, once per version.

    None where there is no champion, it has no such network, or it knows other classes. Nor where it was made under
    another ``split``: it may have been trained on what now is val or test.

    Raises:
        SignatureError: the champion is not signed, not by a trusted key, or not what was signed.
        InfrastructureError: MLflow does not answer.
    """
    uri = tracking.address(workspace.root, params.mlflow.tracking_uri)
    champion = _champion(uri, model)
    if champion is None:
        return None
    if json.loads(champion.tags[registry.CLASSES_TAG]) != list(read_pack(workspace.packed).class_names):
        return None
    folder = workspace.scratch / "champion" / name / f"{model}-{champion.version}"
    if not folder.is_dir():
        shutil.rmtree(folder.parent, ignore_errors=True)  # of former champions
        trusted = trusted_keys(workspace.root)
        if not fetch_member(uri, model, champion.version, name, trusted, to=folder):
            return None
    facts = json.loads((folder / "member.json").read_text())
    if facts.get("kind", "network") != "network":
        return None
    if facts["params"].get("split") != params.split.model_dump(exclude={"sealed"}):  # a sealed group is one of test
        return None
    return Start(folder, f"champion:{model}/{champion.version}")


def refuse_unsigned_champion(workspace: Workspace, params: Params, model: str) -> None:
    """Say before a training, and not after it, that the champion can't be compared with.

    Its files are not looked at. Raises SignatureError where the champion is not signed by a key that the workspace
    lists, InfrastructureError where MLflow does not answer.
    """
    uri = tracking.address(workspace.root, params.mlflow.tracking_uri)
    if champion := _champion(uri, model):
        check_signed(uri, model, champion.version, trusted_keys(workspace.root))


def _champion(uri: str, model: str) -> registry.Version | None:
    database = uri.removeprefix("sqlite:///")
    if database != uri and not Path(database).is_file():
        return None  # asking would make it
    return registry.aliased(uri, model, registry.CHAMPION)
