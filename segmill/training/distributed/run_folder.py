"""What a training keeps in its run folder until its member is recorded, each whole or not used. Light to import.

RUN/state.pt          the checkpoint of the last epoch (checkpoint.save writes it)
RUN/former/state.pt   the one of the epoch before
RUN/finished/         the member, once it is trained: member/ with its files, sha256.json with their hashes
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from segmill.files import replacing, write_atomically

STATE = "state.pt"
FORMER = "former"
FINISHED = "finished"
MEMBER = "member"
SUMS = "sha256.json"


def incidents_path(progress_path: Path) -> Path:
    """Return where what went wrong in a training and was mended by itself is said, beside how it goes."""
    return progress_path.with_suffix(".incidents")


def keep_former_checkpoint(run: Path) -> None:
    """Keep the last checkpoint of ``run`` as the former one, before the next takes its place."""
    if (run / STATE).is_file():
        with replacing(run / FORMER / STATE) as draft:
            try:
                os.link(run / STATE, draft)
            except OSError:  # a file system without hard links
                shutil.copyfile(run / STATE, draft)


def last_whole_checkpoint(run: Path) -> tuple[Path | None, str]:
    """Return the folder of the last checkpoint that can be read to its end, and a sentence where others could not.

    Those are deleted. The folder is None where none is left: the training begins anew.
    """
    damaged: list[str] = []
    for folder in (run, run / FORMER):
        if not (path := folder / STATE).is_file():
            continue
        if _is_whole(path):
            return folder, f"{_not_used(damaged)}; it resumes from the epoch before" if damaged else ""
        path.unlink()
        damaged.append(str(path))
    return None, f"{_not_used(damaged)}; its training begins again" if damaged else ""


@contextmanager
def finishing(finished: Path) -> Iterator[Path]:
    """Give a folder to write a member to; after the block it is kept in ``finished``, with the hashes of its files."""
    with replacing(finished) as draft:
        (draft / MEMBER).mkdir(parents=True)
        yield draft / MEMBER
        write_atomically(draft / SUMS, json.dumps(_sums(draft / MEMBER)), durable=False)  # it becomes so as a whole


def has_finished(finished: Path) -> bool:
    """Whether a member is kept in ``finished``, every byte of it; one that is damaged is deleted."""
    if (finished / SUMS).is_file() and _recorded(finished) == _sums(finished / MEMBER):
        return True
    shutil.rmtree(finished, ignore_errors=True)
    return False


def copy_finished(finished: Path, out_dir: Path) -> None:
    """Copy the member that is kept in ``finished`` to ``out_dir``."""
    shutil.copytree(finished / MEMBER, out_dir, dirs_exist_ok=True)


def drop_if_recorded(run: Path, member: Path) -> None:
    """Delete the run folder of a training whose member, the same bytes, is the one in the folder ``member``."""
    finished = run / FINISHED
    if (finished / SUMS).is_file() and member.is_dir() and _recorded(finished) == _sums(member):
        shutil.rmtree(run)


def _is_whole(path: Path) -> bool:
    """Whether every record of a file of torch.save has the checksum that the file says."""
    try:
        with zipfile.ZipFile(path) as records:
            return records.testzip() is None
    except (OSError, zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError, ValueError):
        return False


def _not_used(damaged: list[str]) -> str:
    return f"checkpoint {' and '.join(damaged)} was damaged and is not used"


def _recorded(finished: Path) -> dict[str, str] | None:
    with suppress(OSError, ValueError):
        sums: dict[str, str] = json.loads((finished / SUMS).read_text())
        return sums
    return None


def _sums(folder: Path) -> dict[str, str]:
    """Return the sha256 of each file below ``folder``."""
    found = {}
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        with path.open("rb") as file:
            found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
