from __future__ import annotations

import json
from typing import Any

import pytest
from ruamel.yaml import YAML

from segmill.data.versioning.merging import HEADS_FILE, MergeConflict, merged
from segmill.promotion import heads


def lock(**stages: Any) -> bytes:
    return json.dumps({"schema": "2.0", "stages": stages}).encode()  # JSON is YAML


BASE = lock(prepare={"cmd": "p", "outs": [1]}, evaluate={"cmd": "e", "outs": [1]})


def test_a_file_that_one_changed_is_that_ones() -> None:
    assert merged("params.yaml", b"1", b"2", b"1") == b"2"
    assert merged("params.yaml", b"1", b"1", b"2") == b"2"
    assert merged("params.yaml", None, b"2", None) == b"2"
    assert merged("params.yaml", b"1", b"2", b"2") == b"2"
    with pytest.raises(MergeConflict, match=r"^params.yaml$"):
        merged("params.yaml", b"1", b"2", b"3")


def test_stages_of_both_are_kept_and_the_same_stage_is_a_conflict() -> None:
    ours = lock(prepare={"cmd": "p", "outs": [2]}, evaluate={"cmd": "e", "outs": [1]}, augment={"cmd": "a"})
    theirs = lock(prepare={"cmd": "p", "outs": [1]}, evaluate={"cmd": "e", "outs": [3]})
    both = YAML(typ="safe").load(merged("dvc.lock", BASE, ours, theirs))
    assert both["schema"] == "2.0"
    assert {name: stage.get("outs") for name, stage in both["stages"].items()} == {
        "prepare": [2], "evaluate": [3], "augment": None,
    }  # fmt: skip
    other = lock(prepare={"cmd": "p", "outs": [4]}, evaluate={"cmd": "e", "outs": [1]})
    with pytest.raises(MergeConflict, match="the stage prepare"):
        merged("dvc.lock", BASE, ours, other)
    assert merged("dvc.lock", BASE, ours, ours) == ours, "both made the same"
    with pytest.raises(MergeConflict, match="the stage augment"):
        merged("dvc.lock", None, ours, lock(augment={"cmd": "b"}))


def test_a_record_of_code_alone_is_no_conflict() -> None:
    ours, theirs = lock(fingerprint={"deps": [1]}, prepare={"outs": [2]}), lock(fingerprint={"deps": [2]})
    both = YAML(typ="safe").load(merged("dvc.lock", lock(), ours, theirs))
    assert both["stages"] == {"fingerprint": {"deps": [2]}, "prepare": {"outs": [2]}}


def test_the_log_of_versions_keeps_the_lines_of_both_once() -> None:
    assert merged("data/history.jsonl", b"a\n", b"a\nb\n", b"a\nc\n") == b"a\nc\nb\n"


def test_of_two_heads_of_the_ledger_the_later_row_is_kept() -> None:
    def text(ledger: str, **rows: int) -> bytes:
        return json.dumps(
            {"ledger": ledger, "heads": {m: {"number": n, "hash": f"h{n}"} for m, n in rows.items()}}
        ).encode()

    both = json.loads(merged(HEADS_FILE, text("l", m=1), text("l", m=3, k=1), text("l", m=2, j=5)))
    assert {model: head["number"] for model, head in both["heads"].items()} == {"m": 3, "k": 1, "j": 5}
    with pytest.raises(MergeConflict):
        merged(HEADS_FILE, text("l", m=1), text("l", m=3), text("other", m=2))
    assert heads.FILE == HEADS_FILE
