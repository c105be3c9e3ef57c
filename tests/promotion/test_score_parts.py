"""Registered versions scored by several processes: counts and kept predictions are those of one, bit for bit."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from registering import NAME, Registered

from segmill.cluster.connection import connect
from segmill.ensembling.predict import PIXELS_AT_ONCE
from segmill.errors import InputError
from segmill.promotion import score_parts
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.registered import score_registered
from segmill.promotion.score_job import ScoreJob
from segmill.promotion.score_parts import part_jobs, score_on_workers


@pytest.fixture
def ray_of_five() -> Iterator[None]:
    with connect("local", 5):
        yield


def a_job(folder: Path, *splits: str) -> ScoreJob:
    return ScoreJob(
        uri="", model_name=NAME, version="1", trusted=TrustedKeys((), ""), packed_dir=folder, splits=splits,
        predictions_path=folder / "kept.npz",
    )  # fmt: skip


def test_parts_are_splits_and_images_that_together_are_the_job(tmp_path: Path) -> None:
    large = (1024, PIXELS_AT_ONCE // 1024)  # a batch each
    job = a_job(tmp_path, "test", "val")
    parts = part_jobs(job, [[large] * 5, [large] * 7], 3)
    assert [(part.splits, part.images) for part in parts] == [
        (("test",), (range(4),)),
        (("test", "val"), (range(4, 5), range(3))),
        (("val",), (range(3, 7),)),
    ]
    assert [part.predictions_path and part.predictions_path.name for part in parts] == [
        "kept.0.npz", "kept.1.npz", None,
    ]  # fmt: skip


def test_what_one_process_scores_as_quickly_is_not_cut(tmp_path: Path) -> None:
    job = a_job(tmp_path, "test")
    large = (1024, PIXELS_AT_ONCE // 1024)
    assert part_jobs(job, [[large] * 7], 9) == [job]
    assert len(part_jobs(job, [[large] * 8], 9)) == 2
    assert part_jobs(job, [[large] * 99], 1) == [job]


@pytest.mark.slow
@pytest.mark.long
def test_several_processes_say_what_one_says(
    ray_of_five: None, registered: Registered, varied: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # as Ray says for a worker of one CPU
    monkeypatch.setattr(score_parts, "LEAST_PX", 1)
    both = ScoreJob(
        uri=registered.uri, model_name=NAME, version=registered.version, trusted=registered.trusted, packed_dir=varied,
        splits=("test", "val"), sealed=("g2",), part="open", predictions_path=tmp_path / "alone.npz",
    )  # fmt: skip
    hidden = replace(both, splits=("test",), part="sealed", predictions_path=None)
    expected = [score_registered(both), score_registered(hidden)]
    found = score_on_workers([replace(both, predictions_path=tmp_path / "whole.npz"), hidden])
    for one, other in zip(found, expected, strict=True):
        for counts, wanted in zip(one, other, strict=True):
            np.testing.assert_array_equal(counts, wanted)
    assert [len(counts) for counts in found[0]] == [7, 3] and len(found[1][0]) == 2
    with np.load(tmp_path / "alone.npz") as alone, np.load(tmp_path / "whole.npz") as whole:
        assert alone.files == whole.files == [str(number) for number in range(7)]
        assert all(np.array_equal(alone[key], whole[key]) for key in alone.files)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alone.npz", "whole.npz"]
    with pytest.raises(InputError, match="has no version 99"):
        score_on_workers([replace(hidden, version="99")])
