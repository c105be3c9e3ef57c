"""Changes of params.yaml, key by key: checked as a whole before anything is written, and its comments kept."""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.scalarstring import SingleQuotedScalarString
from ruamel.yaml.tokens import CommentToken

from segmill.errors import InputError
from segmill.files import replacing
from segmill.params import Params, check_values, parse_params
from segmill.params_text import round_trip_yaml, say, text_and_values
from segmill.renamed_keys import former_keys, name_now


@dataclass(frozen=True)
class ParamsChange:
    """What params.yaml will be: its parameters and text, and a line per value that changes. Nothing is written yet."""

    path: Path
    before: str
    params: Params
    text: str
    lines: tuple[str, ...]

    def write(self) -> bool:
        """Replace the file atomically; False where it says that already. InputError where it was edited meanwhile."""
        now = self.path.read_bytes().decode()
        if now == self.text:
            return False
        if now != self.before:
            raise InputError(f"{self.path.name} was edited while --set was checked, so it was left alone; run again")
        with replacing(self.path) as draft:
            draft.write_text(self.text)
        return True


def set_params(path: Path, assignments: list[str]) -> list[str]:
    """Apply ``key=value`` assignments to params.yaml; return a line per value that changed. As ``change_params``."""
    change = change_params(path, assignments)
    change.write()
    return list(change.lines)


def change_params(path: Path, assignments: list[str]) -> ParamsChange:
    """Return what ``key=value`` assignments make of params.yaml, its comments kept.

    The value is read as YAML. Raises InputError for an assignment without ``=``, or one that makes the file invalid; a
    fault that was in the file before, and that no assignment mends, is said of the file.
    """
    yaml = round_trip_yaml()
    before, values = text_and_values(path)
    if not isinstance(values, dict) or former_keys(values):
        parse_params(values, path.name)
    old_faults, changes = check_values(values)[1], []
    for assignment in assignments:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise InputError(f"--set {assignment}: write it as key=value, for example --set train.epochs=10")
        if new := name_now(key):
            raise InputError(f"--set {assignment}: {key} is called {new} now; write --set {new}={text}")
        *parents, leaf = key.split(".")
        block = values
        for parent in parents:
            block = block.setdefault(parent, {}) if isinstance(block, dict) else {}
        if not isinstance(block, dict):
            raise InputError(f"--set {key}: {'.'.join(parents)} is a value, not a block of keys")
        in_flow = isinstance(block, CommentedMap) and bool(block.fa.flow_style())
        value = _for_every_reader(yaml.load(text), key, in_flow=in_flow)
        if block.get(leaf) != value:
            changes.append(f"{key}: {say(block[leaf]) if leaf in block else 'not set'} -> {say(value)}")
        _put(block, leaf, value)
        if isinstance(block, CommentedMap) and (comments := block.ca.items.get(leaf)):
            comments[3] = None  # what stood before a value in block style; ruamel would break the file over it
    params, faults = check_values(values)
    if faults or params is None:
        raise InputError("\n".join(f"{path.name if fault in old_faults else '--set'}: {fault}" for fault in faults))
    if not changes:
        return ParamsChange(path, before, params, before, ())
    written = io.StringIO()
    yaml.dump(values, written)
    return ParamsChange(path, before, params, written.getvalue(), tuple(changes))


def _put(block: dict[str, Any], leaf: str, value: Any) -> None:
    """Set the key; a new one follows the block's last, before the blank line that ends the block."""
    comments = block.ca.items if isinstance(block, CommentedMap) else {}
    last = next(reversed(block), None)
    is_new = leaf not in block
    block[leaf] = value
    if is_new and last in comments and (comment := comments[last][2]) and not isinstance(value, dict):
        own, _, after = comment.value.partition("\n")
        comment.value = own + "\n"
        comments[leaf] = [None, None, CommentToken("\n" + after, comment.start_mark, None), None]


def _for_every_reader(value: Any, key: str, *, in_flow: bool) -> Any:
    """Return ``value``, which is for ``key``, so that it is written as the template does and every reader takes it.

    Members, and each of them, have a line per key. In braces and brackets text with a colon in it is quoted: YAML 1.1,
    which DVC reads, knows no other there.
    """
    if isinstance(value, str):
        return SingleQuotedScalarString(value) if in_flow and ":" in value else value
    if isinstance(value, CommentedMap):
        if key == "members" or key.split(".")[:-1] == ["members"]:
            value.fa.set_block_style()
        for name, one in value.items():
            value[name] = _for_every_reader(one, f"{key}.{name}", in_flow=bool(value.fa.flow_style()))
    elif isinstance(value, CommentedSeq):
        value[:] = [_for_every_reader(one, key, in_flow=True) for one in value]
    return value
