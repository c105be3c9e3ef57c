"""`segmill validate`: issues with what to do, the splits, and with --fix a repaired version."""

from __future__ import annotations

import csv
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from flows.commands.division import division_of_manifest, gate_forecast
from flows.commands.options import HERE, WaitOption, WorkspaceOption, alone, open_workspace, out, tell
from segmill import progress
from segmill.names import for_spreadsheet, visible, visible_lines
from segmill.workspace import Workspace
from segmill.workspace_lock import Part

if TYPE_CHECKING:
    from segmill.data.ingest.intake import NewSample
    from segmill.data.schema.issues import Issue
    from segmill.params import Params

FIRST_FILES = 3


def validate_command(
    workspace: WorkspaceOption = HERE,
    fix: Annotated[bool, typer.Option("--fix", help="Write a repaired copy as a new data version.")] = False,
    wait: WaitOption = False,
) -> None:
    """Check every sample and assign the splits."""
    space, command = Workspace.open(workspace), "segmill validate"
    with alone(space, command, wait=wait), alone(space, command, Part.DATA, wait=wait):
        sound = validate(*open_workspace(workspace), out, fix=fix)
    if not sound:
        raise typer.Exit(1)


def validate(workspace: Workspace, params: Params, console: Console, *, fix: bool) -> bool:
    """Check the set, or look up what the last check of the same set found, and print it; True where nothing stops.

    With ``fix``, first record the set as it is, then put a repaired mask in place of each that can be repaired, and
    record that as another version.
    """
    from flows.summary import dataset_table, split_sizes
    from tasks.validate import issues_page

    if fix:
        repair(workspace, params, console)
    sound, issues = _check(workspace, params, console)
    page = issues_page(workspace)
    told = [{**asdict(issue), "state": _state(issue, params.data.accept)} for issue in issues]
    gate = gate_forecast(division_of_manifest(workspace.manifest), params) if sound else None
    splits = split_sizes(workspace.manifest) if sound else None
    tell(sound=sound, issues=told, page=page, splits=splits, gate=asdict(gate) if gate else None)
    if not issues:
        console.print(f"no issues; the page of the checked set: {page}", highlight=False, soft_wrap=True)
    else:
        console.print(issues_list(issues, params.data.accept), highlight=False)
        _list_files(page.with_name("faults.csv"), issues)
        said = f"with pictures: {page}; all files: {page.with_name('faults.csv')}"
        console.print(said, highlight=False, soft_wrap=True, style="dim")
    if not sound and not fix and any(issue.repairable for issue in issues):
        console.print("`segmill validate --fix` repairs what says so, as a new version of the data", highlight=False)
    if gate:
        console.print(dataset_table(workspace.manifest))
        for line in gate.says:
            console.print(line, highlight=False, markup=False, soft_wrap=True)
    return sound


def repair(workspace: Workspace, params: Params, console: Console) -> None:
    """Record the set as it is, repair what can be repaired, record that: the earlier masks stay in their version."""
    from flows.display import following
    from segmill.data.ingest.intake import change_set
    from segmill.data.ingest.repair import repaired_samples
    from segmill.data.schema.special_files import refuse_special_files
    from segmill.data.splitting.shares import SplitShares
    from segmill.data.validation.examination import examine
    from segmill.data.versioning.versions import bring_data, explained

    raw_dir, split = workspace.root / params.data.path, params.split
    refuse_special_files(raw_dir)
    note = workspace.count("validate")
    with following(console, "checking", note):
        found = examine(raw_dir, on_progress=progress.counter(note))
    repairable = [issue for issue in found.issues if issue.repairable]
    if not repairable:
        console.print("nothing can be repaired automatically", highlight=False)
        return
    before = bring_data(workspace.root, params.data.path, params.data.remote)
    repaired: Counter[str] = Counter()

    def samples() -> Iterator[NewSample]:
        for sample, kinds in repaired_samples(raw_dir, found):
            repaired.update(kinds)
            yield sample

    message = f"repaired {', '.join(f'{issue.kind} ({len(issue.files)})' for issue in repairable)}"
    with explained(workspace.root, params.data.path, message):
        change = change_set(raw_dir, samples(), shares=SplitShares(split.val, split.test, split.seed))
    after = bring_data(workspace.root, params.data.path, params.data.remote)
    counts = ", ".join(f"{count} {kind}" for kind, count in sorted(repaired.items())) or "nothing"
    said = (
        f"repaired {counts}: {change.replaced} new masks, version {after.md5[:8]}; the one before is {before.md5[:8]}"
    )
    console.print(said, highlight=False, soft_wrap=True)


def issues_list(issues: Sequence[Issue], accept: Sequence[str]) -> Group:
    """Return a paragraph per issue, whole in any width: what stops first, then warnings, then what is accepted."""
    order = ("error", "warning", "accepted")
    paragraphs: list[RenderableType] = []
    for issue in sorted(issues, key=lambda issue: order.index(_state(issue, accept))):
        state = _state(issue, accept)
        style = {"error": "red", "warning": "yellow", "accepted": "dim"}[state]
        files = f"{len(issue.files)} file" + ("s" if len(issue.files) > 1 else "")
        first = ", ".join(visible(name, None) for name in issue.files[:FIRST_FILES])
        more = ", ..." if len(issue.files) > FIRST_FILES else ""
        todo = f"{issue.fix} (--fix does)" if issue.repairable else issue.fix
        paragraphs.append(Text(visible_lines(f"{state} {issue.kind}, {files}: {first}{more}"), style=style))
        paragraphs += [Padding(Text(visible_lines(line)), (0, 0, 0, 2)) for line in (issue.what, f"-> {todo}")]
    return Group(*paragraphs)


def _state(issue: Issue, accept: Sequence[str]) -> str:
    return "accepted" if issue.kind in accept else issue.severity


def _check(workspace: Workspace, params: Params, console: Console) -> tuple[bool, list[Issue]]:
    from flows.display import following
    from segmill.data.schema.issues import IssuesFound, read_issues
    from segmill.data.schema.special_files import special_files
    from tasks.stage import bring_up_to_date, run

    try:
        with following(console, "checking", workspace.count("validate")):
            if special_files(workspace.root / params.data.path):
                run(workspace, "validate", params)  # raises in any case; DVC must not open these, so it is not asked
            bring_up_to_date(workspace, "fingerprint", params)
            outcome = bring_up_to_date(workspace, "validate", params)
    except IssuesFound as error:
        lines = str(error).splitlines()
        console.print(lines[0].removesuffix(":"), style="bold red", highlight=False, markup=False, soft_wrap=True)
        return False, error.issues
    console.print(f"validate: {outcome.state} ({outcome.why})", highlight=False, markup=False, soft_wrap=True)
    return True, read_issues(workspace.manifest)


def _list_files(path: Path, issues: Sequence[Issue]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file)
        rows.writerow(("kind", "severity", "file"))
        rows.writerows((one.kind, one.severity, for_spreadsheet(name)) for one in issues for name in one.files)
