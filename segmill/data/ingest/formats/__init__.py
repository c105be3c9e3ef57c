"""Labelled sets in the layouts the world keeps them in: recognised or named, and read one sample at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

from segmill.data.ingest.formats import ade20k, camvid, canonical, cityscapes, coco, folders, instances, nifti, voc
from segmill.data.ingest.formats.reading import (
    SetFolder,
    Signs,
    SourceContents,
    apply_group_rule,
    deliver,
    match_classes,
    part_cut_groups,
)
from segmill.data.ingest.intake import NewSample
from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import SPLITS, DatasetInfo
from segmill.errors import InputError, near_miss

_LOOKED_INTO = 20  # folders, for the hint that the set is one folder deeper


class _Reader(NamedTuple):
    looks_for: str
    recognise: Callable[[SetFolder], Signs]
    read: Callable[[SetFolder, DatasetInfo | None], SourceContents]


_READERS = {
    "segmill": _Reader(canonical.LOOKS_FOR, canonical.recognise, canonical.read),
    "camvid": _Reader(camvid.LOOKS_FOR, camvid.recognise, camvid.read),
    "voc": _Reader(voc.LOOKS_FOR, voc.recognise, voc.read),
    "cityscapes": _Reader(cityscapes.LOOKS_FOR, cityscapes.recognise, cityscapes.read),
    "ade20k": _Reader(ade20k.LOOKS_FOR, ade20k.recognise, ade20k.read),
    "coco": _Reader(coco.LOOKS_FOR, coco.recognise, coco.read),
    "nifti": _Reader(nifti.LOOKS_FOR, nifti.recognise, nifti.read),
    "instances": _Reader(instances.LOOKS_FOR, instances.recognise, instances.read),
    "folders": _Reader(folders.LOOKS_FOR, folders.recognise, folders.read),
}
LAYOUTS = {name: reader.looks_for for name, reader in _READERS.items()}
GENERAL = ("instances", "folders")  # what folders without a layout of their own look like


@dataclass(frozen=True)
class Found:
    """A set that was opened.

    ``why``: by what it was recognised, one sentence. ``info``: what its dataset.yaml should say. ``count``: samples
    to come. ``samples``: these and, in their place or before them, what is wrong; read when asked for, once.
    ``notes``: what was decided or left out, a sentence each.
    """

    layout: str
    why: str
    info: DatasetInfo
    count: int
    samples: Iterator[NewSample | Issue]
    notes: list[str]


def open_layout(
    path: Path,
    layout: str = "auto",
    *,
    name: str | None = None,
    group: str | None = None,
    info: DatasetInfo | None = None,
) -> Found:
    """Open the labelled set in the folder ``path``.

    Args:
        layout: a key of LAYOUTS, or ``auto`` to recognise it.
        name: of the set; its folder's where left out.
        group: regular expression with ``(?P<group>...)``, found in a sample's id; else what the layout knows.
        info: of the set that the samples go to: its class map is used, matched by class names (or, where the layout
            has no names, by colours and ids).

    Raises:
        InputError: no or several layouts are recognised, or the named one is not; what the set describes itself with
            can't be read; its classes are not those of ``info``; ``name`` or ``group`` can't be used.
    """
    if not path.is_dir():
        what = "is a file; unpack it and name its folder" if path.exists() else "does not exist; name the set's folder"
        raise InputError(f"{path} {what}")
    if group is not None:
        _check_group(group)
    folder = SetFolder(path)
    layout, why = _recognise(path, folder, layout)
    try:
        contents = _READERS[layout].read(folder, info)
        table = None if info is None else match_classes(contents, info)
    except InputError as error:
        raise InputError(f"{path} (layout {layout}): {error.what}", error.fix) from error
    if group is not None:
        contents.rows, unmatched = apply_group_rule(contents.rows, group)
        contents.issues += unmatched
    contents.rows, cut = part_cut_groups(contents.rows)
    contents.notes += cut
    if group is not None and not cut:  # then the rule says it all
        contents.rows = [replace(row, group=None) for row in contents.rows]
    if not contents.rows and not contents.issues:
        raise InputError(f"{path} (layout {layout}): it holds no sample", "check its folders")
    if info is None and contents.info is None:
        _complete_splits(contents)
    return Found(
        layout=layout,
        why=why,
        info=info if info is not None else _info(path, layout, contents, name, regrouped=group, by_rule=not cut),
        count=len(contents.rows),
        samples=deliver(contents, table),
        notes=contents.notes,
    )


def _recognise(path: Path, folder: SetFolder, layout: str) -> tuple[str, str]:
    """Return the layout's name and the sentence that says why."""
    if layout != "auto":
        if layout not in _READERS:
            hint = near_miss(layout, ["auto", *_READERS])
            raise InputError(f"--layout is '{layout}'", f"it must be auto or one of {', '.join(_READERS)}{hint}")
        seen = _READERS[layout].recognise(folder)
        if not seen.hold:
            raise InputError(
                f"{path} is no {layout} set: {'; '.join(seen.missing)} is missing; it looks like {LAYOUTS[layout]}"
            )
        return layout, f"{path.name} was read as {layout}, as asked"
    seen_by = {name: reader.recognise(folder) for name, reader in _READERS.items()}
    holding = [name for name, seen in seen_by.items() if seen.hold]
    if "segmill" in holding:
        holding = ["segmill"]
    elif len(holding) > 1:
        holding = [name for name in holding if name not in GENERAL] or holding
    if len(holding) == 1:
        return holding[0], f"{path.name} is {holding[0]}: it has {' and '.join(seen_by[holding[0]].found)}"
    if holding:
        each = ", and ".join(f"{name} by {' and '.join(seen_by[name].found)}" for name in holding)
        raise InputError(f"{path} could be {each}", "say which with --layout")
    raise InputError(_unknown(path, folder, seen_by))


