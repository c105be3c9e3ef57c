"""The `segmill data` commands: versions of the labelled set, and what training sees of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, members_of, out, tell, with_json
from flows.commands.options import say as _say
from segmill.data.splitting.shares import SplitShares
from segmill.errors import InfrastructureError
from segmill.names import visible
from segmill.workspace import Workspace
from segmill.workspace_lock import Part

if TYPE_CHECKING:
    from segmill.data.versioning.history import LogEntry
    from segmill.params import Params

data_app = typer.Typer(help="Grow, compare, go back, look: versions of the labelled set.", no_args_is_help=True)
Version = Annotated[str, typer.Argument(help="First digits of a version, or HEAD, HEAD~1, ...")]
EVENT_TAKES_S = 10.0
LISTED = 20  # ids printed of each kind of change


@data_app.command()
@with_json
def add(
    path: Annotated[Path, typer.Argument(help="New or corrected samples, in any layout.")],
    message: Annotated[str, typer.Option("--message", "-m", help="What came and why, for `segmill data log`.")],
    layout: Annotated[str, typer.Option(help="auto, or one of those that `segmill data layouts` lists.")] = "auto",
    remove: Annotated[Path | None, typer.Option(help="Text file of ids to take out, one a line.")] = None,
    workspace: WorkspaceOption = HERE,
    wait: WaitOption = False,
) -> None:
    """Take new or corrected samples into a new version of the data.

    Beside a run whose prepare is done it works too, and counts for the next run.
    """
    with alone(Workspace.open(workspace), "segmill data add", Part.DATA, wait=wait):
        _add(*_open(workspace), path, message, layout, remove)


def _add(space: Workspace, params: Params, path: Path, message: str, layout: str, remove: Path | None) -> None:
    from flows.display import counting
    from segmill.data.ingest.formats import open_layout
    from segmill.data.ingest.intake import change_set
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.versioning.versions import bring_data, explained

    raw, ids = space.root / params.data.path, _ids_in(remove)
    standing = bring_data(space.root, params.data.path, params.data.remote)
    if standing.state != "unchanged":
        how = {"added": "is", "changed": "was changed in place and is", "restored": "was restored to"}[standing.state]
        _say(f"the set {how} version {_short(standing.md5)} now")
    found = open_layout(path, layout, info=read_dataset_info(raw))
    _say(f"{path}: layout {found.layout} ({found.why}), {found.count:,} samples")
    for note in found.notes:
        _say(note)
    split = params.split
    with explained(space.root, params.data.path, message), counting(out) as on_count:
        change = change_set(
            raw, found.samples, remove=ids, shares=SplitShares(split.val, split.test, split.seed),
            sealed=split.sealed, on_progress=on_count,
        )  # fmt: skip
    for note in change.notes:
        _say(note)
    version = bring_data(space.root, params.data.path, params.data.remote)
    tell(version=version.md5, before=standing.md5, **asdict(change))
    known = f", {change.unchanged:,} known already" if change.unchanged else ""
    if change.nothing:
        _say(f"nothing new{known}: the data stay at version {_short(version.md5)}")
        return
    _say(
        f"{change.added:,} samples added, {change.replaced:,} replaced, {change.removed:,} removed{known}: "
        f"version {_short(version.md5)} (was {_short(standing.md5)})"
    )
    if params.schedule.source:  # its runs see what is in git
        _say("next: segmill data push, which starts the deployed run; or segmill retrain, here")
        return
    _announce(space, params)
    _say("next: segmill retrain; to share it: segmill data push")


@data_app.command()
@with_json
def push(workspace: WorkspaceOption = HERE, wait: WaitOption = False) -> None:
    """Share the version: its files through DVC's remote, its record and log through git.

    Where a Prefect server is named, it learns of it, and a deployed run begins.
    """
    from segmill.data.versioning.publishing import push_data
    from segmill.data.versioning.versions import bring_data

    with alone(Workspace.open(workspace), "segmill data push", Part.DATA, wait=wait):
        space, params = _open(workspace)
        version = bring_data(space.root, params.data.path, params.data.remote)
        (entry,) = _resolved(space, params, "HEAD")
        pushed = push_data(space.root, (f"{params.data.path}.dvc", _log_name(params)), f"Data: {entry.message}")
    tell(version=version.md5, pushed=pushed)
    if not pushed:
        _say(f"nothing to push: git's remote has version {_short(version.md5)}")
        return
    _say(f"version {_short(version.md5)} is pushed")
    _announce(space, params)


def _announce(space: Workspace, params: Params) -> None:
    """Post the event of a new data version where a Prefect server is named: a deployment may wait for it."""
    from flows.environment import prefect_api

    if not (api := prefect_api(params)):
        return
    from datetime import UTC
    from uuid import uuid4

    from flows.prefect_events import ModelEvent, post
    from segmill.passwords import without_passwords
    from tasks.register import model_name

    (entry,) = _resolved(space, params, "HEAD")
    facts = {name: getattr(entry, name) for name in ("version", "before", "added", "removed", "relabelled", "message")}
    now = datetime.now(UTC).isoformat(timespec="seconds")
    event = ModelEvent(id=str(uuid4()), kind="data_version", model=model_name(space, params), time=now, payload=facts)
    try:
        post(api, event, EVENT_TAKES_S)
    except InfrastructureError as error:
        _say(f"Prefect's server at {without_passwords(api)} {error}: no run begins because of these data")


@data_app.command()
@with_json
def log(workspace: WorkspaceOption = HERE) -> None:
    """List the versions: when, who, why, what changed."""
    from segmill.data.versioning.history import log_path, read_log
    from segmill.data.versioning.versions import recorded_version

    space, params = _open(workspace)
    entries = read_log(log_path(space.root / params.data.path))
    recorded = recorded_version(space.root, params.data.path)
    head = recorded.md5 if recorded else None
    if tell(head=head, versions=[asdict(entry) for entry in entries]):
        return
    if not entries:
        _say("no version is logged yet; `segmill data add` or `segmill retrain` makes the first entry")
        return
    out.print(_log_table(entries, head))
    if head not in {entry.version for entry in entries}:
        _say(f"the set is at version {_short(head)}, which is not in the log yet; `segmill retrain` enters it")


@data_app.command()
@with_json
def diff(before: Version, after: Version = "HEAD", workspace: WorkspaceOption = HERE) -> None:
    """Compare two versions: their samples, and each class's pixels.

    Lists what was added, removed, relabelled (another mask) and reimaged (another image).
    """
    from segmill.data.versioning import history
    from segmill.data.versioning.versions import store

    space, params = _open(workspace)
    old, new = _resolved(space, params, before, after)
    tell(before=old.version, after=new.version)
    if old.version == new.version:
        _say(f"{before} and {after} are the same version, {_short(old.version)}")
        return
    with store(space.root, params.data.remote) as files:
        contents = [history.read_contents(files, entry.version) for entry in (old, new)]
        found = history.compare(files, *contents)
        totals = [
            entry.class_pixels or history.class_totals(files, held, None, None)
            for entry, held in zip((old, new), contents, strict=True)
        ]
    _say(
        f"{_short(old.version)} -> {_short(new.version)}: {len(contents[0].samples):,} samples -> "
        f"{len(contents[1].samples):,}"
    )
    ids = {name: getattr(found, name) for name in ("added", "removed", "relabelled", "reimaged")}
    if tell(**ids, class_pixels=dict(zip(("before", "after"), totals, strict=True))):
        return
    for name, those in ids.items():
        _say_ids(name, those)
    out.print(_class_table(*totals))


@data_app.command()
@with_json
def checkout(version: Version, workspace: WorkspaceOption = HERE, wait: WaitOption = False) -> None:
    """Bring back an older version.

    `segmill retrain` then takes from the cache what it made of that version before.
    """
    from segmill.data.versioning.versions import DataVersion, checkout_data, data_changed, recorded_version

    space, params = _open(workspace)
    (entry,) = _resolved(space, params, version)
    tell(version=entry.version, samples=entry.samples)
    recorded = recorded_version(space.root, params.data.path)
    if recorded and recorded.md5 == entry.version and not data_changed(space.root, params.data.path):
        _say(f"the data are at version {_short(entry.version)} already")
        return
    target = DataVersion(entry.version, entry.files, entry.size_bytes, "restored")
    with alone(space, "segmill data checkout", Part.DATA, wait=wait):
        checkout_data(space.root, params.data.path, params.data.remote, target)
    _say(f"the data are at version {_short(entry.version)} again ({entry.samples:,} samples, {entry.message})")
    _say("next: segmill retrain, which takes from the cache what it made of this version before")


@data_app.command()
@with_json
def export(
    to: Annotated[Path, typer.Argument(help="New folder.")],
    version: Annotated[str, typer.Option("--version", help="First digits of a version, or HEAD, HEAD~1, ...")] = "HEAD",
    workspace: WorkspaceOption = HERE,
) -> None:
    """Write a version out, one file per image and mask.

    It is the canonical layout, which `segmill init` and `segmill data add` read.
    """
    from flows.display import counting
    from segmill.data.ingest.intake import unpack_set
    from segmill.data.versioning.versions import data_changed, store

    space, params = _open(workspace)
    (entry,) = _resolved(space, params, version)
    changed = data_changed(space.root, params.data.path)
    if changed:
        _say(f"{params.data.path} has changes that no version holds ({changed}); the recorded version is written")
    with (
        store(space.root, params.data.remote) as files,
        files.view(entry.version) as folder,
        counting(out) as on_count,
    ):
        count = unpack_set(folder, to, on_progress=on_count)
    tell(version=entry.version, samples=count, folder=to)
    _say(f"{count:,} samples of version {_short(entry.version)} written to {to}")


@data_app.command()
@with_json
def layouts() -> None:
    """List the layouts that can be read, and how each is recognised."""
    from segmill.data.ingest.formats import LAYOUTS

    if tell(layouts=LAYOUTS):
        return
    table = _table("layout", "recognised by")
    for name, how in LAYOUTS.items():
        table.add_row(name, escape(how))
    out.print(table)


@data_app.command()
@with_json
def show(
    sample: Annotated[str, typer.Option(help="Its id.")],
    epoch: Annotated[int, typer.Option(help="Epoch, from 0.", min=0)] = 0,
    member: Annotated[
        str | None, typer.Option(help="Whose seed and size; the first where left out.", autocompletion=members_of)
    ] = None,
    to: Annotated[Path, typer.Option(help="Picture to write.")] = Path("shown.png"),
    workspace: WorkspaceOption = HERE,
) -> None:
    """Draw exactly what training saw of a sample in an epoch."""
    from flows.commands.show import show as draw

    lines = draw(*_open(workspace), sample, epoch, member, to)
    tell(picture=to, says=lines)
    for line in lines:
        out.print(line, highlight=False, markup=False, soft_wrap=True)


def _open(folder: Path) -> tuple[Workspace, Params]:
    from segmill.params import read_params

    workspace = Workspace.open(folder)
    return workspace, read_params(workspace.params)


def _resolved(space: Workspace, params: Params, *names: str) -> list[LogEntry]:
    """Return the log's entries that ``names`` mean."""
    from segmill.data.versioning.history import log_path, read_log, resolve
    from segmill.data.versioning.versions import recorded_version

    entries = read_log(log_path(space.root / params.data.path))
    recorded = recorded_version(space.root, params.data.path)
    return [resolve(entries, recorded.md5 if recorded else None, name) for name in names]


