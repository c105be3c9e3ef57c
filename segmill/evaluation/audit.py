"""Label audit: where confident predictions of a model that never saw a sample contradict its label."""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import DatasetInfo, manifest_info, read_manifest, row_part
from segmill.data.storage.images import read_image, read_mask
from segmill.ensembling.predict import Ensemble, Image, PredictsProbs, Probs, batches
from segmill.errors import InputError
from segmill.evaluation.audit_job import Source
from segmill.metrics.counts import confusion_counts

if TYPE_CHECKING:
    import pyarrow

Mask = NDArray[np.uint8]
Thing = TypeVar("Thing")

# The boundary that models and labels place differently: this share of the image's diagonal, to either side.
TOLERANCE = 0.005
# How much a model's own habit of taking one class for another counts against a region.
HABIT = 10
# Samples below are not suspicious: of the planted faults in docs/log.md the weakest had 0.14.
LEAST_SCORE = 0.1
# Mean probability of a class over its own pixels below which a model does not know it.
UNKNOWN_BELOW = 0.5
# What is kept, however large the set is.
MAX_SAMPLES = 5_000
MAX_REGIONS = 20  # of one sample
# Samples that a source's class norms are taken from, spread evenly over it.
NORM_SAMPLES = 200
READ_AT_ONCE = 16
ROUNDING = 1e-6  # a model that is always equally sure reaches its own mean
_COLUMNS = ["id", "group", "split"] + [
    f"{kind}{what}" for kind in ("image", "mask") for what in ("", "_file", "_offset", "_bytes")
]


@dataclass(frozen=True)
class ClassNorms:
    """What is usual for each class, as one model sees it.

    Attributes:
        confidence_K: mean probability of class k over the pixels labelled k: from there on a prediction of k is
            confident (the thresholds t_k of confident learning). NaN where no pixel is labelled so.
        share_K: mean share of an image's labelled pixels that k covers, over the images that hold it; NaN likewise.
        mistaken_KK: mean share that is labelled g and predicted s (row g, column s), over the images that hold g.
    """

    confidence_K: NDArray[np.float64]
    share_K: NDArray[np.float64]
    mistaken_KK: NDArray[np.float64]


@dataclass(frozen=True)
class Region:
    """Connected pixels of one class that the model confidently takes for another.

    ``x, y, width, height``: its box in px of the original image. ``confidence``: mean probability of ``suggested``.
    ``score``: 0..1, see ``find_regions``.
    """

    given: int
    suggested: int
    x: int
    y: int
    width: int
    height: int
    pixels: int
    confidence: float
    score: float


@dataclass(frozen=True)
class Suspect:
    """A sample of LEAST_SCORE or more, its regions highest score first. ``image`` and ``mask`` name its files."""

    id: str
    split: str
    group: str
    image: str
    mask: str
    score: float
    regions: tuple[Region, ...]


@dataclass(frozen=True)
class Evidence:
    """What a suspect is drawn from: image HWC and label HW uint8, the predicted ids and the region pixels, HW."""

    image_HWC: Image
    label_HW: Mask
    predicted_HW: Mask
    flagged_HW: NDArray[np.bool_]


@dataclass(frozen=True)
class Audited:
    """What an audit found: ``suspects`` by falling score, ``evidence`` of the first of them by id."""

    info: DatasetInfo
    suspects: list[Suspect]
    evidence: dict[str, Evidence]
    samples: dict[str, int]  # split: how many were looked at
    suspicious: int  # how many reach LEAST_SCORE, also those beyond MAX_SAMPLES
    unknown: list[str]  # classes that a model does not know: of these nothing lost is found


