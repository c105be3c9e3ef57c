"""What a stack takes: processes, open files, bytes on the disk and in buckets, databases, memory by server."""

from __future__ import annotations

from collections.abc import Iterable
from configparser import ConfigParser
from contextlib import suppress
from pathlib import Path
from typing import Any

import boto3
import psutil

from deploy.stack.place import Place
from deploy.stack.processes import families
from deploy.stack.servers import DATA_BUCKET, DATABASES, MODEL_BUCKET, REGION, superuser, urls

MIB = 2**20


def figures(place: Place) -> dict[str, float]:
    """Return the figures of a stack that is up, by name: counts, and MiB where the name says so."""
    known = families(place)
    everyone = set().union(*known.values())
    disk = {
        "postgres": place.run / "postgres",
        "ray sessions": place.run / "ray",
        "temporary files": place.run / "tmp",
        "logs": place.folder / "logs",
        "git": place.folder / "git",
        "homes": place.folder / "home",
    }
    return {
        "processes": len(everyone),
        "open files": sum(_of(process, "num_fds") for process in everyone),
        **{f"disk: {name} MiB": folder_bytes(folder) / MIB for name, folder in disk.items()},
        **{f"bucket {name} MiB": size / MIB for name, size in buckets(place).items()},
        **{f"database {name} MiB": size / MIB for name, size in databases(place).items()},
        **{f"memory: {name} MiB": memory(processes) / MIB for name, processes in sorted(known.items())},
    }


def folder_bytes(folder: Path) -> int:
    """Return the bytes of all files below a folder; those that vanish meanwhile count nothing."""
    size = 0
    for path in folder.rglob("*"):
        with suppress(OSError):
            size += path.lstat().st_size
    return size


def buckets(place: Place) -> dict[str, int]:
    """Return the bytes of each bucket's objects, which moto keeps in memory and, the large ones, in unnamed files."""
    key = ConfigParser()
    key.read(place.secret_file("backup.aws"))
    storage = boto3.client("s3", endpoint_url=urls(place)["s3"], region_name=REGION, **key["default"])
    found = {}
    for bucket in (DATA_BUCKET, MODEL_BUCKET):
        pages = storage.get_paginator("list_objects_v2").paginate(Bucket=bucket)
        found[bucket] = sum(one["Size"] for page in pages for one in page.get("Contents", []))
    return found


def databases(place: Place) -> dict[str, int]:
    """Return each database's bytes on the disk, dead rows and indexes included."""
    with superuser(place) as connection:
        rows = connection.execute("SELECT datname, pg_database_size(datname) FROM pg_database").fetchall()
    return {name: int(size) for name, size in rows if name in DATABASES}


def memory(processes: Iterable[psutil.Process]) -> int:
    """Return the bytes of main memory that processes take together; pages that several share are counted once (PSS)."""
    total = 0
    for process in processes:
        with suppress(psutil.Error):
            facts = process.memory_full_info()
            total += getattr(facts, "pss", 0) or facts.rss
    return total


def _of(process: psutil.Process, what: str) -> Any:
    with suppress(psutil.Error):
        return getattr(process, what)()
    return 0
