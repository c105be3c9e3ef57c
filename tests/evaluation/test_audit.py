"""Label audit: planted faults come out on top, boundaries do not, and what is written can be worked from."""

from __future__ import annotations

import base64
import csv
import dataclasses
import json
import math
from collections.abc import Sequence
from io import BytesIO, StringIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segmill.data.packing.pack import pack
from segmill.data.packing.packed import PackedSplit
from segmill.data.schema.manifest import ClassInfo, DatasetInfo, write_dataset_info
from segmill.data.splitting.shares import SplitShares
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InputError
from segmill.evaluation import audit as audit_module
from segmill.evaluation.audit import (
    Audited,
    ClassNorms,
    Largest,
    Region,
    audit,
    class_norms,
    find_regions,
    sample_score,
)
from segmill.evaluation.audit_job import AuditJob, Source
from segmill.evaluation.audit_report import COLUMNS, audit_and_report, csv_text, page_of
from segmill.evaluation.folds import assign_folds, train_groups, write_fold
from segmill.reports.audit_page import write_audit_page

IGNORE = 255
CLASSES = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "<hut>", "#c06000"), ClassInfo(2, "pole", "#2050d0"))


def norms_of(confidence: list[float], share: list[float]) -> ClassNorms:
    """Return norms of a model that has no habit of mistakes."""
    return ClassNorms(np.array(confidence), np.array(share), np.zeros((len(share), len(share))))


NORMS = norms_of([0.9, 0.8, 0.5], [0.8, 0.1, 0.01])


def job(sources, raw_dir: Path, manifest: Path, out_dir: Path, top: int, progress_path: Path | None = None) -> AuditJob:
    return AuditJob(
        sources=tuple(sources), raw_dir=raw_dir, manifest_path=manifest, out_dir=out_dir, top=top,
        progress_path=progress_path,
    )  # fmt: skip


def probs_of(ids_HW: np.ndarray, certainty: float = 0.9, classes: int = 3) -> np.ndarray:
    """Return probs_KHW: ``certainty`` for the class of each pixel, the rest shared by the others."""
    own = ids_HW == np.arange(classes)[:, None, None]
    return np.where(own, certainty, (1 - certainty) / (classes - 1)).astype(np.float32)


def scene(height: int = 20, width: int = 20, *, square: slice = slice(8, 14), class_id: int = 1) -> np.ndarray:
    ids_HW = np.zeros((height, width), np.uint8)
    ids_HW[square, square] = class_id
    return ids_HW


def only(regions: Sequence[Region]) -> Region:
    (region,) = regions
    return region


def page_text(found: Audited, folder: Path) -> str:
    write_audit_page(page_of(found), folder / "page.html")
    return (folder / "page.html").read_text()


def test_an_erased_object_is_one_region_with_its_box_and_score() -> None:
    regions, flagged = find_regions(probs_of(scene()), np.zeros((20, 20), np.uint8), NORMS, IGNORE)
    region = only(regions)
    assert (region.given, region.suggested) == (0, 1)
    assert (region.x, region.y, region.width, region.height, region.pixels) == (8, 8, 6, 6, 36)
    assert region.confidence == pytest.approx(0.9)
    # (0.9 - 0.05) / 0.8 is above 1; hut usually covers 0.1 of 400 px.
    assert region.score == pytest.approx(36 / (36 + 40))
    assert np.array_equal(flagged, scene() == 1)


@pytest.mark.parametrize(("moved", "found"), [(1, False), (2, True), (6, True)])
def test_a_boundary_drawn_otherwise_is_none_and_a_shift_is_one(moved: int, found: bool) -> None:
    label, predicted = np.zeros((40, 40), np.uint8), np.zeros((40, 40), np.uint8)
    label[:, 20:], predicted[:, 20 + moved :] = 1, 1
    regions, _ = find_regions(probs_of(predicted), label, NORMS, IGNORE)
    assert [(one.given, one.suggested, one.pixels) for one in regions] == ([(1, 0, 40 * moved)] if found else [])


