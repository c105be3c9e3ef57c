"""The Jinja environment of all pages: names from outside are escaped, and a value that is missing is an error."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

from segmill.files import write_atomically

if TYPE_CHECKING:
    from jinja2 import Environment


def render(template: str, **values: Any) -> str:
    """Return the page that ``template``, a file of this folder, makes of ``values``.

    It loads nothing from anywhere: the style is in it, its pictures are data URIs.
    """
    return _environment().get_template(template).render(**values)


def write_page(path: Path, template: str, **values: Any) -> None:
    """Write the page to ``path``, atomically. What UTF-8 can't hold, as in a damaged file name, becomes "?"."""
    write_atomically(path, render(template, **values).encode(errors="replace"))


@cache
def _environment() -> Environment:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    folder = FileSystemLoader(Path(__file__).parent)
    environment = Environment(
        loader=folder, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.filters["percent"] = _percent
    environment.filters["points"] = _points
    environment.filters["duration"] = _duration
    environment.filters["count"] = "{:,}".format
    return environment


def _percent(share: float | None) -> str:
    """Write a share in %, with one digit; "-" for None."""
    return "-" if share is None else f"{100 * share:.1f}"


def _points(difference: float | None) -> str:
    """Write a difference of two shares in points, signed, with one digit; "-" for None."""
    return "-" if difference is None else f"{100 * difference:+.1f}".replace("-0.0", "+0.0")


def _duration(seconds: float) -> str:
    """Write seconds as 45 s, 3 min 05 s or 2 h 10 min."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
