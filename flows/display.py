"""How far work is, in the terminal: a picture that is drawn again and again there, a line now and then elsewhere."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from segmill import progress
from segmill.alongside import alongside
from segmill.workspace import Workspace

LIVE_INTERVAL_S = 0.5
PLAIN_INTERVAL_S = (10.0, 60.0)  # between two lines of one work: a twentieth of its time so far, within these
BAR_WIDTH = 8
MARKS = {
    "fresh": ("=", "dim"), "restored": ("<", "cyan"), "ran": ("✓", "green"), "running": ("…", "yellow"),
    "failed": ("✗", "red"), "interrupted": ("✗", "yellow"), "waiting": ("·", "dim"),
}  # fmt: skip

_drawing = threading.Lock()  # held while a picture is drawn
_pictures: list[Live] = []
OnCount = Callable[[str, int, int | None], None]  # what is done, how many, of how many where that is known


@contextmanager
def watching(
    console: Console,
    picture: Callable[[], RenderableType],
    news: Callable[[bool], Iterable[str]],
    *,
    stays: bool = True,
) -> Iterator[None]:
    """Show how far the block is, until it ends.

    Args:
        console: a terminal shows ``picture``, anything else (a file, a pipe) the lines of ``news``.
        picture: returns what there is to see now.
        news: returns the lines that were not printed yet; its argument tells whether the block is over.
        stays: whether the last picture stays in the terminal.
    """

    def draw(over: threading.Event) -> None:
        with Live(console=console, auto_refresh=False, transient=not stays) as live:
            _pictures.append(live)
            last = False
            while not last:
                last = over.wait(LIVE_INTERVAL_S)
                with _drawing:
                    live.update(picture(), refresh=True)
            _pictures.remove(live)

    def say(line: str) -> None:
        console.print(line, markup=False, highlight=False, soft_wrap=True)

    with alongside(draw if console.is_terminal else _teller(news, say)):
        yield


def end_pictures() -> None:
    """Draw nothing more in this process: what is said next is the last that the terminal shows."""
    if _drawing.acquire(timeout=1):
        for live in _pictures:
            live.stop()


def _teller(news: Callable[[bool], Iterable[str]], say: Callable[[str], None]) -> Callable[[threading.Event], None]:
    """Return the work of a thread: say new lines as they come, and the last ones when the event is set."""

    def tell(over: threading.Event) -> None:
        last = False
        while not last:
            last = over.wait(LIVE_INTERVAL_S)
            for line in news(last):
                say(line)

    return tell


class Pauses:
    """Tells when running work may print its next line: the longer it runs, the less often, and none twice."""

    def __init__(self) -> None:
        self._spoke: dict[str, tuple[float, str]] = {}

    def over(self, work: str, began: float, line: str) -> bool:
        """Tell whether ``work`` may print ``line``, and begin the next pause; ``began``: in seconds since 1970."""
        least, most = PLAIN_INTERVAL_S
        pause = min(most, max(least, (time.time() - began) / 20))
        spoke, last = self._spoke.get(work, (float("-inf"), ""))
        if time.monotonic() - spoke < pause or line == last:
            return False
        self._spoke[work] = time.monotonic(), line
        return True


@contextmanager
def showing(workspace: Workspace, steps: list[str], console: Console) -> Iterator[None]:
    """Show the progress of ``steps``, read from the workspace's progress files, until the block ends."""
    folder = workspace.progress
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.glob("*.json"):
        old.unlink()
    shown: dict[str, str] = {}
    pauses = Pauses()
    with watching(console, lambda: _table(folder, steps), lambda over: _news(folder, steps, shown, pauses)):
        yield


@contextmanager
def telling(workspace: Workspace, steps: list[str], say: Callable[[str], None]) -> Iterator[None]:
    """Call ``say`` with each line that is printed of ``steps`` where the output is a file, until the block ends."""
    shown: dict[str, str] = {}
    pauses = Pauses()
    with alongside(_teller(lambda over: _news(workspace.progress, steps, shown, pauses), say)):
        yield


@contextmanager
def counting(console: Console, *, unit: str = "samples") -> Iterator[OnCount]:
    """Give a function to call with how many of ``unit`` are done; show the counts until the block ends."""
    counts: dict[str, tuple[int, int | None]] = {}

    def on_count(what: str, done: int, total: int | None) -> None:
        counts[what] = (done, total)

    with _showing_counts(console, lambda: counts, unit):
        yield on_count


@contextmanager
def following(console: Console, what: str, path: Path, *, unit: str = "samples") -> Iterator[None]:
    """Show the counts of ``unit`` that ``progress.counter`` writes to ``path``, until the block ends."""
    path.unlink(missing_ok=True)

    def counts() -> dict[str, tuple[int, int | None]]:
        facts = progress.read(path)
        return {what: (facts["done"], facts["total"])} if facts else {}

    with _showing_counts(console, counts, unit):
        yield


