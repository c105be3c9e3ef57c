"""Packed splits: decoded once, then flat memory-mapped pixels and an index, so that training never decodes.

``pack`` turns a checked set into ``train/ val/ test/`` and ``pack.json``. In each split folder ``images.bin``
holds HWC uint8 RGB and ``masks.bin`` HW uint8, sample after sample; ``index.parquet`` says where each begins,
in pixels.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from segmill.data.manifest import SPLITS, manifest_info, read_manifest
from segmill.data.parallel import map_ordered
from segmill.data.readers import read_image, read_mask
from segmill.errors import InputError

CHANNELS = 3
_PACK_COLUMNS = ["id", "group", "image", "mask", "image_sha256", "mask_sha256"]


@dataclass(frozen=True)
class PackInfo:
    """What the packed splits hold.

    ``size``: height and width in px of every train sample, or None where they keep their own. ``mean`` and
    ``std`` are per channel of train, of values scaled to 0..1. ``class_pixels`` are train's, after resizing,
    in order of id.
    """

    name: str
    class_names: tuple[str, ...]
    colors: tuple[str, ...]
    ignore_id: int
    size: tuple[int, int] | None
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_pixels: tuple[int, ...]
    samples: dict[str, int]
    channels: int = CHANNELS

    @property
    def num_classes(self) -> int:
        return len(self.class_names)


class Sample(NamedTuple):
    """One decoded sample: image HWC uint8 RGB, mask HW uint8."""

    id: str
    group: str
    image: NDArray[np.uint8]
    mask: NDArray[np.uint8]


class SplitWriter:
    """Writes one packed split sample by sample; the index comes last, on leaving the ``with`` block without
    error."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rows: dict[str, list[Any]] = {"id": [], "group": [], "height": [], "width": [], "offset_px": []}
        self._end_px = 0

    def __enter__(self) -> SplitWriter:
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / "index.parquet").unlink(missing_ok=True)
        self._images = (self._folder / "images.bin").open("wb")
        self._masks = (self._folder / "masks.bin").open("wb")
        return self

    def add(self, sample: Sample) -> None:
        """Append one sample; ValueError where image and mask are not HxWx3 and HxW uint8."""
        height, width = sample.mask.shape
        if sample.image.shape != (height, width, CHANNELS):
            raise ValueError(f"{sample.id}: image {sample.image.shape} does not go with mask {sample.mask.shape}")
        if sample.image.dtype != np.uint8 or sample.mask.dtype != np.uint8:
            raise ValueError(f"{sample.id}: image {sample.image.dtype} and mask {sample.mask.dtype} must be uint8")
        self._images.write(np.ascontiguousarray(sample.image).data)
        self._masks.write(np.ascontiguousarray(sample.mask).data)
        for column, value in zip(
            self._rows.values(), (sample.id, sample.group, height, width, self._end_px), strict=True
        ):
            column.append(value)
        self._end_px += height * width

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._images.close()
        self._masks.close()
        if kind is None:
            import pyarrow as pa
            import pyarrow.parquet as pq

            types = {"id": pa.string(), "group": pa.string()}
            schema = pa.schema([(name, types.get(name, pa.int64())) for name in self._rows])
            pq.write_table(pa.table(self._rows, schema=schema), self._folder / "index.parquet")


class PackedSplit:
    """The samples of one packed split, and of further folders after it (the augment stage's extra samples).

    Pixels are views of read-only memory maps, opened on first use in each process, so that an instance
    pickles small. InputError where a folder holds no index or its files are cut short.
    """

    def __init__(self, folder: Path, *more: Path) -> None:
        self._folders = (folder, *more)
        tables = [_read_index(path) for path in self._folders]
        self.ids: list[str] = [sample_id for table in tables for sample_id in table["id"].to_pylist()]
        self.groups: list[str] = [group for table in tables for group in table["group"].to_pylist()]
        counts = [table.num_rows for table in tables]
        self._folder_of = np.repeat(np.arange(len(tables)), counts)
        self._height, self._width, self._offset_px = (
            np.concatenate([table[name].to_numpy() for table in tables]) for name in ("height", "width", "offset_px")
        )
        self._maps: dict[tuple[int, str], NDArray[np.uint8]] = {}

    def __len__(self) -> int:
        return len(self.ids)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_maps": {}}

    def shape(self, index: int) -> tuple[int, int]:
        """Return height and width in px of sample ``index``, without touching its pixels."""
        return int(self._height[index]), int(self._width[index])

    def image(self, index: int) -> NDArray[np.uint8]:
        """Return the image of sample ``index``: HWC uint8 RGB, a read-only view."""
        height, width = self.shape(index)
        start, length = int(self._offset_px[index]) * CHANNELS, height * width * CHANNELS
        return self._map(index, "images.bin")[start : start + length].reshape(height, width, CHANNELS)

    def mask(self, index: int) -> NDArray[np.uint8]:
        """Return the mask of sample ``index``: HW uint8 class ids, a read-only view."""
        height, width = self.shape(index)
        start = int(self._offset_px[index])
        return self._map(index, "masks.bin")[start : start + height * width].reshape(height, width)

    def _map(self, index: int, file: str) -> NDArray[np.uint8]:
        key = (int(self._folder_of[index]), file)
        if key not in self._maps:
            self._maps[key] = np.asarray(np.memmap(self._folders[key[0]] / file, dtype=np.uint8, mode="r"))
        return self._maps[key]


