"""Runs a registered version in a process of its own: its predictions, and its counts on a packed split."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from segmill.anomaly.detector import FACTS
from segmill.credentials import without_credentials
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.data.packing.sealed import SplitPart, open_part, sealed_part, sealed_rows
from segmill.data.schema.manifest import IGNORE_ID
from segmill.ensembling.predict import batches
from segmill.errors import InputError, SegmillError
from segmill.files import replacing
from segmill.metrics.counts import confusion_counts
from segmill.promotion.class_map import CommonClasses, common_classes
from segmill.promotion.keys import TrustedKeys
from segmill.promotion.registry import known_classes
from segmill.promotion.score_job import ScoreJob
from segmill.promotion.signing import ENSEMBLE
from segmill.promotion.versions import verified_copy

Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Replayed:
    """A version in a process of its own.

    Attributes:
        detects: whether it has an anomaly detector.
    """

    _process: subprocess.Popen[bytes]
    detects: bool

    def __call__(self, image_BHWC: Images) -> Images:
        """Return ids_BHW uint8 for image_BHWC uint8, C = 3."""
        return self._ask(image_BHWC, anomaly=False)[0]

    def judged(self, image_BHWC: Images) -> tuple[Images, list[dict[str, Any] | None]]:
        """Return ids_BHW, and of each image ``score``, ``p_value`` and ``abstain``; None where nothing detects."""
        ids_BHW, found = self._ask(image_BHWC, anomaly=self.detects)
        if found is None:
            return ids_BHW, [None] * len(ids_BHW)
        return ids_BHW, [{name: values[number] for name, values in found.items()} for number in range(len(ids_BHW))]

    def _ask(self, image_BHWC: Images, *, anomaly: bool) -> tuple[Images, dict[str, list[Any]] | None]:
        """Send images and return what comes back; BrokenPipeError or EOFError where the process has ended."""
        process = self._process
        assert process.stdin and process.stdout
        process.stdin.write(json.dumps({"shape": image_BHWC.shape, "anomaly": anomaly}).encode() + b"\n")
        process.stdin.write(image_BHWC.tobytes())
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise EOFError
        facts = json.loads(line)
        content = process.stdout.read(math.prod(facts["shape"]))
        return np.frombuffer(content, np.uint8).reshape(facts["shape"]), facts["anomaly"]


@contextmanager
def loaded(uri: str, model_name: str, version: str, trusted: TrustedKeys) -> Iterator[Replayed]:
    """Load a version in a process of its own; yield what predicts with it.

    It loads as a server loads it: with its own code and weights, from a private copy that was verified. Versions never
    share a process, since MLflow gives the second the modules of the first.

    Raises:
        SignatureError, InputError, InfrastructureError: as for ``versions.fetch_verified``.
        SegmillError: the version does not load or fails to predict; the message holds what it said last.
    """
    with verified_copy(uri, model_name, version, trusted) as folder, running(folder, model_name, version) as predict:
        yield predict


@contextmanager
def running(folder: Path, model_name: str, version: str) -> Iterator[Replayed]:
    """Load a version as ``loaded`` does, from the verified copy ``folder``; it is loaded when the block begins.

    Raises SegmillError where it does not load or fails to predict.
    """
    with tempfile.TemporaryFile() as complaints:
        process = subprocess.Popen(
            [sys.executable, "-P", str(Path(__file__).with_name("replay.py")), str(folder)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=complaints,
            env=without_credentials() | {"PYTHONDONTWRITEBYTECODE": "1"},  # a model's code opens nothing
        )
        try:
            assert process.stdout
            if not process.stdout.readline():
                raise EOFError
            yield Replayed(process, (folder / ENSEMBLE / FACTS).is_file())
        except (BrokenPipeError, EOFError) as error:
            process.wait()
            complaints.seek(0)
            said = complaints.read().decode(errors="replace").strip().splitlines() or ["it said nothing"]
            raise SegmillError(
                f"Version {version} of {model_name} did not predict: {said[-1]} "
                f"(see it whole with segmill.load('models:/{model_name}/{version}'))"
            ) from error
        finally:
            process.kill()
            process.communicate()


def score_registered(job: ScoreJob) -> list[NDArray[np.int64]]:
    """Return the N x K x K counts of the job's version on its images of each split, in the split's order.

    Where the version knows other classes than the data, they are N x C x C on the classes that both have, as
    ``class_map.common_classes`` has them, and no prediction is kept: its ids are of another class map.

    Raises:
        InputError: a split or that part of it is empty, or the version knows other classes than the data and
            ``job.former_classes`` does not say what became of them.
        SignatureError, InfrastructureError, SegmillError: as for ``loaded``.
    """
    info, parts = read_pack(job.packed_dir), [scored_part(job, split) for split in job.splits]
    all_images = job.images or [range(len(samples)) for samples in parts]
    known = known_classes(job.uri, job.model_name, job.version)
    common = _common(job, info, known)
    kept = job.predictions_path if known == info.class_names else None
    found = []
    with loaded(job.uri, job.model_name, job.version, job.trusted) as predict:
        for number, (samples, images) in enumerate(zip(parts, all_images, strict=True)):
            sealed_N = sealed_rows(samples.groups, job.sealed)
            open_number_N = np.cumsum(~sealed_N) - 1
            counts: list[NDArray[np.int64]] = []
            with _keeping(kept if number == 0 else None) as keep:
                for image_BHWC in batches(samples.image(index) for index in images):
                    for ids_HW in predict(image_BHWC):
                        index = images[len(counts)]
                        if not sealed_N[index]:
                            keep(str(open_number_N[index]), ids_HW)
                        counts.append(_counts(samples.mask(index), ids_HW, info, len(known)))
            found.append(common.of_known(np.stack(counts)))
    return found


def _common(job: ScoreJob, info: PackInfo, known: tuple[str, ...]) -> CommonClasses:
    try:
        return common_classes(info.class_names, known, job.former_classes)
    except InputError as error:
        raise InputError(f"Version {job.version} of {job.model_name} can't be compared: {error}") from error


def _counts(truth_HW: Images, ids_HW: Images, info: PackInfo, known: int) -> NDArray[np.int64]:
    """Count pixels by today's true class and the version's own: K x F."""
    most = max(info.num_classes, known)  # 255 at most, so that no class has the id 255
    marked_HW = np.where(truth_HW == info.ignore_id, IGNORE_ID, truth_HW)
    return confusion_counts(marked_HW, ids_HW, most, IGNORE_ID)[: info.num_classes, :known]


def scored_part(job: ScoreJob, name: str) -> PackedSplit | SplitPart:
    """Return the samples of the split ``name`` that are scored; InputError where there are none."""
    split = PackedSplit(job.packed_dir / name)
    if not len(split):
        raise InputError(f"The {name} split is empty; raise split.{name}, or add data.")
    if job.part == "sealed":
        return sealed_part(split, job.sealed)
    part = open_part(split, job.sealed) if job.part == "open" else split
    if not job.groups:
        return part
    return SplitPart(split, [number for number, group in enumerate(split.groups) if group in job.groups])


@contextmanager
def _keeping(path: Path | None) -> Iterator[Callable[[str, Images], None]]:
    """Yield what adds an array to the npz file ``path``, so that one array at a time is in memory."""
    if path is None:
        yield lambda name, array: None
        return
    with replacing(path, durable=False) as draft, zipfile.ZipFile(draft, "w", zipfile.ZIP_DEFLATED) as archive:

        def keep(name: str, array: Images) -> None:
            with archive.open(f"{name}.npy", "w") as file:
                np.save(file, array)

        yield keep
