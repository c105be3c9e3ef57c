from __future__ import annotations

import base64
import os
import subprocess
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from sources import git

from segmill.data.versioning.cloning import (
    PASSWORD_VARIABLE,
    USER_VARIABLE,
    GitSource,
    fetch_clone,
    parse_source,
    set_to,
    source_of,
)
from segmill.data.versioning.publishing import push_commits
from segmill.data.versioning.repository import commit_contents, create_repository, git_head
from segmill.errors import InfrastructureError, InputError

SECRET = "s3cret/with@signs"


@pytest.mark.parametrize(
    ("text", "url", "branch"),
    [
        ("https://git.example/org/repo.git", "https://git.example/org/repo.git", None),
        ("https://git.example/org/repo.git@main", "https://git.example/org/repo.git", "main"),
        ("https://git.example:8443/repo@teams/vision", "https://git.example:8443/repo", "teams/vision"),
        ("ssh://git@host/repo", "ssh://git@host/repo", None),
        ("ssh://git@host:22/repo@next", "ssh://git@host:22/repo", "next"),
        ("git@host:org/repo.git", "git@host:org/repo.git", None),
        ("git@host:org/repo.git@main", "git@host:org/repo.git", "main"),
        ("file:///srv/repo.git@main", "file:///srv/repo.git", "main"),
        ("/srv/repo.git@main", "/srv/repo.git", "main"),
        ("/srv/repo.git", "/srv/repo.git", None),
    ],
)
def test_the_branch_is_what_follows_the_last_at_of_the_path(text: str, url: str, branch: str | None) -> None:
    assert parse_source(text) == GitSource(url, branch)


def test_a_folder_of_this_machine_is_made_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a@b").mkdir()
    assert parse_source("a@b") == GitSource(str(tmp_path / "a@b"))
    assert parse_source("repo.git@main") == GitSource(str(tmp_path / "repo.git"), "main")


@pytest.mark.parametrize("address", ["https://me:pass@host/repo", "https://token@host/repo", "ssh://me:pass@host/repo"])
def test_an_address_with_a_password_is_refused_and_not_shown(address: str) -> None:
    with pytest.raises(InputError, match=USER_VARIABLE) as refused:
        parse_source(address)
    assert "pass" not in str(refused.value).replace("password", "").replace("PASSWORD", "")
    assert "token" not in str(refused.value)


@pytest.fixture
def bare(tmp_path: Path) -> Path:
    author = tmp_path / "author"
    create_repository(author)
    (author / "params.yaml").write_text("one\n")
    git(author, "add", "-A")
    git(author, "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-qm", "first")
    git(author, "branch", "next")
    git(tmp_path, "clone", "-q", "--bare", str(author), "source.git")
    return tmp_path / "source.git"


def test_an_empty_folder_becomes_a_clone_and_a_clone_is_brought_up_to_date(bare: Path, tmp_path: Path) -> None:
    root, source = tmp_path / "new" / "clone", GitSource(str(bare))
    (root / ".segmill" / "locks").mkdir(parents=True)
    newest = fetch_clone(source, root)
    assert set_to(root, newest) == ""
    assert (root / "params.yaml").read_text() == "one\n" and git(root, "status", "--porcelain") == ""
    assert source_of(root) == GitSource(str(bare), "main")
    other = tmp_path / "other"
    set_to(other, fetch_clone(GitSource(str(bare), "next"), other))
    made = commit_contents(other, {"params.yaml": b"two\n"}, "next", onto=newest)
    assert push_commits(other) == made
    assert fetch_clone(source, root) == newest, "that is another branch"
    set_to(other, fetch_clone(GitSource(str(bare)), other))
    assert git_head(other) == made, "a clone keeps its branch"
    git(bare, "update-ref", "refs/heads/main", str(made))
    (root / "params.yaml").write_text("edited here\n")
    assert set_to(root, fetch_clone(source, root)) == "params.yaml"
    assert (root / "params.yaml").read_text() == "two\n"
    assert "edited here" in git(root, "stash", "show", "-p"), "nothing is lost"


def test_a_clone_that_was_killed_is_completed(bare: Path, tmp_path: Path) -> None:
    root = tmp_path / "clone"
    root.mkdir()
    git(root, "init", "-q")
    newest = fetch_clone(GitSource(str(bare)), root)
    (root / ".git" / "index.lock").touch()
    (root / ".git" / "refs" / "heads" / "main.lock").touch()
    set_to(root, fetch_clone(GitSource(str(bare)), root))
    assert git_head(root) == newest


