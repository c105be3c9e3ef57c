"""The page: it holds what was measured, names only files that lie beside it, and asks nobody."""

from __future__ import annotations

import json
import re
import shutil
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.evaluation import report
from segmill.evaluation.report import evaluate_and_report

COLORS = np.array([[0, 0, 0], [200, 100, 0]], np.uint8)


class Links(HTMLParser):
    """Collects what a browser would fetch."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found += [value for key, value in attrs if key in ("src", "srcset", "href") and value]


@pytest.fixture(scope="module")
def page(judging: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out_dir = tmp_path_factory.mktemp("reports")
    evaluate_and_report(str(judging / "ensemble"), str(judging / "packed"), str(out_dir), overlays=3, device="cpu")
    return out_dir


def test_every_link_is_a_file_beside_the_page(page: Path) -> None:
    links = Links()
    text = (page / "index.html").read_text()
    links.feed(text)
    assert len(links.found) == 3 * 4 + 2 * 2
    assert all((page / link).is_file() for link in links.found)
    assert "http" not in text and "@import" not in text and "<script" not in text
    shown = {Path(link).name for link in links.found}
    assert {path.name for path in (page / "figures").iterdir()} == shown | {"overview.png"}


def test_the_overview_puts_worst_middling_and_best_under_one_another(page: Path) -> None:
    overview = np.asarray(Image.open(page / "figures" / "overview.png"))
    example = np.asarray(Image.open(page / "figures" / "example-00-image.png"))
    height, width = example.shape[:2]
    assert overview.shape == (3 * (height + 4) - 4, 4 * (width + 4) - 4, 3)
    assert (overview[:height, :width] == example).all()


def test_the_figures_on_the_page_are_those_measured(page: Path) -> None:
    metrics = json.loads((page / "metrics.json").read_text())
    text = re.sub(r"\s+", " ", re.sub(r"<[^>]+>", " ", (page / "index.html").read_text()))
    assert f"ensemble mIoU {100 * metrics['ensemble']['miou']:.1f}" in text
    for name in metrics["classes"]:
        row = [metrics["ensemble"], *metrics["members"].values()]
        shown = " ".join("-" if one["iou"][name] is None else f"{100 * one['iou'][name]:.1f}" for one in row)
        assert re.search(rf"{name} [\d.]+ {shown} ", text), name
    assert "data version v1" in text and "random weights" in text


def test_names_are_escaped_and_large_pictures_shrunk(
    page: Path, judging: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    packed, out_dir = tmp_path / "packed", tmp_path / "reports"
    shutil.copytree(judging / "packed", packed)
    shutil.copytree(page, out_dir)
    facts = json.loads((packed / "pack.json").read_text())
    (packed / "pack.json").write_text(json.dumps(facts | {"name": "<b>&"}))
    monkeypatch.setattr(report, "PICTURE_PX", 32)
    report.write_report(out_dir, judging / "ensemble", packed)
    text = (out_dir / "index.html").read_text()
    assert "<h1>&lt;b&gt;&amp;</h1>" in text and "<b>&<" not in text
    assert {Image.open(path).size for path in (out_dir / "figures").glob("example-*.png")} == {(32, 32)}


def test_errors_are_marked_and_unlabelled_pixels_are_grey() -> None:
    image = np.full((1, 3, 3), 100, np.uint8)
    truth, prediction = np.array([[0, 0, 255]], np.uint8), np.array([[0, 1, 1]], np.uint8)
    picture = report._errors(image, truth, prediction, 255)
    assert picture[0].tolist() == [[55, 55, 55], list(report.WRONG), list(report.UNLABELLED)]


def test_black_classes_leave_the_image_as_it_is() -> None:
    image = np.full((1, 2, 3), 100, np.uint8)
    picture = report._overlay(image, np.array([[0, 1]], np.uint8), COLORS, 255)
    assert picture[0].tolist() == [[100, 100, 100], [160, 100, 40]]


def test_confusion_is_in_shares_of_the_row() -> None:
    counts = np.array([[[6, 2], [0, 0]]])
    assert report._confusion_rows(counts) == [[0.75, 0.25], [None, None]]
