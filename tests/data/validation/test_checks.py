from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from segmill.data.ingest.builtin import draw_street, write_street
from segmill.data.ingest.intake import NewSample, write_set
from segmill.data.ingest.repair import repaired_samples
from segmill.data.schema.issues import KINDS, PRINTED, Issue, IssuesFound, read_issues
from segmill.data.schema.manifest import ClassInfo, DatasetInfo, manifest_info, read_dataset_info, read_manifest
from segmill.data.schema.special_files import refuse_special_files
from segmill.data.splitting.shares import SplitShares
from segmill.data.storage.images import encode_png
from segmill.data.storage.raw_set import INDEX_FILE
from segmill.data.validation.checks import validate_dataset
from segmill.data.validation.examination import examine
from segmill.data.validation.issues_page import write_issues_page
from segmill.errors import InputError

SHARES = SplitShares(0.2, 0.2, 0)


def street_samples(count: int = 8, size: int = 48) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Scenes that have nothing to do with one another, with the classes 0..4 and ignored pixels."""
    return {f"s{i:02d}": draw_street((size, size), seed=5, sequence=i, frame=0) for i in range(count)}


STREET = tuple(ClassInfo(i, f"class_{i}", f"#{40 * i:02x}0000") for i in range(5))
SPLITS = {"train": tuple(f"s{i:02d}" for i in range(4)), "val": ("s04", "s05"), "test": ("s06", "s07")}


@pytest.fixture
def street_set(write_set) -> Path:
    return write_set(street_samples(), classes=STREET, splits=SPLITS)


def save(raw_dir: Path, name: str, pixels: np.ndarray, **options: object) -> None:
    Image.fromarray(pixels).save(raw_dir / name, **options)


def issues_of(raw_dir: Path) -> dict[str, Issue]:
    return {issue.kind: issue for issue in examine(raw_dir).issues}


def test_a_good_set_becomes_a_manifest(street_set: Path, tmp_path: Path) -> None:
    summary = validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES)
    masks = [mask for _, mask in street_samples().values()]
    assert summary.samples == {"train": 4, "val": 2, "test": 2}
    assert summary.class_pixels == {f"class_{i}": sum(int((mask == i).sum()) for mask in masks) for i in range(5)}
    assert summary.ignored_pixels == sum(int((mask == 255).sum()) for mask in masks)
    assert not [issue for issue in summary.issues if not issue.kind.startswith("class_")]
    table = read_manifest(tmp_path / "m.parquet")
    row = table.to_pylist()[6]
    assert (row["id"], row["image"], row["mask"]) == ("s06", "images/s06.png", "masks/s06.png")
    assert (row["height"], row["width"], row["channels"], row["group"], row["split"]) == (48, 48, 3, "s06", "test")
    assert (row["class_pixels"][0], row["findings"]) == (int((masks[6] == 0).sum()), [])
    assert len(row["image_sha256"]) == 64
    assert manifest_info(table).num_classes == 5
    assert read_issues(tmp_path / "m.parquet") == summary.issues


def test_a_table_that_says_nothing_of_issues_is_no_manifest_of_this_version(tmp_path: Path) -> None:
    pq.write_table(pa.table({"id": ["a"]}), tmp_path / "old.parquet")
    with pytest.raises(InputError, match=r"old\.parquet keeps no issues.*make it again"):
        read_issues(tmp_path / "old.parquet")


def test_many_kinds_of_issues_are_printed_in_part() -> None:
    issues = [Issue(f"kind {number}", "error", ("a.png",), "it is", "mend it") for number in range(PRINTED + 2)]
    lines = str(IssuesFound(Path("raw"), issues)).splitlines()
    assert len(lines) == 1 + PRINTED + 1 and lines[-1] == "  and 2 more"


KILLS_WHO_OPENS_IT = """
import os, signal
from PIL import Image
really = Image.open
def opened(*arguments, **options):
    image = really(*arguments, **options)
    if image.size == (13, 17):
        os.kill(os.getpid(), signal.SIGKILL)
    return image