def test_a_folder_with_something_else_is_refused(bare: Path, tmp_path: Path) -> None:
    full = tmp_path / "full"
    full.mkdir()
    (full / "thesis.tex").touch()
    with pytest.raises(InputError, match="holds something else already"):
        fetch_clone(GitSource(str(bare)), full)
    with pytest.raises(InputError, match="is a git repository of its own"):
        fetch_clone(GitSource(str(bare)), tmp_path / "author")
    root = tmp_path / "clone"
    set_to(root, fetch_clone(GitSource(str(bare)), root))
    with pytest.raises(InputError, match=r"is a clone of .*source\.git@main, not of .*@next"):
        fetch_clone(GitSource(str(bare), "next"), root)
    with pytest.raises(InputError, match="has no branch gone; name one of main, next"):
        fetch_clone(GitSource(str(bare), "gone"), tmp_path / "third")
    git(tmp_path, "init", "-q", "--bare", "empty.git")
    with pytest.raises(InputError, match="has no commit; push a workspace first"):
        fetch_clone(GitSource(str(tmp_path / "empty.git")), tmp_path / "fourth")


class GitOverHttp(BaseHTTPRequestHandler):
    """Git's own HTTP backend behind basic authentication. ``folder``, ``wanted``: set by the fixture."""

    folder: Path
    wanted: str

    def do_GET(self) -> None:
        if self.headers.get("Authorization") != self.wanted:
            self.send_response(401)
            self.send_header("WWW-Authenticate", "Basic")
            self.end_headers()
            return
        path, _, query = self.path.partition("?")
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = subprocess.run(
            ["git", "http-backend"], input=body, capture_output=True, check=True,
            env={
                **os.environ, "GIT_PROJECT_ROOT": str(self.folder), "GIT_HTTP_EXPORT_ALL": "1", "PATH_INFO": path,
                "QUERY_STRING": query, "REQUEST_METHOD": self.command, "REMOTE_USER": "bot",
                "CONTENT_TYPE": self.headers.get("Content-Type", ""),
                "HTTP_CONTENT_ENCODING": self.headers.get("Content-Encoding", ""),
            },
        ).stdout  # fmt: skip
        head, _, content = answer.partition(b"\r\n\r\n")
        self.send_response(200)
        for line in head.decode().splitlines():
            self.send_header(*line.split(": ", 1))
        self.end_headers()
        self.wfile.write(content)

    do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def https(bare: Path) -> Iterator[str]:
    """The address of the bare repository at a server that asks for a password."""
    token = base64.b64encode(f"bot:{SECRET}".encode()).decode()
    handler = type("Handler", (GitOverHttp,), {"folder": bare.parent, "wanted": f"Basic {token}"})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/source.git"
        server.shutdown()


def test_a_password_comes_from_the_environment_and_is_written_nowhere(
    https: str, bare: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    home = tmp_path / "home"
    home.mkdir()
    (home / ".gitconfig").write_text(f"[credential]\n\thelper = store --file {home}/kept\n")
    monkeypatch.setenv("HOME", str(home))
    root = tmp_path / "clone"
    with pytest.raises(InfrastructureError, match=rf"127\.0\.0\.1.* does not answer.*{PASSWORD_VARIABLE}"):
        fetch_clone(GitSource(https), root)
    monkeypatch.setenv(USER_VARIABLE, "bot")
    monkeypatch.setenv(PASSWORD_VARIABLE, "wrong")
    with pytest.raises(InfrastructureError, match="does not answer"):
        fetch_clone(GitSource(https), root)
    monkeypatch.setenv(PASSWORD_VARIABLE, SECRET)
    git(bare, "config", "http.receivepack", "true")
    set_to(root, newest := fetch_clone(GitSource(https), root))
    assert PASSWORD_VARIABLE not in os.environ, "processes that are started from here do not need it"
    made = commit_contents(root, {"out": b"x"}, "a run", onto=newest)
    assert push_commits(root) == made == git(bare, "rev-parse", "main")
    written = [path for path in [*root.rglob("*"), *home.rglob("*")] if path.is_file()]
    assert not [path for path in written if SECRET.encode() in path.read_bytes()]
    assert not (home / "kept").exists()
