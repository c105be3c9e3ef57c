"""`segmill init` and `segmill demo`: a workspace begins around your own set, or around a built-in one."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from shlex import quote
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.division import division_of_set, gate_forecast, gate_lines
from flows.commands.options import WaitOption, WorkspaceOption, alone, out, tell
from flows.commands.options import say as say_line
from segmill.errors import InputError
from segmill.workspace import TEMPLATES, Workspace, template
from segmill.workspace_lock import Part

if TYPE_CHECKING:
    from segmill.data.ingest.intake import NewSample

# What a workspace that is being made contains.
MADE = {".git", ".gitignore", ".dvc", ".dvcignore", ".segmill", "params.yaml", "dvc.yaml", "data", "trusted_keys"}
IGNORED = (
    "/.segmill/",
    "/.dvc-remote/",
    "/mlartifacts/",
    "/mlflow.db*",
    "/ledger.db*",
    "/predictions/",
    "/reports/",
    "/audit/",
    "/tuning/",
)
LARGEST_SIDE_PX = 512
STREET_COUNT, STREET_PX = 200, (128, 128)
LOOKED_AT = 1000  # images whose size decides prepare.size_px
MOST = 0.8  # of the images: if so many have one size, it is the set's
ALIKE = 1.25  # how much larger the 90th percentile of sides, and of shapes, may be than the 10th


class DemoSet(StrEnum):
    """The built-in labelled sets."""

    brain = "brain"
    street = "street"


def init_command(
    folder: Annotated[Path, typer.Argument(help="New workspace.")],
    data: Annotated[Path, typer.Option(help="Labelled set, in any layout that --layout names. It is copied.")],
    layout: Annotated[str, typer.Option(help="auto, or one of those that `segmill data layouts` lists.")] = "auto",
    name: Annotated[str | None, typer.Option(help="Name of the set; its folder's where left out.")] = None,
    group: Annotated[
        str | None, typer.Option(help="Regular expression on a sample's id, with (?P<group>...): what stays together.")
    ] = None,
) -> None:
    """Make a workspace around your own labelled set."""
    workspace = create(folder, data, layout=layout, name=name, group=group, say=say_line)
    tell(workspace=workspace.root)
    say_line(
        f"{workspace.root} is ready; next: cd {quote(str(folder))} && segmill validate, then segmill plan, which "
        "proposes settings for this set and machine (params.yaml holds those of the demo)"
    )


def demo_command(
    workspace: WorkspaceOption = Path(".demo"),
    sample: Annotated[DemoSet, typer.Option(help="brain: atlas slices; street: drawn scenes.")] = DemoSet.brain,
    more: Annotated[
        bool, typer.Option("--more", help="Grow the data first, so that challenger meets champion.")
    ] = False,
    wait: WaitOption = False,
) -> None:
    """Retrain on a built-in labelled set."""
    from flows.commands.retrain import retrain

    retrain(create_demo(workspace, sample=sample.value, more=more), "segmill demo", wait=wait)


def create(
    folder: Path,
    data: Path,
    *,
    layout: str = "auto",
    name: str | None = None,
    group: str | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Workspace:
    """Make a workspace at ``folder`` around a copy of the labelled set ``data``, and its first version.

    Args:
        folder: absent, empty, or what a killed attempt left, which is made afresh.
        data: a set in any layout.
        layout: one of ``segmill.data.ingest.formats.LAYOUTS``, or auto.
        name: of the set; None leaves that to the layout.
        group: a regular expression with (?P<group>...) on a sample's id; None leaves that to the layout.
        say: takes lines for the user: what was recognised and why, and what to know of it.

    Raises:
        InputError: ``folder`` is a workspace already or holds something else, or ``data`` can't be read; IssuesFound
            lists every file that is wrong.
    """
    from flows.display import counting
    from segmill.data.ingest.formats import open_layout
    from segmill.data.ingest.hints import doubtful_groups
    from segmill.data.ingest.intake import write_set
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.splitting.shares import SplitShares
    from segmill.data.storage.raw_set import SHARDS_ABOVE
    from segmill.params import read_params
    from segmill.params_change import set_params

    if _is_workspace(folder):
        raise InputError(f"{folder} is a workspace already; add to its data with `segmill data add` there")
    _refuse_what_is_not_ours(folder)
    found = open_layout(data, layout, name=name, group=group)
    say(f"{data}: layout {found.layout} ({found.why}), {found.count:,} samples")
    for note in found.notes:
        say(note)
    with _whole_or_nothing(folder):
        _lay_down(folder)
        params = read_params(folder / "params.yaml")
        raw, split = folder / params.data.path, params.split
        with counting(out) as on_count, _citing(data):
            write_set(
                raw, found.info, found.samples, shares=SplitShares(split.val, split.test, split.seed),
                packed=found.count > SHARDS_ABOVE, facts=data if found.layout == "segmill" else None,
                on_progress=on_count,
            )  # fmt: skip
        divided = division_of_set(raw)
        for line in (*divided.lines(), *gate_lines(divided, params)):
            say(line)
        tell(gate=asdict(gate_forecast(divided, params)))
        if doubt := doubtful_groups(raw, read_dataset_info(raw)):
            say(doubt)
        size, resize, why = choose_size(_sizes(raw))
        set_params(folder / "params.yaml", [f"prepare.size_px={list(size)}", f"prepare.resize={resize}"])
        say(
            f"prepare.size_px is {list(size)} (height, width), prepare.resize {resize}: {why}; change them in "
            "params.yaml"
        )
        return _finish(folder, f"{data.resolve().name}, layout {found.layout}", say)


def create_demo(folder: Path, *, sample: str, more: bool) -> Workspace:
    """Make the demo's workspace where there is none; with ``more``, let its data set grow.

    Args:
        folder: the workspace.
        sample: ``brain``, slices of an atlas that nilearn ships, or ``street``, drawn scenes.
        more: brain gets the training slices held back at first, street half as many scenes again.

    Raises:
        InputError: ``folder`` holds something else, or the atlas is not installed.
    """
    from segmill.data.ingest.builtin import write_brain, write_street
    from segmill.params_change import set_params

    if not _is_workspace(folder):
        raw = folder / "data" / "raw"
        with _whole_or_nothing(folder):
            _lay_down(folder)
            settings = ["promotion.rule=plain"]  # six test groups, and rule lifetime takes eleven
            if sample == "brain":
                write_brain(raw)
            else:
                write_street(raw, count=STREET_COUNT, size=STREET_PX)
                settings += [f"prepare.size_px={list(STREET_PX)}", "augment.recipe=driving"]
            set_params(folder / "params.yaml", settings)
            workspace = _finish(folder, f"the demo's sample {sample}", say_line)
    else:
        workspace = Workspace.open(folder)
    if more:
        with alone(workspace, "segmill demo --more", Part.DATA):
            _grow_demo(workspace)
    return workspace


def _grow_demo(workspace: Workspace) -> None:
    """Take the rest of the demo's samples in, as a version of its own."""
    from segmill.data.ingest.builtin import write_brain, write_street
    from segmill.data.ingest.intake import change_set
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.splitting.shares import SplitShares
    from segmill.data.versioning.versions import bring_data, explained
    from segmill.params import read_params

    params = read_params(workspace.params)
    data, split = params.data, params.split
    bring_data(workspace.root, data.path, data.remote)
    raw = workspace.root / data.path
    with tempfile.TemporaryDirectory(prefix="segmill-demo-") as drawn:
        if read_dataset_info(raw).name == "brain":
            write_brain(Path(drawn), every=1)
            message = "the slices held back at first"
        else:
            write_street(Path(drawn), count=STREET_COUNT * 3 // 2, size=STREET_PX)
            message = "half as many scenes again"
        with explained(workspace.root, data.path, message):
            change_set(raw, _samples(Path(drawn)), shares=SplitShares(split.val, split.test, split.seed))
    bring_data(workspace.root, data.path, data.remote)


def _samples(folder: Path) -> Iterator[NewSample]:
    """Yield the samples of a built-in set, each with the split that the set gives it."""
    from segmill.data.ingest.intake import NewSample
    from segmill.data.schema.manifest import read_dataset_info
    from segmill.data.schema.samples import list_samples

    info = read_dataset_info(folder)
    split_of = {group: split for split, groups in info.splits.items() for group in groups}
    for entry in list_samples(folder)[0]:
        split = split_of[info.group_of(entry.id) or ""]
        suffix = Path(entry.image.name).suffix
        yield NewSample(entry.id, entry.image.read(folder), suffix, entry.mask.read(folder), split=split)


def _is_workspace(folder: Path) -> bool:
    return (folder / "params.yaml").exists() and not Workspace(folder).unfinished.exists()


def _refuse_what_is_not_ours(folder: Path) -> None:
    """Raise InputError where ``folder`` holds anything but what a killed attempt left: its marker, and MADE."""
    space = Workspace(folder)
    names = {path.name for path in folder.iterdir()} if folder.is_dir() else set()
    if space.unfinished.exists():
        if strange := sorted(names - MADE):
            what = f"a workspace that was not finished, and besides {strange[0]}; move that away and run again"
            raise InputError(f"{folder} holds {what}")
    elif folder.is_file() or (names and (names != {space.scratch.name} or any(space.scratch.iterdir()))):
        raise InputError(f"{folder} holds something else already; name an empty or a new folder")


@contextmanager
def _whole_or_nothing(folder: Path) -> Iterator[None]:
    """Let the block make a workspace of ``folder``; where it fails, take away again what it made.

    What a killed attempt left is cleared first. InputError where the folder holds anything else, or another process
    is making a workspace of it.
    """
    _refuse_what_is_not_ours(folder)
    folder.mkdir(parents=True, exist_ok=True)
    lock = os.open(folder, os.O_RDONLY)  # the system frees it with the process, however that ends
    try:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"another process is making a workspace of {folder}; wait until it is done") from None
        _refuse_what_is_not_ours(folder)
        space = Workspace(folder)
        space.scratch.mkdir(exist_ok=True)
        space.unfinished.touch()
        try:
            _clear(space)
            yield
        except BaseException:
            with suppress(OSError):
                _clear(space)
            shutil.rmtree(folder, ignore_errors=True)
            raise
        space.unfinished.unlink()
    finally:
        os.close(lock)


