"""Plants every kind of issue in drawn street scenes and prints what `segmill validate` found of it, and what besides.

    python benchmarks/mask_doctor.py [--scenes 60] [--planted 12] [--seed 0] [--clean PATH ...]

Each line is a set of its own: street scenes that have nothing to do with one another, healthy but for the issue that
is planted in some of them (in all, where the issue is one of all masks). Found: planted files (or classes) that are
named with the right kind. False alarms: names under any kind that nothing was planted for, warnings too. Then sets
with nothing planted: the samples `brain` and `street`, and canonical sets given with --clean.

Of the kinds that segmill/data/schema/issues.py names one is not planted: crashes_decoder, for no file is known that
kills the decoders in use (a test kills the process instead). Of group_leak there is the form that can reach a set: a
group that its official split cuts.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from segmill.data.ingest.builtin import STREET_CLASSES, draw_street, write_brain, write_street
from segmill.data.schema.issues import KINDS, Issue, IssuesFound, read_issues
from segmill.data.schema.manifest import (
    SAMPLES_FILE,
    ClassInfo,
    DatasetInfo,
    read_dataset_info,
    read_samples,
    write_dataset_info,
)
from segmill.data.splitting.shares import SplitShares
from segmill.data.splitting.splits import part_of_group
from segmill.data.validation.checks import validate_dataset
from segmill.data.validation.examination import examine
from segmill.errors import InputError

SIZE = (96, 128)
TWO_CLASSES = (ClassInfo(0, "rest", "#000000"), ClassInfo(1, "building", "#ffffff"))

Pixels = NDArray[np.uint8]
Change = Callable[[Path, str, np.random.Generator], str]  # of a sample, by its id; returns the name that must be said


@dataclass(frozen=True)
class Plant:
    """An issue: what is said of it, what makes it of a sample, whether all masks have it, which classes the set has."""

    title: str
    kind: str
    change: Change
    everywhere: bool = False
    two_classes: bool = False
    also: str = ""  # a second kind that is true of the same files


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--scenes", type=int, default=60, help="per set (default 60)")
    parser.add_argument("--planted", type=int, default=12, help="of them (default 12)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes and of where issues go (default 0)")
    parser.add_argument("--clean", type=Path, nargs="*", default=[], help="canonical sets known to be clean")
    arguments = parser.parse_args()
    print(f"{'planted':50} {'kind':24} {'found':>9} {'false alarms':>13} {'seconds':>8}")
    totals = np.zeros(3, int)
    seen = set()
    with tempfile.TemporaryDirectory() as folder:
        for number, plant in enumerate(plants()):
            raw_dir = Path(folder) / f"set{number}"
            write_scenes(raw_dir, arguments.scenes, arguments.seed, two_classes=plant.two_classes)
            found, planted, alarms, seconds = measure(raw_dir, plant, arguments.planted, arguments.seed)
            false = alarms.total()
            totals += (found, planted, false)
            seen.add(plant.kind)
            print(
                f"{plant.title:50} {plant.kind:24} {f'{found} / {planted}':>9} {false:13} {seconds:8.1f}",
                dict(alarms) or "",
                flush=True,
            )
        print(f"{'all':75} {f'{totals[0]} / {totals[1]}':>9} {totals[2]:13}")
        print("kinds not planted here:", ", ".join(sorted(KINDS.keys() - seen)))
        print("\nnothing planted                                    samples   issues")
        write_brain(Path(folder) / "brain", every=1)
        write_street(Path(folder) / "street", count=400, seed=arguments.seed)
        for raw_dir in (Path(folder) / "brain", Path(folder) / "street", *arguments.clean):
            table = examine(raw_dir)
            print(
                f"{raw_dir.name:50} {len(table.table):7} {len(table.issues):8}",
                *table.issues,
                sep="\n  " * bool(table.issues),
            )


def write_scenes(raw_dir: Path, count: int, seed: int, *, two_classes: bool) -> None:
    """Write ``count`` scenes s000, s001, ..., every fifth to val and to test."""
    for kind in ("images", "masks"):
        (raw_dir / kind).mkdir(parents=True)
    names = [f"s{index:03d}" for index in range(count)]
    for index, name in enumerate(names):
        image, mask = draw_street(SIZE, seed=seed, sequence=index, frame=0)
        if two_classes:
            mask = (mask == 2).astype(np.uint8)
        Image.fromarray(image).save(raw_dir / "images" / f"{name}.png")
        Image.fromarray(mask).save(raw_dir / "masks" / f"{name}.png")
    splits = {"train": tuple(names[i] for i in range(count) if i % 5 not in (1, 2))}
    splits |= {split: tuple(names[turn::5]) for turn, split in ((1, "val"), (2, "test"))}
    classes = TWO_CLASSES if two_classes else STREET_CLASSES
    write_dataset_info(raw_dir, DatasetInfo("street", classes, group="^(?P<group>s.+)$", splits=splits))


def measure(raw_dir: Path, plant: Plant, count: int, seed: int) -> tuple[int, int, Counter[str], float]:
    """Plant the issue; return how many of it were found, how many planted, false alarms by kind, and seconds."""
    rng = np.random.default_rng(seed)
    names = sorted(path.stem for path in (raw_dir / "images").iterdir())
    chosen = names if plant.everywhere else sorted(rng.choice(names, count, replace=False).tolist())
    planted = {plant.change(raw_dir, name, rng) for name in chosen}
    began = time.monotonic()
    issues = issues_of(raw_dir)
    seconds = time.monotonic() - began
    named = {(issue.kind, file) for issue in issues for file in issue.files}
    found = {(kind, file) for kind, file in named if kind == plant.kind and file in planted}
    also = planted | {file.replace("masks/", "images/") for file in planted}
    false = named - found - {(plant.also, file) for file in also}
    return len(found), len(planted), Counter(kind for kind, _ in false), seconds


def issues_of(raw_dir: Path) -> Sequence[Issue]:
    manifest = raw_dir.with_suffix(".parquet")
    try:
        validate_dataset(raw_dir, manifest, shares=SplitShares(0.2, 0.2, 0))
    except IssuesFound as error:
        return error.issues
    except InputError as error:
        raise SystemExit(f"{raw_dir}: {error}") from error
    return read_issues(manifest)


def plants() -> Iterable[Plant]:
    def of_mask(change: Callable[[Pixels], NDArray[np.generic]], **options: object) -> Change:
        def plant(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
            path = raw_dir / "masks" / f"{name}.png"
            Image.fromarray(change(np.array(Image.open(path)))).save(path, **options)
            return f"masks/{name}.png"

        return plant

    yield Plant("0/255, all masks", "binary_0_255", of_mask(lambda m: m * np.uint8(255)), True, True)
    yield Plant("0/255, some masks", "binary_0_255", of_mask(lambda m: m * np.uint8(255)), two_classes=True)
    yield Plant("colours of dataset.yaml", "colour_mask", of_mask(in_colours))
    yield Plant("other colours", "colour_mask", of_mask(lambda m: in_colours(m)[:, :, ::-1] // 2))
    yield Plant("ids in three channels", "mask_format", of_mask(lambda m: np.repeat(m[:, :, None], 3, axis=2)))
    yield Plant("ids in 16 bits", "mask_format", of_mask(lambda m: m.astype(np.uint16)))
    yield Plant("all ids + 1", "shifted_ids", of_mask(lambda m: np.where(m == 255, m, m + 1).astype(np.uint8)), True)
    yield Plant("all ids - 1, modulo 256", "shifted_ids", of_mask(lambda m: m - np.uint8(1)), True)
    yield Plant("class 3 stored as 9", "id_gap", renumbered, True)
    yield Plant("class 3 used by no mask", "id_gap", unused_between, True)
    yield Plant("last class used by no mask", "unused_class", unused_last, True)
    yield Plant("an id nobody declared", "unknown_ids", of_mask(with_strange_region))
    yield Plant("JPEG named .png", "jpeg_mask", as_jpeg)
    yield Plant("masks/*.jpg", "jpeg_mask", as_jpg_file)
    for quality in (60, 75, 90, 95):
        halo = of_mask(lambda m, q=quality: through_jpeg(m, q))
        yield Plant(f"PNG of a JPEG, quality {quality}, 0..4 and 255", "jpeg_mask", halo)
        both = of_mask(lambda m, q=quality: through_jpeg(m * np.uint8(255), q))
        yield Plant(f"PNG of a JPEG, quality {quality}, 0 and 255", "jpeg_mask", both, two_classes=True)
    for title, change in (
        ("twice the size, bilinear", lambda m: resized(m, 2, cv2.INTER_LINEAR)),
        ("1.5 times the size, bilinear", lambda m: resized(m, 1.5, cv2.INTER_LINEAR)),
        ("half the size, area", lambda m: resized(m, 0.5, cv2.INTER_AREA)),
        ("Gaussian blur, 0.7 px", lambda m: cv2.GaussianBlur(m, (0, 0), 0.7)),
    ):
        yield Plant(f"{title}, 0..4 and 255", "soft_edges", softened(change))
        yield Plant(
            f"{title}, 0..4", "soft_edges", softened(lambda m, c=change: c(np.where(m == 255, 0, m).astype(np.uint8)))
        )
        both = softened(lambda m, c=change: c(m * np.uint8(255)))
        yield Plant(f"{title}, 0 and 255", "soft_edges", both, two_classes=True, also="binary_0_255")
    yield Plant("EXIF 3, 6, 8, mask as stored", "exif_rotated", exif_turned)
    yield Plant("a pixel or two off", "off_by_a_pixel", of_mask(lambda m: m[: -1 - m.size % 2, 1:]))
    yield Plant("half the size", "size_mismatch", of_mask(lambda m: m[::2, ::2]))
    yield Plant("nothing but class 0", "empty_mask", of_mask(np.zeros_like))
    yield Plant("nothing but ignored pixels", "ignored_mask", of_mask(lambda m: np.full_like(m, 255)))
    yield Plant("image all one colour", "flat_image", flat_image)
    yield Plant("class in one split", "class_in_one_split", one_split_class, True)
    yield Plant("class missing in a split", "class_missing_in_split", missing_class, True)
    yield Plant("EXIF 3 where nothing tells", "exif_unclear", exif_of_flat, also="flat_image")
    yield Plant("an id without group", "group_rule", without_group)
    yield Plant("image cut short", "unreadable", truncated)
    yield Plant("mask removed", "missing_mask", without("masks", "images"))
    yield Plant("image removed", "missing_image", without("images", "masks"))
    yield Plant("image of another type", "wrong_file_type", other_type)
    yield Plant("two images of one stem", "same_stem", same_stem)
    yield Plant("a pipe instead of an image", "not_a_file", pipe)
    yield Plant("an image linked from outside", "link_outside", linked)
    yield Plant("the same image in two splits", "exact_duplicate", copied(lambda image: image))
    yield Plant("an image again, resized and brighter", "near_duplicate", copied(brighter))
    yield Plant("an image again, mirrored", "near_duplicate", copied(lambda image: image[:, ::-1]))
    yield Plant("a group cut by the official split", "group_leak", cut_group)


def in_colours(mask: Pixels) -> Pixels:
    table = np.zeros((256, 3), np.uint8)
    table[: len(STREET_CLASSES)] = [[int(c.color[i : i + 2], 16) for i in (1, 3, 5)] for c in STREET_CLASSES]
    return table[np.where(mask == 255, 0, mask)]


def through_jpeg(mask: Pixels, quality: int) -> Pixels:
    target = BytesIO()
    Image.fromarray(mask).save(target, "JPEG", quality=quality)
    return np.array(Image.open(target))


def resized(mask: Pixels, factor: float, how: int) -> Pixels:
    return np.asarray(cv2.resize(mask, None, fx=factor, fy=factor, interpolation=how), np.uint8)


def with_strange_region(mask: Pixels) -> Pixels:
    mask[10:30, 20:50] = 7
    return mask


def softened(change: Callable[[Pixels], Pixels]) -> Change:
    """Change the mask and give the image its new size."""

    def plant(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
        mask_path, image_path = (raw_dir / kind / f"{name}.png" for kind in ("masks", "images"))
        mask = change(np.array(Image.open(mask_path)))
        Image.fromarray(mask).save(mask_path)
        Image.open(image_path).resize(mask.shape[::-1]).save(image_path)
        return f"masks/{name}.png"

    return plant


def renumbered(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    path = raw_dir / "masks" / f"{name}.png"
    mask = np.array(Image.open(path))
    if not (mask == 3).any():
        mask[40:50, 40:60] = 3
    Image.fromarray(np.where(mask == 3, 9, mask).astype(np.uint8)).save(path)
    return f"masks/{name}.png"


def unused_between(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    replace_class(raw_dir, name, 3, 0)
    return "class 3 'vehicle'"


def unused_last(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    replace_class(raw_dir, name, 4, 0)
    return "class 4 'pedestrian'"


def one_split_class(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    if int(name[1:]) % 5 != 1:
        replace_class(raw_dir, name, 4, 0)
    return "class 'pedestrian'"


def missing_class(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    if int(name[1:]) % 5 == 2:
        replace_class(raw_dir, name, 4, 0)
    return "class 'pedestrian'"


def replace_class(raw_dir: Path, name: str, before: int, after: int) -> None:
    path = raw_dir / "masks" / f"{name}.png"
    mask = np.array(Image.open(path))
    Image.fromarray(np.where(mask == before, after, mask).astype(np.uint8)).save(path)


def as_jpeg(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    path = raw_dir / "masks" / f"{name}.png"
    Image.open(path).save(path, "JPEG", quality=95)
    return f"masks/{name}.png"


def as_jpg_file(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    path = raw_dir / "masks" / f"{name}.png"
    Image.open(path).save(path.with_suffix(".jpg"), quality=95)
    path.unlink()
    return f"masks/{name}.jpg"


def exif_turned(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    """Store image and mask turned the same way; the image says so, the mask can't."""
    orientation = int(rng.choice([3, 6, 8]))
    exif = Image.Exif()
    exif[0x0112] = orientation
    back = {3: 180, 6: 90, 8: 270}[orientation]  # degrees counter-clockwise
    for kind, options in (("images", {"exif": exif}), ("masks", {})):
        path = raw_dir / kind / f"{name}.png"
        Image.open(path).rotate(back, expand=True).save(path, **options)
    upright = ImageOps.exif_transpose(Image.open(raw_dir / "images" / f"{name}.png"))
    assert upright.size == SIZE[::-1]
    return f"masks/{name}.png"