Image.open = opened
"""


EXAMINE = """
import json, sys
from pathlib import Path
from segmill.data.validation.examination import examine
found = examine(Path(sys.argv[1]))
print(json.dumps([{issue.kind: issue.files for issue in found.issues}, found.table["id"].to_pylist()]))
"""


@pytest.mark.slow
def test_what_kills_the_process_that_decodes_it_is_named_and_nothing_else(street_set: Path, tmp_path: Path) -> None:
    """Processes of the examination read this at their start, so an image of 13 x 17 px kills them as a crash would."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site" / "sitecustomize.py").write_text(KILLS_WHO_OPENS_IT)
    path = os.pathsep.join([str(tmp_path / "site"), os.environ.get("PYTHONPATH", "")])
    save(street_set, "images/s03.png", np.zeros((17, 13, 3), np.uint8))
    command = [sys.executable, "-c", EXAMINE, str(street_set)]
    said = subprocess.check_output(command, env={**os.environ, "PYTHONPATH": path}, text=True)
    issues, ids = json.loads(said)
    assert issues == {"crashes_decoder": ["images/s03.png"]}
    assert ids == ["s00", "s01", "s02", "s04", "s05", "s06", "s07"]


def test_all_bad_files_are_said_at_once(street_set: Path, tmp_path: Path) -> None:
    path = street_set / "images" / "s00.png"
    path.write_bytes(path.read_bytes()[:900])
    save(street_set, "masks/s01.png", np.zeros((48, 30), np.uint8))
    save(street_set, "masks/s02.png", np.eye(48, dtype=np.uint8) * 9)
    (street_set / "masks" / "s03.png").unlink()
    save(street_set, "masks/orphan.png", np.zeros((48, 48), np.uint8))

    def write_page(*found: Any) -> None:
        write_issues_page(tmp_path / "page.html", street_set, *found, ())

    with pytest.raises(IssuesFound) as caught:
        validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES, on_issues=write_page)
    said = {issue.kind: issue for issue in caught.value.stopping}
    assert {kind: issue.files for kind, issue in said.items()} == {
        "missing_image": ("masks/orphan.png",),
        "missing_mask": ("images/s03.png",),
        "size_mismatch": ("masks/s01.png",),
        "unknown_ids": ("masks/s02.png",),
        "unreadable": ("images/s00.png",),
    }
    assert "48 x 30 px (height x width), the image 48 x 48" in said["size_mismatch"].what
    assert "class ids [9] outside 0..4 and ignore id 255" in said["unknown_ids"].what
    assert "can't be decoded" in said["unreadable"].what
    assert str(caught.value).splitlines()[0] == f"5 problems in {street_set}:"
    assert len(str(caught.value).splitlines()) == 6
    assert not (tmp_path / "m.parquet").exists()
    assert "images/s00.png" in (tmp_path / "page.html").read_text()


def test_many_files_of_a_kind_make_one_line(street_set: Path, tmp_path: Path) -> None:
    for number in range(PRINTED + 7):
        (street_set / "masks" / f"orphan{number:03d}.png").touch()
    with pytest.raises(IssuesFound) as caught:
        validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES)
    (issue,) = caught.value.stopping
    assert len(issue.files) == PRINTED + 7
    assert str(caught.value).splitlines()[0].startswith(f"{PRINTED + 7} problems")
    assert len(str(caught.value)) < 500


def test_an_empty_set_and_an_empty_split_are_refused(write_set, tmp_path: Path) -> None:
    raw_dir = write_set({})
    with pytest.raises(InputError, match="holds no samples"):
        validate_dataset(raw_dir, tmp_path / "m.parquet", shares=SHARES)
    some = street_samples()
    masks = {name: (image, (mask == 1).astype(np.uint8)) for name, (image, mask) in some.items()}
    write_set(masks, splits={"train": tuple(masks)[:4], "test": tuple(masks)[4:]})
    with pytest.raises(InputError, match=r"no group falls into val \(groups in all: 8\)"):
        validate_dataset(raw_dir, tmp_path / "m.parquet", shares=SHARES)


def test_an_id_outside_the_group_rule_is_an_issue(write_set) -> None:
    samples = dict(zip(("a_z1", "b"), street_samples(2).values(), strict=True))
    raw_dir = write_set(samples, classes=STREET, group=r"^(?P<group>.+)_z\d+$")
    issue = issues_of(raw_dir)["group_rule"]
    assert issue.files == ("images/b.png",)
    assert "does not match its id 'b'" in issue.what


def test_accepted_kinds_do_not_stop_and_what_cannot_be_used_is_left_out(street_set: Path, tmp_path: Path) -> None:
    save(street_set, "masks/s01.png", np.zeros((48, 30), np.uint8))
    summary = validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES, accept=["size_mismatch"])
    assert summary.samples["train"] == 3
    (kept,) = [issue for issue in read_issues(tmp_path / "m.parquet") if issue.kind == "size_mismatch"]
    assert kept.files == ("masks/s01.png",)
    with pytest.raises(InputError, match=r"'size_mismatsch', which does not exist; did you mean 'size_mismatch'"):
        validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES, accept=["size_mismatsch"])
    with pytest.raises(InputError, match="no data version can hold such a file"):
        validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES, accept=["not_a_file"])


