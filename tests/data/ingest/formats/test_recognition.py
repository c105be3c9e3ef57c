"""Each layout in its smallest form: recognised as itself and taken for no other; what is none, or two, is refused."""

from __future__ import annotations

import json
import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from segmill.data.ingest.formats import LAYOUTS, open_layout
from segmill.data.ingest.intake import SetChange, change_set, write_set
from segmill.data.schema.issues import Issue
from segmill.data.schema.manifest import ClassInfo, DatasetInfo, write_dataset_info
from segmill.data.splitting.shares import SplitShares
from segmill.data.storage.raw_set import is_sharded, read_index, write_index
from segmill.errors import InputError

MASK = np.array([[0, 1], [1, 0]], np.uint8)
CLASSES = (ClassInfo(0, "ground", "#000000"), ClassInfo(1, "thing", "#ff0000"))
SHARES = SplitShares(0.25, 0.25, 0)


def put(path: Path, pixels: np.ndarray = MASK) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)


def segmill(root: Path, names: tuple[str, ...] = ("a/1", "a/2", "b/1", "c/1"), **info: object) -> None:
    for name in names:
        put(root / f"images/{name}.png", np.full((2, 2, 3), 5, np.uint8))
        put(root / f"masks/{name}.png")
    write_dataset_info(root, DatasetInfo("mine", CLASSES, **info))


def camvid(root: Path) -> None:
    put(root / "train/s_1.png")
    put(root / "trainannot/s_1.png")
    (root / "train.txt").write_text("/x/train/s_1.png /x/trainannot/s_1.png\n")


def voc(root: Path) -> None:
    put(root / "JPEGImages/a.jpg")
    put(root / "SegmentationClass/a.png")
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    (root / "ImageSets/Segmentation/train.txt").write_text("a\n")


def cityscapes(root: Path) -> None:
    put(root / "leftImg8bit/train/ulm/ulm_0_1_leftImg8bit.png")
    put(root / "gtFine/train/ulm/ulm_0_1_gtFine_labelIds.png")


def ade20k(root: Path) -> None:
    put(root / "images/training/a.jpg")
    put(root / "annotations/training/a.png")


def coco(root: Path) -> None:
    put(root / "images/a.png")
    region = {"id": 1, "image_id": 1, "category_id": 1, "segmentation": [[0, 0, 1, 0, 1, 1]]}
    images = [{"id": 1, "file_name": "a.png", "height": 2, "width": 2}]
    (root / "annotations").mkdir()
    content = {"images": images, "annotations": [region], "categories": [{"id": 1, "name": "x"}]}
    (root / "annotations/instances_train.json").write_text(json.dumps(content))


def nifti(root: Path) -> None:
    for name in ("images/a.nii.gz", "labels/a.nii.gz"):
        (root / name).parent.mkdir()
        nibabel.save(nibabel.Nifti1Image(np.arange(8, dtype=np.uint8).reshape(2, 2, 2) % 2, np.eye(4)), root / name)


def instances(root: Path) -> None:
    for name in ("a", "b"):
        put(root / f"{name}/images/{name}.png")
        put(root / f"{name}/masks/cell_1.png", MASK * 255)
        put(root / f"{name}/masks/cell_2.png", 255 - MASK * 255)


def folders(root: Path) -> None:
    put(root / "images/a.png")
    put(root / "masks/a.png")


WRITERS: dict[str, Callable[[Path], None]] = {
    writer.__name__: writer for writer in (segmill, camvid, voc, cityscapes, ade20k, coco, nifti, instances, folders)
}
FITTING = {("segmill", "folders"), ("ade20k", "folders"), ("voc", "folders")}  # special cases of plain folders


@pytest.fixture(params=list(WRITERS))
def one(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Path]:
    (tmp_path / "set").mkdir()
    WRITERS[request.param](tmp_path / "set")
    return request.param, tmp_path / "set"