def audit(
    sources: Sequence[Source],
    raw_dir: Path,
    manifest_path: Path,
    *,
    draw: int,
    border_crop_px: tuple[int, int, int, int] = (0, 0, 0, 0),
    on_progress: Callable[[int, int], None] = lambda done, total: None,
) -> Audited:
    """Ask each source's model about its samples, at original size, and rank what contradicts the labels.

    Memory does not grow with the set: images stream, and only the MAX_SAMPLES highest scores are kept.

    Args:
        sources: no model may have trained on the samples it is asked about.
        raw_dir: the labelled set.
        manifest_path: its manifest.
        draw: suspects whose pixels are kept to be drawn.
        border_crop_px: top, bottom, left, right that training never saw; not looked at here either.
        on_progress: called with samples done and samples in all.

    Raises:
        InputError: a model knows other classes than the set, or a file can't be read.
    """
    table = read_manifest(manifest_path)
    info = manifest_info(table)
    kept: Largest[Suspect] = Largest(MAX_SAMPLES)
    drawn: Largest[tuple[str, Evidence]] = Largest(draw)
    samples: dict[str, int] = {}
    suspicious = 0
    unknown_K = np.zeros(info.num_classes, bool)
    chosen = [(source, _rows(table, source)) for source in sources]
    total = sum(rows.num_rows for _, rows in chosen)
    for source, rows in chosen:
        model = _load(source.model, info)
        some = _predicted(model, _spread(rows), raw_dir, border_crop_px, info)
        pairs = ((probs, label) for _, _, label, probs in some)
        norms = class_norms(pairs, info.num_classes, info.ignore_id)
        unknown_K |= norms.confidence_K < UNKNOWN_BELOW
        for row, image, label, probs in _predicted(model, rows, raw_dir, border_crop_px, info):
            regions, flagged = find_regions(probs, label, norms, info.ignore_id)
            if (score := sample_score(regions)) >= LEAST_SCORE:
                names = {name: row[name] for name in ("id", "split", "group", "image", "mask")}
                suspicious += 1
                kept.add(score, Suspect(**names, score=score, regions=tuple(regions[:MAX_REGIONS])))
                if drawn.takes(score):
                    predicted = probs.argmax(axis=0).astype(np.uint8)
                    drawn.add(score, (row["id"], Evidence(image, label, predicted, flagged)))
            samples[row["split"]] = samples.get(row["split"], 0) + 1
            on_progress(sum(samples.values()), total)
    unknown = [name for name, missed in zip(info.class_names, unknown_K, strict=True) if missed]
    return Audited(info, kept.falling(), dict(drawn.falling()), samples, suspicious, unknown)


def class_norms(pairs: Iterable[tuple[Probs, Mask]], num_classes: int, ignore_id: int) -> ClassNorms:
    """Take the norms from pairs of held-out probs_KHW float32 and label_HW uint8, one pair in memory at a time."""
    confidence_K, pixels_K = np.zeros(num_classes), np.zeros(num_classes, np.int64)
    shares_KK, images_K = np.zeros((num_classes, num_classes)), np.zeros(num_classes, np.int64)
    for probs_KHW, label_HW in pairs:
        labelled = label_HW != ignore_id
        ids_P = label_HW[labelled].astype(np.intp)
        given_P = np.take_along_axis(probs_KHW[:, labelled], ids_P[None], axis=0)[0]
        confidence_K += np.bincount(ids_P, weights=given_P, minlength=num_classes)
        counts_KK = confusion_counts(label_HW, probs_KHW.argmax(axis=0), num_classes, ignore_id)
        pixels_K += counts_KK.sum(axis=1)
        shares_KK += counts_KK / max(len(ids_P), 1)
        images_K += counts_KK.any(axis=1)
    with np.errstate(invalid="ignore"):
        shares_KK /= images_K[:, None]
        return ClassNorms(confidence_K / pixels_K, shares_KK.sum(axis=1), shares_KK)


