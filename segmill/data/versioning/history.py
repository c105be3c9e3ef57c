"""The log of a set's versions (who, when, why, what changed), and what changed between any two of them."""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import INFO_FILE, SAMPLES_FILE, read_dataset_info
from segmill.data.schema.mask_counts import RAW_VALUES, append_counts, count_masks, total_pixels
from segmill.data.storage.raw_set import INDEX_FILE, StoredFile, read_index
from segmill.errors import InputError
from segmill.files import flush, write_atomically

if TYPE_CHECKING:
    import pyarrow

LOG_FILE = "history.jsonl"
SHORT = 8  # hex digits that a person sees of a version
FEWEST = 4  # that may be written


class Files(Protocol):
    """Files of any version by md5, as DVC keeps them (``versions.Store``)."""

    def listing(self, version: str) -> dict[str, str]: ...

    def bring(self, md5s: Iterable[str]) -> None: ...

    def path(self, md5: str) -> Path: ...

    def view(self, version: str, names: Collection[str] | None = None) -> AbstractContextManager[Path]: ...


@dataclass(frozen=True)
class LogEntry:
    """One version as the log keeps it, a JSON object a line.

    ``version`` and ``before`` are DVC's md5 of the folder; ``when`` is UTC in ISO 8601. Counts of samples are None
    where the version before could not be reached; ``class_pixels`` is class name -> pixels over the whole set, in
    order of class id, None where dataset.yaml can't be read.
    """

    version: str
    before: str | None
    when: str
    who: str
    message: str
    files: int
    size_bytes: int
    samples: int
    added: int | None
    removed: int | None
    relabelled: int | None
    reimaged: int | None
    class_pixels: dict[str, int] | None


@dataclass(frozen=True)
class VersionContents:
    """What one version holds: id -> md5 of image and of mask, class names in order of id, and for a packed set the
    rows ``id``, ``ids``, ``pixels`` of its index."""

    samples: dict[str, tuple[str, str]]
    classes: tuple[str, ...] | None
    rows: pyarrow.Table | None


@dataclass(frozen=True)
class Difference:
    """What changed between two versions: ids in order, and pixels by raw mask value (256), where ``pixels`` is after
    minus before."""

    added: tuple[str, ...]
    removed: tuple[str, ...]
    relabelled: tuple[str, ...]
    reimaged: tuple[str, ...]
    pixels: NDArray[np.int64]


def log_path(raw_dir: Path) -> Path:
    """Return where the log of the set at ``raw_dir`` is: beside it, in git."""
    return raw_dir.with_name(LOG_FILE)


def read_log(path: Path) -> list[LogEntry]:
    """Return the log, oldest first; empty where there is none. InputError names the line that is no entry."""
    if not path.is_file():
        return []
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.strip():
            continue
        try:
            entries.append(LogEntry(**json.loads(line)))
        except (ValueError, TypeError) as error:
            raise InputError(
                f"{path}: line {number} is no entry of the log ({error})", "correct or remove it"
            ) from error
    return sorted(entries, key=lambda entry: entry.when)


def append_log(path: Path, entry: LogEntry) -> None:
    """Append an entry, and have git merge the logs of two branches line by line."""
    attributes = path.with_name(".gitattributes")
    rule = f"{path.name} merge=union"
    known = attributes.read_text() if attributes.is_file() else ""
    if rule not in known.splitlines():
        write_atomically(attributes, f"{known.rstrip()}\n{rule}\n".lstrip())
    with path.open("a", encoding="utf-8") as file:
        file.write(json.dumps(asdict(entry), ensure_ascii=False) + "\n")
    flush(path)