@contextmanager
def _showing_counts(
    console: Console, counts: Callable[[], Mapping[str, tuple[int, int | None]]], unit: str = "samples"
) -> Iterator[None]:
    began: dict[str, float] = {}
    pauses = Pauses()

    def picture() -> Table:
        table = Table(box=None, show_header=False, pad_edge=False)
        for what, (done, total) in dict(counts()).items():
            since = time.time() - began.setdefault(what, time.time())
            left = f"{clock(since * (total - done) / done)} left" if total and 0 < done < total and since > 1 else ""
            share = ProgressBar(completed=done, total=total, width=4 * BAR_WIDTH, pulse=total is None)
            table.add_row(Text(what), share, count_line(done, total, unit), left)
        return table

    def news(over: bool) -> Iterator[str]:
        for what, (done, total) in dict(counts()).items():
            line = f"{what}: {count_line(done, total, unit)}"
            if what not in began:
                began[what] = time.time()
                pauses.over(what, began[what], "")  # what is done within the first pause says nothing
            elif done != total and not over and pauses.over(what, began[what], line):
                yield line

    with watching(console, picture, news, stays=False):
        yield


def count_line(done: int, total: int | None, unit: str = "samples") -> str:
    """Say how many samples are done, of how many where that is known."""
    return f"{done:,} of {total:,} {unit}" if total is not None else f"{done:,} {unit}"


def running_line(facts: dict[str, Any]) -> str:
    """Say how far a step is: how many samples of how many, or how a member's training goes."""
    return count_line(facts["done"], facts["total"]) if "total" in facts else member_line(facts)


def member_line(facts: dict[str, Any]) -> str:
    """Say one member's progress: epoch, loss, val mIoU, images/s and time left."""
    if "epoch" not in facts:
        return str(facts["state"])
    # A time budget ends a training before its last epoch: that number would mislead.
    parts = [f"epoch {facts['epoch']}" + (f"/{facts['epochs']}" if facts["epochs"] else "")]
    if facts.get("loss") is not None:
        parts.append(f"loss {facts['loss']:.3f}")
    if facts.get("val_miou") is not None:
        parts.append(f"val mIoU {facts['val_miou']:.3f}")
    if facts.get("images_s"):
        parts.append(f"{facts['images_s']:.1f} images/s")
    if facts.get("seconds_left") is not None:
        parts.append(f"{clock(facts['seconds_left'])} left")
    return "  ".join(parts)


def clock(seconds: float) -> str:
    """Write seconds as 45s, 3m05s or 2h10m."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02d}s"
    return f"{whole // 3600}h{whole % 3600 // 60:02d}m"


def _facts(folder: Path, step: str) -> tuple[dict[str, Any], dict[str, Any] | None]:
    stage = progress.read(folder / f"{step}.json") or {"state": "waiting"}
    if stage["state"] != "running":
        return stage, None
    return stage, progress.read(folder / f"{step}.member.json") or progress.read_count(folder / f"{step}.count.json")


def _share_done(running: dict[str, Any]) -> float:
    if "total" in running:
        return float(running["done"] / max(running["total"], 1))
    return float(running.get("share_done", 0.0))  # not shown before the first step


def _detail(stage: dict[str, Any], running: dict[str, Any] | None) -> str:
    if running:
        return running_line(running)
    return str(stage.get("why", ""))


def _spent(stage: dict[str, Any]) -> str:
    if stage["state"] == "running":
        return clock(time.time() - stage["began"])
    return clock(stage["seconds"]) if stage.get("seconds", 0) >= 0.5 else ""


def _table(folder: Path, steps: list[str]) -> Table:
    table = Table(box=None, show_header=False, pad_edge=False, expand=True)
    table.add_column(width=1)
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(width=BAR_WIDTH)
    table.add_column(ratio=1)
    for step in steps:
        stage, running = _facts(folder, step)
        mark, style = MARKS[stage["state"]]
        done = ProgressBar(completed=100 * _share_done(running), width=BAR_WIDTH) if running else Text("")
        table.add_row(Text(mark, style=style), step, _spent(stage), done, Text(_detail(stage, running), style=style))
    return table


def _news(folder: Path, steps: list[str], shown: dict[str, str], pauses: Pauses) -> Iterator[str]:
    """Yield a line for every step whose state is another than in ``shown``, and now and then one for a running step."""
    for step in steps:
        stage, running = _facts(folder, step)
        if stage["state"] != "waiting" and shown.get(step) != stage["state"]:
            shown[step] = stage["state"]
            spent = f" in {_spent(stage)}" if stage["state"] == "ran" and _spent(stage) else ""
            why = f" ({stage['why']})" if stage.get("why") else ""
            yield f"{step}: {stage['state']}{spent}{why}"
        if running:
            line = f"{step}: {running_line(running)}"
            if pauses.over(step, stage.get("began", time.time()), line):
                yield line
