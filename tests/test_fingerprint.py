from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from segmill import fingerprint

LOSS = '''
"""A docstring."""

def dice(x):
    """Say what it is."""
    return 1 - x  # the overlap
'''


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A project of two packages: steps.train -> mill.loop -> mill.loss; steps.check -> mill.files."""
    for name, text in {
        "mill/__init__.py": "",
        "mill/loss.py": LOSS,
        "mill/loop.py": "def go():\n    from mill.loss import dice\n    return dice\n",
        "mill/files.py": "SUFFIX = '.png'\n",
        "mill/page.html": "<p>",
        "steps/__init__.py": "",
        "steps/bridge.py": "import mill.files\n",
        "steps/train.py": "import steps.bridge\nWORK = 'mill.loop:go'\n",
        "steps/check.py": "from mill import files\n",
    }.items():
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(fingerprint, "PACKAGES", ("mill", "steps"))
    monkeypatch.setattr(fingerprint, "NOT_FOLLOWED", ("steps.bridge",))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] in ("mill", "steps")]:
        del sys.modules[name]


@pytest.fixture
def changed(project: Path) -> Callable[[str, str], set[str]]:
    """Rewrite a file and say which entries' fingerprints moved."""

    def rewrite(name: str, text: str) -> set[str]:
        entries = ("steps.train", "steps.check")
        before = fingerprint.fingerprints(entries)
        (project / name).write_text(text)
        after = fingerprint.fingerprints(entries)
        return {entry for entry in entries if before[entry] != after[entry]}

    return rewrite


def test_reach_goes_through_lazy_imports_and_functions_named_for_ray(project: Path) -> None:
    reached = fingerprint.fingerprints(["steps.train"])["steps.train"]
    assert [line.split()[0] for line in reached.splitlines()] == [
        "mill", "mill.loop", "mill.loss", "mill/page.html", "steps", "steps.train",
    ]  # fmt: skip


def test_a_fix_counts_for_those_who_reach_it(changed: Callable[[str, str], set[str]]) -> None:
    assert changed("mill/loss.py", LOSS.replace("1 - x", "2 - x")) == {"steps.train"}
    assert changed("mill/files.py", "SUFFIX = '.jpg'\n") == {"steps.check"}


def test_comments_docstrings_and_layout_do_not_count(changed: Callable[[str, str], set[str]]) -> None:
    told_otherwise = LOSS.replace("# the overlap", "# other words").replace("Say what it is.", "Say more.")
    assert changed("mill/loss.py", told_otherwise.replace("1 - x", "(1\n      - x)")) == set()


def test_the_bridge_to_dvc_does_not_count(changed: Callable[[str, str], set[str]]) -> None:
    assert changed("steps/bridge.py", "import mill.files\nX = 1\n") == set()


def test_a_file_beside_reached_code_counts(changed: Callable[[str, str], set[str]]) -> None:
    assert changed("mill/page.html", "<b>") == {"steps.train", "steps.check"}
