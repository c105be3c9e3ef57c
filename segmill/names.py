"""Names from outside (classes, ids, groups), made safe for a terminal, a spreadsheet, Markdown and MLflow."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable

MOST_CHARACTERS = 80  # of a name that is printed
MLFLOW_CHARACTERS = 250  # MAX_ENTITY_KEY_LENGTH of mlflow.utils.validation
_FORMULA = ("=", "+", "-", "@", "\t", "\r", "\n", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_MARKDOWN = re.compile(r"[\\`*\[\]|~]")


def visible(text: str, most: int | None = MOST_CHARACTERS) -> str:
    r"""Return one line that shows every character and moves no other: a newline, an escape sequence or a change of the
    writing direction becomes its escape, such as \n; ``most`` characters at most."""
    shown = "".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text)
    return shown if most is None or len(shown) <= most else f"{shown[: most - 3]}..."


def visible_lines(text: str) -> str:
    """As ``visible``, for a message of several lines, each of any length."""
    return "\n".join(visible(line, None) for line in text.splitlines())


def for_spreadsheet(text: str) -> str:
    """Return a cell that a spreadsheet takes for text: one that would be a formula begins with an apostrophe.

    As OWASP recommends against CSV injection; the apostrophe is to be taken away to have the name.
    """
    return f"'{text}" if text.startswith(_FORMULA) else text


def for_markdown(text: str) -> str:
    """Return the text for a cell of a Markdown table, where it neither ends the cell nor becomes markup or HTML."""
    plain = visible(text).replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _MARKDOWN.sub(r"\\\g<0>", plain)


def mlflow_name(name: str) -> str:
    """Return a name of a metric, parameter or tag that MLflow takes: it allows few characters, no path that leads
    elsewhere and no more than 250 characters. A name that is allowed stays; one that is too long ends with a hash."""
    parts = re.sub(r"[^\w\-. :/]", "_", name).split("/")
    allowed = "/".join("_" * max(len(part), 1) if part in ("", ".", "..") else part for part in parts)
    if len(allowed) <= MLFLOW_CHARACTERS:
        return allowed
    return f"{allowed[: MLFLOW_CHARACTERS - 9]}_{_digest(name)}"


def mlflow_names(names: Iterable[str]) -> dict[str, str]:
    """Return name -> ``mlflow_name``, apart for those that would become the same: the later ones end with a hash."""
    found: dict[str, str] = {}
    taken: set[str] = set()
    for name in names:
        allowed = mlflow_name(name)
        if allowed in taken:
            allowed = f"{allowed[: MLFLOW_CHARACTERS - 9]}_{_digest(name)}"
        taken.add(allowed)
        found[name] = allowed
    return found


def _digest(name: str) -> str:
    return hashlib.sha256(name.encode()).hexdigest()[:8]
