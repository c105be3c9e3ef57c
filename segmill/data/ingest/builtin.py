"""Built-in sets that need no download: brain slices with tissue labels, and drawn street scenes."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import IGNORE_ID, ClassInfo, DatasetInfo, write_dataset_info
from segmill.data.storage.parallel import map_ordered
from segmill.errors import InputError

BRAIN_CLASSES = (
    ClassInfo(0, "background", "#000000"),
    ClassInfo(1, "csf", "#3b8bd6"),
    ClassInfo(2, "grey_matter", "#d9903d"),
    ClassInfo(3, "white_matter", "#f2ead8"),
)
STREET_CLASSES = (
    ClassInfo(0, "road", "#804080"),
    ClassInfo(1, "sky", "#4682b4"),
    ClassInfo(2, "building", "#9a9a9a"),
    ClassInfo(3, "vehicle", "#1c3fd0"),
    ClassInfo(4, "pedestrian", "#dc143c"),
)
FRAMES = 10  # per street sequence
AT_ONCE = 20  # frames that a process draws before it reports back
_ROAD, _SKY, _BUILDING, _VEHICLE, _PEDESTRIAN = range(5)

# The brain's axial slices, 1 mm each, from FIRST_SLICE upwards: blocks of one split each, GAP_MM unused
# slices between them, so that no held-out slice has a neighbour in train and every split sees the brain's
# whole height. Short blocks make many of them: the gate's interval counts blocks, not slices.
BRAIN_BLOCKS = (
    "train", "test", "train", "val", "test", "train", "test", "val", "train",
    "test", "train", "val", "test", "train", "test", "val", "train",
)  # fmt: skip
BLOCK_MM = {"train": 10, "val": 3, "test": 3}
GAP_MM = 3
FIRST_SLICE = 3


@dataclass(frozen=True)
class AtlasBlock:
    """Adjoining axial slices ``start`` to ``stop`` (excluded) that go to one split."""

    name: str
    split: str
    start: int
    stop: int


class Canvas(NamedTuple):
    """A frame being painted: image HWC float32 of 0..255, mask HW uint8."""

    image: NDArray[np.float32]
    mask: NDArray[np.uint8]


def brain_blocks() -> list[AtlasBlock]:
    """Return the blocks from the bottom of the brain to its top."""
    blocks, start = [], FIRST_SLICE
    for number, split in enumerate(BRAIN_BLOCKS):
        blocks.append(AtlasBlock(f"brain_b{number:02d}", split, start, start + BLOCK_MM[split]))
        start += BLOCK_MM[split] + GAP_MM
    return blocks


def write_brain(raw_dir: Path, *, every: int = 2) -> int:
    """Write axial slices of the MNI152 brain with four tissue classes, 192 x 160 px grey; return how many.

    ``every``: train takes each n-th slice of its blocks (2: the demo's base set, 1 adds the rest); val and
    test are the same for any value. Files that exist already are written again with the same bytes.

    The T1 average is skull-stripped, so the brain is where it is positive. Inside, the class is the largest
    of the probabilities of grey matter, white matter and CSF = 1 - grey - white. Source: ICBM 152 nonlinear
    2009a, symmetric (Fonov et al. 2011, NeuroImage 54), as packaged by nilearn. InputError where nilearn is
    not installed.
    """
    if every < 1:
        raise InputError(f"every is {every}", "it must be 1 (all slices) or more")
    image_XYZ, label_XYZ = _brain_volume()
    blocks = brain_blocks()
    for kind in ("images", "masks"):
        (raw_dir / kind).mkdir(parents=True, exist_ok=True)
    written = 0
    for block in blocks:
        step = every if block.split == "train" else 1
        for z in range(block.start, block.stop, step):
            image, mask = (_axial(volume[:, :, z]) for volume in (image_XYZ, label_XYZ))
            _write_pair(raw_dir, f"{block.name}_z{z:03d}", image, mask, compression=6)
            written += 1
    splits = {split: tuple(b.name for b in blocks if b.split == split) for split in BLOCK_MM}
    info = DatasetInfo(
        name="brain",
        classes=BRAIN_CLASSES,
        group=r"^(?P<group>.+)_z\d+$",
        splits=splits,
        license="not stated by nilearn, which ships the atlas; see the source's page",
        source="ICBM 152 nonlinear 2009a symmetric, https://www.bic.mni.mcgill.ca/ServicesAtlases/ICBM152NLin2009",
    )
    write_dataset_info(raw_dir, info)
    return written


def _brain_volume() -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Return T1, its 99.9th percentile in the brain at 255, and class ids: both 160 x 192 x Z uint8, 1 mm."""
    try:
        import nibabel
        from nilearn.datasets import struct
    except ImportError as error:
        raise InputError("the brain sample needs nilearn", "run: pip install 'segmill[demo]'") from error
    t1, grey, white = (
        np.asarray(nibabel.load(path).dataobj)[19:179, 22:214].astype(np.int16)
        for path in (struct.MNI152_FILE_PATH, struct.GM_MNI152_FILE_PATH, struct.WM_MNI152_FILE_PATH)
    )
    brain = t1 > 0
    brightness = np.arange(256) * (255 / np.percentile(t1[brain], 99.9))
    image = np.minimum(np.rint(brightness), 255).astype(np.uint8)[t1]
    csf = 255 - grey - white
    label = np.where((grey >= white) & (grey > csf), np.uint8(2), np.where(white > csf, np.uint8(3), np.uint8(1)))
    return image, np.where(brain, label, np.uint8(0))


def _axial(slice_XY: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Turn an axial slice so that the forehead is up: 192 x 160 px, which the brain fills."""
    return np.ascontiguousarray(slice_XY.T[::-1])


def write_street(
    raw_dir: Path, *, count: int, size: tuple[int, int] = (128, 128), seed: int = 0, first: int = 0, jobs: int = 0
) -> int:
    """Draw ``count`` street scenes of ``size`` (height, width in px), RGB, from number ``first`` on; return how many.

    Sequences of FRAMES frames form groups ``street_sNNNN``, assigned train, val, test, train, train in turn. A
    frame depends only on (seed, its number, size); the car's own bonnet at the bottom is ignored. InputError
    for a size below 32 px or a count below 1.
    """
    if count < 1 or min(size) < 32:
        raise InputError(f"count is {count} and size {size}", "count must be 1 or more, height and width 32 px or more")
    for kind in ("images", "masks"):
        (raw_dir / kind).mkdir(parents=True, exist_ok=True)
    draw = functools.partial(_write_street_frame, raw_dir, size, seed)
    for _ in map_ordered(draw, range(first, first + count), jobs=jobs, chunk=AT_ONCE):
        pass
    turns = ("train", "val", "test", "train", "train")
    sequences = range(first // FRAMES, -(-(first + count) // FRAMES))
    splits = {
        split: tuple(f"street_s{s:04d}" for s in sequences if turns[s % len(turns)] == split)
        for split in ("train", "val", "test")
    }
    info = DatasetInfo(
        name="street",
        classes=STREET_CLASSES,
        group=r"^(?P<group>.+)_f\d+$",
        splits=splits,
        license="CC0-1.0",
        source=f"drawn by segmill, seed {seed}",
    )
    write_dataset_info(raw_dir, info)
    return count


def _write_street_frame(raw_dir: Path, size: tuple[int, int], seed: int, index: int) -> None:
    sequence, frame = divmod(index, FRAMES)
    image, mask = draw_street(size, seed=seed, sequence=sequence, frame=frame)
    _write_pair(raw_dir, f"street_s{sequence:04d}_f{frame:02d}", image, mask, compression=1)


def draw_street(
    size: tuple[int, int], *, seed: int, sequence: int, frame: int
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Draw one frame: image HWC uint8 RGB and mask HW uint8 of STREET_CLASSES, 255 on the bonnet.

    The scene (light, houses, road users and their speeds) comes from (seed, sequence); the frame moves it and
    adds its own noise.
    """
    height, width = size
    scene = np.random.default_rng([seed, sequence])
    noise = np.random.default_rng([seed, sequence, frame])
    canvas = Canvas(np.zeros((height, width, 3), np.float32), np.full(size, _ROAD, np.uint8))
    image, mask = canvas
    horizon = int(height * scene.uniform(0.35, 0.5))
    light = scene.uniform(0.45, 1.0)
    _paint_ground_and_sky(canvas, scene, horizon)
    _paint_buildings(canvas, scene, horizon, frame)
    _paint_road_users(canvas, scene, horizon, frame)
    bonnet = (width // 2, height + height // 16), (width // 2, height // 8)
    cv2.ellipse(image, *bonnet, 0, 0, 360, (40, 42, 48), -1)
    cv2.ellipse(mask, *bonnet, 0, 0, 360, IGNORE_ID, -1)
    slant = np.linspace(1 - scene.uniform(0, 0.3), 1, width, dtype=np.float32)[None, :, None]
    image *= slant * np.float32(light)
    if scene.random() < 0.3:
        image = cv2.GaussianBlur(image, (0, 0), scene.uniform(0.4, 1.0))
    image += noise.standard_normal(image.shape, dtype=np.float32) * np.float32(scene.uniform(2, 12))
    return np.clip(image, 0, 255).astype(np.uint8), mask


def _paint_ground_and_sky(canvas: Canvas, scene: np.random.Generator, horizon: int) -> None:
    image, mask = canvas
    height, width = mask.shape
    mask[:horizon] = _SKY
    fade = np.linspace(0, 1, horizon, dtype=np.float32)[:, None, None]
    zenith, haze = (
        scene.uniform([60, 110, 170], [140, 170, 240]),
        scene.uniform([170, 180, 190], [235, 235, 240]),
    )
    image[:horizon] = zenith * (1 - fade) + haze * fade
    asphalt = scene.uniform(70, 120)
    image[horizon:] = asphalt + np.linspace(12, -12, height - horizon, dtype=np.float32)[:, None, None]
    vanish = (int(width * scene.uniform(0.4, 0.6)), horizon)
    for foot in (-0.1, 0.33, 0.67, 1.1):
        cv2.line(image, vanish, (int(width * foot), height), (200, 200, 190), max(1, width // 96))


def _paint_buildings(canvas: Canvas, scene: np.random.Generator, horizon: int, frame: int) -> None:
    image, mask = canvas
    height, width = mask.shape
    for _ in range(scene.integers(3, 7)):
        wide, tall = int(width * scene.uniform(0.12, 0.3)), int(horizon * scene.uniform(0.3, 0.95))
        drift = width * scene.uniform(-0.01, 0.01) * frame
        left = int(scene.uniform(-0.1, 0.95) * width + drift)
        foot = horizon + int(height * scene.uniform(0, 0.05))
        wall = scene.uniform([90, 70, 60], [200, 180, 170])
        cv2.rectangle(image, (left, horizon - tall), (left + wide, foot), wall.tolist(), -1)
        cv2.rectangle(mask, (left, horizon - tall), (left + wide, foot), _BUILDING, -1)
        pane, lit = max(2, width // 32), (wall * scene.uniform(0.4, 1.3)).tolist()
        for y in range(horizon - tall + pane, foot - pane, 2 * pane):
            for x in range(left + pane, left + wide - pane, 2 * pane):
                cv2.rectangle(image, (x, y), (x + pane // 2, y + pane - 1), lit, -1)


def _paint_road_users(canvas: Canvas, scene: np.random.Generator, horizon: int, frame: int) -> None:
    """Paint vehicles and pedestrians from far to near, so that the near ones cover the far ones."""
    height, width = canvas.mask.shape
    for depth in np.sort(scene.uniform(0.15, 1.0, scene.integers(4, 9))):
        foot = int(horizon + depth * (height * 0.88 - horizon))
        speed = width * depth * scene.uniform(-0.03, 0.03)
        centre = int(width * scene.uniform(0.05, 0.95) + speed * frame)
        color = scene.uniform(20, 235, 3)
        if scene.random() < 0.5:
            _paint_vehicle(canvas, centre, foot, width * 0.32 * depth, color)
        else:
            _paint_pedestrian(canvas, centre, foot, height * 0.4 * depth, color)


def _paint_vehicle(canvas: Canvas, centre: int, foot: int, long: float, color: NDArray[np.float64]) -> None:
    outline = np.array([(-0.5, -0.08), (-0.5, -0.25), (-0.2, -0.45), (0.2, -0.45), (0.5, -0.2), (0.5, -0.08)])
    panes = np.array([(-0.25, -0.29), (-0.17, -0.42), (0.17, -0.42), (0.27, -0.29)])
    body, glass = (np.rint(points * long + (centre, foot)).astype(np.int32) for points in (outline, panes))
    wheels = [(int(centre + at * long), int(foot - 0.08 * long)) for at in (-0.3, 0.3)]
    radius = max(1, int(0.09 * long))
    for pixels, paint, dark in (
        (canvas.image, color.tolist(), (25, 25, 28)),
        (canvas.mask, _VEHICLE, _VEHICLE),
    ):
        cv2.fillPoly(pixels, [body], paint)
        cv2.fillPoly(pixels, [glass], dark)
        for wheel in wheels:
            cv2.circle(pixels, wheel, radius, dark, -1)


def _paint_pedestrian(canvas: Canvas, centre: int, foot: int, tall: float, color: NDArray[np.float64]) -> None:
    half, hip, neck = max(1, int(tall * 0.12)), int(foot - tall * 0.45), int(foot - tall * 0.82)
    coat, trousers, skin = color.tolist(), (color * 0.4).tolist(), (205, 160, 130)
    for pixels, paints in ((canvas.image, (coat, trousers, skin)), (canvas.mask, (_PEDESTRIAN,) * 3)):
        cv2.rectangle(pixels, (centre - half, neck), (centre + half, hip), paints[0], -1)
        for leg in (-half, max(1, half // 2)):
            cv2.rectangle(pixels, (centre + leg, hip), (centre + leg + half // 2, foot), paints[1], -1)
        cv2.circle(pixels, (centre, int(foot - tall * 0.9)), max(1, int(tall * 0.09)), paints[2], -1)


def _write_pair(
    raw_dir: Path, name: str, image: NDArray[np.uint8], mask: NDArray[np.uint8], *, compression: int
) -> None:
    for kind, pixels in (("images", image if image.ndim == 2 else image[:, :, ::-1]), ("masks", mask)):
        path = raw_dir / kind / f"{name}.png"
        encoded = cv2.imencode(".png", pixels, [cv2.IMWRITE_PNG_COMPRESSION, compression])[1]
        path.write_bytes(encoded.tobytes())