def test_the_manifest_does_not_depend_on_the_number_of_processes(street_set: Path, tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    for jobs in (1, 2):
        out = tmp_path / f"{jobs}.parquet"
        validate_dataset(
            street_set, out, shares=SHARES, jobs=jobs, on_progress=lambda done, of: told.append((done, of))
        )
    assert (tmp_path / "1.parquet").read_bytes() == (tmp_path / "2.parquet").read_bytes()
    assert told[-1] == (8, 8)


def each_mask(change) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    return {name: (image, change(mask).astype(np.uint8)) for name, (image, mask) in street_samples().items()}


def test_0_255_masks(write_set) -> None:
    samples = each_mask(lambda mask: np.where(mask == 1, 255, 0))
    issue = issues_of(write_set(samples))["binary_0_255"]
    assert len(issue.files) == 8 and issue.repairable
    issue = issues_of(write_set(samples, classes=STREET))["binary_0_255"]
    assert len(issue.files) == 8 and not issue.repairable  # which of five classes it is, nobody knows


def test_ids_one_too_high_and_one_too_low(write_set) -> None:
    up = write_set(each_mask(lambda mask: np.where(mask == 255, mask, mask + 1)), classes=STREET)
    assert {kind: len(issue.files) for kind, issue in issues_of(up).items()} == {"shifted_ids": 8}
    down = write_set(each_mask(lambda mask: mask - np.uint8(1)), classes=STREET)
    assert {kind: len(issue.files) for kind, issue in issues_of(down).items()} == {"shifted_ids": 8}
    wrapped = write_set(each_mask(lambda mask: mask + np.uint8(1)), classes=STREET)
    (issue,) = issues_of(wrapped).values()
    assert issue.kind == "unknown_ids"  # or a sixth class, so both are said
    assert "if 0 means void here, take 1 off every id" in issue.fix


def test_gaps_in_the_ids(write_set) -> None:
    beyond = write_set(each_mask(lambda mask: np.where(mask == 3, 7, mask)), classes=STREET)
    issue = issues_of(beyond)["id_gap"]
    assert issue.severity == "error" and "7 -> 4, 4 -> 3" not in issue.what and "4 -> 3, 7 -> 4" in issue.what
    unused = write_set(each_mask(lambda mask: np.where(mask == 3, 4, mask)), classes=STREET)
    issue = issues_of(unused)["id_gap"]
    assert (issue.severity, issue.files) == ("warning", ("class 3 'class_3'",))
    last = write_set(each_mask(lambda mask: np.where(mask == 4, 3, mask)), classes=STREET)
    assert issues_of(last)["unused_class"].files == ("class 4 'class_4'",)


def test_colour_masks_propose_their_class_map(write_set) -> None:
    colours = np.zeros((256, 3), np.uint8)
    colours[1:5, 1] = (50, 100, 150, 200)
    raw_dir = write_set({name: (image, colours[mask]) for name, (image, mask) in street_samples().items()})
    issue = issues_of(raw_dir)["colour_mask"]
    assert len(issue.files) == 8 and not issue.repairable
    assert "0 black '#000000', 1 colour_003200 '#003200'" in issue.what
    by_yaml = np.zeros((256, 3), np.uint8)
    by_yaml[:5, 0] = np.arange(5) * 40
    samples = {n: (i, by_yaml[np.where(m == 255, 0, m)]) for n, (i, m) in street_samples().items()}
    assert issues_of(write_set(samples, classes=STREET))["colour_mask"].repairable


def test_an_image_turned_by_exif_beside_a_mask_that_is_not(street_set: Path) -> None:
    image, mask = draw_street((48, 64), seed=5, sequence=30, frame=0)
    exif = Image.Exif()
    exif[0x0112] = 6
    stored = np.ascontiguousarray(np.rot90(image, 1))
    for name, pixels in (("turned", np.ascontiguousarray(np.rot90(mask, 1))), ("upright", mask)):
        save(street_set, f"images/{name}.png", stored, exif=exif)
        save(street_set, f"masks/{name}.png", pixels)
    issue = issues_of(street_set)["exif_rotated"]
    assert issue.files == ("masks/turned.png",) and issue.repairable


def test_sizes_off_by_a_pixel_are_told_from_others(street_set: Path) -> None:
    mask = street_samples()["s00"][1]
    save(street_set, "masks/s00.png", mask[:-1])
    save(street_set, "masks/s01.png", mask[:-2, :-2])
    save(street_set, "masks/s02.png", mask[:-3])
    found = issues_of(street_set)
    assert found["off_by_a_pixel"].files == ("masks/s00.png", "masks/s01.png")
    assert found["size_mismatch"].files == ("masks/s02.png",)


def test_empty_masks_and_flat_images_are_warned_of(street_set: Path) -> None:
    flat = np.full((48, 48, 3), 90, np.uint8)
    save(street_set, "masks/s00.png", np.zeros((48, 48), np.uint8))
    save(street_set, "masks/s01.png", np.full((48, 48), 255, np.uint8))
    save(street_set, "images/s02.png", flat)
    save(street_set, "images/s03.png", flat)
    save(street_set, "masks/s03.png", np.zeros((48, 48), np.uint8))  # nothing there, nothing drawn: fine
    found = issues_of(street_set)
    assert {kind: issue.files for kind, issue in found.items()} == {
        "empty_mask": ("masks/s00.png",),
        "ignored_mask": ("masks/s01.png",),
        "flat_image": ("images/s02.png",),
    }
    assert {issue.severity for issue in found.values()} == {"warning"}


def test_classes_of_one_split_are_warned_of(write_set, tmp_path: Path) -> None:
    def change(name: str, mask: np.ndarray) -> np.ndarray:
        mask = np.where(mask < 255, np.minimum(mask, 2), mask).astype(np.uint8)
        mask[:9, :9] = 3 if name in SPLITS["val"] else 0
        mask[9:18, :9] = 4 if name not in SPLITS["test"] else 0
        return mask

    samples = {name: (image, change(name, mask)) for name, (image, mask) in street_samples().items()}
    summary = validate_dataset(write_set(samples, classes=STREET, splits=SPLITS), tmp_path / "m.parquet", shares=SHARES)
    said = {issue.kind: (issue.files, issue.what) for issue in summary.issues}
    assert said["class_in_one_split"] == (("class 'class_3'",), "it appears in one split only (val, not train or test)")
    assert said["class_missing_in_split"] == (("class 'class_4'",), "it has no pixel in one split (test)")


def test_leaks_stop_it_too(street_set: Path, tmp_path: Path) -> None:
    (street_set / "images" / "s07.png").write_bytes((street_set / "images" / "s00.png").read_bytes())
    with pytest.raises(IssuesFound) as caught:
        validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES)
    assert [issue.kind for issue in caught.value.stopping] == ["exact_duplicate"]
    validate_dataset(street_set, tmp_path / "m.parquet", shares=SHARES, accept=["exact_duplicate"])