def test_every_layout_is_recognised_and_taken_for_no_other(one: tuple[str, Path]) -> None:
    name, root = one
    found = open_layout(root)
    assert found.layout == name
    assert found.why.startswith(f"set is {name}: it has ")
    assert "\n" not in found.why
    samples = list(found.samples)
    assert len(samples) == found.count > 0
    assert not [sample for sample in samples if isinstance(sample, Issue)]
    for other in LAYOUTS:
        if other != name and (name, other) not in FITTING:
            with pytest.raises(InputError, match=f"is no {other} set: .* is missing"):
                open_layout(root, other)


def test_what_is_delivered_makes_a_set(one: tuple[str, Path], tmp_path: Path) -> None:
    _, root = one
    found = open_layout(root, name="made")
    write_set(tmp_path / "made", found.info, found.samples, shares=SHARES)
    again = open_layout(tmp_path / "made")
    assert again.layout == "segmill"
    assert (again.info.name, again.info.classes) == ("made", found.info.classes)
    assert again.count == found.count


def test_every_writer_and_every_layout_is_meant() -> None:
    assert set(WRITERS) == set(LAYOUTS)


def test_two_layouts_at_once_are_refused(tmp_path: Path) -> None:
    camvid(tmp_path)
    voc(tmp_path)
    with pytest.raises(InputError, match=r"could be camvid by .*, and voc by .*; say which with --layout"):
        open_layout(tmp_path)
    assert open_layout(tmp_path, "camvid").why.endswith("was read as camvid, as asked")


def test_what_is_no_layout_names_all_and_the_near_misses(tmp_path: Path) -> None:
    put(tmp_path / "set/JPEGImages/a.jpg")
    (tmp_path / "set/deeper").mkdir()
    camvid(tmp_path / "set/deeper")
    with pytest.raises(InputError) as caught:
        open_layout(tmp_path / "set")
    said = str(caught.value)
    assert all(f"  {name}: {looks_for}" in said for name, looks_for in LAYOUTS.items())
    assert "close to voc: there is JPEGImages/, but not SegmentationClass/" in said
    assert "its folder deeper looks like camvid" in said


def test_paths_and_names_that_lead_nowhere(tmp_path: Path) -> None:
    (tmp_path / "set.zip").touch()
    for path, said in ((tmp_path / "gone", "does not exist"), (tmp_path / "set.zip", "unpack it")):
        with pytest.raises(InputError, match=said):
            open_layout(path)
    folders(tmp_path)
    with pytest.raises(InputError, match=r"must be auto or one of .*; did you mean 'voc'"):
        open_layout(tmp_path, "vocc")
    with pytest.raises(InputError, match="--name is 'a b'"):
        open_layout(tmp_path, name="a b")


def test_the_name_comes_from_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "_my set (v2)"
    root.mkdir()
    folders(root)
    info = open_layout(root).info
    assert (info.name, info.source, info.license) == ("my-set-v2", "folder _my set (v2), layout folders", "")


@pytest.mark.parametrize("rule", ["(", "no group"])
def test_a_group_rule_is_checked(rule: str, tmp_path: Path) -> None:
    folders(tmp_path)
    with pytest.raises(InputError, match="--group"):
        open_layout(tmp_path, group=rule)


def test_a_group_rule_becomes_the_sets_own(tmp_path: Path, take) -> None:
    for name in ("x_1", "x_2", "y"):
        put(tmp_path / f"images/{name}.png")
        put(tmp_path / f"masks/{name}.png")
    found = open_layout(tmp_path, group=r"^(?P<group>\w)_")
    taken = take(found)
    assert found.info.group == r"^(?P<group>\w)_"
    assert taken.places() == {"x_1": (None, None), "x_2": (None, None)}
    assert "finds nothing in its id 'y'" in taken.issues["images/y.png"].what


def test_a_group_rule_that_an_official_split_cuts_becomes_parts(tmp_path: Path, take) -> None:
    for name in ("train/x_1", "val/x_2"):
        put(tmp_path / f"images/{name}.png")
        put(tmp_path / f"masks/{name}.png")
    found = open_layout(tmp_path, group=r"(?P<group>[a-z]+)_\d")
    assert take(found).places() == {"train/x_1": ("x@train", None), "val/x_2": ("x@val", "test")}
    assert found.info.group is None
    assert any("cut the group x" in note for note in found.notes)