@contextmanager
def _citing(data: Path) -> Iterator[None]:
    """Let what is wrong with files of a set be said of the set that was named, not of the copy that is being made."""
    from segmill.data.schema.issues import IssuesFound

    try:
        yield
    except IssuesFound as found:
        raise IssuesFound(data, found.stopping, found.issues) from None


def _clear(space: Workspace) -> None:
    """Remove all but the marker, which goes last: killed meanwhile, the next attempt still knows what this is."""
    for path in space.root.iterdir():
        if path.is_dir() and path != space.scratch:
            shutil.rmtree(path)
        elif path != space.scratch:
            path.unlink()


def _lay_down(folder: Path) -> None:
    from segmill.data.versioning.repository import create_repository

    create_repository(folder)
    for name in TEMPLATES:
        shutil.copyfile(template(name), folder / name)
    (folder / ".gitignore").write_text("\n".join(IGNORED) + "\n")


def _finish(folder: Path, message: str, say: Callable[[str], None]) -> Workspace:
    """Put the set under DVC as the first version, and everything else into git, the keys that may sign among it."""
    from segmill.data.versioning.repository import commit_files
    from segmill.data.versioning.versions import explained, record_data
    from segmill.params import read_params
    from segmill.promotion.signers import ensure_signer
    from tasks.inputs import write_inputs

    workspace = Workspace(folder.resolve())
    if signer := ensure_signer(workspace.root):
        say(signer)
    params = read_params(workspace.params)
    write_inputs(workspace, params)
    path = params.data.path
    with explained(workspace.root, path, message):
        record_data(workspace.root, path, None)
    commit_files(workspace.root, message)
    return workspace


