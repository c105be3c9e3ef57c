"""COCO's JSON files read as streams: what they say per image, spooled to disk, and what is wrong with them, counted."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import IO, Any

from segmill.data.ingest.formats.reading import SetFolder
from segmill.data.schema.issues import Issue, wrong_file
from segmill.errors import InputError

MAX_ISSUES = 100  # of one JSON file; the rest are counted


def stream_objects(folder: SetFolder, file: str, key: str) -> Iterator[dict[str, Any]]:
    """Yield the objects of one of the file's lists. InputError where it is no JSON or has others than objects."""
    import ijson

    with folder.resolve(file).open("rb") as content:
        if content.read(3) != b"\xef\xbb\xbf":
            content.seek(0)
        try:
            for item in ijson.items(content, f"{key}.item", use_float=True):
                if not isinstance(item, dict):
                    raise InputError(f"{file}: {key} holds {str(item)[:40]!r}, not only objects", "it is no COCO file")
                yield item
        except (ijson.JSONError, ValueError, RecursionError) as error:
            said = " ".join(str(error).split())[:120]
            raise InputError(f"{file} is no whole JSON file ({said})", "fetch it again") from error


@dataclass
class Annotations:
    """What JSON files of one kind say: regions by image, in a temporary file of JSON lines."""

    file: IO[bytes]
    places: dict[int, list[tuple[int, int]]] = field(default_factory=lambda: defaultdict(list))

    def add(self, number: int, region: dict[str, Any]) -> None:
        line = json.dumps(region, separators=(",", ":")).encode()
        self.places[number].append((self.file.tell(), len(line)))
        self.file.write(line)

    def of(self, number: int) -> Iterator[dict[str, Any]]:
        for offset, length in self.places.get(number, ()):
            self.file.seek(offset)
            yield json.loads(self.file.read(length))


class Complaints:
    """The issues of one JSON file, MAX_ISSUES of them and a count of the rest."""

    def __init__(self, file: str) -> None:
        self.file, self.count = file, 0
        self.first: list[Issue] = []

    def add(self, where: str, what: str, fix: str) -> None:
        self.count += 1
        if self.count <= MAX_ISSUES:
            self.first.append(wrong_file(f"{self.file}, {where}", what, fix))

    def issues(self) -> list[Issue]:
        more = self.count - len(self.first)
        return self.first + ([wrong_file(self.file, f"{more} more like these", "correct the file")] if more else [])


def is_deeper(value: object, limit: int) -> bool:
    """Tell whether lists and mappings are deeper in each other than ``limit``."""
    if not isinstance(value, list | dict):
        return False
    inner = value if isinstance(value, list) else value.values()
    return limit == 0 or any(is_deeper(one, limit - 1) for one in inner)
