"""NIfTI volumes with label volumes, cut into slices: imagesTr and labelsTr with dataset.json, or pairs by name."""

from __future__ import annotations

import gzip
import json
import math
import os
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.data.ingest.formats.reading import (
    IMAGE_FOLDERS,
    MASK_FOLDERS,
    Loaded,
    Row,
    SetFolder,
    Signs,
    SourceContents,
    about,
    issue_from,
    join,
    named,
    signs,
    without_repeats,
)
from segmill.data.schema.issues import Issue, wrong_file
from segmill.data.schema.manifest import IGNORE_ID, ClassInfo, DatasetInfo
from segmill.data.schema.mask_values import Census, Scheme, ids_by_info
from segmill.data.storage.images import DECODER_ERRORS, RawMask, apply_window, encode_png
from segmill.errors import InputError

LOOKS_FOR = (
    "*.nii or *.nii.gz: imagesTr/ with labelsTr/, folders of images and labels, or NAME with NAME_seg, _label, _mask"
)
SUFFIXES = (".nii", ".nii.gz")
WINDOW_PERCENT = (0.5, 99.5)  # of a whole volume's values: what is between gets grey levels 0..255
SAMPLED = 2**24  # voxels; of a larger volume, every n-th is looked at for the percentiles
MAX_VOLUME_BYTES = 640 * 2**20  # unpacked; 512 x 512 x 1024 voxels of 16 bits are 512 MiB
MAX_JSON_BYTES = 64 * 2**20
_LABEL_END = re.compile(r"[-_](?:seg|segmentation|labels?|mask|gt|dseg)$", re.IGNORECASE)
_CHANNEL = re.compile(r"_(\d{4})$")
_PATIENT = re.compile(r"(sub-[A-Za-z0-9]+|patient[-_]?\d+)", re.IGNORECASE)
_TOP = 65535  # of a label volume: 255 is a label there like others


@dataclass(frozen=True)
class _Case:
    """A volume: its id, the files of its channels, its label file."""

    id: str
    images: tuple[str, ...]
    label: str


def recognise(folder: SetFolder) -> Signs:
    return signs(
        ("volumes *.nii or *.nii.gz", folder.has_file("", SUFFIXES)),
        (
            "label volumes beside them (labelsTr/, labels/, NAME_seg.nii)",
            next(iter(_cases(folder)[0]), None) is not None,
        ),
    )


def read(folder: SetFolder, info: DatasetInfo | None) -> SourceContents:
    """List the slices of every volume that has a label volume; group: the patient in its name, else the volume.

    Volumes are turned to the standard directions (right, front, up) by their affine and cut across the axis of the
    coarsest spacing, upwards where there is none; slices have front or up at the top. Grey levels: linear, the
    volume's WINDOW_PERCENT at 0 and 255. Of several channels (a fourth axis, or files _0000, _0001, ...) the first
    three are red, green and blue, each in its own window; of two, the first is taken. Class names come from
    dataset.json (Medical Segmentation Decathlon, nnU-Net); without it, classes are the labels' values.
    """
    cases, issues = _cases(folder)
    notes = [f"{name}/ is left out: it has no labels" for name in ("imagesTs",) if folder.is_dir(name)]
    rows: list[Row] = []
    channels: set[int] = set()
    for case in cases:
        try:
            shapes = [about(name, _header, folder, name) for name in (*case.images, case.label)]
        except InputError as error:
            issues.append(issue_from(getattr(error, "file", case.label), error))
            continue
        wrong = _disagree(case, shapes)
        if wrong:
            issues.append(wrong_file(case.label, wrong, "make label and image one grid"))
            continue
        channels.add(max(len(case.images), shapes[0].channels))
        axis, count = shapes[-1].axis, shapes[-1].shape[shapes[-1].axis]
        patient = _PATIENT.search(case.id)
        group = patient[1] if patient else case.id
        rows += [
            Row(f"{case.id}_{'xyz'[axis]}{n:03d}", case.images[0], case.label, group=group, part=n)
            for n in range(count)
        ]
    for count in sorted(channels - {1}):
        kept = "the first three are red, green and blue" if count >= 3 else "the first is taken"
        notes.append(f"volumes have {count} channels: {kept}")
    rows, repeats = without_repeats(rows)
    by_label = {case.label: case for case in cases}
    classes, to_ids, said, license_ = _classes(folder, cases, info)
    return SourceContents(
        classes=classes,
        rows=rows,
        load=_Slices(folder, by_label, to_ids).load,
        issues=issues + repeats,
        notes=notes + said,
        license=license_,
        matched=info is not None and not folder.is_file("dataset.json"),
    )