def _ids_in(path: Path | None) -> list[str]:
    """Return the ids listed in a text file, one a line; lines that are empty or begin with # are passed over."""
    if path is None:
        return []
    lines = (line.strip() for line in path.read_text(encoding="utf-8").splitlines())
    return [line for line in lines if line and not line.startswith("#")]


def _log_table(entries: Sequence[LogEntry], head: str | None) -> Table:
    table = _table("", "version", "when", "who", "samples", "what changed", "message")
    for entry in reversed(entries):
        table.add_row(
            "*" if entry.version == head else "",
            _short(entry.version),
            datetime.fromisoformat(entry.when).astimezone().strftime("%Y-%m-%d %H:%M"),
            escape(visible(entry.who.partition(" <")[0])),
            f"{entry.samples:,}",
            _what_changed(entry),
            escape(visible(entry.message, None)),
        )
    return table


def _what_changed(entry: LogEntry) -> str:
    if entry.added is None:
        return "unknown"
    counts = {"+": entry.added, "-": entry.removed, "relabelled ": entry.relabelled, "new image ": entry.reimaged}
    return ", ".join(f"{what}{count:,}" for what, count in counts.items() if count)


def _class_table(before: dict[str, int] | None, after: dict[str, int] | None) -> Table:
    old, new = before or {}, after or {}
    table = _table("class", "pixels before", "after", "change")
    for name in dict.fromkeys([*old, *new]):
        change = new.get(name, 0) - old.get(name, 0)
        cells = (f"{counts[name]:,}" if name in counts else "-" for counts in (old, new))
        table.add_row(Text(visible(name)), *cells, f"{change:+,}" if change else "")
    return table


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0))
    for heading in headings:
        figures = heading in ("samples", "pixels before", "after", "change")
        whole = figures or heading in ("version", "when", "layout")
        table.add_column(heading, justify="right" if figures else "left", no_wrap=whole)
    return table


def _say_ids(what: str, ids: Sequence[str]) -> None:
    if not ids:
        return
    out.print(f"[bold]{what}[/] {len(ids):,}", highlight=False)
    for name in ids[:LISTED]:
        out.print(f"  {visible(name, None)}", highlight=False, markup=False, soft_wrap=True)
    if len(ids) > LISTED:
        out.print(f"  and {len(ids) - LISTED:,} more", highlight=False)


def _log_name(params: Params) -> str:
    from segmill.data.versioning.history import LOG_FILE

    return Path(params.data.path).with_name(LOG_FILE).as_posix()


def _short(version: str | None) -> str:
    from segmill.data.versioning.history import SHORT

    return version[:SHORT] if version else "no version"