def flat_image(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    Image.new("RGB", SIZE[::-1], tuple(rng.integers(0, 256, 3).tolist())).save(raw_dir / "images" / f"{name}.png")
    return f"images/{name}.png"


def exif_of_flat(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    exif = Image.Exif()
    exif[0x0112] = 3
    color = tuple(rng.integers(0, 256, 3).tolist())
    Image.new("RGB", SIZE[::-1], color).save(raw_dir / "images" / f"{name}.png", exif=exif)
    return f"masks/{name}.png"


def without_group(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    for kind in ("images", "masks"):
        path = raw_dir / kind / f"{name}.png"
        path.rename(path.with_stem(f"x{name[1:]}"))
    return f"images/x{name[1:]}.png"


def truncated(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    path = raw_dir / "images" / f"{name}.png"
    content = path.read_bytes()
    path.write_bytes(content[: int(len(content) * rng.uniform(0.01, 0.95))])
    return f"images/{name}.png"


def without(gone: str, left: str) -> Change:
    def plant(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
        (raw_dir / gone / f"{name}.png").unlink()
        return f"{left}/{name}.png"

    return plant


def other_type(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    (raw_dir / "images" / f"{name}x.gif").write_bytes(b"GIF89a")
    return f"images/{name}x.gif"


def same_stem(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    Image.open(raw_dir / "images" / f"{name}.png").save(raw_dir / "images" / f"{name}.tif")
    return f"images/{name}.tif"


def pipe(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    (raw_dir / "images" / f"{name}.png").unlink()
    os.mkfifo(raw_dir / "images" / f"{name}.png")
    return f"images/{name}.png"


def linked(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    path = raw_dir / "images" / f"{name}.png"
    outside = raw_dir.with_name(f"{raw_dir.name}_{name}.png")
    path.rename(outside)
    path.symlink_to(outside)
    return f"images/{name}.png"


def copied(change: Callable[[Pixels], Pixels]) -> Change:
    """Put a changed copy of a training image, with its mask, into test. It is the copy that is named."""

    def plant(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
        source, target = train_and_test(name)
        image = change(np.array(Image.open(raw_dir / "images" / f"{source}.png")))
        mask = np.array(Image.open(raw_dir / "masks" / f"{source}.png"))
        mask = mask if image.shape[:2] == mask.shape else cv2.resize(mask, image.shape[1::-1], interpolation=0)
        Image.fromarray(np.ascontiguousarray(image)).save(raw_dir / "images" / f"{target}.png")
        Image.fromarray(mask).save(raw_dir / "masks" / f"{target}.png")
        return f"images/{target}.png"

    return plant


def train_and_test(name: str) -> tuple[str, str]:
    """Return the first scene of the five that ``name`` is among, which is train's, and their test scene."""
    first = int(name[1:]) // 5 * 5
    return f"s{first:03d}", f"s{first + 2:03d}"


def cut_group(raw_dir: Path, name: str, rng: np.random.Generator) -> str:
    """Make a training and a test scene parts of one group, as a layout does whose official split cuts it."""
    source, target = train_and_test(name)
    info, table = read_dataset_info(raw_dir), raw_dir / SAMPLES_FILE
    if table.is_file():
        group_of = {row["id"]: row["group"] for _, row in read_samples(table)}
    else:
        group_of = {path.stem: path.stem for path in sorted((raw_dir / "images").iterdir())}
    parts = {group_of[source]: part_of_group(source, "train"), group_of[target]: part_of_group(source, "test")}
    rows = [f"{sample},{parts.get(group, group)}\n" for sample, group in group_of.items()]
    table.write_text("".join(["id,group\n", *rows]))
    splits = {split: tuple(parts.get(group, group) for group in groups) for split, groups in info.splits.items()}
    write_dataset_info(raw_dir, replace(info, group={"column": "group"}, splits=splits))
    return f"images/{target}.png"


def brighter(image: Pixels) -> Pixels:
    larger = cv2.resize(image, None, fx=1.3, fy=1.3).astype(np.float32)
    return np.clip(larger * 1.1 + 10, 0, 255).astype(np.uint8)


if __name__ == "__main__":
    main()