def test_a_lost_pole_is_found_though_it_is_as_thin_as_a_boundary() -> None:
    predicted = np.zeros((40, 40), np.uint8)
    predicted[5:35, 20] = 2
    regions, _ = find_regions(probs_of(predicted), np.zeros((40, 40), np.uint8), NORMS, IGNORE)
    region = only(regions)
    assert (region.suggested, region.pixels, region.width, region.height) == (2, 30, 1, 30)


def test_swapped_classes_are_two_regions_in_both_directions() -> None:
    label = scene(square=slice(4, 10)) + scene(square=slice(12, 18), class_id=2)
    swapped = np.array([0, 2, 1], np.uint8)[label]
    regions, _ = find_regions(probs_of(label), swapped, NORMS, IGNORE)
    assert {(one.given, one.suggested) for one in regions} == {(2, 1), (1, 2)}


def test_what_is_lost_of_a_rare_class_weighs_as_much_as_of_a_common_one() -> None:
    norms = norms_of([0.9, 0.8, 0.8], [0.8, 0.09, 0.0225])
    label = np.zeros((20, 20), np.uint8)
    large, _ = find_regions(probs_of(scene()), label, norms, IGNORE)
    small, _ = find_regions(probs_of(scene(square=slice(8, 11), class_id=2)), label, norms, IGNORE)
    assert only(large).score == pytest.approx(only(small).score) == pytest.approx(0.5)


def test_what_the_model_mistakes_everywhere_counts_little() -> None:
    """Without a habit the score would be 36 / (36 + 40)."""
    norms = dataclasses.replace(NORMS, mistaken_KK=np.array([[0.7, 0.1, 0], [0, 0.1, 0], [0, 0, 0.01]]))
    region = only(find_regions(probs_of(scene()), np.zeros((20, 20), np.uint8), norms, IGNORE)[0])
    assert region.score == pytest.approx(36 / (36 + 40 + 10 * 40))


def test_confident_is_what_is_usual_for_the_class() -> None:
    """Of a class that the model seldom gives more than 0.5, 0.6 is much; of one that it gives 0.8, it is not."""
    label = np.zeros((20, 20), np.uint8)
    assert find_regions(probs_of(scene(class_id=1), 0.6), label, NORMS, IGNORE)[0] == []
    rare = only(find_regions(probs_of(scene(class_id=2), 0.6), label, NORMS, IGNORE)[0])
    assert rare.confidence == pytest.approx(0.6)


def test_unlabelled_pixels_and_agreement_are_no_fault() -> None:
    label = scene()
    assert find_regions(probs_of(label), label, NORMS, IGNORE)[0] == []
    label[label == 1] = IGNORE
    regions, flagged = find_regions(probs_of(scene()), label, NORMS, IGNORE)
    assert regions == [] and not flagged.any()


def test_a_class_that_nothing_is_labelled_as_is_never_suggested() -> None:
    norms = norms_of([0.9, np.nan, 0.5], [0.9, np.nan, 0.1])
    assert find_regions(probs_of(scene()), np.zeros((20, 20), np.uint8), norms, IGNORE)[0] == []


def test_norms_by_hand() -> None:
    label = np.array([[0, 0, 1, IGNORE]], np.uint8)
    probs = np.array([[[0.8, 0.6, 0.3, 0.5]], [[0.1, 0.4, 0.6, 0.5]], [[0.1, 0.0, 0.1, 0.0]]], np.float32)
    blank = np.full((1, 4), 0, np.uint8)
    norms = class_norms([(probs, label), (np.full((3, 1, 4), 1 / 3, np.float32), blank)], 3, IGNORE)
    assert norms.confidence_K[:2] == pytest.approx([(0.8 + 0.6 + 4 / 3) / 6, 0.6]) and math.isnan(norms.confidence_K[2])
    # The blank one is all class 0 and predicted so (the first of equals); in the first all is predicted as labelled.
    assert norms.mistaken_KK[:2] == pytest.approx(np.array([[(2 / 3 + 1) / 2, 0, 0], [0, 1 / 3, 0]]))
    assert norms.share_K[:2] == pytest.approx([(2 / 3 + 1) / 2, 1 / 3]) and math.isnan(norms.share_K[2])


def test_several_faults_weigh_more_than_the_worst_of_them() -> None:
    regions = [Region(0, 1, 0, 0, 1, 1, 1, 0.9, score) for score in (0.5, 0.2)]
    assert sample_score(regions) == pytest.approx(1 - 0.5 * 0.8)


