"""Former names of keys in params.yaml, and the names they have now."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError

from segmill.errors import InputError
from segmill.files import write_atomically

_TRAIN = {
    "window_px": "crop_size",
    "accumulate": "grad_accum_steps",
    "clip_norm": "max_grad_norm",
    "early_stop": "early_stopping_patience",
    "checkpointing": "gradient_checkpointing",
    "ema": "ema_decay",
}

# Block of params.yaml -> former name -> name now. A block of ``members`` is a member, which takes keys of train too.
RENAMED: Mapping[str, Mapping[str, str]] = {
    "prepare": {"crop_px": "border_crop_px"},
    "augment": {"balance": "oversample"},
    "train": _TRAIN,
    "members": {**_TRAIN, "heads": "aux_heads"},
    "ensemble": {"flips": "tta_hflip"},
}


def with_new_names(block: str, values: Mapping[str, Any]) -> dict[str, Any]:
    """Return the recorded values of a block under the names that its keys have now; their order stays."""
    names = RENAMED.get(block, {})
    return {names.get(key, key): value for key, value in values.items()}


def name_now(key: str) -> str | None:
    """Return what a key such as ``train.ema`` is called now; None where its name never changed."""
    *blocks, leaf = key.split(".")
    if not blocks or len(blocks) != (2 if blocks[0] == "members" else 1):
        return None
    new = RENAMED.get(blocks[0], {}).get(leaf)
    return ".".join([*blocks, new]) if new else None


def former_keys(values: Any) -> dict[str, str]:
    """Return each key of params.yaml's ``values`` that has a former name, with its name now."""
    if not isinstance(values, Mapping):
        return {}
    found = {}
    for path, block in _blocks(values):
        for key in block:
            if new := name_now(f"{path}.{key}"):
                found[f"{path}.{key}"] = new
    return found


def rename_former_keys(path: Path) -> list[str]:
    """Rename former keys in params.yaml; return a line per key. A second call changes nothing.

    Only the names change, and blanks before a comment, so that comments stay in line: every other byte stays. The file
    is replaced atomically. A file that is not YAML is left alone: whoever reads it says what is wrong.

    Raises:
        InputError: a key is there under both names.
    """
    try:
        text = path.read_bytes().decode()
        values = YAML().load(text)
    except (YAMLError, UnicodeDecodeError):
        return []
    found = former_keys(values)
    places: dict[tuple[int, int], str] = {}  # row and column of a name to its key: a block that is named twice is one
    for block_path, block in _blocks(values) if found else ():
        for key in block:
            old, new = f"{block_path}.{key}", found.get(f"{block_path}.{key}")
            if new and key in (block.lc.data or ()):  # else it is written elsewhere and merged into this block
                if new.rpartition(".")[2] in block:
                    raise InputError(f"{path.name} has {old} and {new}, its name now; delete one of them")
                places.setdefault(block.lc.key(key), old)
    lines = text.splitlines(keepends=True)
    for (row, column), old in sorted(places.items(), reverse=True):  # the last first: the places of the others stay
        names = (key.rpartition(".")[2] for key in (old, found[old]))
        lines[row] = _renamed(lines[row], column, *names)
    if places:
        write_atomically(path, "".join(lines))
    return [f"{old} is {found[old]} now" for _, old in sorted(places.items())]


def _blocks(values: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the blocks that may hold a former name, each member by itself, with their keys' common beginning."""
    for name in RENAMED:
        block = values.get(name)
        if name != "members":
            named = {name: block}
        else:
            named = {f"members.{one}": member for one, member in block.items()} if isinstance(block, Mapping) else {}
        yield from ((path, one) for path, one in named.items() if isinstance(one, Mapping))


def _renamed(line: str, column: int, old: str, new: str) -> str:
    """Return ``line`` with the key at ``column`` renamed; its comment stays where it is, if there is room."""
    before, after = line[:column], line[column:]
    start = after.index(old)  # 1 where the key is quoted
    after = after[:start] + new + after[start + len(old) :]
    comment = re.fullmatch(r"([^#'\"]*?\S)( {2,})(#.*\n?)", after, re.DOTALL)
    if comment:
        blanks = max(2, len(comment[2]) - len(new) + len(old))
        after = f"{comment[1]}{' ' * blanks}{comment[3]}"
    return before + after