def bomb(width: int, height: int) -> bytes:
    """A PNG header that claims a size, and nothing behind it."""
    import struct
    import zlib

    body = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + body + struct.pack(">I", zlib.crc32(body))


def test_nothing_that_is_no_file_is_opened(street_set: Path, tmp_path: Path) -> None:
    """A pipe would hang whoever opens it, /dev/zero fill the memory."""
    images = street_set / "images"
    for name in ("s00", "s01", "s02", "s03", "s04"):
        (images / f"{name}.png").unlink()
    os.mkfifo(images / "s00.png")
    (images / "s01.png").symlink_to("/dev/zero")
    (images / "s02.png").mkdir()
    (tmp_path / "outside.png").write_bytes((images / "s05.png").read_bytes())
    (images / "s03.png").symlink_to(tmp_path / "outside.png")
    (images / "s04.png").symlink_to("nowhere.png")
    (images / "s05.png").rename(images / "real.png")
    (images / "s05.png").symlink_to("real.png")  # a link within the set is as good as a file
    (street_set / "masks" / "s06.png").write_bytes(bomb(60_000, 60_000))
    (street_set / "masks" / "s07.png").write_bytes(b"")
    found = issues_of(street_set)
    assert {kind: issue.files for kind, issue in found.items()} == {
        "not_a_file": ("images/s00.png", "images/s02.png", "images/s04.png"),
        "link_outside": ("images/s01.png", "images/s03.png"),
        "missing_mask": ("images/real.png",),
        "unreadable": ("masks/s06.png", "masks/s07.png"),
    }
    with pytest.raises(InputError, match=r"(?s)nothing in it was opened.*link_outside \(2\)"):
        refuse_special_files(street_set)
    (images / "s00.png").unlink()
    (images / "s00.png").symlink_to("../masks")
    with pytest.raises(InputError, match=r"not_a_file \(.*images/s00\.png.*: a link to a folder"):
        refuse_special_files(street_set)


