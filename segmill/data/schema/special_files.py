"""Pipes, devices, links and folders that are no files of a set, found before anyone opens them and waits for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from segmill.data.schema.issues import Issue, gather, issue_of
from segmill.data.storage.raw_set import IMAGE_SUFFIXES
from segmill.errors import InputError

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


def special_files(raw_dir: Path) -> dict[str, Issue]:
    """Return name -> issue, of everything below ``raw_dir`` that can't be taken for a file of the set.

    Folders named as images, pipes, devices, links that lead out of the set, to a folder or nowhere: reading them could
    hang, fill the memory, or take in what no version would hold. Nothing is opened here; 10,000 files take some 0.1 s.
    """
    root = os.path.realpath(raw_dir)
    found: dict[str, Issue] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if what := _what_it_is(root, path):
                name = os.path.relpath(path, root).replace(os.sep, "/")
                found[name] = issue_of(what[0], name, detail=what[1])
    return found


def refuse_special_files(raw_dir: Path) -> None:
    """Raise InputError where ``special_files`` finds any, so that nobody opens them."""
    found = special_files(raw_dir)
    if found:
        lines = "\n".join(f"  {issue}" for issue in gather(found.values()))
        raise InputError(f"{raw_dir} holds what is no file of a set, so nothing in it was opened:\n{lines}")


def _what_it_is(root: str, path: str) -> tuple[str, str] | None:
    """Return kind of issue and detail; None for a file of the set."""
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode):
        target = os.path.realpath(path)
        if os.path.commonpath([root, target]) != root:
            return "link_outside", f"to {os.readlink(path)}"
        if not os.path.exists(target):
            return "not_a_file", "a link to nothing"
        if os.path.isdir(target):
            return "not_a_file", "a link to a folder"
        facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        return ("not_a_file", "a folder") if path.lower().endswith(IMAGE_SUFFIXES) else None
    return None if stat.S_ISREG(facts.st_mode) else ("not_a_file", _KINDS[stat.S_IFMT(facts.st_mode)])
