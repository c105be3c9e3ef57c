"""A git repository to work for: a bare one in a folder, filled from a workspace, and DVC's remote in another folder."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path

from segmill.data.versioning.repository import commit_files
from segmill.data.versioning.versions import bring_data
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace


def git(root: Path, *arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=root, capture_output=True, text=True, check=True).stdout.strip()


@dataclass(frozen=True)
class Stores:
    """What outlasts a clone: the bare git repository, DVC's remote, and a workspace of somebody who pushes there."""

    bare: Path
    remote: str
    author: Workspace

    def push(self, *settings: str, message: str = "settings") -> None:
        """Change params.yaml and push the commit, as a colleague does."""
        git(self.author.root, "pull", "-q", "--rebase", str(self.bare), "main")
        set_params(self.author.params, list(settings))
        commit_files(self.author.root, message)
        git(self.author.root, "push", "-q", str(self.bare), "HEAD:main")


def lasting(author: Workspace, folder: Path, remote: str | None = None) -> Stores:
    """Give the workspace stores that last, in ``folder`` (``remote``: DVC's, elsewhere), and push it to them."""
    remote = remote or str(folder / "remote")
    addresses = [
        f"data.remote={remote}",
        f"mlflow.tracking_uri=sqlite:///{folder}/mlflow.db",
        f"promotion.ledger_url=sqlite:///{folder}/ledger.db",
    ]
    set_params(author.params, addresses)
    params = read_params(author.params)
    bring_data(author.root, params.data.path, params.data.remote)
    commit_files(author.root, "lasting stores")
    bare = folder / "source.git"
    git(folder, "init", "-q", "--bare", "-b", "main", str(bare))
    git(author.root, "push", "-q", str(bare), "HEAD:main")
    return Stores(bare, remote, author)