def test_only_the_largest_are_kept_and_of_equal_ones_the_first() -> None:
    largest: Largest[str] = Largest(3)
    for score, thing in ((0.1, "a"), (0.5, "b"), (0.9, "c"), (0.5, "d"), (0.5, "e"), (0.7, "f")):
        largest.add(score, thing)
    assert largest.falling() == ["c", "f", "b"]
    assert not largest.takes(0.5) and largest.takes(0.6)
    assert not Largest(0).takes(1.0)


class Seeing:
    """Knows the class from the colour: red // 64, with certainty."""

    def predict_probs(self, image_BHWC: np.ndarray) -> np.ndarray:
        return np.stack([probs_of(image_HWC[..., 0] // 64) for image_HWC in image_BHWC])


@pytest.fixture
def labelled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A set of 12 samples in pairs; of the 8 held out, one lost its hut, one its pole, one is shifted by 6 px."""
    monkeypatch.setattr(audit_module, "_load", lambda folder, info: Seeing())
    raw_dir = tmp_path / "raw"
    for number in range(12):
        truth = scene(48, 64, square=slice(10, 26)) + scene(48, 64, square=slice(34, 40), class_id=2)
        label = truth.copy()
        if number in (2, 5):
            label[label == {2: 1, 5: 2}[number]] = 0
        elif number == 7:
            label = np.roll(label, 6, axis=1)
        elif number == 9:
            label = np.roll(label, 1, axis=1)
        if number == 10:  # in train
            label[:] = 0
        # Blue and green tell the images apart, so that none is taken for another's duplicate.
        look = np.random.default_rng(number).integers(0, 256, (6, 8, 2), np.uint8)
        image_BGR = np.dstack([cv2.resize(look, (64, 48), interpolation=cv2.INTER_NEAREST), truth * 64])
        for kind, pixels in (("images", image_BGR), ("masks", label)):
            path = raw_dir / kind / f"g{number // 2}_{number:02d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(path), pixels)
    splits = {"val": ("g0", "g1"), "test": ("g2", "g3"), "train": ("g4", "g5")}
    write_dataset_info(raw_dir, DatasetInfo("huts", CLASSES, IGNORE, r"^(?P<group>g\d+)_", splits))
    return raw_dir


@pytest.fixture
def manifest(labelled: Path, tmp_path: Path) -> Path:
    path = tmp_path / "manifest.parquet"
    validate_dataset(labelled, path, shares=SplitShares(0.2, 0.2, 0))
    return path


HELD_OUT = [Source(Path("ensemble"), ("val", "test"))]


def test_planted_faults_come_out_and_nothing_else(labelled: Path, manifest: Path) -> None:
    calls: list[tuple[int, int]] = []
    found = audit(HELD_OUT, labelled, manifest, draw=2, on_progress=lambda *done: calls.append(done))
    assert {suspect.id for suspect in found.suspects} == {"g1_02", "g2_05", "g3_07"}
    assert [suspect.score for suspect in found.suspects] == sorted((s.score for s in found.suspects), reverse=True)
    assert found.samples == {"val": 4, "test": 4} and found.suspicious == 3
    assert calls[-1] == (8, 8)
    assert list(found.evidence) == [suspect.id for suspect in found.suspects[:2]]
    by_id = {suspect.id: suspect for suspect in found.suspects}
    lost = only(by_id["g1_02"].regions)
    assert (lost.given, lost.suggested, lost.x, lost.y, lost.pixels) == (0, 1, 10, 10, 256)
    assert by_id["g2_05"].regions[0].suggested == 2
    assert {(r.given, r.suggested) for r in by_id["g3_07"].regions} == {(0, 1), (1, 0), (0, 2), (2, 0)}


def test_a_fold_asks_about_its_own_groups_only(labelled: Path, manifest: Path) -> None:
    found = audit([Source(Path("fold"), ("train",), frozenset({"g5"}))], labelled, manifest, draw=1)
    assert found.samples == {"train": 2}
    assert [suspect.id for suspect in found.suspects] == ["g5_10"]


def test_what_training_never_saw_is_not_judged(labelled: Path, manifest: Path) -> None:
    found = audit(HELD_OUT, labelled, manifest, draw=1, border_crop_px=(28, 0, 0, 0))
    # Without the upper 28 rows: no hut, but the pole at row 34 in its own coordinates.
    assert {suspect.id for suspect in found.suspects} == {"g2_05", "g3_07"}
    assert all(region.y >= 28 for suspect in found.suspects for region in suspect.regions)


def test_the_list_can_be_worked_from(labelled: Path, manifest: Path) -> None:
    found = audit(HELD_OUT, labelled, manifest, draw=1)
    rows = list(csv.DictReader(StringIO(csv_text(found))))
    assert tuple(rows[0]) == COLUMNS
    assert len(rows) == sum(len(suspect.regions) for suspect in found.suspects)
    (row,) = [row for row in rows if row["sample"] == "g1_02"]
    expected = {
        "split": "val", "group": "g1", "image": "images/g1_02.png", "mask": "masks/g1_02.png", "x": "10", "y": "10",
        "width": "16", "height": "16", "given": "ground", "suggested": "<hut>", "pixels": "256", "confidence": "0.9",
    }  # fmt: skip
    assert expected.items() <= row.items()
    assert [int(row["rank"]) for row in rows] == sorted(int(row["rank"]) for row in rows)
    assert {row["rank"] for row in rows} == {"1", "2", "3"}


def test_the_page_is_one_file_with_a_card_per_drawn_sample(labelled: Path, manifest: Path, tmp_path: Path) -> None:
    found = audit(HELD_OUT, labelled, manifest, draw=2)
    text = page_text(found, tmp_path)
    assert "http" not in text and "<script" not in text and 'src="figures' not in text
    assert "&lt;hut&gt;" in text and "<hut>" not in text
    pictures = text.split('src="data:image/jpeg;base64,')[1:]
    assert len(pictures) == 2 * 4
    assert Image.open(BytesIO(base64.b64decode(pictures[0].partition('"')[0]))).size == (480, 360)
    drawn = [suspect.id for suspect in found.suspects[:2]]
    assert [name in text for name in drawn] == [True, True] and found.suspects[2].id not in text
    assert "train not examined" in text


def test_regions_are_marked_and_boxed_in_the_pictures(labelled: Path, manifest: Path, tmp_path: Path) -> None:
    found = audit(HELD_OUT, labelled, manifest, draw=3)
    text = page_text(found, tmp_path)
    card = text[text.index("<b><bdi>g1_02</bdi></b>") :]
    data = [part.partition('"')[0] for part in card.split('src="data:image/jpeg;base64,')[1:5]]
    image, label, prediction, disagreement = (np.asarray(Image.open(BytesIO(base64.b64decode(one)))) for one in data)
    scale = 480 / 64
    centre = tuple(int(scale * 20) for _ in range(2))
    assert np.abs(disagreement[centre].astype(int) - (255, 45, 96)).max() < 12
    assert image.shape == (360, 480, 3)
    assert int(label[centre].max()) - int(label[centre].min()) < 12  # labelled ground, which is black: the grey image
    assert int(prediction[centre][0]) > int(prediction[centre][2]) + 50  # hut's brown
    edge = disagreement[int(scale * 10) + 1, int(scale * 20)]
    assert edge.min() > 180  # the white box


def test_files_are_replaced_and_others_stay(labelled: Path, manifest: Path, tmp_path: Path) -> None:
    out_dir, note = tmp_path / "audit", tmp_path / "progress.json"
    out_dir.mkdir()
    (out_dir / "notes.txt").write_text("mine")
    (out_dir / "audit.csv").write_text("old")
    said = audit_and_report(job(HELD_OUT, labelled, manifest, out_dir, 5, note))
    assert sorted(path.name for path in out_dir.iterdir()) == ["audit.csv", "index.html", "notes.txt"]
    assert (said.page, said.table) == (out_dir / "index.html", out_dir / "audit.csv")
    assert said.suspicious == 3 and [row["rank"] for row in said.first] == [1, 2, 3]
    assert (out_dir / "audit.csv").read_text().startswith("rank,sample,")
    assert json.loads(note.read_text()) == {"done": 8, "total": 8}


def test_nothing_suspicious(labelled: Path, manifest: Path, tmp_path: Path) -> None:
    source = [Source(Path("fold"), ("train",), frozenset({"g4"}))]
    said = audit_and_report(job(source, labelled, manifest, tmp_path / "audit", 5))
    assert said.suspicious == 0 and said.first == []
    assert "Nothing suspicious" in (tmp_path / "audit" / "index.html").read_text()
    assert (tmp_path / "audit" / "audit.csv").read_text() == ",".join(COLUMNS) + "\n"


def test_a_small_score_is_not_suspicious(labelled: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    scores = [suspect.score for suspect in audit(HELD_OUT, labelled, manifest, draw=0).suspects]
    monkeypatch.setattr(audit_module, "LEAST_SCORE", scores[1])
    found = audit(HELD_OUT, labelled, manifest, draw=0)
    assert [suspect.score for suspect in found.suspects] == scores[:2] and found.suspicious == 2


def test_more_suspects_than_are_kept(labelled: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit_module, "MAX_SAMPLES", 2)
    monkeypatch.setattr(audit_module, "MAX_REGIONS", 1)
    found = audit(HELD_OUT, labelled, manifest, draw=1)
    assert len(found.suspects) == 2 and found.suspicious == 3
    assert [len(suspect.regions) for suspect in found.suspects] == [1, 1]


def test_a_real_ensemble_is_asked(judging: Path, street: Path) -> None:
    source = Source(judging / "ensemble", ("test",))
    found = audit([source], street, judging / "manifest.parquet", draw=0)
    assert sum(found.samples.values()) == len(PackedSplit(judging / "packed" / "test"))
    assert found.evidence == {}


def test_an_ensemble_of_other_classes(
    judging: Path, labelled: Path, manifest: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    with pytest.raises(InputError, match=r"The ensemble knows the classes \['road'.*the data \['ground'"):
        audit([Source(judging / "ensemble", ("test",))], labelled, manifest, draw=0)


def test_a_class_the_model_does_not_know_is_named(
    labelled: Path, manifest: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = audit_and_report(job(HELD_OUT, labelled, manifest, tmp_path / "audit", 1))
    assert said.unknown == [] and "Not judged" not in (tmp_path / "audit" / "index.html").read_text()
    monkeypatch.setattr(
        Seeing, "predict_probs", lambda self, images: np.stack([probs_of(i[..., 0] // 128) for i in images])
    )
    said = audit_and_report(job(HELD_OUT, labelled, manifest, tmp_path / "audit", 1))
    assert said.unknown == ["<hut>", "pole"]
    assert "Not judged:</b> <bdi>&lt;hut&gt;</bdi>, <bdi>pole</bdi>." in (tmp_path / "audit" / "index.html").read_text()


def test_folds_keep_groups_together_and_are_about_even() -> None:
    groups = ["a"] * 5 + ["b"] * 4 + ["c"] * 2 + ["d"] * 3
    assert assign_folds(groups, 2) == [frozenset({"a", "c"}), frozenset({"b", "d"})]
    with pytest.raises(InputError, match="--folds is 5 and train has 4 groups; allowed is 2 to 4"):
        assign_folds(groups, 5)


def test_a_fold_is_the_packed_split_without_its_groups(street: Path, tmp_path: Path) -> None:
    validate_dataset(street, tmp_path / "manifest.parquet", shares=SplitShares(0.25, 0.25, 0))
    packed, fold = tmp_path / "packed", tmp_path / "fold"
    pack(street, tmp_path / "manifest.parquet", packed)
    whole = PackedSplit(packed / "train")
    left_out = frozenset({whole.groups[0]})
    assert set(train_groups(packed)) == set(whole.groups)
    for _ in range(2):  # a second time replaces the first
        write_fold(packed, fold, left_out)
    part = PackedSplit(fold / "train")
    kept = [index for index, group in enumerate(whole.groups) if group not in left_out]
    assert part.ids == [whole.ids[index] for index in kept] and 0 < len(part) < len(whole)
    for number, index in enumerate(kept):
        assert np.array_equal(part.image(number), whole.image(index))
        assert np.array_equal(part.mask(number), whole.mask(index))
    assert PackedSplit(fold / "val").ids == PackedSplit(packed / "val").ids
