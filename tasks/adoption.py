"""Members of an earlier release: kept instead of trained again where settings, data and start weights are the same."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from segmill.data.storage.parallel import map_ordered
from segmill.data.versioning.dvc_adapter import DvcRepository
from segmill.files import replacing
from segmill.models.weights import Weights, resolve
from segmill.params import NetworkParams, Params, SvmParams
from segmill.renamed_keys import with_new_names
from segmill.train_settings import TrainSettings
from segmill.workspace import Workspace
from tasks.inputs import member_settings, value_changes

ADOPTED = "adopted from an earlier release: settings, data and start weights are the same"
# What an earlier release listed in dvc.lock: keys of params.yaml, as they were written there.
_FORMER_PARAMS = "params.yaml"
# The parts of the packed splits that decide a member: test is not among them.
_OF_A_MEMBER = ("train/", "val/", "pack.json")
NOT_WHOLE = "what it was made with, or it itself, is not whole in DVC's cache"
_OFF: tuple[Any, ...] = (None, False, 0, "none", {}, [])

Folder = Mapping[str, str]  # path in a recorded folder -> md5


class Differs(Exception):
    """Why a member of an earlier release is not the one that this release would train."""


def made_by_earlier_release(repo: DvcRepository, name: str) -> bool:
    """Tell whether dvc.lock's record of the member ``name`` was written by a release before settings had files."""
    return _FORMER_PARAMS in repo.lock_entries().get(f"finetune@{name}", {}).get("params", {})


def adopt(workspace: Workspace, params: Params, repo: DvcRepository, name: str) -> None:
    """Put the recorded member folder in its place, for DVC to record as this release's result.

    Its code is that of another release, so its bytes may not be those that a training would give now. They are those of
    the same settings (resolved, then and now), the same packed and extra samples (ids, groups, pixels, statistics) and
    the same start weights, by sha256. Everything is read from the record and DVC's cache; nothing is guessed.

    Raises:
        Differs: something is not the same, or can't be known; the member must be trained.
    """
    entry = repo.lock_entries()[f"finetune@{name}"]
    member = _folder(repo, entry["outs"][0]["md5"])
    record = json.loads(_content(repo, member["member.json"]))
    _compare_settings(_settings_then(entry["params"][_FORMER_PARAMS], record, name), params, name)
    _compare_data(repo, {dep["path"]: dep["md5"] for dep in entry["deps"]})
    _compare_weights(record["encoder_weights"], params, name)
    with replacing(workspace.member(name)) as draft:
        for path, md5 in member.items():
            (draft / path).parent.mkdir(parents=True, exist_ok=True)
            (draft / path).write_bytes(_content(repo, md5))


def _settings_then(listed: dict[str, Any], record: dict[str, Any], name: str) -> dict[str, Any]:
    """Return the member's settings as it was trained with, in the form of ``member_settings``.

    member.json has all of them, but where the machine chose (batch_size: auto) it has what was chosen; what params.yaml
    said itself, for all members and for this one, wins therefore.
    """
    own = with_new_names("members", listed[f"members.{name}"])
    then = with_new_names("members", record["params"]["member"]) | own
    if then["kind"] == "svm":
        return {"members": {name: then}}
    train = with_new_names("train", record["params"]["train"]) | with_new_names("train", listed["train"])
    keys = set(train)
    return {
        "train": train | {key: value for key, value in own.items() if key in keys},
        "members": {name: {key: value for key, value in then.items() if key not in keys}},
    }


def _compare_settings(then: dict[str, Any], params: Params, name: str) -> None:
    now = member_settings(params, name)
    kind: type[NetworkParams | SvmParams] = type(params.members[name])
    defaults = {key: field.get_default(call_default_factory=True) for key, field in kind.model_fields.items()}
    _add_missing(then["members"][name], now["members"][name], defaults)
    if "train" in now:
        train_defaults = {key: getattr(TrainSettings, key, None) for key in now["train"]}
        _add_missing(then.setdefault("train", {}), now["train"], train_defaults)
    if then != now:
        raise Differs("; ".join(value_changes(then, now)))