def test_a_packed_set_is_checked_like_a_loose_one(street_set: Path, tmp_path: Path) -> None:
    samples = [
        NewSample(name, encode_png(image), ".png", encode_png(np.where(mask == 4, 9, mask).astype(np.uint8)))
        for name, (image, mask) in street_samples().items()
    ]
    write_set(tmp_path / "packed", read_dataset_info(street_set), samples, shares=SHARES, packed=True)
    save_9 = {name: np.where(mask == 4, 9, mask).astype(np.uint8) for name, (_, mask) in street_samples().items()}
    for name, mask in save_9.items():
        save(street_set, f"masks/{name}.png", mask)
    loose, packed = (
        {kind: issue.files for kind, issue in issues_of(raw_dir).items()}
        for raw_dir in (street_set, tmp_path / "packed")
    )
    assert loose == packed and "id_gap" in loose


def test_an_index_that_points_out_of_the_set_is_not_followed(street_set: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    samples = [
        NewSample(name, encode_png(image), ".png", encode_png(mask)) for name, (image, mask) in street_samples().items()
    ]
    raw_dir = tmp_path / "packed"
    write_set(raw_dir, read_dataset_info(street_set), samples, shares=SHARES, packed=True)
    rows = pq.read_table(raw_dir / INDEX_FILE)
    (tmp_path / "secret").write_bytes(b"x" * 10**6)
    place = rows.schema.get_field_index("pack")
    rows = rows.set_column(place, "pack", pa.array(["../secret", *rows["pack"].to_pylist()[1:]]))
    lengths = [*rows["mask_bytes"].to_pylist()[:1], 2**62, *rows["mask_bytes"].to_pylist()[2:]]
    rows = rows.set_column(rows.schema.get_field_index("mask_bytes"), "mask_bytes", pa.array(lengths, pa.int64()))
    pq.write_table(rows, raw_dir / INDEX_FILE)
    found = issues_of(raw_dir)
    assert found["link_outside"].files == ("images/s00.png",)
    assert found["unreadable"].files == ("masks/s01.png",)


def test_what_the_doctor_names_repairable_is_repaired(street_set: Path) -> None:
    samples = street_samples()
    good = {name: mask for name, (_, mask) in samples.items()}
    save(street_set, "masks/s00.png", good["s00"][:-1])
    save(street_set, "masks/s01.png", np.repeat(good["s01"][:, :, None], 3, axis=2))
    save(street_set, "masks/s02.png", np.zeros((48, 30), np.uint8))  # not repairable
    broken = street_set / "images" / "s03.png"
    broken.write_bytes(broken.read_bytes()[:500])
    save(street_set, "masks/s03.png", np.repeat(good["s03"][:, :, None], 3, axis=2))  # its image is not
    before = {path: path.read_bytes() for path in street_set.rglob("*.png")}
    repaired = {each.sample.id: each for each in repaired_samples(street_set, examine(street_set))}
    assert {name: each.kinds for name, each in repaired.items()} == {
        "s00": ("off_by_a_pixel",),
        "s01": ("mask_format",),
    }
    assert repaired["s01"].sample.mask == encode_png(good["s01"])
    assert repaired["s00"].sample.image == before[street_set / "images" / "s00.png"]
    assert {path: path.read_bytes() for path in street_set.rglob("*.png")} == before


def test_clean_sets_raise_nothing(tmp_path: Path, street: Path) -> None:
    assert examine(street).issues == []
    write_street(tmp_path / "wide", count=20, size=(96, 160), seed=9)
    assert examine(tmp_path / "wide").issues == []


def test_every_kind_is_documented_by_what_to_do() -> None:
    for kind, facts in KINDS.items():
        assert kind == kind.lower() and facts.what and facts.fix


def test_a_set_of_two_classes_with_void_is_not_taken_for_0_255(write_set) -> None:
    info = DatasetInfo("two", STREET[:2])
    assert info.ignore_id == 255
    samples = each_mask(lambda mask: np.where(mask == 255, 255, mask == 1))
    assert issues_of(write_set(samples)) == {}