def find_regions(
    probs_KHW: Probs, label_HW: Mask, norms: ClassNorms, ignore_id: int
) -> tuple[list[Region], NDArray[np.bool_]]:
    """Return the regions of confident disagreement, highest score first, and their pixels as one mask HW.

    A pixel labelled g counts as s != g where p_s reaches the class's usual confidence t_s and p_g: confident learning
    (Northcutt, Jiang & Chuang 2021, JAIR 70), by pixel as Lad & Mueller 2023 (arXiv:2307.05080) use it for
    segmentation. They then score an image by the soft minimum of p_g over its pixels, which a few pixels along
    any boundary decide. Here a pixel is dropped where both the label has s and the prediction has g within TOLERANCE:
    the two only draw their common boundary differently. What is left is cut into connected regions of one (g, s),
    and a region scores

        mean of (p_s - p_g) / t_s, at most 1, times n / (n + m + HABIT h)

    with n its pixels, m the usual pixels of the smaller of the two classes in an image that holds it, so that a lost
    pedestrian weighs what a lost house does, and the fringe of a house nothing; and h the pixels of g that this model
    usually takes for s in an image, so that what it never learned to tell apart stays behind.

    Args:
        probs_KHW: float32, of a model that never saw the sample.
        label_HW: uint8 class ids, or ``ignore_id``.
        norms: of the same model.
        ignore_id: pixels labelled so are left out.
    """
    labelled_HW = label_HW != ignore_id
    given_HW = np.where(labelled_HW, label_HW, 0).astype(np.intp)
    confident_K = (norms.confidence_K - ROUNDING).astype(np.float32)
    eligible_KHW = np.where(probs_KHW >= confident_K[:, None, None], probs_KHW, 0)
    suggested_HW = eligible_KHW.argmax(axis=0)
    suggested_p_HW = np.take_along_axis(eligible_KHW, suggested_HW[None], axis=0)[0]
    given_p_HW = np.take_along_axis(probs_KHW, given_HW[None], axis=0)[0]
    contested_HW = labelled_HW & (suggested_HW != given_HW) & (suggested_p_HW > given_p_HW)
    flagged_HW = np.zeros(label_HW.shape, bool)
    if not contested_HW.any():
        return [], flagged_HW

    tolerance_px = max(1, round(TOLERANCE * math.hypot(*label_HW.shape)))
    near_label = _Near(label_HW, tolerance_px)
    near_predicted = _Near(probs_KHW.argmax(axis=0), tolerance_px)
    gain_HW = np.minimum((suggested_p_HW - given_p_HW) / norms.confidence_K[suggested_HW], 1)
    labelled_pixels = labelled_HW.sum()
    regions = []
    pairs = np.unique(given_HW[contested_HW] * len(probs_KHW) + suggested_HW[contested_HW])
    for given, suggested in (divmod(int(pair), len(probs_KHW)) for pair in pairs):
        pair_HW = contested_HW & (given_HW == given) & (suggested_HW == suggested)
        pair_HW &= ~(near_label[suggested] & near_predicted[given])
        # A class that none of the norms' samples was labelled as has neither a usual size nor a habit.
        smaller = np.fmin(norms.share_K[given], norms.share_K[suggested])
        usual = labelled_pixels * (smaller + HABIT * np.nan_to_num(norms.mistaken_KK[given, suggested]))
        for box, inside_hw in _components(pair_HW, least=(2 * tolerance_px + 1) ** 2):
            pixels = int(inside_hw.sum())
            flagged_HW[box] |= inside_hw
            regions.append(
                Region(
                    given,
                    suggested,
                    x=box[1].start,
                    y=box[0].start,
                    width=box[1].stop - box[1].start,
                    height=box[0].stop - box[0].start,
                    pixels=pixels,
                    confidence=float(suggested_p_HW[box][inside_hw].mean()),
                    score=float(gain_HW[box][inside_hw].mean() * pixels / (pixels + usual)),
                )
            )
    return sorted(regions, key=lambda region: -region.score), flagged_HW


def sample_score(regions: Sequence[Region]) -> float:
    """Return 1 - the product of (1 - score) over a sample's regions: several faults weigh more than one."""
    return 1 - math.prod(1 - region.score for region in regions)


class Largest(Generic[Thing]):
    """The things with the ``most`` highest scores of all that were added; of equal ones the first."""

    def __init__(self, most: int) -> None:
        self._most = most
        self._added = 0
        self._heap: list[tuple[float, int, Thing]] = []

    def takes(self, score: float) -> bool:
        """Tell whether a thing of this score would be kept."""
        return len(self._heap) < self._most or bool(self._heap and score > self._heap[0][0])

    def add(self, score: float, thing: Thing) -> None:
        if self.takes(score):
            self._added += 1
            change = heapq.heappush if len(self._heap) < self._most else heapq.heapreplace
            change(self._heap, (score, -self._added, thing))

    def falling(self) -> list[Thing]:
        """Return what was kept, highest score first."""
        return [thing for _, _, thing in sorted(self._heap, key=lambda entry: entry[:2], reverse=True)]


