"""Work from nothing: a clone of a git repository that a run is made in, and the stores that outlast the clone."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from ruamel.yaml import YAML

from flows.environment import ARTIFACTS_VARIABLE, artifact_location, tracking_uri
from segmill.data.versioning import cloning
from segmill.data.versioning.publishing import Overtaken, has_unpushed, publish
from segmill.data.versioning.repository import committed
from segmill.data.versioning.versions import follow_record
from segmill.errors import InputError
from segmill.params import parse_params, read_params
from segmill.passwords import without_password
from segmill.promotion.ledger_url import URL_VARIABLE, ledger_url
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing

if TYPE_CHECKING:
    from segmill.params import Params

Made = TypeVar("Made")
MOST_RUNS = 3  # where others record the same stages each time


def open_source(source: str, folder: Path, say: Callable[[str], None] = lambda line: None) -> Workspace:
    """Make ``folder``, which is empty or was made so before, a clone of ``source`` at its newest commit; return it.

    Results are fetched when stages need them. A kill at any moment leaves what the next call completes. Commits that a
    run could not push are pushed first.

    Args:
        source: ``GIT_URL[@branch]``; the user and password come from SEGMILL_GIT_USER and SEGMILL_GIT_PASSWORD, or
            from ssh, and are written nowhere.
        folder: nobody else works in it: ``segmill.workspace_lock`` sees to that.
        say: takes lines for the user.

    Raises:
        InputError: ``folder`` holds something else, or data that are in no version; the source has no such branch or
            is no workspace; or what must last is stored inside the folder.
        InfrastructureError: the source does not answer.
    """
    wanted = cloning.parse_source(source)
    cloning.fetch_clone(wanted, folder)
    if has_unpushed(folder):
        with suppress(Overtaken):  # then what was not pushed is made again, from what is known
            publish(folder)
    newest = cloning.newest(folder)
    _follow_data(folder, newest)
    if aside := cloning.set_to(folder, newest):
        say(f"{folder}: changes of {aside} that no commit has were put into git's stash")
    workspace = Workspace.open(folder)
    refuse_lost_stores(workspace, read_params(workspace.params))
    return workspace


def publish_results(workspace: Workspace) -> str:
    """Send what the clone has and its stores lack: outs, run-cache, commits; return the commit, as the source has it.

    Raises:
        Overtaken: others recorded other results of the same stage meanwhile.
        InfrastructureError: the remote or the source does not answer.
    """
    return publish(workspace.root)


def run_source(
    source: str,
    folder: Path,
    run: Callable[[Workspace], Made],
    say: Callable[[str], None] = lambda line: None,
    *,
    command: str = "segmill retrain --source",
    wait: bool = False,
) -> Made:
    """Call ``run`` with a clone of ``source`` at ``folder``; again, on the newest commit, where others were faster.

    ``command``, ``wait``: as for ``segmill.workspace_lock.writing``; the rest as for ``open_source``.
    """
    for runs_left in reversed(range(MOST_RUNS)):
        try:
            cloning.refuse_other_folder(cloning.parse_source(source), folder)
            with writing(Workspace(folder), Part.WORKSPACE, command, wait=wait, say=say):
                return run(open_source(source, folder, say))
        except Overtaken as overtaken:
            if not runs_left:
                raise
            say(f"{overtaken}; this is done now")
    raise AssertionError("the last run returns or raises")


def refuse_lost_stores(workspace: Workspace, params: Params) -> None:
    """Raise InputError that names each key whose store would be lost with the clone, which may be deleted any time."""
    tracking, ledger = tracking_uri(workspace, params), ledger_url(workspace.root, params.promotion.ledger_url)
    stores = {
        "data.remote": params.data.remote,
        "mlflow.tracking_uri (or MLFLOW_TRACKING_URI)": tracking,
        f"the place of MLflow's files (a server's address in mlflow.tracking_uri, or {ARTIFACTS_VARIABLE})": (
            artifact_location(workspace, tracking) or tracking
        ),
        f"promotion.ledger_url (or {URL_VARIABLE})": ledger,
    }
    lost = [f"{key}: {without_password(at)}" for key, at in stores.items() if _is_inside(workspace.root, at)]
    if lost:
        raise InputError(
            f"{workspace.root} is a clone that may be deleted after any run, and these would be lost with it: "
            + "; ".join(lost),
            "name places that last, in params.yaml of the source or in the environment",
        )
    if params.git.commit is False:
        raise InputError(
            "git.commit is false, and what a run with --source records is committed and pushed", "set it to null"
        )


def _is_inside(root: Path, address: str) -> bool:
    """Tell whether an address names a file or folder inside ``root``, or one that is relative to it."""
    database = re.fullmatch(r"sqlite[^:]*:(?:///)?([^?]*).*", address)
    if database is None and "://" in address and not address.startswith("file://"):
        return False
    path = Path(database[1] if database else address.removeprefix("file://"))
    return not path.is_absolute() or path.resolve().is_relative_to(root)


def _follow_data(folder: Path, newest: str) -> None:
    """Let the labelled set follow git where the newest commit records another version of it."""
    text = committed(folder, "params.yaml", newest)
    if text is None:
        return
    path = parse_params(YAML(typ="safe").load(text), "params.yaml").data.path
    record = f"{path}.dvc"
    before, after = committed(folder, record), committed(folder, record, newest)
    here = (folder / record).read_bytes() if (folder / record).is_file() else None
    if here != before and here != after and before is not None:
        raise InputError(
            f"{folder} has a data version that no commit has ({record})",
            f"commit it with the log beside it and push, or `git -C {folder} checkout -- {record}`",
        )
    if after is not None and after != here:
        follow_record(folder, path, after)
