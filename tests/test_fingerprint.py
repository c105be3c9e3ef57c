from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segmill import fingerprint
from segmill.fingerprint import reached_modules

LOSS = '''
"""A docstring."""
import logging
import warnings

_log = logging.getLogger(__name__)


class Options:
    share = 0.5
    """The share that counts."""


def dice(x):
    """Say what it is."""
    if x > 1:
        raise ValueError(f"{x} is too much: " "at most 1", 22)
    _log.warning("x is %s", x)
    logging.getLogger("mill").info(f"x is {x}")
    warnings.warn("old", stacklevel=2)
    return 1 - x  # the overlap
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of two packages: steps.train -> mill.loop -> mill.loss; steps.check -> mill.files, mill.pages."""
    for name, text in {
        "mill/__init__.py": '"""Nothing but this line."""\n',
        "mill/loss.py": LOSS,
        "mill/loop.py": (
            "from __future__ import annotations\n"
            "from typing import TYPE_CHECKING\n"
            "if TYPE_CHECKING:\n    from mill.files import SUFFIX\n"
            "def go():\n    from mill.loss import dice\n    return dice\n"
        ),
        "mill/files.py": "SUFFIX = '.png'\n",
        "mill/pages/__init__.py": "",
        "mill/pages/page.py": "PAGE = 'page.html'\n",
        "mill/pages/page.html": "<link href='style.css'>",
        "mill/pages/style.css": "p {}",
        "mill/pages/other.html": "<b>",
        "steps/__init__.py": "EDITION = 1\n",
        "steps/train.py": "import mill.loop\n",
        "steps/check.py": "from mill import files\nfrom mill.pages import page\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fingerprint, "PACKAGES", ("mill", "steps"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mill", "steps")]:
        del sys.modules[name]


@pytest.fixture
def changed(project: Path) -> Callable[[str, str], set[str]]:
    """Rewrite a file and say whose fingerprints moved."""

    def rewrite(name: str, text: str) -> set[str]:
        entries = {"train": ["steps.train"], "check": ["steps.check"]}
        before = fingerprint.fingerprints(entries)
        (project / name).write_text(text)
        after = fingerprint.fingerprints(entries)
        return {entry for entry in entries if before[entry] != after[entry]}

    return rewrite


def test_reach_goes_through_lazy_imports_and_not_through_those_for_type_checkers(project: Path) -> None:
    reached = fingerprint.fingerprints({"train": ["steps.train"]})["train"]
    assert reached_modules(reached) == ["mill.loop", "mill.loss", "steps", "steps.train"]


def test_what_was_computed_of_the_same_files_is_not_computed_again(
    project: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entries = {"train": ["steps.train"], "check": ["steps.check"]}
    first = fingerprint.fingerprints(entries)
    monkeypatch.setattr(fingerprint, "_parsed", None)  # who computes again fails
    assert fingerprint.fingerprints(entries) == first
    with pytest.raises(TypeError):
        fingerprint.fingerprints({"train": ["steps.train"]})
    (project / "mill" / "files.py").write_text("SUFFIX = '.jpg'\n")
    with pytest.raises(TypeError):
        fingerprint.fingerprints(entries)


def test_a_damaged_or_full_cache_does_no_harm(project: Path) -> None:
    entries = {"train": ["steps.train"]}
    first = fingerprint.fingerprints(entries)
    (kept,) = (project / "cache").rglob("*.json")
    kept.write_text(kept.read_text()[:20])
    assert fingerprint.fingerprints(entries) == first
    for number in range(2 * fingerprint.KEPT):
        (project / "mill" / "files.py").write_text(f"SUFFIX = '.{number}'\n")
        fingerprint.fingerprints(entries)
    assert len(list((project / "cache").rglob("*.json"))) == fingerprint.KEPT


def test_several_modules_may_begin_a_reach(project: Path) -> None:
    reached = fingerprint.fingerprints({"both": ["mill.files", "mill.loss"]})["both"]
    assert reached_modules(reached) == ["mill.files", "mill.loss"]


def test_an_unknown_module_is_refused_with_the_near_miss(project: Path) -> None:
    with pytest.raises(KeyError, match=r"no module mill\.losses; did you mean 'mill\.loss'"):
        fingerprint.fingerprints({"train": ["mill.losses"]})


def test_a_fix_counts_for_those_who_reach_it(changed: Callable[[str, str], set[str]]) -> None:
    assert changed("mill/loss.py", LOSS.replace("1 - x", "2 - x")) == {"train"}
    assert changed("mill/files.py", "SUFFIX = '.jpg'\n") == {"check"}
    assert changed("mill/__init__.py", "EDITION = 2\n") == {"train", "check"}


def test_what_a_package_offers_by_name_does_not_count_and_a_modules_does(
    changed: Callable[[str, str], set[str]],
) -> None:
    offers = "def __getattr__(name):\n    from importlib import import_module\n    return import_module(name)\n"
    assert changed("mill/__init__.py", offers) == set()
    assert changed("mill/__init__.py", f"{offers}EDITION = 2\n") == {"train", "check"}
    assert changed("mill/files.py", f"SUFFIX = '.png'\n{offers}") == {"check"}


def test_comments_docstrings_and_layout_do_not_count(changed: Callable[[str, str], set[str]]) -> None:
    reworded = LOSS.replace("# the overlap", "# other words").replace("Say what it is.", "Say more.")
    reworded = reworded.replace("The share that counts.", "How much counts.")
    assert changed("mill/loss.py", reworded.replace("1 - x", "(1\n      - x)")) == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('f"{x} is too much: " "at most 1"', 'f"{x} came; at most 1 may"'),
        ('"x is %s"', '"x: %s"'),
        ('f"x is {x}"', 'f"x = {x:g}"'),
        ('"old"', '"dice is old"'),
    ],
)
def test_texts_of_raise_and_of_log_calls_do_not_count(
    changed: Callable[[str, str], set[str]], old: str, new: str
) -> None:
    assert old in LOSS
    assert changed("mill/loss.py", LOSS.replace(old, new)) == set()


@pytest.mark.parametrize(
    ("old", "new"),
    [("x > 1", "x > 2"), ("ValueError", "KeyError"), (", 22", ", 23"), ("_log.warning(", "print(")],
)
def test_the_rest_of_raise_and_of_log_calls_counts(changed: Callable[[str, str], set[str]], old: str, new: str) -> None:
    assert old in LOSS
    assert changed("mill/loss.py", LOSS.replace(old, new)) == {"train"}


def test_a_text_that_something_else_takes_counts(changed: Callable[[str, str], set[str]]) -> None:
    assert changed("mill/loss.py", LOSS.replace("return 1 - x", 'return x.info("a")')) == {"train"}
    assert changed("mill/loss.py", LOSS.replace("return 1 - x", 'return x.info("b")')) == {"train"}


def test_a_file_counts_where_reached_code_or_a_counted_file_names_it(changed: Callable[[str, str], set[str]]) -> None:
    assert changed("mill/pages/page.html", "<p>style.css") == {"check"}
    assert changed("mill/pages/style.css", "p {x}") == {"check"}
    assert changed("mill/pages/other.html", "<i>") == set()