class _Near(dict[int, NDArray[np.bool_]]):
    """By class: the pixels that have one of it within ``distance_px``; made when first asked for."""

    def __init__(self, ids_HW: NDArray[Any], distance_px: int) -> None:
        super().__init__()
        self._ids_HW, self._distance_px = ids_HW, distance_px

    def __missing__(self, class_id: int) -> NDArray[np.bool_]:
        import cv2

        side = 2 * self._distance_px + 1
        kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (side, side))
        self[class_id] = cv2.dilate((self._ids_HW == class_id).astype(np.uint8), kernel).astype(bool)
        return self[class_id]


def _components(pixels_HW: NDArray[np.bool_], least: int) -> Iterator[tuple[tuple[slice, slice], NDArray[np.bool_]]]:
    """Yield box and pixels in the box of each 8-connected component with ``least`` pixels or more."""
    import cv2

    _, number_HW, stats, _ = cv2.connectedComponentsWithStats(pixels_HW.astype(np.uint8), connectivity=8)
    for number in np.flatnonzero(stats[:, cv2.CC_STAT_AREA] >= least):
        if number:  # 0 is what belongs to no component
            x, y, width, height = (int(value) for value in stats[number, :4])
            box = slice(y, y + height), slice(x, x + width)
            yield box, number_HW[box] == number


def _rows(table: pyarrow.Table, source: Source) -> pyarrow.Table:
    import pyarrow as pa
    import pyarrow.compute as pc

    chosen = pc.is_in(table["split"], pa.array(source.splits))
    if source.groups is not None:
        chosen = pc.and_(chosen, pc.is_in(table["group"], pa.array(sorted(source.groups), pa.string())))
    return table.filter(chosen).select(_COLUMNS)


def _spread(rows: pyarrow.Table) -> pyarrow.Table:
    """Return at most NORM_SAMPLES of the rows, evenly spread."""
    count = min(NORM_SAMPLES, rows.num_rows)
    return rows.take(np.linspace(0, rows.num_rows - 1, count).round().astype(np.int64))


def _load(folder: Path, info: DatasetInfo) -> PredictsProbs:
    if not (folder / "ensemble.json").is_file():
        from segmill.models.loading import load_member

        return load_member(folder)
    ensemble = Ensemble.load(folder)
    known = [entry["name"] for entry in ensemble.facts["classes"]]
    if known != list(info.class_names):
        raise InputError(
            f"The ensemble knows the classes {known}, the data {list(info.class_names)}; run `segmill retrain` first."
        )
    return ensemble


def _predicted(
    model: PredictsProbs,
    rows: pyarrow.Table,
    raw_dir: Path,
    border_crop_px: tuple[int, int, int, int],
    info: DatasetInfo,
) -> Iterator[tuple[dict[str, Any], Image, Mask, Probs]]:
    """Yield each row with its image HWC, its label HW and what the model makes of it, probs_KHW."""
    waiting: deque[tuple[dict[str, Any], Mask]] = deque()

    def images() -> Iterator[Image]:
        with ThreadPoolExecutor(READ_AT_ONCE) as threads:
            for batch in rows.to_batches(max_chunksize=READ_AT_ONCE):
                read = threads.map(
                    lambda row: (row, *_read(raw_dir, row, border_crop_px, info.ignore_id)), batch.to_pylist()
                )
                for row, image, label in read:
                    waiting.append((row, label))
                    yield image

    for image_BHWC in batches(images()):
        for image_HWC, probs_KHW in zip(image_BHWC, model.predict_probs(image_BHWC), strict=True):
            row, label_HW = waiting.popleft()
            yield row, image_HWC, label_HW, probs_KHW


def _read(
    raw_dir: Path, row: dict[str, Any], border_crop_px: tuple[int, int, int, int], ignore_id: int
) -> tuple[Image, Mask]:
    image, label = read_image(row_part(row, "image").read(raw_dir)), read_mask(row_part(row, "mask").read(raw_dir))
    top, bottom, left, right = border_crop_px
    height, width = label.shape
    seen = np.zeros(label.shape, bool)
    seen[top : height - bottom, left : width - right] = True
    return np.repeat(image, 3, axis=2) if image.shape[2] == 1 else image, np.where(seen, label, np.uint8(ignore_id))
