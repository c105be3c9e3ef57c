"""The plan of a collection: which versions, runs and files stay and why, which are deleted, and what that frees."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from segmill.keep_params import KeepParams
from segmill.promotion import history
from segmill.promotion.registry import CHAMPION
from segmill.promotion.rows import champion, waiting

if TYPE_CHECKING:
    from segmill.promotion.collected import PastRun, VersionFacts
    from segmill.promotion.rows import LedgerRow

DAY_S = 86_400.0


@dataclass(frozen=True)
class FoundFile:
    """A file of a store.

    Attributes:
        name: its path, or its hash in DVC's stores.
        size_bytes: of its content.
        modified_s: seconds since 1970.
        inode: device and inode, None where a file has no second name (object storage).
        links: how many names its bytes have.
    """

    name: str
    size_bytes: int
    modified_s: float
    inode: tuple[int, int] | None = None
    links: int = 1


@dataclass(frozen=True)
class Removal:
    """Something that is deleted as a whole.

    Attributes:
        store: ``registry``, ``runs``, ``dvc_cache``, ``remote``, ``scratch``, ``temporary``, ``ray`` or ``prefect``.
        what: its name in words.
        why: why it may go.
        key: what the store calls it: a version, a run's id, a path.
        files: its files; none where the store does not say.
    """

    store: str
    what: str
    why: str
    key: str
    files: tuple[FoundFile, ...] = ()


def kept_versions(
    rows: Sequence[LedgerRow],
    versions: Iterable[VersionFacts],
    aliases: Mapping[str, str],
    keep: KeepParams,
    now_s: float,
) -> dict[str, str]:
    """Return each version that keeps its files, with the reasons.

    Those are the champion; the champions that rollbacks go back to; the one that waits for approval; those with an
    alias; the newest; those that were registered in the last ``keep.recent_days`` days; and those that have their files
    together with one of these.

    Args:
        rows: of the model, oldest first.
        versions: that the registry has. Those whose files were deleted before are not looked at.
        aliases: alias -> version.
        keep: the settings.
        now_s: seconds since 1970.
    """
    known = {one.version: one for one in versions if not one.gone}
    reasons: list[tuple[str, str]] = []
    serving = champion(rows)
    if serving is not None:
        reasons.append((serving, "champion"))
    reasons += [(version, "former champion") for version in history.line(rows)[:-1][-keep.champions :]]
    if wait := waiting(rows):
        reasons.append((wait.version, "waits for approval"))
    for alias, version in sorted(aliases.items()):
        if (alias, version) != (CHAMPION, serving):
            reasons.append((version, "champion by MLflow's alias" if alias == CHAMPION else f"alias {alias}"))
    newest = sorted(known, key=int)[-keep.versions :]
    reasons += [(version, f"of the newest {keep.versions}") for version in newest]
    since_s = now_s - keep.recent_days * DAY_S
    reasons += [
        (one.version, f"younger than {keep.recent_days:g} days") for one in known.values() if one.made_s > since_s
    ]
    kept: dict[str, list[str]] = {}
    for version, why in reasons:
        if version in known:
            kept.setdefault(version, []).append(why)
    while shared := _sharing(known, kept):
        kept |= shared
    return {version: ", ".join(kept[version]) for version in sorted(kept, key=int)}


def _sharing(known: Mapping[str, VersionFacts], kept: Collection[str]) -> dict[str, list[str]]:
    """Return the versions not among ``kept`` whose files are, are inside, or hold those of one that is."""
    places = {f"{known[version].source}/": version for version in kept}
    return {
        one.version: [f"has its files with version {version}"]
        for one in known.values()
        for place, version in places.items()
        if one.version not in kept and (place.startswith(f"{one.source}/") or f"{one.source}/".startswith(place))
    }


def old_runs(
    runs: Iterable[PastRun], kept: Mapping[str, str], from_runs: Collection[str], keep: KeepParams, now_s: float
) -> list[PastRun]:
    """Return the runs that are deleted: they and those nested below them ended more than ``keep.run_days`` ago, and no
    version that stays came from them or was judged by them.

    Args:
        runs: all of the model.
        kept: versions that stay.
        from_runs: ids of the runs that those versions came from.
    """
    if keep.run_days is None:
        return []
    since_s = now_s - keep.run_days * DAY_S
    families: dict[str, list[PastRun]] = {}
    for run in runs:
        families.setdefault(run.parent or run.run_id, []).append(run)
    return [
        run
        for family in families.values()
        if not any(
            run.ended_s is None or run.ended_s > since_s or run.version in kept or run.run_id in from_runs
            for run in family
        )
        for run in family
    ]


def unneeded(
    present: Iterable[FoundFile], needed: Collection[str], known: Collection[str] | None, since_s: float
) -> list[FoundFile]:
    """Return the objects of a store that nothing needs and that were there before ``since_s``.

    ``known``: the only ones that may be deleted, for a store that others may use too; None: all may.
    """
    return [
        one
        for one in present
        if one.name not in needed and (known is None or one.name in known) and one.modified_s < since_s
    ]


def freed_bytes(removals: Iterable[Removal]) -> int:
    """Return the bytes that are free when all of these are deleted: a file with a name that stays frees nothing."""
    files = [file for removal in removals for file in removal.files]
    names = Counter(file.inode for file in files if file.inode)
    whole = {file.inode: file.size_bytes for file in files if file.inode and names[file.inode] >= file.links}
    return sum(whole.values()) + sum(file.size_bytes for file in files if file.inode is None)


def by_store(removals: Iterable[Removal]) -> dict[str, tuple[int, int]]:
    """Return per store how many things are deleted and the bytes of their files, a file with two names counted once."""
    found: dict[str, list[Removal]] = {}
    for removal in removals:
        found.setdefault(removal.store, []).append(removal)
    return {store: (len(some), _size(some)) for store, some in found.items()}


def _size(removals: Iterable[Removal]) -> int:
    files = {
        file.inode or (removal.store, removal.key, file.name): file.size_bytes
        for removal in removals
        for file in removal.files
    }
    return sum(files.values())