def pack(raw_dir: Path, manifest_path: Path, out_dir: Path, *, size: tuple[int, int] | None, jobs: int = 0) -> PackInfo:
    """Decode every sample once into ``out_dir``; memory stays bounded, ``pack.json`` comes last.

    Train samples are resized to ``size`` (height, width in px) when given: images by area when shrinking,
    else linearly, masks by nearest neighbour. Val and test keep their original size. Grey is repeated to
    three channels. InputError where a file is not what validation saw.
    """
    import pyarrow.compute as pc

    table = read_manifest(manifest_path)
    info = manifest_info(table)
    samples = {}
    for split in SPLITS:
        rows = table.filter(pc.equal(table["split"], split)).select(_PACK_COLUMNS).to_pylist()
        decode = functools.partial(_decode_row, raw_dir, size if split == "train" else None)
        with SplitWriter(out_dir / split) as writer:
            pixels = _write_counted(map_ordered(decode, rows, jobs=jobs), writer)
        samples[split] = len(rows)
        if split == "train":
            mean, std = _mean_std(pixels.values)
            class_pixels = tuple(int(n) for n in pixels.ids[: info.num_classes])
    packed = PackInfo(info.name, info.class_names, info.colors, info.ignore_id, size, mean, std, class_pixels, samples)
    (out_dir / "pack.json").write_text(json.dumps(asdict(packed), indent=1) + "\n")
    return packed


def read_pack(out_dir: Path) -> PackInfo:
    """Read ``pack.json``; InputError where there is none."""
    try:
        content = json.loads((out_dir / "pack.json").read_text())
    except FileNotFoundError as error:
        raise InputError(f"{out_dir} holds no packed splits (no pack.json); run the prepare stage first") from error
    facts: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in content.items()}
    return PackInfo(**facts)


class _Pixels(NamedTuple):
    values: NDArray[np.int64]  # C x 256, how often a channel takes a value
    ids: NDArray[np.int64]  # 256, how often a mask takes an id


def _write_counted(samples: Iterable[tuple[Sample, _Pixels]], writer: SplitWriter) -> _Pixels:
    total = _Pixels(np.zeros((CHANNELS, 256), np.int64), np.zeros(256, np.int64))
    for sample, pixels in samples:
        writer.add(sample)
        total = _Pixels(total.values + pixels.values, total.ids + pixels.ids)
    return total


def _decode_row(raw_dir: Path, size: tuple[int, int] | None, row: dict[str, Any]) -> tuple[Sample, _Pixels]:
    image = read_image(_read_unchanged(raw_dir, row, "image"))
    mask = read_mask(_read_unchanged(raw_dir, row, "mask"))
    if image.shape[2] == 1:
        image = np.repeat(image, CHANNELS, axis=2)
    if size is not None:
        image, mask = _resize(image, mask, size)
    values = np.stack([np.bincount(image[:, :, c].ravel(), minlength=256) for c in range(CHANNELS)])
    return Sample(row["id"], row["group"], image, mask), _Pixels(values, np.bincount(mask.ravel(), minlength=256))


def _read_unchanged(raw_dir: Path, row: dict[str, Any], kind: str) -> bytes:
    path: Path = raw_dir / row[kind]
    try:
        content = path.read_bytes()
    except FileNotFoundError as error:
        raise InputError(f"{path} is gone since validation; run `segmill validate` again") from error
    if hashlib.sha256(content).hexdigest() != row[f"{kind}_sha256"]:
        raise InputError(f"{path} changed since validation; run `segmill validate` again")
    return content


def _resize(
    image: NDArray[np.uint8], mask: NDArray[np.uint8], size: tuple[int, int]
) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    import cv2

    if mask.shape == size:
        return image, mask
    height, width = size
    shrinks = height <= mask.shape[0] and width <= mask.shape[1]
    image = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR)
    return image, cv2.resize(mask, (width, height), interpolation=cv2.INTER_NEAREST_EXACT)


def _mean_std(values: NDArray[np.int64]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Per channel mean and standard deviation from C x 256 counts, of values scaled to 0..1."""
    levels = np.arange(256) / 255
    share = values / np.maximum(values.sum(axis=1, keepdims=True), 1)
    mean = share @ levels
    std = np.sqrt(share @ levels**2 - mean**2)
    return tuple(float(m) for m in mean), tuple(float(s) for s in std)


def _read_index(folder: Path) -> Any:
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(folder / "index.parquet")
    except FileNotFoundError as error:
        raise InputError(f"{folder} is no packed split (no index.parquet); run the prepare stage first") from error
    area = int(np.sum(table["height"].to_numpy() * table["width"].to_numpy()))
    for file, bytes_per_px in (("images.bin", CHANNELS), ("masks.bin", 1)):
        path = folder / file
        if not path.is_file() or path.stat().st_size != area * bytes_per_px:
            raise InputError(f"{path} is missing or cut short ({area * bytes_per_px} bytes expected); prepare again")
    return table
