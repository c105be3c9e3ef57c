"""The one door for new bytes: a labelled set is written, grown, corrected and cut here, wholly or not at all."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from segmill.data.ingest.contents import LooseSamples, LooseWriter, SampleWriter, ShardedSamples
from segmill.data.ingest.grouping import keep_together, settle_groups, settle_splits, without_group
from segmill.data.schema.issues import Issue, IssuesFound, wrong_file
from segmill.data.schema.manifest import (
    INFO_FILE,
    SAMPLES_FILE,
    SPLITS,
    DatasetInfo,
    read_dataset_info,
    write_dataset_info,
)
from segmill.data.schema.mask_counts import Count, append_counts, count_masks
from segmill.data.schema.samples import list_samples
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import FROZEN_FILE, freeze, write_frozen
from segmill.data.storage import journal
from segmill.data.storage.raw_set import (
    IMAGE_SUFFIXES,
    INDEX_FILE,
    SHARDS_ABOVE,
    RawSample,
    StoredFile,
    TarShardWriter,
    is_sharded,
    write_index,
)
from segmill.errors import InputError, near_miss
from segmill.files import replacing

if TYPE_CHECKING:
    import pyarrow

FACTS = (INFO_FILE, SAMPLES_FILE, FROZEN_FILE)
LONGEST_NAME = 240  # bytes of a folder or stem; file systems take 255 with the suffix
_TELL_EVERY = 50

# What is being done, how many are done, and of how many where that is known.
OnProgress = Callable[[str, int, int | None], None]
_Rows = Callable[[], "pyarrow.Table"]


@dataclass(frozen=True, slots=True)
class NewSample:
    """A sample on its way in.

    ``image``: an encoded file, 8 bits per channel, of ``suffix`` (one of IMAGE_SUFFIXES); ``mask``: a PNG of one
    channel of class ids. ``group``: what must stay together with it, where its source knows; ``split``: where its
    source puts it; ``columns``: what else it says, for samples.csv.
    """

    id: str
    image: bytes
    suffix: str
    mask: bytes
    group: str | None = None
    split: str | None = None
    columns: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class SetChange:
    """What became of a set, in samples: new ones, others in place of known ones, taken out, and brought but known.

    ``notes``: what was decided of their groups, a sentence each.
    """

    added: int
    replaced: int
    removed: int
    unchanged: int
    notes: tuple[str, ...] = ()

    @property
    def nothing(self) -> bool:
        return not (self.added or self.replaced or self.removed)


def no_progress(what: str, done: int, of: int | None) -> None:
    """Take the news of a change and do nothing with it."""


def write_set(
    raw_dir: Path,
    info: DatasetInfo,
    samples: Iterable[NewSample | Issue],
    *,
    shares: SplitShares,
    packed: bool | None = None,
    facts: Path | None = None,
    on_progress: OnProgress = no_progress,
) -> None:
    """Write a new set to ``raw_dir`` (absent or empty) and freeze its splits by ``shares``.

    Args:
        packed: loose files or shards; None takes shards for more than SHARDS_ABOVE samples.
        facts: a canonical set whose dataset.yaml, samples.csv and splits.csv come along byte for byte.

    Raises:
        IssuesFound: with every Issue among ``samples`` and every id that can't be used; nothing is left then.
        InputError: there is something already, or no sample came.
    """
    with journal.drafting(raw_dir) as draft:
        if raw_dir.exists() and any(raw_dir.iterdir()):
            raise InputError(f"{raw_dir} holds something already", "name an empty or a new folder")
        _copy_facts(facts, draft)
        own = read_dataset_info(draft) if facts else None
        if own != info:
            write_dataset_info(draft, info)
        if own and own.group != info.group:  # its splits are of other groups
            (draft / FROZEN_FILE).unlink(missing_ok=True)
        if not (draft / FROZEN_FILE).is_file():
            write_frozen(draft, {})
        taken = _take(draft, samples, LooseSamples({}, raw_dir), packed=bool(packed), on_progress=on_progress)
        info = settle_groups(
            draft, info, taken.groups, added=taken.added, standing=(), gone=set(), columns=taken.columns
        )
        _refuse(raw_dir, [*taken.issues, *without_group(info, taken.came)])
        if not taken.added:
            raise InputError(f"no sample came for {raw_dir}", "check the folder that was named, and --layout")
        if packed:
            rows = _with_counts(draft, taken.rows, on_progress)
            write_index(draft, rows)
        else:
            entries = [(draft, entry) for entry in list_samples(draft)[0]]
            too_many = packed is None and len(entries) > SHARDS_ABOVE
            rows = _write_shards(draft, entries, on_progress) if too_many else _counted(entries, on_progress)
        settle_splits(draft, info, taken.came, taken.splits, lambda: rows, shares=shares)
        journal.commit(raw_dir, remove=(), last=INFO_FILE)


def change_set(
    raw_dir: Path,
    samples: Iterable[NewSample | Issue],
    *,
    remove: Sequence[str] = (),
    shares: SplitShares,
    sealed: Collection[str] = (),
    on_progress: OnProgress = no_progress,
) -> SetChange:
    """Add samples, put corrected ones in place of those of the same id, take out the ids of ``remove``.

    A new group of ``sealed`` goes to test.
    What is there already byte for byte is passed over. New samples of a group that the set has, whole or cut by an
    official split, join it (``grouping.keep_together``). A loose set that grows above SHARDS_ABOVE samples is packed.
    In a set in shards old ones are neither read nor written: what comes goes into new shards, and the bytes of what was
    replaced or taken out stay in their shard until that holds no sample any more.

    Raises:
        IssuesFound: with every Issue among ``samples`` and every sample that can't be used; nothing is changed then.
        InputError: an id of ``remove`` is unknown or comes at the same time, or no sample would be left.
    """
    with journal.drafting(raw_dir) as draft:
        info = read_dataset_info(raw_dir)
        _copy_facts(raw_dir, draft)
        known: LooseSamples | ShardedSamples = (
            ShardedSamples(raw_dir) if is_sharded(raw_dir) else LooseSamples.of(raw_dir)
        )
        gone = _known_ids(raw_dir, remove, known.ids)
        taken = _take(draft, samples, known, packed=isinstance(known, ShardedSamples), on_progress=on_progress)
        both = sorted(gone.intersection(taken.came))
        if both:
            raise InputError(f"'{both[0]}' is to be removed and comes at the same time", "say one of the two")
        if not (draft / FROZEN_FILE).is_file():  # assigned by hash so far, and stays so
            hashed = {group for sample_id in known.ids if (group := info.group_of(sample_id)) is not None}
            unseen = np.zeros(info.num_classes, np.int64)
            freeze(draft, info, dict.fromkeys(hashed, unseen), shares=shares)
        groups, notes = keep_together(draft, info, taken.groups, known.ids)
        info = settle_groups(
            draft, info, groups, added=taken.added, standing=known.ids, gone=gone, columns=taken.columns
        )
        _refuse(raw_dir, [*taken.issues, *without_group(info, taken.came)])
        replaced = len(taken.came) - len(taken.added)
        change = SetChange(len(taken.added), replaced, len(gone), taken.unchanged, tuple(notes))
        if change.nothing:
            return change
        if len(known.ids) + change.added == change.removed:
            raise InputError(f"no sample would be left in {raw_dir}", "leave some, or make a new workspace")
        leaving = gone.union(taken.came)
        if isinstance(known, ShardedSamples):
            rows, dead = _grow_sharded(draft, known, taken, leaving, on_progress)
        else:
            rows, dead = _grow_loose(draft, known, leaving, on_progress)
        settle_splits(draft, info, taken.came, taken.splits, rows, shares=shares, sealed=sealed)
        journal.commit(raw_dir, remove=dead, last=INDEX_FILE)
        return change


def unpack_set(raw_dir: Path, to: Path, *, on_progress: OnProgress = no_progress) -> int:
    """Write the set at ``raw_dir`` to the new folder ``to`` as loose files; return how many samples.

    InputError where ``to`` holds something already. ``to`` appears when it is complete.
    """
    if to.exists() and (not to.is_dir() or any(to.iterdir())):
        raise InputError(f"{to} holds something already", "name an empty or a new folder")
    with replacing(to) as draft:
        draft.mkdir()
        _copy_facts(raw_dir, draft)
        sink = LooseWriter(draft)
        entries, _ = list_samples(raw_dir)
        for done, entry in enumerate(entries, start=1):
            sink.add(entry.id, [(part.name, part.read(raw_dir)) for part in (entry.image, entry.mask)])
            on_progress("writing", done, len(entries))
    return len(entries)


@dataclass
class _Taken:
    """What came in: ids to be written (``added`` are new to the set), their groups, splits and columns of samples.csv,
    and what is wrong."""

    came: list[str] = field(default_factory=list)
    added: list[str] = field(default_factory=list)
    unchanged: int = 0
    groups: dict[str, str] = field(default_factory=dict)
    splits: dict[str, str] = field(default_factory=dict)
    columns: dict[str, Mapping[str, str]] = field(default_factory=dict)
    issues: list[Issue] = field(default_factory=list)
    rows: pyarrow.Table | None = None


def _take(
    draft: Path,
    samples: Iterable[NewSample | Issue],
    known: LooseSamples | ShardedSamples,
    *,
    packed: bool,
    on_progress: OnProgress,
) -> _Taken:
    """Write what comes and is not there yet below ``draft``; with something wrong, only list it all."""
    taken = _Taken()
    shards = TarShardWriter(draft) if packed else None
    writer: SampleWriter = shards or LooseWriter(draft)
    seen: set[str] = set()
    for done, sample in enumerate(samples, start=1):
        if done % _TELL_EVERY == 0:
            on_progress("reading", done, None)
        issue = sample if isinstance(sample, Issue) else _why_unusable(sample, seen)
        if issue or not isinstance(sample, NewSample):
            taken.issues += [issue] if issue else []
            continue
        seen.add(sample.id)
        if sample.group is not None:
            taken.groups[sample.id] = sample.group
        if sample.split is not None:
            taken.splits[sample.id] = sample.split
        files = [(f"images/{sample.id}{sample.suffix}", sample.image), (f"masks/{sample.id}.png", sample.mask)]
        if sample.id in known.ids and known.holds(sample.id, files):
            taken.unchanged += 1
            continue
        taken.came.append(sample.id)
        if sample.columns:
            taken.columns[sample.id] = sample.columns
        if sample.id not in known.ids:
            taken.added.append(sample.id)
        if not taken.issues:
            writer.add(sample.id, files)
    if shards:
        taken.rows = shards.close()
    return taken


def _why_unusable(sample: NewSample, seen: set[str]) -> Issue | None:
    """Say what keeps a sample out by its names alone; what is wrong with its pixels is for validate to say."""
    parts = sample.id.split("/")
    if any(part in ("", ".", "..") or part.startswith(".") for part in parts) or "\\" in sample.id:
        what = f"its id '{sample.id}' is no plain path: it must stay inside the set, in folders that are not hidden"
    elif not sample.id.isprintable() or any(len(part.encode()) > LONGEST_NAME for part in parts):
        what = f"its id {sample.id[:60]!r} holds what can't be printed or a name of more than {LONGEST_NAME} bytes"
    elif sample.id in seen:
        what = "another sample of the source has the same id"
    elif sample.suffix.lower() not in IMAGE_SUFFIXES:
        what = f"'{sample.suffix}' is not one of {', '.join(IMAGE_SUFFIXES)}"
    elif sample.split is not None and sample.split not in SPLITS:
        what = f"its split '{sample.split}' is not one of {', '.join(SPLITS)}"
    else:
        return None
    name = sample.id if sample.id.isprintable() else repr(sample.id)
    return wrong_file(name, what, "rename it in the source, or leave it out")


def _refuse(raw_dir: Path, issues: Sequence[Issue]) -> None:
    if issues:
        raise IssuesFound(raw_dir, issues)


def _known_ids(raw_dir: Path, remove: Sequence[str], ids: Mapping[str, object]) -> set[str]:
    unknown = [sample_id for sample_id in remove if sample_id not in ids]
    if unknown:
        more = f" and {len(unknown) - 1} more" if len(unknown) > 1 else ""
        hint = near_miss(unknown[0], list(ids)) if len(ids) <= SHARDS_ABOVE else ""
        raise InputError(
            f"{raw_dir} has no sample '{unknown[0]}'{more}{hint}", "name ids that `segmill validate` knows"
        )
    return set(remove)


def _grow_sharded(
    draft: Path, known: ShardedSamples, taken: _Taken, leaving: set[str], on_progress: OnProgress
) -> tuple[_Rows, list[str]]:
    """Write the new index; return its rows, and the shards that hold no sample any more."""
    import pyarrow as pa

    stays = np.ones(len(known.rows), bool)
    stays[[known.ids[sample_id] for sample_id in leaving if sample_id in known.ids]] = False
    came = _with_counts(draft, taken.rows, on_progress).select(known.rows.column_names)
    rows = pa.concat_tables([known.rows.filter(pa.array(stays)), came])
    write_index(draft, rows)
    before, after = (set(table["pack"].unique().to_pylist()) for table in (known.rows, rows))
    return lambda: rows, sorted(before - after)


def _grow_loose(
    draft: Path, known: LooseSamples, leaving: set[str], on_progress: OnProgress
) -> tuple[_Rows, list[str]]:
    """Return the rows of all samples as they will be, and the files to take out; a large set goes into shards."""
    kept = [(known.raw_dir, entry) for sample_id, entry in known.ids.items() if sample_id not in leaving]
    came = [(draft, entry) for entry in list_samples(draft)[0]] if (draft / "images").is_dir() else []
    old = {part.name for sample_id in leaving & known.ids.keys() for part in _parts(known.ids[sample_id])}
    if len(kept) + len(came) <= SHARDS_ABOVE:
        stay = {part.name for _, entry in came for part in _parts(entry)}
        return lambda: _counted(kept + came, on_progress), sorted(old - stay)
    rows = _write_shards(draft, sorted(kept + came, key=lambda pair: pair[1].id), on_progress)
    return lambda: rows, sorted(part.name for entry in known.ids.values() for part in _parts(entry))


def _parts(entry: RawSample) -> tuple[StoredFile, StoredFile]:
    return entry.image, entry.mask


def _write_shards(draft: Path, entries: Sequence[tuple[Path, RawSample]], on_progress: OnProgress) -> pyarrow.Table:
    """Write loose samples as shards and index below ``draft``, where no loose file stays; return their rows."""
    shards = TarShardWriter(draft)
    for done, (root, entry) in enumerate(entries, start=1):
        shards.add(entry.id, [(part.name, part.read(root)) for part in _parts(entry)])
        on_progress("packing", done, len(entries))
    for kind in ("images", "masks"):
        shutil.rmtree(draft / kind, ignore_errors=True)
    rows = _with_counts(draft, shards.close(), on_progress)
    write_index(draft, rows)
    return rows


def _with_counts(draft: Path, rows: pyarrow.Table | None, on_progress: OnProgress) -> pyarrow.Table:
    """Return the rows of packed samples with what their masks hold."""
    assert rows is not None, "a set in shards takes samples into shards"
    places = zip(*(rows[name].to_pylist() for name in ("mask_name", "pack", "mask_offset", "mask_bytes")), strict=True)
    return append_counts(rows, _told_counts([(draft, StoredFile(*place)) for place in places], on_progress))


def _counted(entries: Sequence[tuple[Path, RawSample]], on_progress: OnProgress) -> pyarrow.Table:
    """Return id and what the mask holds of each sample."""
    import pyarrow as pa

    rows = pa.table({"id": pa.array([entry.id for _, entry in entries], pa.string())})
    return append_counts(rows, _told_counts([(root, entry.mask) for root, entry in entries], on_progress))


def _told_counts(masks: Sequence[tuple[Path, StoredFile]], on_progress: OnProgress) -> list[Count]:
    counts = []
    for done, count in enumerate(count_masks(masks), start=1):
        counts.append(count)
        if done % _TELL_EVERY == 0 or done == len(masks):
            on_progress("counting pixels", done, len(masks))
    return counts


def _copy_facts(source: Path | None, draft: Path) -> None:
    for name in FACTS:
        if source and (source / name).is_file():
            shutil.copyfile(source / name, draft / name)
