"""One pass over the test split: counts, metrics.json, and which images are worth a picture."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from segmill.data.packing.packed import PackedSplit
from segmill.data.packing.writing import Sample, SplitWriter
from segmill.ensembling.predict import Ensemble
from segmill.errors import InputError
from segmill.evaluation.scoring import choose_examples, evaluate, read_counts, score, summary
from segmill.metrics.counts import confusion_counts


class Red:
    """Names the class red // 64 with certainty, and class 0 where ``blind``."""

    def __init__(self, blind: bool = False) -> None:
        self.blind = blind

    def predict_probs(self, image_BHWC: np.ndarray) -> np.ndarray:
        ids = image_BHWC[:, None, :, :, 0] // 64 * (not self.blind)
        return (ids == np.arange(3)[None, :, None, None]).astype(np.float32)


def test_counts_per_image_by_hand(tmp_path: Path) -> None:
    first = np.array([[[0], [64], [128]]], np.uint8).repeat(3, 2)
    second = np.array([[[0], [0], [64]]], np.uint8).repeat(3, 2)
    with SplitWriter(tmp_path / "test") as writer:
        writer.add(Sample("x", "g", first, np.array([[0, 1, 255]], np.uint8)))
        writer.add(Sample("y", "h", second, np.array([[0, 2, 1]], np.uint8)))
    ensemble = Ensemble(
        {"seeing": Red(), "blind": Red(blind=True)}, {"seeing": 0.6, "blind": 0.4}, tta_hflip=False, facts={}
    )
    calls: list[tuple[int, int]] = []
    scored = score(ensemble, PackedSplit(tmp_path / "test"), 3, 255, lambda *done: calls.append(done))
    assert scored.members["seeing"].tolist() == [
        [[1, 0, 0], [0, 1, 0], [0, 0, 0]], [[1, 0, 0], [0, 1, 0], [1, 0, 0]],
    ]  # fmt: skip
    assert scored.members["blind"].tolist() == [
        [[1, 0, 0], [1, 0, 0], [0, 0, 0]], [[1, 0, 0], [1, 0, 0], [1, 0, 0]],
    ]  # fmt: skip
    assert np.array_equal(scored.ensemble, scored.members["seeing"])
    assert (scored.ids, scored.groups) == (["x", "y"], ["g", "h"])
    assert calls[-1] == (2, 2)


def test_summary_names_the_classes_and_says_none_for_absent_ones() -> None:
    said = summary(np.array([[[3, 1, 0], [0, 4, 0], [0, 0, 0]]]), ["a", "b", "c"])
    assert said["iou"] == {"a": 0.75, "b": 0.8, "c": None}
    assert said["miou"] == pytest.approx(0.775) and said["accuracy"] == 7 / 8
    assert json.loads(json.dumps(said, allow_nan=False)) == said


def test_files_of_a_real_evaluation(judging: Path, tmp_path: Path) -> None:
    metrics = evaluate(judging / "ensemble", judging / "packed", tmp_path, examples=4)
    assert metrics == json.loads((tmp_path / "metrics.json").read_text())
    assert set(metrics) == {"members", "ensemble", "split", "samples", "groups", "classes"}
    assert list(metrics["members"]) == ["small", "other"]
    assert set(metrics["ensemble"]["weights"]) == {"small", "other"}
    test = PackedSplit(judging / "packed" / "test")
    scored = read_counts(tmp_path / "counts.npz")
    assert scored.ids == test.ids and scored.groups == test.groups and len(test) == metrics["samples"]
    assert summary(scored.ensemble, metrics["classes"])["miou"] == metrics["ensemble"]["miou"]
    assert summary(scored.members["small"], metrics["classes"]) == metrics["members"]["small"]
    with np.load(tmp_path / "examples.npz", allow_pickle=False) as examples:
        assert len(examples.files) == 4
        for key in examples.files:
            counts = confusion_counts(test.mask(int(key)), examples[key], len(metrics["classes"]), 255)
            # A batch of one may round a tie of two classes the other way than a batch of many.
            assert np.abs(counts - scored.ensemble[int(key)]).sum() <= 8


def test_nothing_of_sealed_groups_is_written(judging: Path, tmp_path: Path) -> None:
    test = PackedSplit(judging / "packed" / "test")
    sealed = test.groups[0]
    shown = [index for index, group in enumerate(test.groups) if group != sealed]
    assert 0 < len(shown) < len(test)
    everything = evaluate(judging / "ensemble", judging / "packed", tmp_path / "all", examples=99)
    metrics = evaluate(judging / "ensemble", judging / "packed", tmp_path / "open", examples=99, sealed=(sealed,))
    assert (metrics["samples"], metrics["groups"]) == (len(shown), len(set(test.groups)) - 1)
    assert metrics["sealed_groups"] == 1 and "sealed_groups" not in everything
    scored, before = read_counts(tmp_path / "open" / "counts.npz"), read_counts(tmp_path / "all" / "counts.npz")
    assert scored.ids == [test.ids[index] for index in shown] and sealed not in scored.groups
    # In a batch of other images the odd pixel falls to the other of two classes that are as likely.
    assert np.abs(scored.ensemble - before.ensemble[shown]).sum() <= 8 * len(shown)
    assert summary(scored.ensemble, metrics["classes"])["miou"] == metrics["ensemble"]["miou"]
    with np.load(tmp_path / "open" / "examples.npz", allow_pickle=False) as examples:
        assert len(examples.files) == len(shown)
        for key in examples.files:
            truth = test.mask(shown[int(key)])
            counts = confusion_counts(truth, examples[key], len(metrics["classes"]), 255)
            assert np.abs(counts - scored.ensemble[int(key)]).sum() <= 0.01 * truth.size


def test_other_classes_than_the_ensembles(judging: Path, tmp_path: Path) -> None:
    packed = tmp_path / "packed"
    shutil.copytree(judging / "packed", packed)
    facts = json.loads((packed / "pack.json").read_text())
    facts["class_names"][0] = "motorway"
    (packed / "pack.json").write_text(json.dumps(facts))
    with pytest.raises(InputError, match=r"The ensemble knows the classes \['road'.*the data \['motorway'"):
        evaluate(judging / "ensemble", packed, tmp_path / "reports")


def test_counts_that_are_not_there(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="run the evaluate stage first"):
        read_counts(tmp_path / "counts.npz")


@pytest.mark.parametrize(
    ("images", "count", "expected"),
    [
        (10, 3, [0, 4, 9]),
        (10, 9, [0, 1, 2, 3, 4, 5, 7, 8, 9]),
        (10, 4, [0, 1, 4, 9]),
        (10, 1, [0]),
        (2, 9, [0, 1]),
    ],
)
def test_worst_typical_and_best(images: int, count: int, expected: list[int]) -> None:
    """Image i has i + 1 right pixels of 20, so the order by mIoU is the order by index."""
    tables = np.array([[[i + 1, 19 - i], [0, 0]] for i in range(images)])
    assert choose_examples(tables, count) == expected


def test_images_without_a_label_are_no_examples() -> None:
    tables = np.array([[[0, 0], [0, 0]], [[5, 1], [0, 0]]])
    assert choose_examples(tables, 3) == [1]
