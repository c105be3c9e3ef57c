from __future__ import annotations

import os

from segmill.params import read_params
from segmill.stores import store_sizes
from segmill.workspace import Workspace


def test_every_file_counts_once_in_the_first_store_that_has_it(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    before = store_sizes(workspace, params)
    weights = workspace.member("net") / "weights.safetensors"
    weights.parent.mkdir(parents=True)
    weights.write_bytes(bytes(1000))
    cached = workspace.root / ".dvc" / "cache" / "files" / "md5" / "ab"
    cached.mkdir(parents=True)
    os.link(weights, cached / "cd")
    (cached / "ef").write_bytes(bytes(30))
    (cached / "link").symlink_to(workspace.ledger)
    workspace.ledger.write_bytes(bytes(5))
    (workspace.root / "notes.txt").write_bytes(bytes(7))
    after = store_sizes(workspace, params)
    grown = {name: after[name] - before[name] for name in after if after[name] != before[name]}
    assert grown == {"models": 1000, "dvc_cache": 30, "registry": 5, "other": 7, "total": 1042}
    raw = workspace.root / params.data.path
    assert after["data"] == sum(path.stat().st_size for path in raw.rglob("*") if path.is_file())
    assert after["total"] == sum(size for name, size in after.items() if name != "total")


def test_a_bucket_takes_nothing_here(workspace: Workspace) -> None:
    params = read_params(workspace.params)
    elsewhere = params.model_copy(update={"data": params.data.model_copy(update={"remote": "s3://bucket/prefix"})})
    assert store_sizes(workspace, elsewhere)["remote"] == 0
