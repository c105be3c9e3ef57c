"""Names from outside are text on every page: they change neither its structure nor what it loads, which is nothing."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from tests.reports.pages import PAGES

NAMES = {
    "rich markup": "[/b]x",
    "a script": "<script>alert(1)</script>",
    "an attribute's end": '"><img src=x onerror=alert(1)>',
    "an attribute's end in single quotes": "' onmouseover='alert(1)",
    "a comment's and a style's end": "--></style></title>*/",
    "a formula": "=1+1",
    "a path": "../../x",
    "an absolute path": "/etc/passwd",
    "a long name": "x" * 300,
    "an emoji": "🦊",
    "right to left": "\u202egnp.exe",
    "two lines": "two\nlines",
    "a number": "3",
    "a dot": "a.b",
    "a template": "{{ 7 * 7 }}{% raw %}",
    "mathematics": "$\\frac{1}$_^",
    "what a legend leaves out": "_hidden",
}
NO_TEXT = "\udcff"  # a byte of a file name; settings and members come from YAML, which holds none
CASES = [(page, kind, name) for page in ("audit", "checks", "windows") for kind, name in NAMES.items()]
CASES += [(page, "a byte that is no text", NO_TEXT) for page in ("audit", "checks")]
for page in ("evaluation", "tuning"):  # their plots take seconds: several names at once
    CASES += [(page, kind, NAMES[kind]) for kind in ("a number", "a dot", "what a legend leaves out")]
    CASES.append((page, "all at once", " ".join(NAMES.values())))
TEXTS = ("alt", "title", "src", "srcset")  # attributes that may say a name or hold a picture


class Structure(HTMLParser):
    """Tags with their attributes but those in TEXTS, the text, and what a browser fetches by itself.

    ``outside``: text outside <bdi> and <title>, where a right-to-left mark would reach its neighbours.
    """

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, ...]] = []
        self.links: list[str] = []
        self.said = ""
        self.outside = ""
        self._open: list[str] = []
        self.feed(page.read_text())
        self.said = " ".join(self.said.split())

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, *(key if key in TEXTS else f"{key}={value}" for key, value in attrs)))
        fetched = ("src", "srcset") if tag == "a" else ("src", "srcset", "href")
        self.links += [value for key, value in attrs if key in fetched and value]
        if tag not in ("meta", "img", "source", "br", "link"):
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append((f"/{tag}",))
        assert self._open.pop() == tag, "tags close in their order"

    def handle_data(self, data: str) -> None:
        self.said += data
        if not {"bdi", "title", "style"} & set(self._open):
            self.outside += data


@pytest.fixture(scope="module")
def plain_pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {page: write("plain name", tmp_path_factory.mktemp(page)) for page, write in PAGES.items()}


@pytest.mark.parametrize(("page", "kind", "name"), CASES, ids=[f"{page}, {kind}" for page, kind, _ in CASES])
def test_a_name_is_text_and_nothing_else(
    page: str, kind: str, name: str, plain_pages: dict[str, Path], tmp_path: Path
) -> None:
    plain, hostile = plain_pages[page].parent, tmp_path / "hostile"
    expected = Structure(plain_pages[page])
    found = Structure(PAGES[page](name, hostile))

    assert found.tags == expected.tags
    shown = " ".join(name.replace(NO_TEXT, "?").split())
    assert found.said.count(shown) >= expected.said.count("plain name") > 0
    assert "script" not in {tag for tag, *_ in found.tags}
    assert "\u202e" not in found.outside
    files = {path.relative_to(hostile) for path in hostile.rglob("*")}
    assert files == {path.relative_to(plain) for path in plain.rglob("*")}
    assert all(re.match("data:image/(jpeg|png);base64,", link) for link in found.links)
    assert not re.search(r"@import|url\(", (hostile / "index.html").read_text())
