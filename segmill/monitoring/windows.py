"""Windows of what was served: statistics of images, summed over an hour, in the ledger's database. No image is kept.

Each door writes rows of its own; whoever reads them merges these. A thread computes and writes: no request waits.
"""

from __future__ import annotations

import json
import logging
import queue
import secrets
import threading
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from sqlalchemy import BigInteger, Column, Connection, Integer, MetaData, String, Table, Text, delete, select

from segmill.errors import InputError, SegmillError
from segmill.monitoring.samples import Samples
from segmill.monitoring.statistics import ImageStatistics, image_statistics
from segmill.monitoring.sums import Sums
from segmill.promotion.database import Database, has_table, make_tables

Pixels = NDArray[np.uint8]

WINDOW_S = 3600
KEEP_S = 90 * 86_400
WRITE_EVERY_S = 10.0
CLEAN_EVERY_S = 3600.0
MOST_WAITING_PX = 2**25  # of images that wait for the thread: 100 MB

_TABLES = MetaData()
WINDOWS = Table(
    "served_windows",
    _TABLES,
    Column("model", String(256), primary_key=True),
    Column("version", String(64), primary_key=True),
    Column("start", BigInteger, primary_key=True, autoincrement=False),
    Column("length_s", Integer, primary_key=True, autoincrement=False),
    Column("writer", String(16), primary_key=True),
    Column("images", Integer, nullable=False),
    Column("sums", Text, nullable=False),
)
_log = logging.getLogger("segmill.serving")


@dataclass(frozen=True, eq=False)
class Window:
    """What a version was sent in a span of time, at all doors together.

    ``start``: seconds since 1970 (UTC), a multiple of ``length_s``.
    """

    model: str
    version: str
    start: int
    length_s: int
    sums: Sums


@dataclass(frozen=True, eq=False, kw_only=True)
class ServedImage:
    """An image that ``version`` segmented, for the request ``request``; ``confidence`` as the reply says it.

    ``embedding``: as ``image_statistics`` takes it.
    """

    model: str
    version: str
    request: str
    image_HWC: Pixels
    ids_HW: Pixels
    class_names: Sequence[str]
    confidence: float
    embedding: Sequence[float] = ()
    time_s: float = field(default_factory=lambda: time.time())


@dataclass(frozen=True, kw_only=True)
class WindowSettings:
    """What is kept of served images.

    Attributes:
        length_s: of a window.
        keep_s: windows that ended longer ago are deleted.
        samples: where some images are kept themselves; None: nowhere.
    """

    length_s: int = WINDOW_S
    keep_s: float = KEEP_S
    samples: Samples | None = None

    def __post_init__(self) -> None:
        if self.length_s < 1:
            raise InputError(f"a window can't be {self.length_s} s long", "name a whole number of seconds above 0")


