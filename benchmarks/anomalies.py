"""What the anomaly detector of a workspace's ensemble promises and finds, on images that it was not made with.

    python benchmarks/anomalies.py WORKSPACE [--other FOLDER ...] [--resamples 200] [--years 200] [--streams 100]

1. False alarms: each resample draws which of the calibration and test groups calibrate and which one is judged, by an
   image of it; alarms are counted against the band of the binomial distribution (99 %).
2. Stream: years of scores like those of the calibration groups, and how many of them raise an alarm at any time.
3. Stream: streams of test images of which all are corrupted from some image on; how many raise an alarm within 100.
4. Detection: AUROC, average precision (AUPR) and false positives at 95 % true positives by corruption and severity, and
   of the images of other folders, against all test images.

Scores are those of the detector's own score; nothing is fitted here.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.stats import binom

from segmill.anomaly.corruptions import KINDS, SEVERITIES, corrupt
from segmill.data.packing.calibration import CALIBRATION
from segmill.data.packing.packed import PackedSplit
from segmill.data.storage.images import read_image
from segmill.ensembling.predict import Ensemble
from segmill.evaluation.detection import figures, scores_of
from segmill.metrics.conformal import groups_needed, usual_scores
from segmill.monitoring.shift import ShiftTest

Scores = NDArray[np.float64]
WITHIN = 100


def by_group(scores: Scores, groups: list[str]) -> list[Scores]:
    return [scores[[at for at, its in enumerate(groups) if its == group]] for group in dict.fromkeys(groups)]


def false_alarms(groups: list[Scores], rate: float, resamples: int) -> None:
    """Print how often the image of a group that did not calibrate raises an alarm."""
    random, alarms = np.random.default_rng(0), 0
    calibrating = min(len(groups) - 1, max(groups_needed(rate), (len(groups) - 1) // 2))
    for _ in range(resamples):
        order = random.permutation(len(groups))
        chosen = [groups[at] for at in order[:calibrating]]
        names = [str(number) for number, one in enumerate(chosen) for _ in one]
        judged = random.choice(groups[order[calibrating]])
        alarms += float(usual_scores(np.concatenate(chosen), names).p_values(judged)) <= rate
    low, high = binom.ppf([0.005, 0.995], resamples, rate)
    print(
        f"false alarms at a rate of {rate:g}: {alarms} of {resamples} resamples of {len(groups)} groups, "
        f"{calibrating} calibrating; the band is {low:.0f} .. {high:.0f}"
    )


def quiet_years(usual: Scores, years: int, images: int) -> None:
    """Print how many streams without a change raise an alarm at any time."""
    random, alarms, began = np.random.default_rng(1), 0, time.perf_counter()
    for year in range(years):
        drawn = random.choice(usual, len(usual) + images) + 1e-3 * usual.std() * random.normal(size=len(usual) + images)
        test = ShiftTest(drawn[: len(usual)].tolist(), seed=year)
        test.add_all(drawn[len(usual) :])
        alarms += test.alarm_at is not None
    print(f"stream without a change: {alarms} of {years} years of {images:,} images raise an alarm (at most 5 % may) "
          f"[{time.perf_counter() - began:.0f} s]")  # fmt: skip


def detected(usual: Scores, clean: Scores, changed: Scores, streams: int) -> tuple[int, float]:
    """Return how many streams raise an alarm within 100 images of a change and none before, and after how many."""
    random, found, after = np.random.default_rng(2), 0, []
    for stream in range(streams):
        quiet = int(random.integers(0, 200))
        scores = [*random.choice(clean, quiet), *random.choice(changed, WITHIN)]
        test = ShiftTest(usual.tolist(), seed=stream)
        test.add_all(scores)
        if test.alarm_at is not None and test.alarm_at > quiet:
            found += 1
            after.append(test.alarm_at - quiet)
    return found, float(np.median(after)) if after else float("nan")


def images_of(folder: Path, most: int) -> Iterable[NDArray[np.uint8]]:
    paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in (".png", ".jpg", ".jpeg"))
    for at in np.unique(np.linspace(0, len(paths) - 1, min(most, len(paths))).round().astype(int)):
        image = read_image(paths[at])
        yield np.broadcast_to(image, (*image.shape[:2], 3))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("workspace", type=Path)
    parser.add_argument("--other", type=Path, nargs="*", default=[])
    parser.add_argument("--resamples", type=int, default=200)
    parser.add_argument("--years", type=int, default=200)
    parser.add_argument("--images-a-year", type=int, default=5000)
    parser.add_argument("--streams", type=int, default=100)
    parser.add_argument("--images", type=int, default=40, help="of test that are corrupted, and of each other folder")
    options = parser.parse_args()
    ensemble = Ensemble.load(options.workspace / "models" / "ensemble")
    detector = ensemble.detector
    assert detector, "the ensemble has no detector; name groups in split.calibration"
    packed = options.workspace / "data" / "packed"
    test, calibration = PackedSplit(packed / "test"), PackedSplit(packed / CALIBRATION)
    print(
        f"{options.workspace.name}: {detector.image_score} of {detector.member or 'the ensemble'}, chosen by "
        f"{detector.facts['image_auroc']}; {detector.groups} calibration groups, {len(set(test.groups))} of test"
    )
    clean = scores_of(ensemble, (test.image(at) for at in range(len(test))))
    own = scores_of(ensemble, (calibration.image(at) for at in range(len(calibration))))
    pool = by_group(own, calibration.groups) + by_group(clean, test.groups)
    for rate in (0.05, 0.1, 0.2):
        if groups_needed(rate) < len(pool):
            false_alarms(pool, rate, options.resamples)
    usual = np.asarray(detector.group_scores_G)
    quiet_years(usual, options.years, options.images_a_year)
    print("corruption        severity  AUROC   AUPR    FPR95   found   streams with an alarm within 100, median images")
    spread = np.unique(np.linspace(0, len(test) - 1, min(options.images, len(test))).round().astype(int)).tolist()
    for kind in KINDS:
        for severity in SEVERITIES:
            scores = scores_of(ensemble, (corrupt(test.image(at), kind, severity, seed=at) for at in spread))
            said = figures(detector, clean, scores)
            alarm = ""
            if severity == 3:
                found, after = detected(usual, clean, scores, options.streams)
                alarm = f"{found} of {options.streams}, {after:.0f}"
            print(f"{kind:<18}{severity}         {said['auroc']:.4f}  {said['aupr']:.4f}  {said['fpr95']:.4f}  "
                  f"{said['found']:.4f}  {alarm}", flush=True)  # fmt: skip
    for folder in options.other:
        said = figures(detector, clean, scores_of(ensemble, images_of(folder, options.images)))
        print(f"{folder}: {said}")


if __name__ == "__main__":
    main()