def test_rows_that_no_split_names_go_where_the_rest_of_their_group_is(tmp_path: Path, take) -> None:
    """Of the cut group a to the part in train, else in val; of b, which is whole, to all of it."""
    for name in ("train/a/1", "val/a/2", "a/3", "val/b/1", "b/2", "val/c/1", "test/c/2", "c/3"):
        put(tmp_path / f"images/{name}.png")
        put(tmp_path / f"masks/{name}.png")
    places = take(open_layout(tmp_path)).places()
    assert {name: group for name, (group, _) in places.items()} == {
        "train/a/1": "a@train", "val/a/2": "a@val", "a/3": "a@train",
        "val/b/1": "b", "b/2": "b",
        "val/c/1": "c@val", "test/c/2": "c@test", "c/3": "c@val",
    }  # fmt: skip


def test_a_rule_that_cuts_a_canonical_sets_splits_takes_the_place_of_its_own(tmp_path: Path, take) -> None:
    segmill(tmp_path, ("a_1", "a_2", "b_1"), splits={"train": ("a_1",), "val": ("a_2",), "test": ("b_1",)})
    found = open_layout(tmp_path, group=r"^(?P<group>\w)_")
    assert (found.info.group, found.info.splits) == (None, {})
    assert take(found).places() == {"a_1": ("a@train", "train"), "a_2": ("a@val", "val"), "b_1": ("b", "test")}
    assert [note for note in found.notes if "cut the group a (train, val)" in note]


def test_a_canonical_set_passes_as_it_is_loose_and_packed(tmp_path: Path, take) -> None:
    loose = tmp_path / "loose"
    segmill(loose, group={"folder": 1}, splits={"val": ("a",)}, ignore_id=7, license="CC0-1.0")
    (loose / "splits.csv").write_text("group,split\na,val\nb,train\nc,test\n")
    found = open_layout(loose)
    packed = tmp_path / "packed"
    write_set(packed, found.info, found.samples, packed=True, shares=SHARES)
    assert is_sharded(packed)
    for root in (loose, packed):
        again = open_layout(root)
        taken = take(again)
        assert again.info == DatasetInfo(
            "mine", CLASSES, ignore_id=7, group={"folder": 1}, splits={"val": ("a",)}, license="CC0-1.0"
        )
        assert taken.issues == {}
        splits = {name: split for name, (_, split) in taken.places().items()}
        assert splits == {"a/1": "val", "a/2": "val", "b/1": "train", "c/1": "test"}
        for name in splits:
            assert taken.samples[name].image == (loose / f"images/{name}.png").read_bytes()
            assert taken.samples[name].mask == (loose / f"masks/{name}.png").read_bytes()


def test_a_canonical_set_that_comes_again_is_known_whatever_its_suffixes(tmp_path: Path) -> None:
    segmill(tmp_path / "set", ("a", "b", "c"))
    (tmp_path / "set/images/a.png").rename(tmp_path / "set/images/a.PNG")
    found = open_layout(tmp_path / "set")
    write_set(tmp_path / "made", found.info, found.samples, shares=SHARES)
    again = open_layout(tmp_path / "set", info=found.info)
    assert change_set(tmp_path / "made", again.samples, shares=SHARES) == SetChange(0, 0, 0, 3)
    assert (tmp_path / "made/images/a.PNG").is_file()


def test_classes_are_matched_by_name(tmp_path: Path, take) -> None:
    (tmp_path / "set").mkdir()
    camvid(tmp_path / "set")
    own = open_layout(tmp_path / "set").info
    turned = tuple(ClassInfo(i, c.name.upper().replace("_", " "), c.color) for i, c in enumerate(own.classes[::-1]))
    info = DatasetInfo("mine", turned, ignore_id=200)
    put(tmp_path / "set/trainannot/s_1.png", np.array([[0, 1], [10, 11]], np.uint8))
    found = open_layout(tmp_path / "set", info=info)
    assert found.info is info
    assert take(found).mask("s_1") == [[10, 9], [0, 200]]
    put(tmp_path / "set/trainannot/s_1.png", np.array([[0, 1], [10, 77]], np.uint8))
    assert "class ids [77]" in take(open_layout(tmp_path / "set", info=info)).issues["trainannot/s_1.png"].what