def _add_missing(then: dict[str, Any], now: dict[str, Any], defaults: dict[str, Any]) -> None:
    """Take a key that only one release knows for equal where it changes nothing: at its default, or switched off."""
    for key in now.keys() - then.keys():
        if now[key] == defaults.get(key):
            then[key] = now[key]
    for key in then.keys() - now.keys():
        if then[key] in _OFF:
            del then[key]


def _compare_data(repo: DvcRepository, then: dict[str, str]) -> None:
    now = {entry["outs"][0]["path"]: entry["outs"][0]["md5"] for entry in repo.lock_entries().values()}
    for path, parts in (("data/packed", _OF_A_MEMBER), ("data/augmented", ("",))):
        if then[path] != now[path]:
            contents = [_contents(repo, _folder(repo, md5), parts) for md5 in (then[path], now[path])]
            if contents[0] != contents[1]:
                raise Differs(f"{path} changed")


def _compare_weights(then: dict[str, Any], params: Params, name: str) -> None:
    member = params.members[name]
    if member.kind == "network" and params.training_of(name).warm_start:
        raise Differs("with warm_start it would begin with the champion's weights")
    unused = member.kind == "svm" and "cnn" not in member.features
    wanted = "none" if unused or member.backbone is None else member.weights
    if wanted == "none":
        sha256 = None
    else:
        # In a process of its own: a hub's names are known to libraries that import torch.
        (weights,) = map_ordered(functools.partial(_resolved, wanted), [str(member.backbone)], jobs=2)
        sha256 = weights.sha256
    if then["sha256"] != sha256 or (sha256 is None and then["source"] != "none"):
        raise Differs(f"its encoder began with {then['source']}, whose bytes are not those of weights: {wanted}")


def _resolved(spec: str, backbone: str) -> Weights:
    return resolve(spec, backbone)


def _contents(repo: DvcRepository, folder: Folder, parts: tuple[str, ...]) -> dict[str, Any]:
    """Return what the files of a recorded folder say, apart from how shards are called and tables are encoded.

    A split's index gets each shard's md5 for its name. pack.json is what training reads of it.
    """
    found: dict[str, Any] = {}
    for path, md5 in folder.items():
        if path.startswith(parts) and not path.endswith(".bin"):
            found[path] = _reader(path)(repo, folder, path, md5)
    return found


def _reader(path: str) -> Callable[[DvcRepository, Folder, str, str], Any]:
    return {"parquet": _table, "json": _json}.get(path.rpartition(".")[2], lambda repo, folder, path, md5: md5)


def _table(repo: DvcRepository, folder: Folder, path: str, md5: str) -> Any:
    import pyarrow.parquet as pq

    columns = pq.read_table(_cached(repo, md5)).to_pydict()
    if "shard" in columns:
        parent = path.rpartition("/")[0]
        columns["shard"] = [folder[f"{parent}/{shard}.bin"] for shard in columns["shard"]]
    return columns


def _json(repo: DvcRepository, folder: Folder, path: str, md5: str) -> Any:
    values = json.loads(_content(repo, md5))
    if path == "pack.json":
        values["samples"].pop("test")
    return values


def _folder(repo: DvcRepository, md5: str) -> dict[str, str]:
    return {entry["relpath"]: entry["md5"] for entry in json.loads(_cached(repo, md5).read_text())}


def _content(repo: DvcRepository, md5: str) -> bytes:
    content = _cached(repo, md5).read_bytes()
    if hashlib.md5(content, usedforsecurity=False).hexdigest() != md5:
        raise Differs(NOT_WHOLE)
    return content


def _cached(repo: DvcRepository, md5: str) -> Path:
    path = repo.cache_path(md5)
    if not path.is_file():
        raise Differs(NOT_WHOLE)
    return path
