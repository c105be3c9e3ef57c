"""The text of params.yaml: read so that comments stay, and values written as ``--set`` reads them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node, ScalarNode, SequenceNode
from ruamel.yaml.representer import RoundTripRepresenter

from segmill.errors import InputError
from segmill.passwords import without_password, without_passwords


def say(value: Any) -> str:
    """Write a value as ``--set`` reads it."""
    if isinstance(value, bool) or value is None:
        return json.dumps(value)
    if isinstance(value, float):
        return f"{value:g}"
    if isinstance(value, list | tuple):
        return f"[{', '.join(map(say, value))}]"
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{key}: {say(item)}" for key, item in value.items()) + "}"
    return str(value)


class _Representer(RoundTripRepresenter):
    """Writes null as null: ruamel leaves its place empty."""


_Representer.add_representer(type(None), lambda to, _: to.represent_scalar("tag:yaml.org,2002:null", "null"))


def round_trip_yaml() -> YAML:
    """Return what reads and writes YAML with its comments, as the template of params.yaml is written."""
    yaml = YAML()
    yaml.preserve_quotes = True
    yaml.Representer = _Representer
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    return yaml


def text_and_values(path: Path) -> tuple[str, Any]:
    """Return the text of a YAML file and its values, with their comments. InputError names the faulty line."""
    try:
        text = path.read_bytes().decode()
        YAML(typ="safe").load(text)  # DVC's reader, which takes less: what it refuses must not come as far as there
        return text, round_trip_yaml().load(text)
    except YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" at line {mark.line + 1}, column {mark.column + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error).splitlines()[0]
        raise InputError(f"{path.name} is not YAML{where}: {problem}; mend that line") from None
    except UnicodeDecodeError:
        raise InputError(f"{path.name} is not UTF-8 text; save it as UTF-8") from None


def yaml_without_passwords(text: str) -> str:
    """Return the text of a YAML file without user and password in its addresses; the rest stays as it is written.

    A text that is no YAML is treated as plain text.
    """
    try:
        root = YAML().compose(text)
    except YAMLError:
        return without_passwords(text)
    for node in sorted(_scalars(root), key=lambda node: -int(node.start_mark.index)):
        if (shown := without_password(node.value)) != node.value:
            start, end = node.start_mark.index, node.end_mark.index
            written = text[start:end]
            quoted = written.replace(node.value, shown) if node.value in written else json.dumps(shown)
            text = f"{text[:start]}{quoted}{text[end:]}"
    return without_passwords(text)  # comments have addresses too


def _scalars(node: Node | None) -> Iterator[ScalarNode]:
    if isinstance(node, ScalarNode):
        yield node
    elif isinstance(node, SequenceNode):
        for one in node.value:
            yield from _scalars(one)
    elif isinstance(node, MappingNode):
        for pair in node.value:
            for one in pair:
                yield from _scalars(one)
