from __future__ import annotations

import re
from base64 import b64decode
from html.parser import HTMLParser
from io import BytesIO
from pathlib import Path

import numpy as np
from PIL import Image

from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import ClassInfo, DatasetInfo
from segmill.data.storage.raw_set import StoredFile
from segmill.data.validation.issues_page import issue_kinds, pixels_to_look_at, side_by_side, write_issues_page
from segmill.data.validation.leaks import Pair
from segmill.reports.checks_page import LISTED_FILES, SHOWN_FILES, SHOWN_PAIRS, ChecksPage, Picture, write_checks_page
from segmill.reports.pictures import GAP_PX

PIXELS = np.full((30, 40, 3), 90, np.uint8)


class Page(HTMLParser):
    """Every tag with its attributes, and the text between."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.text = ""
        self.feed(path.read_text())
        self.text = re.sub(r"\s+", " ", self.text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        self.text += data

    def images(self) -> list[str]:
        return [attrs["src"] or "" for tag, attrs in self.tags if tag == "img"]


def written(tmp_path: Path, issues: list[Issue], pairs: list[Pair], accept: tuple[str, ...] = ()) -> Page:
    path = tmp_path / "data" / "checks.html"
    write(path, issues, pairs, accept)
    assert [each.name for each in path.parent.iterdir()] == ["checks.html"]
    return Page(path)


def write(
    path: Path,
    issues: list[Issue],
    pairs: list[Pair],
    accept: tuple[str, ...] = (),
    picture: Picture = lambda file: PIXELS,
) -> None:
    write_checks_page(ChecksPage("tiny", 12345, issue_kinds(issues, pairs, accept), picture), path)


def near(number: int, severity: str = "error") -> Pair:
    ids = f"a{number}", f"b{number}"
    files = f"images/a{number}.png", f"images/b{number}.png"
    return Pair("near_duplicate", severity, ids, files, ("g1", "g2"), ("train", "val"), 0.875, True)


def test_a_set_without_issues_says_so(tmp_path: Path) -> None:
    page = written(tmp_path, [], [])
    assert "nothing is wrong" in page.text and "12,345" in page.text
    assert page.images() == []


def test_the_page_asks_for_nothing_from_anywhere(tmp_path: Path) -> None:
    issue = Issue("unknown_ids", "error", ("masks/a.png",), "strange", "mend")
    page = written(tmp_path, [issue], [])
    loading = {"src", "href", "srcset", "data", "action"}
    uris = [value for _, attrs in page.tags for key, value in attrs.items() if key in loading]
    assert uris and all(uri and uri.startswith("data:image/jpeg;base64,") for uri in uris)
    assert not re.search(r"https?://|@import|url\(", (tmp_path / "data" / "checks.html").read_text())


def test_names_are_text_and_no_markup(tmp_path: Path) -> None:
    page = written(tmp_path, [Issue("unknown_ids", "error", ("<script>x",), "a <b>", "c")], [])
    assert "<script>x" in page.text and "script" not in [tag for tag, _ in page.tags]


def test_kinds_come_in_order_of_weight(tmp_path: Path) -> None:
    issues = [
        Issue("empty_mask", "warning", ("masks/a.png",), "nothing in it", "look"),
        Issue("jpeg_mask", "error", ("masks/b.png",), "blurred", "get another"),
        Issue("near_duplicate", "error", ("images/b0.png",), "twice", "remove one"),
    ]
    page = written(tmp_path, issues, [near(0)], accept=("jpeg_mask",))
    places = [page.text.index(kind) for kind in ("near_duplicate stops", "empty_mask warning", "jpeg_mask accepted")]
    assert places == sorted(places)
    assert "1 kind of issue to repair" in page.text
    assert "(data.accept): jpeg_mask" in page.text
    assert "What to do: remove one" in page.text


def test_pairs_stand_side_by_side(tmp_path: Path) -> None:
    page = written(tmp_path, [Issue("near_duplicate", "error", ("images/b0.png",), "twice", "remove")], [near(0)])
    assert len(page.images()) == 2
    for said in ("train a0", "val b0", "group g1", "group g2", "likeness 0.88, mirrored"):
        assert said in page.text


def test_ten_thousand_issues_make_a_small_page(tmp_path: Path) -> None:
    files = tuple(f"masks/{i}.png" for i in range(10_000))
    many = [Issue("off_by_a_pixel", "error", (f"masks/x{i}.png",), f"number {i}", "mend") for i in range(10_000)]
    issues = [
        Issue("unknown_ids", "error", files, "strange", "mend"),
        Issue("near_duplicate", "error", files, "twice", "x"),
        Issue("crashes_decoder", "error", files, "it crashes", "x"),
        *many,
    ]
    page = written(tmp_path, issues, [near(i) for i in range(10_000)])
    assert (tmp_path / "data" / "checks.html").stat().st_size < 500_000
    assert len(page.images()) == SHOWN_FILES + 2 * SHOWN_PAIRS + 20
    assert f"and {10_000 - LISTED_FILES:,} more" in page.text
    assert f"there are {10_000 - SHOWN_PAIRS:,} more" in page.text
    assert "and 9,980 more like these" in page.text


def test_what_crashed_a_decoder_is_not_opened_again(tmp_path: Path) -> None:
    def picture(file: str) -> None:
        raise AssertionError(f"{file} was opened")

    issue = Issue("crashes_decoder", "error", ("images/bomb.tif",), "it crashes", "replace it")
    write(tmp_path / "p.html", [issue], [], picture=picture)
    assert "images/bomb.tif" in Page(tmp_path / "p.html").text


def test_pictures_of_a_set(tmp_path: Path) -> None:
    info = DatasetInfo("x", (ClassInfo(0, "a", "#102030"), ClassInfo(1, "b", "#ff0000")))
    for kind, pixels in (("images", np.full((2, 3), 7, np.uint8)), ("masks", np.array([[0, 1, 255]], np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "a.png")
    (tmp_path / "images" / "broken.png").write_bytes(b"no image")
    mask = pixels_to_look_at(tmp_path, StoredFile("masks/a.png", "masks/a.png"), info)
    assert mask is not None and mask.tolist() == [[[16, 32, 48], [255, 0, 0], [128, 128, 128]]]
    image = pixels_to_look_at(tmp_path, StoredFile("images/a.png", "images/a.png"), info)
    assert image is not None and image.shape == (2, 3, 1)
    for name in ("images/broken.png", "images/gone.png"):
        assert pixels_to_look_at(tmp_path, StoredFile(name, name), info) is None


def test_a_mask_is_shown_beside_its_image(tmp_path: Path) -> None:
    info = DatasetInfo("x", (ClassInfo(0, "a", "#000000"), ClassInfo(1, "b", "#ff0000")))
    for kind, pixels in (("images", np.full((60, 90), 200, np.uint8)), ("masks", np.zeros((60, 90), np.uint8))):
        (tmp_path / kind).mkdir()
        Image.fromarray(pixels).save(tmp_path / kind / "a.png")
    empty = Issue("empty_mask", "warning", ("masks/a.png",), "nothing is labelled", "label it")
    write_issues_page(tmp_path / "p.html", tmp_path, info, 1, [empty], [], [])
    (uri,) = Page(tmp_path / "p.html").images()
    shown = np.asarray(Image.open(BytesIO(b64decode(uri.partition(",")[2]))).convert("L"))
    assert shown.shape[1] > 2 * shown.shape[0] and shown[20, 20] > 150 and shown[20, -20] < 50


def test_pictures_of_other_sizes_stand_side_by_side() -> None:
    grey, rgb = np.full((4, 3, 1), 9, np.uint8), np.full((2, 5, 3), 7, np.uint8)
    row = side_by_side([grey, None, rgb])
    assert row is not None and row.shape == (4, 2 * 5 + GAP_PX, 3), "two cells of 4 x 5 px"
    assert (row[:, :3] == 9).all() and (row[:2, 5 + GAP_PX :] == 7).all() and (row[2:, 5:] == 255).all()
    assert side_by_side([None]) is None and side_by_side([]) is None
    alone = side_by_side([grey])
    assert alone is not None and alone.shape == (4, 3, 3)
