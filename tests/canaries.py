"""Looks for planted secrets in all that a run wrote, and in the processes that it starts."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import psutil

LOOK_EVERY_S = 0.2
CHUNK, OVERLAP = 2**24, 2**10


def in_files(canaries: Mapping[str, str], *folders: Path, without: Iterable[Path] = ()) -> set[str]:
    """Return "NAME in PATH" for each file below the folders that holds a canary's text; git's objects are unpacked."""
    found = set()
    left_out = set(without)
    for folder in folders:
        for path in folder.rglob("*"):
            if path.is_symlink() or not path.is_file() or left_out & {path, *path.parents}:
                continue
            found |= {f"{name} in {path}" for name in in_file(canaries, path)}
        for repository in [path.parent for path in folder.rglob("objects") if (path.parent / "HEAD").is_file()]:
            said = subprocess.run(
                ["git", "-C", str(repository), "cat-file", "--batch-all-objects", "--batch"], capture_output=True
            )
            assert said.returncode == 0, said.stderr
            found |= {f"{name} in a commit of {repository}" for name in in_bytes(canaries, said.stdout)}
    return found


def in_file(canaries: Mapping[str, str], path: Path) -> set[str]:
    """Return the names of the canaries that a file holds."""
    found: set[str] = set()
    tail = b""
    with path.open("rb") as file:
        while piece := file.read(CHUNK):
            found |= in_bytes(canaries, tail + piece)
            tail = piece[-OVERLAP:]
    return found


def in_bytes(canaries: Mapping[str, str], content: bytes) -> set[str]:
    """Return the names of the canaries in these bytes."""
    return {name for name, canary in canaries.items() if canary.encode() in content}


@contextmanager
def watching_processes(canaries: Mapping[str, str], may_have: Mapping[str, Iterable[str]]) -> Iterator[set[str]]:
    """Look at all processes of this user while the block runs; give a set that fills with what was found.

    ``may_have``: per canary, words of the command lines whose processes may have it in their environment. No command
    line may hold one.
    """
    found: set[str] = set()
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(canaries, may_have, found, over))
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


def _watch(
    canaries: Mapping[str, str], may_have: Mapping[str, Iterable[str]], found: set[str], over: threading.Event
) -> None:
    while not over.wait(LOOK_EVERY_S):
        for process in psutil.process_iter():
            try:
                line, environment = " ".join(process.cmdline()), process.environ()
            except psutil.Error:
                continue
            found |= {f"{name} in a command line: {line[:100]}" for name in in_bytes(canaries, line.encode())}
            values = "\n".join(environment.values()).encode(errors="surrogateescape")
            for name in in_bytes(canaries, values):
                if not any(word in line for word in may_have.get(name, ())):
                    found.add(f"{name} in the environment of {line[:100]}")
