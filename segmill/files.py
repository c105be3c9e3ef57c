"""Files and folders replaced whole: a reader sees the old one or the new one, after a crash or a power loss too."""

from __future__ import annotations

import ctypes
import errno
import glob
import itertools
import os
import re
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ABANDONED_AFTER_S = 24 * 3600  # a draft of another machine, whose processes can't be asked
_EXCHANGE = 2  # RENAME_EXCHANGE of renameat2(2)
_AT_FDCWD = -100
# How numpy (two ways), safetensors and torch.save say it; torch knows only that fewer bytes were written than it gave.
_OF_A_FULL_DISK = re.compile(
    rf"Not enough free space to write |\d+ requested and \d+ written|{os.strerror(errno.ENOSPC)}|"
    r"PytorchStreamWriter failed writing file|\] \. unexpected pos |basic_ios::clear: iostream error"
)

_numbers = itertools.count()
_open_drafts: set[Path] = set()


def is_of_a_full_disk(error: BaseException) -> bool:
    """Tell whether an error is that a disk is full, also where a library says so in its own words, without a number."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return bool(_OF_A_FULL_DISK.search(str(error)))


@contextmanager
def replacing(path: Path, *, durable: bool = True) -> Iterator[Path]:
    """Give a free path beside ``path`` to write a file or a folder to; it takes the place of ``path`` after the block.

    An error in the block leaves ``path`` as it was. A crash leaves a hidden ``.NAME.*.draft``, which nobody reads and
    the next call for the same path removes. An existing folder is exchanged in one step where the system can (Linux);
    elsewhere it is renamed first, and the next call puts it back if the crash came between the two steps.

    ``durable``: wait until the bytes are on the disk. False is for files that tell what is going on right now.

    Raises:
        FileNotFoundError: the block wrote nothing; ``path`` is as it was.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    _clean_up(path)
    draft = path.with_name(f".{path.name}.{_machine()}-{os.getpid()}-{next(_numbers)}.draft")
    _open_drafts.add(draft)
    try:
        yield draft
        if durable:
            _flush_tree(draft)
        _put_in_place(draft, path)
        if durable:
            flush(path.parent)
    finally:
        with suppress(OSError):  # a failure to tidy up must not hide the error on its way; the next call tries again
            _remove(draft)
        _open_drafts.discard(draft)


def write_atomically(path: Path, content: str | bytes, *, durable: bool = True) -> None:
    """Replace the file at ``path`` by ``content`` (text as UTF-8); see ``replacing``."""
    with replacing(path, durable=durable) as draft:
        draft.write_bytes(content.encode() if isinstance(content, str) else content)


def flush(path: Path) -> None:
    """Wait until the bytes of a file, or the names in a folder, are on the disk."""
    number = os.open(path, os.O_RDONLY)
    try:
        os.fsync(number)
    finally:
        os.close(number)


def flush_file_system(folder: Path) -> None:
    """Wait until everything written to the file system of ``folder`` is on the disk: one call for many files.

    OSError where some of it could not be written (Linux 5.8 and newer report that; see syncfs(2)). Elsewhere than on
    Linux every file system is flushed.
    """
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "syncfs"):
        os.sync()
        return
    number = os.open(folder, os.O_RDONLY)
    try:
        if library.syncfs(number):
            raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(folder))
    finally:
        os.close(number)


def _put_in_place(draft: Path, path: Path) -> None:
    """Rename ``draft`` to ``path``; the old folder, if any, is then the draft."""
    if not _is_folder(draft) and not _is_folder(path):
        os.replace(draft, path)
    elif not os.path.lexists(path):
        os.rename(draft, path)
    elif not _exchange(draft, path):
        aside = _aside(path)
        os.rename(path, aside)
        os.rename(draft, path)
        _remove(aside)


def _exchange(one: Path, other: Path) -> bool:
    """Let two paths change places in one step; False where this system or file system can't."""
    library = ctypes.CDLL(None, use_errno=True)
    if not hasattr(library, "renameat2"):
        return False
    if library.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _EXCHANGE) == 0:
        return True
    number = ctypes.get_errno()
    if number in (errno.EINVAL, errno.ENOSYS, errno.ENOTSUP):
        return False
    raise OSError(number, os.strerror(number), str(one), None, str(other))


def _clean_up(path: Path) -> None:
    """Put ``path`` back where a crash left it renamed, and remove the drafts of processes that are gone."""
    aside = _aside(path)
    if os.path.lexists(aside):
        if os.path.lexists(path):
            _remove(aside)
        else:
            os.rename(aside, path)
    for draft in path.parent.glob(f".{glob.escape(path.name)}.*-*-*.draft"):
        if _is_abandoned(draft, draft.name.removeprefix(f".{path.name}.")):
            with suppress(FileNotFoundError):  # another process cleans up at the same time
                _remove(draft)


def _is_abandoned(draft: Path, tag: str) -> bool:
    """Tell whether nobody writes ``draft`` any more; ``tag`` is MACHINE-PID-NUMBER.draft."""
    machine, pid, _ = tag.rsplit("-", 2)
    if not pid.isdigit():
        return False
    if machine != _machine():
        with suppress(FileNotFoundError):
            return time.time() - draft.lstat().st_mtime > ABANDONED_AFTER_S
        return False
    if int(pid) == os.getpid():
        return draft not in _open_drafts
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return True
    except PermissionError:  # it runs, as another user
        return False
    return False


def _machine() -> str:
    return socket.gethostname().replace("/", "_")[:64]


def _aside(path: Path) -> Path:
    return path.with_name(f".{path.name}.former")


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def _flush_tree(top: Path) -> None:
    if _is_folder(top):
        for folder, _, names in os.walk(top):
            for name in names:
                file = Path(folder, name)
                if not file.is_symlink():
                    flush(file)
            flush(Path(folder))
    else:
        flush(top)


def _remove(path: Path) -> None:
    if _is_folder(path):
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
