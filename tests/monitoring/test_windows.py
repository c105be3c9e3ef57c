"""Windows of what was served: doors merge, nothing waits, a database that is away is no loss, old windows go."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from databases import postgresql_server

from segmill.data.storage.images import read_image
from segmill.errors import InputError
from segmill.monitoring import windows as module
from segmill.monitoring.samples import Samples
from segmill.monitoring.statistics import image_statistics
from segmill.monitoring.sums import Sums
from segmill.monitoring.windows import ServedImage, ServedWindows, Window, WindowSettings, read_windows, served_windows

NAMES = ("road", "sky")


def grey(level: int) -> np.ndarray:
    return np.full((16, 16, 3), level, np.uint8)


def image(model: str, version: str, image_HWC: np.ndarray, confidence: float = 1.0) -> ServedImage:
    return ServedImage(
        model=model, version=version, request="r1", image_HWC=image_HWC, confidence=confidence, class_names=NAMES,
        ids_HW=np.zeros(image_HWC.shape[:2], np.uint8),
    )  # fmt: skip


def until(read: Callable[[], list[Window]], images: int) -> None:
    end = time.monotonic() + 20
    while sum(one.sums.images for one in read()) < images:
        assert time.monotonic() < end
        time.sleep(0.05)


def test_what_two_doors_saw_is_one_window(url: str) -> None:
    with served_windows(url) as one, served_windows(url) as other:
        for level in range(100):
            (one, other)[level % 2].add(image("street", "3", grey(level), level / 100))
        one.add(image("brain", "3", grey(0), 0.5))
        one.add(image("street", "4", grey(0), 0.5))
    found = {window.version: window for window in read_windows(url, "street")}
    expected = Sums.of(
        image_statistics(grey(level), np.zeros((16, 16), np.uint8), NAMES, confidence=level / 100)
        for level in range(100)
    )
    assert set(found) == {"3", "4"} and found["4"].sums.images == 1
    assert found["3"].sums.images == 100 and found["3"].start % 3600 == 0
    assert found["3"].sums.values["confidence"].mean == pytest.approx(0.495)
    assert (found["3"].sums.values["brightness"].histogram == expected.values["brightness"].histogram).all()
    assert np.allclose(found["3"].sums.colors, expected.colors) and one.lost == other.lost == 0


def test_a_window_is_written_again_as_it_grows(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.05)
    with served_windows(url, WindowSettings(length_s=10**9)) as windows:
        for number in range(1, 4):
            windows.add(image("street", "3", grey(number)))
            until(lambda: read_windows(url, "street"), number)
        (window,) = read_windows(url, "street")
    assert window.sums.images == 3 and window.length_s == 10**9


def test_a_long_time_is_many_windows_and_old_ones_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    now = 1_800_000_000.0
    monkeypatch.setattr(module.time, "time", lambda: now)
    for day in range(5):
        now = 1_800_000_000.0 + 86_400 * day
        with served_windows(url, WindowSettings(keep_s=2.5 * 86_400)) as windows:
            windows.add(image("street", "3", grey(day)))
    starts = [(window.start - 1_800_000_000) // 86_400 for window in read_windows(url, "street")]
    assert starts == [2, 3, 4]
    assert len(read_windows(url, "street", since_s=now - 80_000)) == 1


def test_who_adds_never_waits_and_what_is_too_much_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "MOST_WAITING_PX", 1000)
    windows = ServedWindows(f"sqlite:///{tmp_path / 'ledger.db'}")  # nobody computes
    for _ in range(5):
        windows.add(image("street", "3", grey(1)))
    assert windows.lost == 2
    large = ServedWindows(windows.url)
    large.add(image("street", "3", np.zeros((100, 100, 3), np.uint8)))
    assert large.lost == 0  # one image is taken, however large


def test_an_image_that_can_t_be_described_ends_nothing(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    with served_windows(url) as windows:
        windows.add(image("street", "3", np.zeros((0, 0, 3), np.uint8)))
        windows.add(image("street", "3", grey(1)))
    assert windows.lost == 1 and [one.sums.images for one in read_windows(url, "street")] == [1]


def test_there_is_no_window_where_nothing_was_served(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path / 'ledger.db'}"
    assert read_windows(url, "street") == []
    with served_windows(url):
        pass
    assert read_windows(url, "street") == []


@pytest.mark.skipif(shutil.which("initdb") is None, reason="there is no PostgreSQL here")
def test_windows_wait_for_a_database_that_is_away(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "WRITE_EVERY_S", 0.05)
    with postgresql_server() as server, served_windows(server.url) as windows:
        windows.add(image("street", "3", grey(1)))
        until(lambda: read_windows(server.url, "street"), 1)
        server.kill()
        for _ in range(100):
            windows.add(image("street", "3", grey(2)))
        time.sleep(0.5)
        server.start()
        until(lambda: read_windows(server.url, "street"), 101)
        assert windows.lost == 0


def test_a_share_of_the_images_is_kept_until_it_expires(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    url, samples = f"sqlite:///{tmp_path / 'ledger.db'}", Samples(folder=tmp_path / "kept", share=0.5, keep_s=3600)
    with served_windows(url, WindowSettings(samples=samples)) as windows:
        for level in range(200):
            windows.add(image("street", "3", grey(level)))
    kept = samples.kept()
    assert 60 < len(kept) < 140 and samples.folder.stat().st_mode & 0o077 == 0
    assert all(path.name.endswith("-3-r1.png") for path in kept)
    levels = [read_image(path)[0, 0, 0] for path in kept]
    assert levels == sorted(levels) and len(set(levels)) == len(levels)
    (samples.folder / "mine.png").write_bytes(b"not of the service")
    later = time.time() + 3601
    monkeypatch.setattr(module.time, "time", lambda: later)
    with served_windows(url, WindowSettings(samples=samples)):
        pass
    assert [path.name for path in samples.folder.iterdir()] == ["mine.png"]


def test_a_folder_that_can_t_be_written_loses_no_window(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    url, samples = f"sqlite:///{tmp_path / 'ledger.db'}", Samples(folder=tmp_path / "file", share=1)
    with served_windows(url, WindowSettings(samples=samples)) as windows:
        windows.add(image("street", "3", grey(1)))
    assert [one.sums.images for one in read_windows(url, "street")] == [1] and windows.lost == 0


def test_settings_that_can_t_be_are_refused(tmp_path: Path) -> None:
    for share in (0.0, 1.5, float("nan")):
        with pytest.raises(InputError, match="name one above 0, at most 1"):
            Samples(folder=tmp_path, share=share)
    with pytest.raises(InputError, match="for 0 s"):
        Samples(folder=tmp_path, share=1, keep_s=0)
    with pytest.raises(InputError, match="can't be 0 s long"):
        WindowSettings(length_s=0)