def _cases(folder: SetFolder) -> tuple[list[_Case], list[Issue]]:
    """Pair volumes with label volumes by their names; issues for what has no partner."""
    for images, labels in _pairs_of_folders(folder):
        volumes: dict[str, list[str]] = {}
        for name in folder.files(images, SUFFIXES):
            volumes.setdefault(_stem(name), []).append(join(images, name))
        channels: dict[str, list[str]] = {}
        for key in sorted(volumes):
            if _CHANNEL.search(key):
                channels.setdefault(_CHANNEL.sub("", key), []).append(key)
        issues, cases, used = [], [], set()
        for name in folder.files(labels, SUFFIXES):
            keys = [_stem(name), _LABEL_END.sub("", _stem(name))]
            plain = next((key for key in keys if key in volumes), None)
            numbered = next((channels[key] for key in keys if key in channels), [])
            found = [plain] if plain else numbered
            used.update(found)
            if found:
                cases.append(_Case(keys[-1], tuple(volumes[key][0] for key in found), join(labels, name)))
            else:
                issues.append(
                    wrong_file(join(labels, name), f"it has no volume in {images}/", "add it or remove the label")
                )
        unlabelled = [volumes[key][0] for key in sorted(volumes.keys() - used)]
        issues += [
            wrong_file(v, f"it has no label volume in {labels}/", "add it or remove the volume") for v in unlabelled
        ]
        if cases:
            return cases, issues
    names = {_stem(name): name for name in folder.files("", SUFFIXES)}
    pairs = [(key, _LABEL_END.sub("", key)) for key in names if _LABEL_END.search(key)]
    return [_Case(own, (names[own],), names[key]) for key, own in pairs if own in names], []


def _pairs_of_folders(folder: SetFolder) -> Iterator[tuple[str, str]]:
    yield "imagesTr", "labelsTr"
    names = folder.folders()
    for images in (name for name in names if name.lower() in IMAGE_FOLDERS):
        for labels in (name for name in names if name.lower() in MASK_FOLDERS):
            yield images, labels


def _stem(name: str) -> str:
    return re.sub(r"\.nii(\.gz)?$", "", name, flags=re.IGNORECASE)


@dataclass(frozen=True)
class _Header:
    shape: tuple[int, int, int]  # turned to the standard directions
    channels: int
    axis: int
    affine: NDArray[np.float64]


def _open(folder: SetFolder, name: str) -> Any:
    """Open a volume without its voxels. InputError where its header is none or claims too much."""
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError

    path = folder.resolve(name)
    if not folder.is_file(name):
        raise InputError("it is no file in this set", "add it")
    try:
        volume = nibabel.load(path)
        shape, dtype = tuple(int(n) for n in volume.shape), volume.get_data_dtype()
    except (*DECODER_ERRORS, HeaderDataError, ImageFileError) as error:
        raise InputError(f"it can't be read as a volume ({_short(error)})", "replace or remove it") from error
    if len(shape) not in (3, 4) or min(shape, default=0) < 1:
        raise InputError(f"its shape is {shape}, not that of a volume with 3 axes, or 4 with channels", "convert it")
    if dtype.kind not in "iuf":
        raise InputError(f"its voxels are '{dtype}', not numbers of one channel", "convert it")
    needed = math.prod(shape) * dtype.itemsize
    if needed > MAX_VOLUME_BYTES:
        size = f"{needed // 2**20} MiB of voxels, more than {MAX_VOLUME_BYTES // 2**20}"
        raise InputError(f"its header claims {size}", "cut or downsample it")
    if not name.lower().endswith(".gz") and os.path.getsize(path) < needed:
        raise InputError(f"it is shorter than the {needed} bytes of voxels its header claims", "replace it")
    return volume