@dataclass
class ServedWindows:
    """The windows that a door fills; ``add`` never waits. Made by ``served_windows``.

    Attributes:
        lost: images that came faster than they could be looked at, or that the database did not take until the end.
    """

    url: str
    settings: WindowSettings = field(default_factory=WindowSettings)
    lost: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._database = Database(self.url)
        self._writer = secrets.token_hex(8)
        self._waiting: queue.SimpleQueue[ServedImage | None] = queue.SimpleQueue()
        self._waiting_px = 0
        self._counting = threading.Lock()
        self._open: dict[tuple[str, str, int], Sums] = {}
        self._unwritten: set[tuple[str, str, int]] = set()
        self._cleaned_s = 0.0
        self._trouble = ""

    def add(self, one: ServedImage) -> None:
        """Take an image; where too many wait for the thread it is counted in ``lost`` instead."""
        pixels = one.ids_HW.size
        with self._counting:
            if self._waiting_px and self._waiting_px + pixels > MOST_WAITING_PX:
                self.lost += 1
                return
            self._waiting_px += pixels
        self._waiting.put(one)

    def run(self) -> None:
        """Compute and write until ``end``; what a database that is away did not take is written when it is back."""
        over = False
        while not over:
            until = time.monotonic() + WRITE_EVERY_S
            found: dict[tuple[str, str, int], list[ImageStatistics]] = defaultdict(list)
            while not over and (left_s := until - time.monotonic()) > 0:
                try:
                    one = self._waiting.get(timeout=left_s)
                except queue.Empty:
                    break
                if one is None:
                    over = True
                else:
                    self._look(one, found)
            for key, some in found.items():
                self._open[key] = self._open.get(key, Sums()).merged(Sums.of(some))
                self._unwritten.add(key)
            self._write()
        self.lost += sum(self._open[key].images for key in self._unwritten)

    def end(self) -> None:
        """Let ``run`` write what is there and return."""
        self._waiting.put(None)

    def _look(self, one: ServedImage, found: dict[tuple[str, str, int], list[ImageStatistics]]) -> None:
        try:
            statistics = image_statistics(
                one.image_HWC, one.ids_HW, one.class_names, confidence=one.confidence, embedding=one.embedding
            )
            start = int(one.time_s // self.settings.length_s) * self.settings.length_s
            found[one.model, one.version, start].append(statistics)
            if self.settings.samples:
                self.settings.samples.keep(one.request, one.version, one.image_HWC)
        except OSError as error:
            self._say(f"an image can't be kept ({error})")
        except Exception as error:  # the request was answered; what is wrong with the image must not end the thread
            self.lost += 1
            self._say(f"an image can't be described ({type(error).__name__}: {error})")
        finally:
            with self._counting:
                self._waiting_px -= one.ids_HW.size

    def _write(self) -> None:
        now_s = time.time()
        clean = now_s - self._cleaned_s > CLEAN_EVERY_S
        if not self._unwritten and not clean:
            return
        try:
            with self._database.writing() as connection:
                make_windows(connection)
                for model, version, start in sorted(self._unwritten):
                    sums = self._open[model, version, start]
                    row = {"model": model, "version": version, "start": start, "length_s": self.settings.length_s,
                           "writer": self._writer}  # fmt: skip
                    own = [WINDOWS.c[name] == value for name, value in row.items()]
                    connection.execute(delete(WINDOWS).where(*own))
                    connection.execute(WINDOWS.insert(), [{**row, "images": sums.images, "sums": sums.text()}])
                if clean:
                    connection.execute(
                        delete(WINDOWS).where(WINDOWS.c.start + WINDOWS.c.length_s < now_s - self.settings.keep_s)
                    )
        except (SegmillError, OSError) as error:
            self._say(f"windows wait for the database ({error})")
            return
        self._trouble = ""
        self._unwritten.clear()
        if clean:
            self._cleaned_s = now_s
            if self.settings.samples:
                self._clean_samples(self.settings.samples)
        ended = [key for key in self._open if key[2] + self.settings.length_s + WRITE_EVERY_S < now_s]
        for key in ended:
            del self._open[key]

    def _clean_samples(self, samples: Samples) -> None:
        try:
            samples.clean()
        except OSError as error:
            self._say(f"expired samples can't be deleted ({error})")

    def _say(self, trouble: str) -> None:
        if trouble != self._trouble:
            _log.warning(json.dumps({"event": "a window is not complete", "why": trouble}))
        self._trouble = trouble


def make_windows(connection: Connection) -> None:
    """Make the table of windows where it is not there."""
    make_tables(connection, _TABLES, WINDOWS, 7365681)


@contextmanager
def served_windows(url: str, settings: WindowSettings | None = None) -> Iterator[ServedWindows]:
    """Have windows to add to while the block runs; what they were given is written when it has ended.

    ``url``: of the ledger's database.
    """
    windows = ServedWindows(url, settings or WindowSettings())
    running = threading.Thread(target=windows.run, name="windows", daemon=True)
    running.start()
    try:
        yield windows
    finally:
        windows.end()
        running.join()


def read_windows(url: str, model: str, *, since_s: float = 0.0) -> list[Window]:
    """Return the windows of a model that began at ``since_s`` or later, in the order of time; what doors wrote merged.

    Raises InfrastructureError where the database does not answer, InputError where another release wrote them.
    """
    with Database(url).reading() as connection:
        if connection is None or not has_table(connection, WINDOWS):
            return []
        wanted = (
            select(WINDOWS)
            .where(WINDOWS.c.model == model, WINDOWS.c.start >= since_s)
            .order_by(WINDOWS.c.start, WINDOWS.c.length_s, WINDOWS.c.version)
        )
        rows = connection.execute(wanted).mappings().all()
    together: dict[tuple[str, int, int], list[Sums]] = defaultdict(list)
    for row in rows:
        together[row["version"], row["start"], row["length_s"]].append(Sums.from_json(json.loads(row["sums"])))
    return [
        Window(model, version, start, length_s, Sums.merge(some))
        for (version, start, length_s), some in together.items()
    ]
