"""What git names: the contents that files have in every commit, and at each branch and tag. Reads, never writes."""

from __future__ import annotations

from pathlib import Path

from segmill.data.versioning.repository import git, git_bytes
from segmill.errors import InputError


def every_version(root: Path, *patterns: str) -> list[bytes]:
    """Return each content that files matching the patterns have in any commit that a ref or the reflog leads to.

    ``patterns``: of paths relative to ``root``, as git's glob has them.
    """
    specs = [f":(glob){pattern}" for pattern in patterns]
    shown = ("--raw", "--no-abbrev", "--no-renames", "--format=", "-m", "--full-history")
    listed = git(root, "-c", "log.showRoot=true", "log", "--all", "--reflog", *shown, "--", *specs)
    changes = [line.split(" ")[2:4] for line in listed.splitlines() if line.startswith(":")]
    return _blobs(root, sorted({blob for change in changes for blob in change}))


def at_every_tip(root: Path, path: str) -> list[bytes]:
    """Return the contents that the file ``path`` has at HEAD and at each branch, remote branch and tag."""
    refs = git(root, "for-each-ref", "--format=%(refname)").splitlines()
    return _blobs(root, [f"{ref}:./{path}" for ref in ("HEAD", *refs)])


def files_like(root: Path, pattern: str) -> list[Path]:
    """Return the files that git has or would take, whose paths relative to ``root`` match the pattern."""
    listed = git(root, "ls-files", "-z", "--cached", "--others", "--exclude-standard", "--", f":(glob){pattern}")
    return [root / name for name in sorted(set(listed.split("\0"))) if name and (root / name).is_file()]


def incomplete(root: Path) -> str:
    """Say why this clone may not know all that git names; "" where it does, as far as its remotes answer."""
    if git(root, "rev-parse", "--is-shallow-repository") == "true":
        return "git's history is cut off here; `git fetch --unshallow` brings it"
    for remote in git(root, "remote").splitlines():
        try:
            listed = git(root, "ls-remote", "--heads", "--tags", remote, environment={"GIT_TERMINAL_PROMPT": "0"})
        except InputError:
            return f"git's remote {remote} does not answer, and may name more"
        tips = [line.partition("\t")[0] for line in listed.splitlines()]
        if len(_blobs(root, tips, kind="")) < len(set(tips)):
            return f"git's remote {remote} has commits that are not here; `git fetch {remote}` brings them"
    return ""


def _blobs(root: Path, names: list[str], kind: str = "blob") -> list[bytes]:
    """Return the contents of the objects that there are of these, each once; ``kind`` "": of any kind."""
    said = git_bytes(root, "cat-file", "--batch", stdin="".join(f"{name}\n" for name in names).encode())
    contents, place = {}, 0
    while place < len(said):
        end = said.index(b"\n", place)
        header = said[place:end].split(b" ")
        place = end + 1
        if header[-1] == b"missing" or not header[-1].isdigit():
            continue
        oid, what, size = header[0], header[1].decode(), int(header[2])
        if what == kind or not kind:
            contents[oid] = said[place : place + size]
        place += size + 1
    return list(contents.values())
