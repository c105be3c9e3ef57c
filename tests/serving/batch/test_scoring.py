"""A worker's part, in this process: masks, rows, and one row with a reason for each image that can't be read."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import pytest
from PIL import Image
from scoring import ScoringSite

from segmill.anomaly.detector import Anomaly
from segmill.promotion.keys import SignatureError
from segmill.serving.answers import Segmented
from segmill.serving.batch.output import BatchNote, BatchOutput, ToScore, left_to_do
from segmill.serving.batch.scores import ImageStatus, figures_of, margin, row_of, table_of
from segmill.serving.batch.scoring import BatchScorer
from segmill.serving.batch.shell import BatchJob, BatchPart
from segmill.serving.batch.sources import BatchImage, list_folder, without_shared_masks

pytestmark = pytest.mark.slow

IMAGE = BatchImage("a.png", "/a.png", 10, "1")
NOTE = BatchNote(source="/images", asked="1", model="m", version="1", manifest_sha256="0", finished=True)


@pytest.fixture(scope="module")
def scorer(scoring: ScoringSite, tmp_path_factory: pytest.TempPathFactory) -> BatchScorer:
    folder = tmp_path_factory.mktemp("scores")
    return BatchScorer(BatchJob(uri=scoring.uri, note=scoring.note(), trusted=scoring.trusted, folder=folder))


@pytest.fixture
def output(scorer: BatchScorer, tmp_path: Path) -> BatchOutput:
    scorer._output = BatchOutput(tmp_path / "out")
    return scorer._output


def rows(output: BatchOutput, part: BatchPart) -> dict[str, dict[str, object]]:
    return {row["path"]: row for row in pq.read_table(output.part(part.name)).to_pylist()}


def rows_by_path(output: BatchOutput) -> dict[str, dict[str, object]]:
    return {row["path"]: row for row in pq.read_table(output.scores).to_pylist()}


def part_of(images: list[BatchImage]) -> BatchPart:
    return BatchPart(tuple((image, None) for image in images))


def test_masks_and_rows(scoring: ScoringSite, scorer: BatchScorer, output: BatchOutput, images: Path) -> None:
    Image.open(next(images.rglob("*.png"))).convert("L").crop((0, 0, 40, 50)).save(images / "grey.tif")
    part = part_of(list_folder(images, output.folder))
    assert scorer(part) == 13
    found = rows(output, part)
    names = [f"share_{name}" for name in scorer._names]
    for path, row in found.items():
        mask = Image.open(output.masks / Path(path).with_suffix(".png"))
        ids_HW = np.asarray(mask)
        assert mask.mode == "L" and (ids_HW == scoring.expected(images / path)).mean() > 0.999
        assert row["status"] == "ok" and row["reason"] is None and row["version"] == "1"
        assert row["manifest_sha256"] == scoring.note().manifest_sha256
        assert (row["height"], row["width"]) == ids_HW.shape
        assert [row[name] for name in names] == pytest.approx(
            [(ids_HW == number).mean() for number in range(len(names))], abs=1e-6
        )
        assert 0 < row["margin"] <= row["confidence"] <= 1  # type: ignore[operator]
    assert (found["grey.tif"]["height"], found["grey.tif"]["width"]) == (50, 40)
    assert not any((output.folder / ".drafts").iterdir())


def test_what_cant_be_read_is_a_row_with_a_reason(scorer: BatchScorer, output: BatchOutput, images: Path) -> None:
    first = sorted(images.rglob("*.png"))[0]
    (images / "torn.png").write_bytes(first.read_bytes()[:200])
    (images / "text.jpg").write_text("no image")
    (images / "nowhere.png").symlink_to(images / "gone.png")
    shutil.copyfile(first, images / "same.png")
    shutil.copyfile(first, images / "same.bmp")
    (images / "deep.png.png").mkdir()
    shutil.copyfile(first, images / "deep.png.png" / "a.png")
    output.masks.mkdir(parents=True)
    (output.masks / "deep.png.png").write_text("a file where a folder has to be")
    output.write_mask(BatchImage("torn.png", "", 0, ""), b"of a former content")
    listed = without_shared_masks(list_folder(images, output.folder))
    part = part_of([replace(one, size_bytes=2**40) if one.path == "same.bmp" else one for one in listed])
    assert scorer(part) == 12
    found = rows(output, part)
    said = {path: (row["status"], row["reason"]) for path, row in found.items() if row["status"] != "ok"}
    assert set(said) == {"torn.png", "text.jpg", "nowhere.png", "same.bmp", "same.png", "deep.png.png/a.png"}
    assert said["text.jpg"] == ("unreadable", "it can't be read as an image; replace or remove it")
    assert said["torn.png"][0] == "unreadable" and not (output.masks / "torn.png").exists()
    assert said["nowhere.png"] == ("failed", "its file can't be read (No such file or directory)")
    assert said["same.bmp"][0] == "unreadable" and "1099511627776 bytes" in str(said["same.bmp"][1])
    assert said["same.png"] == ("failed", "its mask would be that of same.bmp: rename one")
    assert said["deep.png.png/a.png"] == ("failed", "its mask can't be written (File exists)")
    again = {image.path for image, _ in left_to_do(output, listed)}
    assert again == {"nowhere.png", "same.png", "deep.png.png/a.png"}, "the files of the others are the same"


def test_only_another_content_is_predicted_again(scorer: BatchScorer, output: BatchOutput, images: Path) -> None:
    part = part_of(list_folder(images, output.folder))
    scorer(part)
    assert left_to_do(output, list_folder(images, output.folder)) == []
    touched, changed, lost = sorted(images.rglob("*.png"))[:3]
    touched.write_bytes(touched.read_bytes())
    Image.open(changed).rotate(180).save(changed)
    (output.masks / lost.relative_to(images)).unlink()
    masks = {path: path.stat().st_mtime_ns for path in output.masks.rglob("*.png")}
    left: list[ToScore] = left_to_do(output, list_folder(images, output.folder))
    assert [image.path for image, _ in left] == [str(one.relative_to(images)) for one in (touched, changed, lost)]
    second = BatchPart(tuple(left))
    assert scorer(second) == 2
    written = {path for path in output.masks.rglob("*.png") if masks.get(path) != path.stat().st_mtime_ns}
    assert written == {output.masks / one.relative_to(images) for one in (changed, lost)}
    assert left_to_do(output, list_folder(images, output.folder)) == []
    table = output.finish(list_folder(images, output.folder), NOTE)
    assert table["path"].to_pylist() == sorted(str(path.relative_to(images)) for path in images.rglob("*.png"))
    before = rows_by_path(output)
    changed.unlink()
    output.finish(list_folder(images, output.folder), NOTE)
    del before[str(changed.relative_to(images))]
    assert rows_by_path(output) == before


@pytest.mark.long
def test_another_version_than_the_run_began_with_is_refused(scoring: ScoringSite, tmp_path: Path) -> None:
    note = replace(scoring.note(), manifest_sha256="0" * 64)
    with pytest.raises(SignatureError, match=r"version 1 of .* is another one than when the run began"):
        BatchScorer(BatchJob(uri=scoring.uri, note=note, trusted=scoring.trusted, folder=tmp_path))


def test_what_a_detector_says_has_its_columns() -> None:
    ids_HW, probs_KHW = np.array([[0, 1, 1, 1]], np.uint8), np.full((2, 1, 4), 0.5, np.float16)
    said = figures_of(Segmented(ids_HW, probs_KHW, 0.5, Anomaly(2.5, 0.01, True)), ["road", "sky"])
    note = replace(NOTE, finished=False)
    (row,) = table_of([row_of(IMAGE, note.facts(), ImageStatus.OK, sha256="0", **said)], ["road", "sky"]).to_pylist()
    assert (row["anomaly"], row["p_value"], row["abstain"]) == (2.5, 0.01, True)
    assert (row["share_road"], row["share_sky"], row["margin"]) == (0.25, 0.75, 0.0)
    without = figures_of(Segmented(ids_HW, probs_KHW, 0.5), ["road", "sky"])
    (row,) = table_of([row_of(IMAGE, note.facts(), ImageStatus.OK, **without)], ["road", "sky"]).to_pylist()
    assert (row["anomaly"], row["p_value"], row["abstain"]) == (None, None, None)


def test_margin_is_the_mean_distance_of_the_two_largest() -> None:
    probs_KHW = np.array([[[0.5, 0.1]], [[0.2, 0.8]], [[0.3, 0.1]]], np.float16)
    assert margin(probs_KHW) == pytest.approx((0.2 + 0.7) / 2, abs=1e-3)
    assert margin(np.ones((1, 2, 2), np.float16)) == 1.0
