"""What stands in a set without being a file of it: to be known before anyone, DVC too, opens it and waits for ever."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import NamedTuple

from segmill.data.schema.issues import fault
from segmill.data.storage.labelled import IMAGE_SUFFIXES
from segmill.errors import InputError

_KINDS = {stat.S_IFIFO: "a pipe", stat.S_IFSOCK: "a socket", stat.S_IFCHR: "a device", stat.S_IFBLK: "a device"}


class Strange(NamedTuple):
    """``kind`` as faults.KINDS has it; ``detail``: what it is instead of a file."""

    kind: str
    detail: str


def strange_files(raw_dir: Path) -> dict[str, Strange]:
    """Return name -> what it is, of everything below ``raw_dir`` that can't be taken for a file of the set.

    Folders named as images, pipes, devices, links that lead out of the set, to a folder or nowhere: reading them could
    hang, fill the memory, or take in what no version would hold. Nothing is opened here; 10,000 files take some 0.1 s.
    """
    root = os.path.realpath(raw_dir)
    found: dict[str, Strange] = {}
    for folder, folders, files in os.walk(root):
        for name in (*folders, *files):
            path = os.path.join(folder, name)
            if strange := _look(root, path):
                found[os.path.relpath(path, root).replace(os.sep, "/")] = strange
    return found


def refuse_strange_files(raw_dir: Path) -> None:
    """Raise InputError where ``strange_files`` finds any, so that nobody opens them."""
    found = strange_files(raw_dir)
    if found:
        faults = [
            fault(kind, [name for name in found if found[name].kind == kind], f"the first: {first}")
            for kind, first in {strange.kind: strange.detail for strange in reversed(found.values())}.items()
        ]
        lines = "\n".join(f"  {one}" for one in faults)
        raise InputError(f"{raw_dir} holds what is no file of a set, so nothing in it was opened:\n{lines}")


def _look(root: str, path: str) -> Strange | None:
    facts = os.lstat(path)
    if stat.S_ISLNK(facts.st_mode):
        target = os.path.realpath(path)
        if os.path.commonpath([root, target]) != root:
            return Strange("link_outside", f"to {os.readlink(path)}")
        if not os.path.exists(target):
            return Strange("not_a_file", "a link to nothing")
        if os.path.isdir(target):
            return Strange("not_a_file", "a link to a folder")
        facts = os.stat(path)
    if stat.S_ISDIR(facts.st_mode):
        return Strange("not_a_file", "a folder") if path.lower().endswith(IMAGE_SUFFIXES) else None
    return None if stat.S_ISREG(facts.st_mode) else Strange("not_a_file", _KINDS[stat.S_IFMT(facts.st_mode)])
