"""Two versions of a file that grew from one: what a run commits, put onto what somebody else pushed meanwhile."""

from __future__ import annotations

import json
from collections.abc import Callable
from io import StringIO
from typing import Any

from segmill.data.versioning.history import LOG_FILE

LOCK_FILE = "dvc.lock"
HEADS_FILE = "ledger_head.json"  # of segmill.promotion.heads
CODE_STAGE = "fingerprint"  # takes no time and is looked at in every run: of two records either will do


class MergeConflict(Exception):
    """Both changed the same. ``what``: that, for a sentence, such as ``the stage evaluate``."""

    def __init__(self, what: str) -> None:
        super().__init__(what)
        self.what = what


def merged(path: str, base: bytes | None, ours: bytes, theirs: bytes | None) -> bytes:
    """Return the file at ``path`` with the changes of both, each from ``base``; None: it was not there.

    Raises MergeConflict where that can't be: in dvc.lock where both recorded other results of one stage.
    """
    if theirs in (ours, base):
        return ours
    if ours == base and theirs is not None:
        return theirs
    name = path.rpartition("/")[2]
    if theirs is None or name not in _MERGERS:
        raise MergeConflict(path)
    return _MERGERS[name](base or b"", ours, theirs)


def _union(base: bytes, ours: bytes, theirs: bytes) -> bytes:
    lines, known = theirs.splitlines(), set(theirs.splitlines())
    return b"".join(line + b"\n" for line in [*lines, *(line for line in ours.splitlines() if line not in known)])


def _locks(base: bytes, ours: bytes, theirs: bytes) -> bytes:
    """Merge dvc.lock stage by stage."""
    from ruamel.yaml import YAML

    def stages(text: bytes) -> dict[str, Any]:
        return dict((YAML(typ="safe").load(text) or {}).get("stages") or {})

    old, own, other = stages(base), stages(ours), stages(theirs)
    for name, record in own.items():
        if record == old.get(name) or record == other.get(name) or name == CODE_STAGE:
            continue
        if other.get(name) != old.get(name):
            raise MergeConflict(f"the stage {name}")
        other[name] = record
    text = StringIO()
    yaml = YAML()
    yaml.default_flow_style = False
    yaml.dump({"schema": "2.0", "stages": other}, text)
    return text.getvalue().encode()


def _heads(base: bytes, ours: bytes, theirs: bytes) -> bytes:
    """Of each model keep the later row of the ledger."""
    own, other = json.loads(ours), json.loads(theirs)
    if own["ledger"] != other["ledger"]:
        raise MergeConflict(HEADS_FILE)
    for model, head in own["heads"].items():
        if head["number"] > other["heads"].get(model, {"number": -1})["number"]:
            other["heads"][model] = head
    return (json.dumps(other, indent=2, sort_keys=True) + "\n").encode()


_MERGERS: dict[str, Callable[[bytes, bytes, bytes], bytes]] = {
    LOCK_FILE: _locks,
    HEADS_FILE: _heads,
    LOG_FILE: _union,
    ".gitignore": _union,
    ".gitattributes": _union,
}