def test_classes_that_do_not_fit_are_one_sentence(tmp_path: Path) -> None:
    voc(tmp_path)
    with pytest.raises(InputError) as caught:
        open_layout(tmp_path, info=DatasetInfo("mine", CLASSES))
    said = str(caught.value)
    assert "\n" not in said
    assert "the classes background, aeroplane, bicycle" in said
    assert "are not among those of the set 'mine' (ground, thing)" in said


def bomb(png: bytes) -> bytes:
    """The same file, but for a header that claims 60,000 x 60,000 px."""
    header = b"IHDR" + struct.pack(">II", 60_000, 60_000) + png[24:29]
    return png[:12] + header + struct.pack(">I", zlib.crc32(header)) + png[33:]


@pytest.mark.parametrize("kind", ["images", "masks"])
def test_files_that_break_decoders_are_found_or_passed_on(kind: str, tmp_path: Path, take) -> None:
    """Whatever lies there, opening and reading ends, decodes no bomb and opens no pipe."""
    noise = np.random.default_rng(0).integers(0, 2, (64, 64), dtype=np.uint8)
    names = ["whole", "empty", "half", "flipped", "text", "bomb", "pages", "huge", "pipe"]
    for name in names:
        put(tmp_path / f"images/{name}.png", noise)
        put(tmp_path / f"masks/{name}.png", noise)
    folder = tmp_path / kind
    whole = (folder / "whole.png").read_bytes()
    (folder / "empty.png").write_bytes(b"")
    (folder / "half.png").write_bytes(whole[: len(whole) // 2])
    (folder / "flipped.png").write_bytes(whole[:200] + bytes([whole[200] ^ 255]) + whole[201:])
    (folder / "text.png").write_text("<svg/>")
    (folder / "bomb.png").write_bytes(bomb(whole))
    page = Image.fromarray(noise)
    page.save(folder / "pages.png", save_all=True, append_images=[Image.fromarray(1 - noise)])
    (folder / "pipe.png").unlink()
    os.truncate(folder / "huge.png", 2**31)
    os.mkfifo(folder / "pipe.png")
    taken = take(open_layout(tmp_path))
    said = {file.partition("/")[2]: issue.what for file, issue in taken.issues.items()}
    assert "whole" in taken.samples
    assert said["empty.png"] == said["text.png"] == "it can't be read as an image"
    assert "its header claims" in said["bomb.png"]
    assert "several pages or frames" in said["pages.png"]
    assert said["huge.png"] == "it has 2048 MiB, more than 1024"
    assert said["pipe.png"] == "it is no regular file"
    passed = taken.samples["half"].image if kind == "images" else taken.samples["half"].mask
    assert passed == (folder / "half.png").read_bytes()


def test_an_index_that_points_outside_reads_nothing(tmp_path: Path, take) -> None:
    segmill(tmp_path / "loose")
    found = open_layout(tmp_path / "loose")
    write_set(tmp_path / "set", found.info, found.samples, packed=True, shares=SHARES)
    (tmp_path / "outside.tar").write_bytes((next((tmp_path / "set/packs").iterdir())).read_bytes())
    rows = read_index(tmp_path / "set")
    away = pa.array(["../outside.tar"] * len(rows))
    write_index(tmp_path / "set", rows.set_column(rows.schema.get_field_index("pack"), "pack", away))
    taken = take(open_layout(tmp_path / "set"))
    assert taken.samples == {}
    assert taken.issues["images/a/1.png"].what == "it leads out of the set's folder"


def test_samples_are_read_only_when_asked_for(tmp_path: Path) -> None:
    folders(tmp_path)
    put(tmp_path / "images/b.png")
    put(tmp_path / "masks/b.png")
    samples = open_layout(tmp_path).samples
    assert not isinstance(next(samples), Issue)
    (tmp_path / "images/b.png").unlink()
    assert isinstance(next(samples), Issue)
