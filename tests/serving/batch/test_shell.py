"""Which version a run takes, who may write, and how work is cut and given again."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from segmill.errors import InputError
from segmill.promotion.keys import TrustedKeys
from segmill.serving.batch.output import BatchOutput
from segmill.serving.batch.scores import ImageStatus, row_of, table_of
from segmill.serving.batch.shell import PART_BYTES, PART_IMAGES, BatchPart, BatchRequest, _again, cut_parts, planned
from segmill.serving.batch.sources import BatchImage

IMAGES = [BatchImage(f"{number}.png", f"/{number}.png", 1000, "1") for number in range(5)]


def plan(to: Path, version: str, **changed: Any) -> Any:
    images = changed.pop("images", IMAGES)
    manifest_of = changed.pop("manifest_of", lambda version: f"manifest {version}")
    own = {"source": "/images", "model": "m", "asked": "champion", "uri": "", "trusted": TrustedKeys((), "")}
    return planned(BatchRequest(to=to, **own | changed), images, lambda asked: version, manifest_of)


def score(output: BatchOutput, images: list[BatchImage], facts: dict[str, str]) -> None:
    """Write what a worker writes of a part."""
    import pyarrow.parquet as pq

    path = output.part(BatchPart(tuple((image, None) for image in images)).name)
    path.parent.mkdir(exist_ok=True)
    for image in images:
        output.write_mask(image, b"")
    pq.write_table(
        table_of([row_of(image, facts, ImageStatus.OK, sha256=image.path) for image in images], ["road"]), path
    )


def test_a_run_keeps_its_version_until_it_is_finished(tmp_path: Path) -> None:
    with plan(tmp_path, "1") as first:
        assert len(first.left) == 5 and first.said == []
        score(first.output, IMAGES[:2], first.job.note.facts())
    with plan(tmp_path, "2") as second:
        assert second.job.note.version == "1" and second.job.note.manifest_sha256 == "manifest 1"
        assert [image.path for image, _ in second.left] == ["2.png", "3.png", "4.png"]
        (sentence,) = second.said
        assert "began with version 1 is completed with it; champion is version 2 now: --version 2" in sentence
        score(second.output, IMAGES, second.job.note.facts())
        table = second.output.finish(IMAGES, replace(second.job.note, finished=True))
    assert table["path"].to_pylist() == [one.path for one in IMAGES] and set(table["version"].to_pylist()) == {"1"}
    with plan(tmp_path, "2") as third:
        assert third.job.note.version == "2" and third.job.folder == tmp_path / "version-2" and len(third.left) == 5
    with plan(tmp_path, "1", asked="1") as again:
        assert again.left == [] and again.output.note() == replace(second.job.note, finished=True)


def test_a_version_that_is_asked_for_by_number_is_that_version(tmp_path: Path) -> None:
    with plan(tmp_path, "1"):
        pass
    with plan(tmp_path, "2", asked="2") as found:
        assert found.job.note.version == "2" and found.said == []


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    other = pytest.raises(InputError, match=r"another run writes to .*version-1; wait")
    with plan(tmp_path, "1"), other, plan(tmp_path, "1"):
        pass
    for changed, what in (
        ({"source": "/others"}, r"scores of another source \(/images, not /others\)"),
        ({"manifest_of": lambda version: "forged"}, r"another manifest sha256 \(manifest 1, not forged\)"),
        ({"images": []}, "there are no images in /images"),
    ):
        with pytest.raises(InputError, match=what), plan(tmp_path, "1", **changed):
            pass
    (tmp_path / "version-1" / "run.json").write_text("{")
    with pytest.raises(InputError, match=r"run\.json is damaged"), plan(tmp_path, "1"):
        pass


def test_a_later_data_version_takes_what_is_the_same(tmp_path: Path) -> None:
    with plan(tmp_path, "1", source="data:a") as first:
        score(first.output, IMAGES, first.job.note.facts())
    changed = [replace(IMAGES[0], stamp="2"), *IMAGES[1:4]]
    with plan(tmp_path, "1", source="data:b", images=changed) as later:
        assert [(image, former["sha256"]) for image, former in later.left if former] == [(changed[0], "0.png")]
        score(later.output, changed[:1], later.job.note.facts())
        table = later.output.finish(changed, later.job.note)
    assert table["stamp"].to_pylist() == ["2", "1", "1", "1"]


def test_a_table_lacks_no_image(tmp_path: Path) -> None:
    with plan(tmp_path, "1") as found:
        score(found.output, IMAGES[:4], found.job.note.facts())
        with pytest.raises(InputError, match=r"1 images have no scores yet \(4\.png\)"):
            found.output.finish(IMAGES, found.job.note)


@pytest.mark.parametrize(
    ("images", "size_bytes", "workers", "lengths"),
    [
        (3, 10, 2, [1, 1, 1]),
        (16, 10, 2, [2] * 8),
        (1000, 10, 2, [PART_IMAGES] * 31 + [8]),
        (1000, PART_BYTES // 3 + 1, 1, [3] * 333 + [1]),
        (2, PART_BYTES * 9, 1, [1, 1]),
    ],
)
def test_parts_are_small_in_images_and_bytes(images: int, size_bytes: int, workers: int, lengths: list[int]) -> None:
    every = [(BatchImage(str(number), "", size_bytes, ""), None) for number in range(images)]
    parts = cut_parts(every, workers)
    assert [len(part.images) for part in parts] == lengths
    assert [one for part in parts for one in part.images] == every
    assert len({part.name for part in parts}) == len(parts)


def test_a_part_that_is_lost_twice_is_cut_into_images() -> None:
    part = BatchPart(tuple((image, None) for image in IMAGES))
    (once,) = _again(part)
    assert once == replace(part, losses=1) and once.name == part.name
    singles = _again(once)
    assert [one.images for one in singles] == [((image, None),) for image in IMAGES]
    assert {one.losses for one in singles} == {2}