def _unknown(path: Path, folder: SetFolder, seen_by: dict[str, Signs]) -> str:
    lines = [f"{path} is in no layout that can be read; bring it into one of these, or say which it is with --layout:"]
    lines += [f"  {name}: {looks_for}" for name, looks_for in LAYOUTS.items()]
    near = {name: seen for name, seen in seen_by.items() if seen.found}
    lines += [
        f"close to {name}: there is {' and '.join(seen.found)}, but not {' nor '.join(seen.missing)}"
        for name, seen in near.items()
    ]
    for inner in folder.folders()[:_LOOKED_INTO]:
        deeper = SetFolder(folder.root / inner)
        if not deeper.root.is_relative_to(folder.root):
            continue
        names = [name for name, reader in _READERS.items() if reader.recognise(deeper).hold]
        if names:
            lines.append(f"its folder {inner} looks like {' or '.join(names)}: name that one")
    return "\n".join(lines)


def _complete_splits(contents: SourceContents) -> None:
    """Where the source's own splits are not all three, leave to be assigned what has to be shared out.

    Public sets keep the labels of their test split to themselves: then their val judges as test, as in the papers, and
    what chooses weights and epochs is assigned from their train.
    """
    named = {row.split for row in contents.rows} - {None}
    if not named or named == set(SPLITS):
        return
    becomes: dict[str | None, str | None] = {"test": "test"} if "test" in named else {"val": "test"}
    if named == {"train", "test"} or "test" not in named:
        contents.rows = [replace(row, split=becomes.get(row.split)) for row in contents.rows]
        judge = "test" if "test" in named else "val"
        contents.notes.append(
            f"the source has no labelled {' and '.join(split for split in SPLITS if split not in named)}: "
            + (f"its {judge} is test, and " if judge in named else "")
            + "the rest is assigned to the splits by group"
        )


def _check_group(rule: str) -> None:
    try:
        pattern = re.compile(rule)
    except re.error as error:
        raise InputError(f"--group '{rule}' is no regular expression ({error})", "correct it") from error
    if "group" not in pattern.groupindex:
        raise InputError(f"--group '{rule}' has no part (?P<group>...)", "mark the part that names the group")


def _info(
    path: Path, layout: str, contents: SourceContents, name: str | None, *, regrouped: str | None, by_rule: bool
) -> DatasetInfo:
    """Return what the set's dataset.yaml should say. ``regrouped``: the rule its groups follow now, where one was
    named; ``by_rule``: the rule can stand there, for no split cuts its groups."""
    if name is not None and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise InputError(f"--name is {name!r}", "use letters, digits, '.', '_' and '-'")
    rule = regrouped if by_rule else None
    if contents.info is not None:
        own = replace(contents.info, name=name or contents.info.name)
        return own if regrouped is None else replace(own, group=rule, splits={})  # which the rows carry
    folder = path.resolve().name
    plain = re.sub(r"[^A-Za-z0-9._-]+", "-", folder).strip("._-") or "set"
    return DatasetInfo(
        name=name or plain,
        classes=contents.classes,
        ignore_id=contents.ignore_id,
        group=rule,
        license=contents.license,
        source=f"folder {folder}, layout {layout}",
    )
