"""Every path a workspace has, and the templates a new one is made from."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

import segmill
from segmill.errors import InputError

TEMPLATES = ("params.yaml", "dvc.yaml", ".dvcignore")


@dataclass(frozen=True)
class Workspace:
    """A folder with ``params.yaml``, ``dvc.yaml`` and the data.

    Nothing is created by asking for a path; the step that writes a file makes its folder.
    """

    root: Path

    @classmethod
    def open(cls, folder: Path | str) -> Workspace:
        """Return the workspace at ``folder``; InputError says how to make one where there is none."""
        root = Path(folder).resolve()
        if cls(root).unfinished.exists():
            raise InputError(
                f"{root} is a workspace that was not finished; run the `segmill init` or `segmill demo` of it again"
            )
        for name in ("params.yaml", "dvc.yaml"):
            if not (root / name).is_file():
                if cls(root).scratch.is_dir():
                    raise InputError(
                        f"{root} has lost its {name}; `git -C {quote(str(root))} checkout HEAD -- {name}` brings back "
                        "the last one that was committed"
                    )
                raise InputError(
                    f"{root} is not a workspace: it has no {name}; make one with `segmill init {quote(str(folder))} "
                    "--data PATH`, try the built-in data with `segmill demo`, or name another folder with --workspace"
                )
        if not (root / ".dvc").is_dir():
            raise InputError(f"{root} is not a DVC repository: it has no .dvc folder; run `dvc init` there")
        return cls(root)

    @property
    def params(self) -> Path:
        return self.root / "params.yaml"

    @property
    def pipeline(self) -> Path:
        return self.root / "dvc.yaml"

    @property
    def manifest(self) -> Path:
        return self.root / "data" / "manifest.parquet"

    @property
    def packed(self) -> Path:
        return self.root / "data" / "packed"

    @property
    def augmented(self) -> Path:
        return self.root / "data" / "augmented"

    @property
    def members(self) -> Path:
        return self.root / "models" / "members"

    def member(self, name: str) -> Path:
        return self.members / name

    @property
    def ensemble(self) -> Path:
        return self.root / "models" / "ensemble"

    @property
    def reports(self) -> Path:
        return self.root / "reports"

    @property
    def metrics(self) -> Path:
        return self.reports / "metrics.json"

    @property
    def page(self) -> Path:
        """The report of the last run, which says its verdict: no stage's out."""
        return self.reports / "index.html"

    @property
    def overview(self) -> Path:
        """The worst, a typical and the best example of the last run, as one picture."""
        return self.reports / "overview.png"

    @property
    def scratch(self) -> Path:
        """What may be deleted at any time while nothing runs: checkpoints, progress, Prefect's home, code hashes."""
        return self.root / ".segmill"

    @property
    def unfinished(self) -> Path:
        """A file that is there as long as the workspace is being made, and stays where that is killed."""
        return self.scratch / "unfinished"

    @property
    def sources(self) -> Path:
        """Links to the installed code, so that DVC can watch it from inside the workspace."""
        return self.scratch / "source"

    @property
    def code(self) -> Path:
        """One file per stage: the hash of the code it can reach."""
        return self.scratch / "code"

    @property
    def settings(self) -> Path:
        """One JSON file per stage: the values it takes from params.yaml, with their defaults."""
        return self.scratch / "settings"

    @property
    def shards(self) -> Path:
        """Finished shards of the packed splits, so that the next prepare makes only what is new."""
        return self.scratch / "chunks"

    @property
    def checkpoints(self) -> Path:
        return self.scratch / "ray"

    @property
    def progress(self) -> Path:
        return self.scratch / "progress"

    def count(self, stage: str) -> Path:
        """Where a running stage says how many of how many it has done."""
        return self.progress / f"{stage}.count.json"

    @property
    def prefect_home(self) -> Path:
        return self.scratch / "prefect"

    @property
    def ledger(self) -> Path:
        return self.root / "ledger.db"

    @property
    def begun(self) -> Path:
        """When the retrain began that has not come to its end: it runs, or was interrupted."""
        return self.scratch / "begun_run.json"

    @property
    def unsettled(self) -> Path:
        """There where a server may still take a run for running that is over."""
        return self.scratch / "unsettled_run.json"

    @property
    def unsent(self) -> Path:
        """What MLflow could not be sent yet."""
        return self.scratch / "unsent"

    @property
    def last_run(self) -> Path:
        return self.scratch / "last_run.json"


def template(name: str) -> Path:
    """Return the file a new workspace gets as ``name``: beside the package in a checkout, inside it in a wheel."""
    package = Path(segmill.__file__).parent
    for folder in (package / "template", package.parent):
        if (folder / name).is_file():
            return folder / name
    raise InputError(f"this installation of segmill lacks its template {name}; reinstall it with pip")


def free_bytes(path: Path) -> int:
    """Return the bytes free for an ordinary user on the file system that holds ``path`` (or its nearest parent)."""
    while not path.exists():
        path = path.parent
    facts = os.statvfs(path)
    return facts.f_bavail * facts.f_frsize
