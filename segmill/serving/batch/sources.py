"""What is to be scored: the images of a folder, a prefix in S3 or a data version, listed and read. Light to import."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from segmill.data.storage.raw_set import IMAGE_SUFFIXES, INDEX_FILE, StoredFile, sharded_samples
from segmill.data.versioning import history
from segmill.data.versioning.versions import recorded_version, store
from segmill.errors import InfrastructureError, InputError

S3 = "s3://"
DATA = "data:"  # before a data version


@dataclass(frozen=True, slots=True)
class BatchImage:
    """An image that is to be scored.

    Attributes:
        path: below the source, with '/', as people see it.
        place: an absolute path, or the bucket and key of S3 after ``s3://``.
        size_bytes: of the image file.
        stamp: another one where its content is another; the reverse does not hold.
        offset, length: of the file in what is at ``place``; None: all of it.
        fault: why it can't have a mask, "" where it can.
    """

    path: str
    place: str
    size_bytes: int
    stamp: str
    offset: int = 0
    length: int | None = None
    fault: str = ""

    @property
    def mask(self) -> PurePosixPath:
        """Where its mask is, below the folder of masks."""
        return PurePosixPath(self.path).with_suffix(".png")

    def read(self) -> bytes:
        """Return the file's bytes.

        Raises:
            OSError: it can't be read.
            InfrastructureError: S3 does not answer.
        """
        if self.place.startswith(S3):
            with _reaching_s3(self.place):
                return bytes(_s3().cat_file(self.place))
        return StoredFile(self.path, self.place, self.offset, self.length).read(Path())


def list_folder(folder: Path, without: Path) -> list[BatchImage]:
    """Return the images below a folder by their suffix, in order of path; hidden files and folders are none.

    ``without``: a folder that is left out, as the one that is written to. A file counts as unchanged as long as its
    size, times and inode do.
    """
    found, top, without = [], folder.resolve(), without.resolve()
    for parent, folders, names in os.walk(top):
        folders[:] = [name for name in folders if name[0] != "." and Path(parent, name).resolve() != without]
        for name in names:
            if name[0] == "." or not name.lower().endswith(IMAGE_SUFFIXES):
                continue
            place = os.path.join(parent, name)
            try:
                facts = os.stat(place)
            except OSError:  # a link to nowhere, or it was deleted just now: reading it says which
                size, stamp = 0, "none"
            else:
                size, stamp = facts.st_size, f"{facts.st_size}-{facts.st_mtime_ns}-{facts.st_ctime_ns}-{facts.st_ino}"
            found.append(BatchImage(_text(os.path.relpath(place, top)), place, size, stamp))
    return sorted(found, key=lambda one: one.path)


def list_s3(url: str) -> list[BatchImage]:
    """Return the images below a prefix in S3 by their suffix, in order of path; hidden ones are left out.

    The endpoint and the credentials are those of AWS's own variables and files.

    Raises:
        InputError: there is no such bucket, or it may not be listed.
        InfrastructureError: S3 does not answer.
    """
    prefix = url.removeprefix(S3).rstrip("/")
    if not prefix:
        raise InputError(f"{url} names no bucket", "write s3://BUCKET/PREFIX")
    with _reaching_s3(url):
        _s3().invalidate_cache()
        try:
            objects = _s3().find(prefix, detail=True)
        except FileNotFoundError:
            raise InputError(f"there is nothing at {url}", "write s3://BUCKET/PREFIX") from None
        except PermissionError as error:
            raise InputError(
                f"{url} may not be listed ({error})", "give its key the right to (s3:ListBucket)"
            ) from None
    found = []
    for key, facts in objects.items():
        path = key.rpartition("/")[2] if key == prefix else key.removeprefix(f"{prefix}/")
        parts = path.split("/")
        if not path.lower().endswith(IMAGE_SUFFIXES):
            continue
        stamp, size = f"{facts['size']}-{facts['ETag'].strip(chr(34))}", int(facts["size"])
        if any(part in ("", ".", "..") for part in parts) or "\0" in path:
            found.append(BatchImage(path, f"{S3}{key}", size, stamp, fault="its name is no path below the prefix"))
        elif not any(part.startswith(".") for part in parts):
            found.append(BatchImage(path, f"{S3}{key}", size, stamp))
    return sorted(found, key=lambda one: one.path)


def list_version(root: Path, path: str, remote: str | None, named: str) -> tuple[str, list[BatchImage]]:
    """Return a data version of the workspace (DVC's md5) and its images, from DVC's cache, in order of path.

    Args:
        root: the workspace.
        path: of the set in it.
        remote: where files come from that the cache lacks.
        named: first hex digits of a version, HEAD or HEAD~N.

    Raises:
        InputError: there is no such version.
        InfrastructureError: files of it are in neither the cache nor the remote.
    """
    recorded = recorded_version(root, path)
    log = history.read_log(history.log_path(root / path))
    version = history.resolve(log, recorded.md5 if recorded else None, named).version
    with store(root, remote) as files:
        listing = files.listing(version)
        if INDEX_FILE in listing:
            with files.view(version, {INDEX_FILE}) as folder:
                stored = [sample.image for sample in sharded_samples(folder)]
        else:
            stored = [StoredFile(name, name) for name in listing if name.lower().endswith(IMAGE_SUFFIXES)]
        stored = [one for one in stored if one.name.startswith("images/") and "/." not in one.name]
        places = {one.file: files.path(listing[one.file]).absolute() for one in stored}
        files.bring({listing[name] for name in places})
        found = [
            BatchImage(
                path=one.name.removeprefix("images/"),
                place=str(places[one.file]),
                size_bytes=one.length or places[one.file].stat().st_size,
                stamp=f"{listing[one.file]}-{one.offset}",
                offset=one.offset,
                length=one.length,
            )
            for one in stored
        ]
    return version, sorted(found, key=lambda one: one.path)


def without_shared_masks(images: Sequence[BatchImage]) -> list[BatchImage]:
    """Return the images; where several would have one mask, all but the first with the fault that says so."""
    seen: dict[PurePosixPath, str] = {}
    return [
        image
        if image.fault or (first := seen.setdefault(image.mask, image.path)) == image.path
        else replace(image, fault=f"its mask would be that of {first}: rename one")
        for image in images
    ]


@cache
def _s3() -> Any:
    """Return the client of this process, which asks as often as botocore does where S3 is busy."""
    from s3fs import S3FileSystem

    return S3FileSystem(use_listings_cache=False)


@contextmanager
def _reaching_s3(url: str) -> Iterator[None]:
    """Raise InfrastructureError where S3 can't be reached in the block; what it says of a file is an OSError."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        raise InfrastructureError(
            f"{url} can't be reached ({error}); check AWS_ENDPOINT_URL and the credentials of AWS, then run again: "
            "what is done is kept"
        ) from None


def _text(path: str) -> str:
    """Return a path as text with '/', bytes that are no UTF-8 as their escapes."""
    return os.fsencode(path).decode("utf-8", "backslashreplace").replace(os.sep, "/")
