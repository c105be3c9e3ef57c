from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from ruamel.yaml import YAML
from sources import git

from segmill.data.versioning.cloning import GitSource, fetch_clone, set_to
from segmill.data.versioning.publishing import Overtaken, push_commits
from segmill.data.versioning.repository import commit_contents, create_repository, git_head
from segmill.errors import InfrastructureError


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    """A bare repository with params.yaml, dvc.yaml and dvc.lock in its branch main."""
    author = tmp_path / "author"
    create_repository(author)
    for name in ("params.yaml", "dvc.yaml"):
        (author / name).write_text("one\n")
    (author / "dvc.lock").write_text(lock(prepare=1, evaluate=1))
    git(author, "add", "-A")
    git(author, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    git(tmp_path, "clone", "-q", "--bare", str(author), "source.git")
    return tmp_path / "source.git"


def lock(**outs: int) -> str:
    stages = "".join(
        f"  {name}:\n    cmd: c\n    outs:\n    - path: o\n      md5: '{out}'\n" for name, out in outs.items()
    )
    return f"schema: '2.0'\nstages:\n{stages}"


def clone(bare: Path, name: str) -> Path:
    folder = bare.parent / name
    set_to(folder, fetch_clone(GitSource(str(bare)), folder))
    return folder


def record(root: Path, contents: dict[str, str], message: str = "a run") -> str:
    onto = git_head(root)
    assert onto
    made = commit_contents(root, {path: text.encode() for path, text in contents.items()}, message, onto=onto)
    assert made
    return made


def shown(bare: Path, path: str) -> str:
    return git(bare, "show", f"main:{path}")


def test_a_commit_is_pushed_as_it_is_where_nobody_was_faster(bare: Path) -> None:
    root = clone(bare, "one")
    before = git_head(root)
    assert push_commits(root) == before, "nothing is to be pushed"
    made = record(root, {"dvc.lock": lock(prepare=2, evaluate=1)})
    assert push_commits(root) == made == git(bare, "rev-parse", "main")
    assert push_commits(root) == made, "it is there already"


def test_a_refused_push_is_rebased_and_the_message_stays(bare: Path) -> None:
    one, two = clone(bare, "one"), clone(bare, "two")
    first = record(one, {"dvc.lock": lock(prepare=2, evaluate=1), "ledger.txt": "l"}, "one's run\n\nwhy it ran")
    record(one, {"second": "s"}, "one's second")
    other = record(two, {"dvc.lock": lock(prepare=1, evaluate=2)}, "two's run")
    push_commits(two)
    last = push_commits(one)
    assert last == git(bare, "rev-parse", "main") == git_head(one)
    assert git(bare, "log", "--format=%s", "main").splitlines() == ["one's second", "one's run", "two's run", "first"]
    assert git(bare, "log", "--format=%P", "-1", "main~1") == other and first not in git(
        bare, "log", "--format=%H", "main"
    )
    assert git(bare, "log", "--format=%b", "-1", "main~1") == "why it ran"
    outs = {
        name: stage["outs"][0]["md5"]
        for name, stage in YAML(typ="safe").load(shown(bare, "dvc.lock"))["stages"].items()
    }
    assert outs == {"prepare": "2", "evaluate": "2"} and shown(bare, "second") == "s"


def test_where_both_recorded_the_same_stage_the_run_is_to_be_made_again(bare: Path) -> None:
    one, two = clone(bare, "one"), clone(bare, "two")
    record(one, {"dvc.lock": lock(prepare=2, evaluate=1)})
    record(two, {"dvc.lock": lock(prepare=3, evaluate=1)})
    there = push_commits(two)
    with pytest.raises(Overtaken, match=r"the stage prepare was changed in .*run again"):
        push_commits(one)
    assert git(bare, "rev-parse", "main") == there, "nothing was overwritten"


def test_both_made_the_same_so_nothing_is_to_be_pushed(bare: Path) -> None:
    one, two = clone(bare, "one"), clone(bare, "two")
    record(one, {"dvc.lock": lock(prepare=2, evaluate=1)})
    record(two, {"dvc.lock": lock(prepare=2, evaluate=1)}, "two's run")
    there = push_commits(two)
    assert push_commits(one) == there == git(bare, "rev-parse", "main")


def test_where_others_changed_what_the_run_was_made_from_its_own_commit_is_kept(bare: Path) -> None:
    """A rebased commit would say that the run had the new settings."""
    one, two = clone(bare, "one"), clone(bare, "two")
    made = record(one, {"dvc.lock": lock(prepare=2, evaluate=1)})
    record(two, {"params.yaml": "two\n"}, "settings")
    push_commits(two)
    assert push_commits(one) == made
    assert git(bare, "show", f"{made}:params.yaml") == "one"
    assert (shown(bare, "params.yaml"), made in git(bare, "log", "--format=%H", "main")) == ("two", True)
    assert "'2'" in shown(bare, "dvc.lock")
    record(two, {"later": "x"}, "later")
    assert push_commits(two), "the merge is a commit like any other"
    assert shown(bare, "later") == "x" and shown(bare, "params.yaml") == "two"


def test_many_machines_push_at_the_same_time_and_nothing_is_lost(bare: Path) -> None:
    roots = [clone(bare, f"machine{number}") for number in range(4)]
    for number, root in enumerate(roots):
        record(root, {f"out{number}": str(number)}, f"run {number}")
    start = threading.Barrier(len(roots))

    def push(root: Path) -> str:
        start.wait()
        return push_commits(root)

    with ThreadPoolExecutor(len(roots)) as machines:
        commits = list(machines.map(push, roots))
    assert [shown(bare, f"out{number}") for number in range(4)] == ["0", "1", "2", "3"]
    assert set(commits) <= set(git(bare, "log", "--format=%H", "main").splitlines())


def test_a_source_that_refuses_says_why_and_one_that_is_gone_says_so(bare: Path) -> None:
    root = clone(bare, "one")
    record(root, {"out": "x"})
    hook = bare / "hooks" / "pre-receive"
    hook.write_text("#!/bin/sh\necho the branch is protected >&2\nexit 1\n")
    hook.chmod(0o755)
    with pytest.raises(InfrastructureError, match="the branch is protected"):
        push_commits(root)
    bare.rename(bare.with_name("gone.git"))
    with pytest.raises(InfrastructureError, match=r"source\.git@main does not answer"):
        push_commits(root)