def _header(folder: SetFolder, name: str) -> _Header:
    volume = _open(folder, name)
    turn = _turn(volume.affine)
    shape = [0, 0, 0]
    for source, (target, _) in enumerate(turn):
        shape[int(target)] = int(volume.shape[source])
    spacing = _spacing(volume.affine, turn)
    axis = int(np.argmax(spacing)) if max(spacing) > 1.01 * sorted(spacing)[1] else 2
    return _Header(
        (shape[0], shape[1], shape[2]), volume.shape[3] if len(volume.shape) == 4 else 1, axis, volume.affine
    )


def _turn(affine: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return for each axis which standard axis it is and whether it runs the other way, as nibabel writes it."""
    from nibabel.orientations import io_orientation

    as_stored = np.array([[0, 1], [1, 1], [2, 1]], np.float64)
    if not np.isfinite(affine).all():
        return as_stored
    turn: NDArray[np.float64] = io_orientation(affine)
    return turn if np.isfinite(turn).all() else as_stored


def _spacing(affine: NDArray[np.float64], turn: NDArray[np.float64]) -> tuple[float, float, float]:
    lengths = np.sqrt((np.nan_to_num(affine[:3, :3]) ** 2).sum(0))
    spacing = [1.0, 1.0, 1.0]
    for source, (target, _) in enumerate(turn):
        spacing[int(target)] = float(lengths[source]) or 1.0
    return spacing[0], spacing[1], spacing[2]


def _disagree(case: _Case, headers: list[_Header]) -> str:
    *images, label = headers
    if label.channels != 1:
        return f"a label volume has one channel, this has {label.channels}"
    for name, image in zip(case.images, images, strict=True):
        if image.shape != label.shape:
            return f"the label is {label.shape} voxels, {name} {image.shape}"
        if not np.allclose(image.affine, label.affine, rtol=1e-3, atol=1e-2, equal_nan=True):
            return f"by its affine the label is elsewhere than {name}"
    return ""


def _voxels(folder: SetFolder, name: str, *, scaled: bool) -> tuple[NDArray[Any], int]:
    """Return all voxels (3 or 4 axes), turned, as stored or ``scaled`` by the header; and the sign of its slope."""
    from nibabel.orientations import apply_orientation

    volume = _open(folder, name)
    try:
        stored = np.asanyarray(volume.dataobj) if scaled else np.asanyarray(volume.dataobj.get_unscaled())
        sign = -1 if volume.dataobj.slope < 0 else 1
    except (*DECODER_ERRORS, gzip.BadGzipFile) as error:
        raise InputError(f"its voxels can't be decoded ({_short(error)})", "replace or remove it") from error
    return apply_orientation(stored, _turn(volume.affine)), sign


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__


class _Slices:
    """Cuts slices out of volumes; the voxels of one volume, windowed, and of its label are held."""

    def __init__(
        self, folder: SetFolder, cases: dict[str, _Case], to_ids: Callable[[NDArray[Any]], NDArray[np.uint8]]
    ) -> None:
        self._folder, self._cases, self._to_ids = folder, cases, to_ids
        self._held = ""
        self._error: InputError | None = None
        self._axis = 2
        self._channels: list[tuple[NDArray[Any], int, float, float]] = []
        self._label: NDArray[Any] = np.zeros(0)

    def load(self, row: Row) -> Loaded:
        if self._held != row.mask:
            self._held, self._error = row.mask, None
            self._channels, self._label = [], np.zeros(0)
            try:
                self._open(self._cases[row.mask])
            except InputError as error:  # said once for every slice, decoded once
                self._error = error
        if self._error is not None:
            raise self._error
        planes = [apply_window(sign * self._plane(voxels, row.part), *w) for voxels, sign, *w in self._channels]
        label = about(row.mask, lambda: self._to_ids(self._plane(self._label, row.part)))
        return Loaded(encode_png(np.stack(planes, axis=2)), ".png", label)

    def _open(self, case: _Case) -> None:
        self._axis = about(case.label, _header, self._folder, case.label).axis
        for name in case.images[:3]:
            voxels, sign = about(name, _voxels, self._folder, name, scaled=False)
            layers = [voxels] if voxels.ndim == 3 else [voxels[..., n] for n in range(min(3, voxels.shape[3]))]
            self._channels += [(layer, sign, *_window(layer, sign)) for layer in layers]
        self._channels = self._channels[:3] if len(self._channels) >= 3 else self._channels[:1]
        label = about(case.label, _voxels, self._folder, case.label, scaled=True)[0]
        self._label = label if label.ndim == 3 else label[..., 0]

    def _plane(self, voxels: NDArray[Any], index: int) -> NDArray[Any]:
        return np.ascontiguousarray(np.take(voxels, index, axis=self._axis).T[::-1])


def _window(voxels: NDArray[Any], sign: int) -> tuple[float, float]:
    """Return the lowest and highest value of the window of WINDOW_PERCENT, of all or, in large volumes, every n-th."""
    flat = voxels.reshape(-1)[:: math.ceil(voxels.size / SAMPLED)]
    values = sign * flat.astype(np.float32)
    values = values[np.isfinite(values)]
    if not values.size:
        return 0.0, 0.0
    low, high = np.percentile(values, WINDOW_PERCENT)
    return float(low), float(high)


def _classes(
    folder: SetFolder, cases: list[_Case], info: DatasetInfo | None
) -> tuple[tuple[ClassInfo, ...], Callable[[NDArray[Any]], NDArray[np.uint8]], list[str], str]:
    """Return classes, how label values become their ids, notes and licence."""
    if folder.is_file("dataset.json"):
        names, license_ = _described(folder)
        labels = sorted(value for value, name in names.items() if name.lower() != "ignore")
        ignored = [value for value, name in names.items() if name.lower() == "ignore"]
        ids = {value: index for index, value in enumerate(labels)} | dict.fromkeys(ignored, IGNORE_ID)
        scheme = Scheme("value", tuple(sorted(ids)), tuple(ids[value] for value in sorted(ids)))
        return named([names[value] for value in labels]), lambda plane: scheme.to_ids(_whole(plane)), [], license_
    if info is not None:
        return info.classes, lambda plane: ids_by_info(_whole(plane), info), [], ""
    census, wrong = Census(), ""
    for case in cases:
        try:
            label = _voxels(folder, case.label, scaled=True)[0]
            census.add(_whole(label.reshape(label.shape[0], -1)))
        except InputError as error:  # found again, and said, when its slices are loaded
            wrong = wrong or f"{case.label}: {error}"
    if wrong and not census.values:
        raise InputError("no label volume can be read", f"the first is {wrong}")
    scheme, said = census.propose()
    return scheme.classes, lambda plane: scheme.to_ids(_whole(plane)), [said], ""


def _whole(labels: NDArray[Any]) -> RawMask:
    if labels.dtype.kind == "f" and not (np.isfinite(labels).all() and (labels == np.rint(labels)).all()):
        raise InputError("its labels are not whole numbers", "export class ids")
    if labels.size and (labels.min() < 0 or labels.max() > _TOP):
        raise InputError(f"its labels run from {labels.min()} to {labels.max()}", "class ids start at 0")
    return RawMask(labels.astype(np.int32), top=_TOP)


def _described(folder: SetFolder) -> tuple[dict[int, str], str]:
    """Return label value -> name, and the licence, of dataset.json, the Decathlon's way around or nnU-Net's."""
    path = folder.resolve("dataset.json")
    if path.stat().st_size > MAX_JSON_BYTES:
        raise InputError(f"dataset.json has more than {MAX_JSON_BYTES // 2**20} MiB", "it is no description of volumes")
    try:
        content = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise InputError(f"dataset.json is not valid JSON ({_short(error)})", "correct it") from error
    labels = content.get("labels") if isinstance(content, dict) else None
    if not isinstance(labels, dict) or not labels:
        raise InputError("dataset.json has no labels like {'0': 'background', '1': 'liver'}", "add them")
    names: dict[int, str] = {}
    for key, value in labels.items():
        number, name = (value, key) if isinstance(value, int) else (key, value)
        if not isinstance(name, str) or not re.fullmatch(r"\d{1,5}", str(number)) or int(number) in names:
            raise InputError(
                f"dataset.json: label {key!r}: {value!r} is no number with a name of its own", "correct it"
            )
        names[int(number)] = name
    license_ = next((content[key] for key in ("licence", "license") if isinstance(content.get(key), str)), "")
    return names, license_