def resolve(log: Sequence[LogEntry], head: str | None, text: str) -> LogEntry:
    """Return the entry that ``text`` names: first hex digits of a version, HEAD, or HEAD~N, N versions back.

    ``head`` is the version that the workspace is at. InputError where nothing or several fit.
    """
    newest = {entry.version: entry for entry in log}
    steps = re.fullmatch(r"HEAD(?:~(\d*))?", text)
    if steps:
        back = 0 if steps[1] is None else int(steps[1] or 1)
        found = newest.get(head or "")
        for _ in range(back):
            found = newest.get(found.before or "") if found else None
        if found is None:
            raise InputError(f"there is no version {text}", "`segmill data log` lists those that are known")
        return found
    if not re.fullmatch(rf"[0-9a-f]{{{FEWEST},32}}", text):
        raise InputError(f"'{text}' names no version", f"write {FEWEST} or more of its first digits, HEAD or HEAD~1")
    fitting = [version for version in newest if version.startswith(text)]
    if len(fitting) != 1:
        what = f"{len(fitting)} versions begin with" if fitting else "no version begins with"
        raise InputError(f"{what} {text}", "`segmill data log` lists them")
    return newest[fitting[0]]


def read_contents(files: Files, version: str) -> VersionContents:
    """Return what ``version`` holds, without touching an image or a mask.

    InfrastructureError where its listing or index is in neither cache nor remote.
    """
    listing = files.listing(version)
    with files.view(version, {INFO_FILE, SAMPLES_FILE, INDEX_FILE} & listing.keys()) as folder:
        try:
            classes = read_dataset_info(folder).class_names
        except InputError:
            classes = None
        if INDEX_FILE in listing:
            rows = read_index(folder, ["id", "image_md5", "mask_md5", "ids", "pixels"])
            columns = (rows[name].to_pylist() for name in ("id", "image_md5", "mask_md5"))
            samples = {name: (image, mask) for name, image, mask in zip(*columns, strict=True)}
            return VersionContents(samples, classes, rows.select(["id", "ids", "pixels"]))
    found: dict[str, dict[str, str]] = {"images": {}, "masks": {}}
    for name, md5 in listing.items():
        kind, _, rest = name.partition("/")
        if kind in found and not any(part.startswith(".") for part in rest.split("/")):
            found[kind][str(Path(rest).with_suffix(""))] = md5
    images, masks = found["images"], found["masks"]
    return VersionContents(
        {name: (images[name], masks[name]) for name in sorted(images.keys() & masks.keys())}, classes, None
    )


def compare(files: Files, before: VersionContents, after: VersionContents) -> Difference:
    """Return what changed between two versions; of loose sets it reads the masks that changed, and nothing else."""
    old, new = before.samples, after.samples
    both = sorted(old.keys() & new.keys())
    relabelled = tuple(name for name in both if old[name][1] != new[name][1])
    added, removed = tuple(sorted(new.keys() - old.keys())), tuple(sorted(old.keys() - new.keys()))
    gain = pixels_of(files, after, added + relabelled) - pixels_of(files, before, removed + relabelled)
    reimaged = tuple(name for name in both if old[name][0] != new[name][0])
    return Difference(added, removed, relabelled, reimaged, gain)


def pixels_of(files: Files, contents: VersionContents, ids: Sequence[str]) -> NDArray[np.int64]:
    """Return pixels by raw mask value, 256 of them, over the samples ``ids``."""
    import pyarrow as pa
    import pyarrow.compute as pc

    if not ids:
        return np.zeros(RAW_VALUES, np.int64)
    if contents.rows is not None:
        return total_pixels(contents.rows.filter(pc.is_in(contents.rows["id"], pa.array(ids, pa.string()))))
    md5s = [contents.samples[name][1] for name in ids]
    files.bring(md5s)
    places = [StoredFile(name, str(files.path(md5))) for name, md5 in zip(ids, md5s, strict=True)]
    return total_pixels(
        append_counts(pa.table({"id": list(ids)}), list(count_masks([(Path(), place) for place in places])))
    )


def class_totals(
    files: Files, contents: VersionContents, known: Mapping[str, int] | None, gain: NDArray[np.int64] | None
) -> dict[str, int] | None:
    """Return class name -> pixels over a whole version, None where its classes are not known.

    ``known``: the totals of another version (in order of class id), from which this one differs by ``gain``; without
    them all masks of a loose set are read.
    """
    if contents.classes is None:
        return None
    if contents.rows is None and known is not None and gain is not None:
        total = gain.copy()
        total[: len(known)] += np.array(list(known.values()), np.int64)
    else:
        total = pixels_of(files, contents, list(contents.samples))
    return {name: int(total[place]) for place, name in enumerate(contents.classes)}
