"""What a run made, sent to the stores that outlast its clone: outs to DVC's remote, commits to the source."""

from __future__ import annotations

import random
import time
from collections.abc import Sequence
from pathlib import Path

from segmill.data.versioning.cloning import BRANCH, fetch, source_of, talk, upstream
from segmill.data.versioning.dvc_adapter import repository
from segmill.data.versioning.merging import MergeConflict, merged
from segmill.data.versioning.repository import (
    commit_contents,
    committed,
    config_value,
    git,
    git_head,
    write_commit,
    write_tree,
)
from segmill.errors import InfrastructureError, InputError, SegmillError

TRIES = 8  # pushes, where others push to the branch all the time
INPUTS = ("params.yaml", "dvc.yaml")  # and the data's record: what a run was made from


class Overtaken(SegmillError):
    """Somebody else recorded the same stage meanwhile. Exit code 4: run again, what is known then is not made again."""

    exit_code = 4


def publish(root: Path) -> str:
    """Send what the clone at ``root`` has and its stores lack: outs, run-cache, commits; return the last commit.

    Raises as ``push_commits``, whose commit it is; InfrastructureError also where DVC's remote does not answer.
    """
    push_stages(root)
    return push_commits(root)


def has_unpushed(root: Path) -> bool:
    """Tell whether the clone at ``root`` has commits that the source, as it was last fetched, lacks."""
    return git_head(root) is not None and not _is_ancestor(root, "HEAD", upstream(config_value(root, BRANCH)))


def push_stages(root: Path, stages: Sequence[str] | None = None) -> int:
    """Send outs and run-cache entries of recorded stages (None: of all in dvc.lock) that the remote lacks.

    Returns how many files were sent. Raises InfrastructureError where the remote does not answer.
    """
    with repository(root) as repo:
        known = repo.upstream().keys() & repo.lock_entries().keys()
        objects = repo.pushable(sorted(known if stages is None else known & set(stages)))
    with repository(root, locked=False) as repo:
        return repo.push_objects(objects)


def push_commits(root: Path) -> str:
    """Push the commits of a clone, rebased onto what others pushed meanwhile; return the last one as the source has it.

    Where others changed what the run was made from (params.yaml, dvc.yaml, a data record), the rebased commit would say
    something else than what ran: then the two are merged, and the run's own commit is returned.

    Raises:
        Overtaken: others recorded other results of the same stage, or changed the same file.
        InfrastructureError: the source does not answer, or refuses.
    """
    branch = config_value(root, BRANCH)
    begun = git(root, "rev-parse", "HEAD")
    head = tip = begun
    for attempt in range(TRIES):
        there = git(root, "rev-parse", upstream(branch))
        if _is_ancestor(root, begun, there):
            return begun  # nothing is to be pushed, or it was already
        head, tip = _put_onto(root, begun, there)
        if tip != git_head(root):
            git(root, "update-ref", "-m", "segmill: onto what others pushed", "HEAD", tip)
            git(root, "reset", "-q", "--")
        try:
            talk(root, "push", "-q", "origin", f"{tip}:refs/heads/{branch}")
        except InfrastructureError:
            fetch(root)
            if git(root, "rev-parse", upstream(branch)) == there and attempt >= 2:
                raise  # nobody was faster: it is refused
            time.sleep(random.uniform(0, 0.5 * (attempt + 1)))
            continue
        git(root, "update-ref", upstream(branch), tip)
        return head
    raise InfrastructureError(
        f"{source_of(root)} took none of {TRIES} pushes, since others pushed each time; run again, nothing is lost"
    )


def push_data(root: Path, files: Sequence[str], message: str) -> bool:
    """Commit the files that record the data's version, and push the branch to where git pushes it; whether it had to.

    Raises:
        InputError: git knows of nowhere to push to, or others pushed meanwhile.
    """
    head = git_head(root)
    if head is None or not git(root, "remote"):
        raise InputError(
            f"git at {root} has no remote", "add one: `git remote add origin URL; git push -u origin main`"
        )
    commit_contents(root, {path: (root / path).read_bytes() for path in files}, message, onto=head)
    try:
        said = git(root, "push", "--porcelain", environment={"GIT_TERMINAL_PROMPT": "0"})
    except InputError as fault:
        raise InputError(fault.what, "where others pushed meanwhile: `git pull --rebase`, then again") from None
    return "[up to date]" not in said


def _put_onto(root: Path, head: str, onto: str) -> tuple[str, str]:
    """Replay the commits that ``head`` has and ``onto`` lacks; return what became of ``head``, and what to push."""
    if _is_ancestor(root, onto, head):
        return head, head
    base = git(root, "merge-base", head, onto)
    others = set(git(root, "diff", "--name-only", base, onto).splitlines())
    tip = onto
    for commit in git(root, "rev-list", "--reverse", "--no-merges", head, f"^{onto}").split():
        tip = _replayed(root, commit, tip)
    if any(path in INPUTS or path.endswith(".dvc") for path in others):
        tree = git(root, "rev-parse", f"{tip}^{{tree}}")
        return head, write_commit(root, tree, f"Merge what others pushed during the run {head[:12]}", [onto, head])
    return tip, tip


def _replayed(root: Path, commit: str, onto: str) -> str:
    """Commit on top of ``onto`` what ``commit`` changed; return ``onto`` where that has it already."""
    contents = {}
    for path in git(root, "diff", "--name-only", "--diff-filter=d", f"{commit}^", commit).splitlines():
        before, ours, theirs = (committed(root, path, one) for one in (f"{commit}^", commit, onto))
        assert ours is not None, "deleted files are left out"
        try:
            contents[path] = merged(path, before, ours, theirs)
        except MergeConflict as conflict:
            raise Overtaken(
                f"{conflict.what} was changed in {source_of(root)} while this run made it too ({onto[:12]}); run "
                "again: what is the same is taken from there, and nothing is trained twice"
            ) from None
    tree = write_tree(root, onto, contents)
    if tree == git(root, "rev-parse", f"{onto}^{{tree}}"):
        return onto
    return write_commit(root, tree, git(root, "show", "--no-patch", "--format=%B", commit), [onto])


def _is_ancestor(root: Path, one: str, of: str) -> bool:
    return git(root, "rev-list", "--count", one, f"^{of}") == "0"