def choose_size(sizes: Sequence[tuple[int, int]]) -> tuple[tuple[int, int], str, str]:
    """Return ``prepare.size_px`` and ``prepare.resize`` for images of these heights and widths, and why.

    The size that most images have, else the median of heights and of widths; shrunk to ``LARGEST_SIDE_PX`` and rounded
    to whole strides of 32 px. Where sizes or shapes vary widely, images are fitted in: stretching would distort them.
    """
    (commonest, count) = Counter(sizes).most_common(1)[0]
    if count >= MOST * len(sizes):
        share = "all" if count == len(sizes) else f"{count / len(sizes):.0%}"
        return _whole_strides(*commonest), "stretch", f"{share} of the images have {commonest[0]} x {commonest[1]} px"
    heights, widths = (sorted(side) for side in zip(*sizes, strict=True))
    usual = heights[len(sizes) // 2], widths[len(sizes) // 2]
    span = f"from {heights[0]} x {widths[0]} to {heights[-1]} x {widths[-1]} px"
    shapes = sorted(height / width for height, width in sizes)
    low, high = len(sizes) // 10, len(sizes) - 1 - len(sizes) // 10
    if max(side[high] / side[low] for side in (heights, widths, shapes)) <= ALIKE:
        return _whole_strides(*usual), "stretch", f"the images have {span}, and this is near the median"
    why = (
        f"the images have {span}; fit keeps their shapes and pads, and tile (prepare.resize) would keep their scale "
        "where small things matter"
    )
    return _whole_strides(*usual), "fit", why


def _whole_strides(height: int, width: int) -> tuple[int, int]:
    shrink = min(1.0, LARGEST_SIDE_PX / max(height, width))
    height, width = (max(32, round(side * shrink / 32) * 32) for side in (height, width))
    return height, width


def _sizes(raw: Path) -> list[tuple[int, int]]:
    """Return height and width of at most ``LOOKED_AT`` images, evenly chosen."""
    from segmill.data.schema.samples import list_samples
    from segmill.data.storage.images import image_size

    entries, _ = list_samples(raw)
    return [image_size(entry.image.read(raw)) for entry in entries[:: len(entries) // LOOKED_AT + 1]]
