"""Fits a classical member: sampled pixels of train, selected families of features, an SVM, its calibration."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from segmill.cluster.memory import ran_out_of_memory
from segmill.data.packing.packed import PackedSplit, PackInfo, read_pack
from segmill.errors import InputError
from segmill.metrics import scores
from segmill.metrics.counts import confusion_counts
from segmill.models.backbones import IMAGENET_MEAN, IMAGENET_STD, pretrained_normalisation
from segmill.models.curves import write_curves
from segmill.models.svm.features import FrozenBackbone, all_channels
from segmill.models.svm.member import KernelMachine, SvmMember, SvmSpec, check_svm, save_svm, smoothed
from segmill.models.weights import Weights
from segmill.training.svm.job import SvmJob
from segmill.training.svm.pixels import (
    Channels,
    Draw,
    Pixels,
    columns_of,
    distinct_channels,
    draw_pixels,
    hold_out,
    with_only,
)

# For selecting families and c: large enough to compare them, small enough to fit a dozen times.
TRIAL_PIXELS = 30_000
TRIAL_COMPONENTS = 200
TRIAL_C = (0.1, 1.0, 10.0)
# A family stays where leaving it out costs more mIoU than this: less is noise of the sampled pixels.
LEAST_GAIN = 0.002
PROJECTION_IMAGES = 32
SMOOTH_PX = (0, 2, 4)
SOLVER_STEPS = 80
# Of the time, where it is bounded; the rest is for the fit.
DRAWING = 0.4
CHOOSING = 0.3


def fit_machine(
    fit: Pixels, held: Pixels, *, components: int, gamma: float | None, c: float, seed: int
) -> tuple[KernelMachine, float]:
    """Fit and calibrate; return the machine and the log loss (in nats) of the held-out pixels.

    Its classes are those of ``fit``, ascending, which ``held`` has too. An L2-SVM, each class against the rest, on
    Nyström's map of the RBF kernel; then multinomial logistic regression on the decisions for the held-out pixels,
    weighted as the split's classes are, turns them into probabilities. Both end up in the machine's coefficients.
    Sources: Williams & Seeger 2001 (the map); Platt 1999 (calibration on pixels the SVM has not seen).

    Args:
        components: landmarks of the map, at most one per pixel.
        gamma: of the kernel; None takes 1 over the median squared distance of two standardised pixels.
        c: cost of an error, against half the squared norm of the weights.
    """
    from sklearn.kernel_approximation import Nystroem

    classes = np.unique(fit.labels_P)
    components = min(components, len(fit))
    machine = KernelMachine(fit.features_PC.shape[1], components, len(classes), 1.0)
    deviation, mean = torch.std_mean(fit.features_PC, dim=0, correction=0)
    machine.centre, machine.scale = mean, 1 / deviation
    random = np.random.default_rng(seed)
    if gamma is None:
        pairs = machine.standardised(fit.features_PC[torch.from_numpy(random.integers(len(fit), size=4000))])
        gamma = 1 / float((pairs[:2000] - pairs[2000:]).square().sum(1).median().clamp(min=1e-6))
    machine.gamma = gamma
    chosen = torch.from_numpy(random.choice(len(fit), components, replace=False))
    kernel = Nystroem(kernel="rbf", gamma=gamma, n_components=components, random_state=seed)
    kernel.fit(machine.standardised(fit.features_PC[chosen]).numpy())
    machine.landmarks = torch.from_numpy(kernel.components_).float()
    normalisation_MM = torch.from_numpy(kernel.normalization_).float()

    def mapped(pixels: Pixels) -> Tensor:
        blocks = pixels.features_PC.split(2**14)  # type: ignore[no-untyped-call]
        return torch.cat([machine.similarities(block) @ normalisation_MM.T for block in blocks])

    targets_P = torch.from_numpy(np.searchsorted(classes, fit.labels_P))
    slopes_KM, offsets_K = l2_svm(mapped(fit), targets_P, len(classes), c)
    decisions_PK = (mapped(held) @ slopes_KM.T + offsets_K).double().numpy()
    matrix_KK, bias_K, loss = calibrate(decisions_PK, np.searchsorted(classes, held.labels_P), held.weights_P)
    machine.coefficients = matrix_KK @ slopes_KM @ normalisation_MM
    machine.intercept = matrix_KK @ offsets_K + bias_K
    return machine, loss


def l2_svm(map_PM: Tensor, targets_P: Tensor, classes: int, c: float) -> tuple[Tensor, Tensor]:
    """Return slopes_KM and offsets_K of linear SVMs with squared hinge loss, each class against the rest.

    Minimises (|w|^2 + b^2) / 2 + c sum max(0, 1 - y (w x + b))^2, as sklearn's LinearSVC does, but for all classes at
    once and in float32: LinearSVC copies the map twice in float64, 3 GB for 200,000 pixels and 500 components.
    Sources: Fan et al. 2008, "LIBLINEAR"; Liu & Nocedal 1989 (the solver).
    """
    signs_PK = torch.full((len(map_PM), classes), -1.0)
    signs_PK[torch.arange(len(map_PM)), targets_P] = 1.0
    slopes_KM = torch.zeros(classes, map_PM.shape[1], requires_grad=True)
    offsets_K = torch.zeros(classes, requires_grad=True)
    solver = torch.optim.LBFGS(
        [slopes_KM, offsets_K], max_iter=SOLVER_STEPS, history_size=20, line_search_fn="strong_wolfe"
    )

    def objective() -> Tensor:
        solver.zero_grad()
        margins_PK = signs_PK * (map_PM @ slopes_KM.T + offsets_K)
        errors = (1 - margins_PK).clamp(min=0).square().sum()
        # Per pixel, so that the solver's tolerances mean the same for any number of them.
        value = ((slopes_KM.square().sum() + offsets_K.square().sum()) / 2 + c * errors) / len(map_PM)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    solver.step(objective)  # type: ignore[no-untyped-call]
    return slopes_KM.detach(), offsets_K.detach()


def calibrate(
    decisions_PK: NDArray[np.float64], targets_P: NDArray[np.int64], weights_P: NDArray[np.float64]
) -> tuple[Tensor, Tensor, float]:
    """Return matrix_KK and bias_K such that softmax(matrix @ decisions + bias) are probabilities, and their log loss.

    ``targets_P`` holds each of 0..K-1 at least once.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.metrics import log_loss

    model = LogisticRegression(max_iter=1000).fit(decisions_PK, targets_P, sample_weight=weights_P)
    loss = float(log_loss(targets_P, model.predict_proba(decisions_PK), sample_weight=weights_P))
    matrix_KK, bias_K = (torch.from_numpy(part).float() for part in (model.coef_, model.intercept_))
    if len(model.classes_) == 2:  # sklearn has one row then: how far the second class is above the first
        matrix_KK, bias_K = (torch.cat([torch.zeros_like(part), part]) for part in (matrix_KK, bias_K))
    return matrix_KK, bias_K, loss


def choose_families(
    fit: Pixels, held: Pixels, judges: Pixels, channels: Channels, settings: dict[str, Any], until: float
) -> tuple[Channels, dict[str, dict[str, Any]]]:
    """Leave out families of features, one at a time, that do not help; return what stays and what each is worth.

    Each time the family whose absence costs least is left out, as long as that is no more than LEAST_GAIN. A family's
    gain is the mIoU on ``judges`` (val's pixels) with what stays minus that without the family; for one that was left
    out, what it would have added then; None for one that was never compared: it is alone, or ``until``
    (time.monotonic) had come. Source: Kohavi & John 1997, backward elimination around the classifier itself.
    """
    columns = columns_of(channels)
    classes = np.unique(fit.labels_P)

    def score(families: Sequence[str]) -> float:
        numbers = [number for family in families for number in columns[family]]
        machine, _ = fit_machine(fit.columns(numbers), held.columns(numbers), **settings)
        ids_P = classes[machine(judges.features_PC[:, numbers]).argmax(1).numpy()]
        return weighted_miou(judges, ids_P)

    facts: dict[str, dict[str, Any]] = {
        family: {"channels": len(numbers), "gain": None} for family, numbers in channels.items()
    }
    kept = list(channels)
    best = score(kept) if len(kept) > 1 else 0.0
    while len(kept) > 1 and time.monotonic() < until:
        without = {family: score([other for other in kept if other != family]) for family in kept}
        for family, miou in without.items():
            facts[family]["gain"] = best - miou
        least = max(without, key=lambda family: without[family])
        if best - without[least] > LEAST_GAIN:
            break
        kept.remove(least)
        facts[least]["channels"] = 0
        best = without[least]
    return {family: channels[family] for family in kept}, facts


def weighted_miou(pixels: Pixels, ids_P: NDArray[np.int64]) -> float:
    """Return the mIoU of predicted class ids on a sample, each pixel counted by its weight."""
    classes = int(max(pixels.labels_P.max(), ids_P.max())) + 1
    cells = pixels.labels_P * classes + ids_P
    return scores.miou(np.bincount(cells, pixels.weights_P, minlength=classes**2).reshape(classes, classes))


def score_on_val(
    member: SvmMember, val: PackedSplit, info: PackInfo, on_image: Callable[[int, int], None]
) -> dict[int, float]:
    """Return the val mIoU, at original size, for each width of smoothing in SMOOTH_PX."""
    counts_KK = {smooth_px: np.zeros((info.num_classes,) * 2, np.int64) for smooth_px in SMOOTH_PX}
    for index in range(len(val)):
        image_HWC, truth_HW = np.ascontiguousarray(val.image(index)), val.mask(index)
        probs_KHW = member.raw_probs(image_HWC)
        for smooth_px in SMOOTH_PX:
            ids_HW = smoothed(probs_KHW, image_HWC, smooth_px).argmax(axis=0)
            counts_KK[smooth_px] += confusion_counts(truth_HW, ids_HW, info.num_classes, info.ignore_id)
        on_image(index + 1, len(val))
    return {smooth_px: scores.miou(counts) for smooth_px, counts in counts_KK.items()}


class OnProgress(Protocol):
    """Called with what is going on and, where it is counted, how many of how many are done."""

    def __call__(self, state: str, done: int | None = None, total: int | None = None) -> None: ...


def fit_svm(job: SvmJob, on_progress: OnProgress = lambda state, done=None, total=None: None) -> dict[str, Any]:
    """Fit the classical member, write its folder, and return its metrics.

    ``gamma`` auto is 1 over the median squared distance; ``c`` None is chosen among TRIAL_C on held-out train images.
    ``max_minutes`` bounds drawing and fitting, by fewer pixels, and not the scoring on val.

    Raises:
        InputError: train has fewer than two classes, val has no label, the backbone or its weights can't be reached,
            or the pixels do not fit the memory.
    """
    try:
        return _fit_svm(job, on_progress)
    except (MemoryError, RuntimeError) as error:
        if ran_out_of_memory(error):
            raise InputError(
                f"member {job.name} ran out of memory; lower members.{job.name}.pixels (now {job.settings.pixels}) "
                f"or members.{job.name}.components (now {job.settings.components})"
            ) from error
        raise


def _fit_svm(job: SvmJob, on_progress: OnProgress) -> dict[str, Any]:
    began = time.monotonic()
    own = job.settings
    seconds = 60 * own.max_minutes if own.max_minutes else float("inf")
    on_progress("reading the labels")
    info = read_pack(job.packed_dir)
    train, val = (PackedSplit(job.packed_dir / split) for split in ("train", "val"))
    draws = [
        Draw(split, pixels, num_classes=info.num_classes, seed=own.seed)
        for split, pixels in ((train, own.pixels), (val, TRIAL_PIXELS))
    ]
    try:
        _check_labels(*draws)
        start = check_svm(own.features, own.backbone, own.weights)
    except InputError as fault:
        raise InputError(f"member {job.name}: {fault}") from None
    backbone = own.backbone if "cnn" in own.features else None
    mean, std = pretrained_normalisation(backbone) if backbone else (IMAGENET_MEAN, IMAGENET_STD)
    cnn = None
    if backbone:
        cnn = FrozenBackbone(backbone, mean, std)
        cnn.load_pretrained(start)
        cnn.fit_projections([train.image(index) for index in draws[0].images[:PROJECTION_IMAGES]])
    everything = all_channels(own.features, cnn)
    drawn = draw_pixels(
        train,
        draws[0],
        everything,
        cnn,
        until=began + DRAWING * seconds,
        on_image=partial(on_progress, "drawing pixels"),
    )
    judges = draw_pixels(
        val,
        draws[1],
        everything,
        cnn,
        grayscale=info.grayscale,
        clahe=info.clahe,
        until=time.monotonic() + DRAWING * seconds / 2,
    )

    channels = distinct_channels(drawn, everything)
    drawn, judges = (with_only(pixels, everything, channels) for pixels in (drawn, judges))
    gamma = None if own.gamma == "auto" else own.gamma
    settings: dict[str, Any] = {"components": min(TRIAL_COMPONENTS, own.components), "gamma": gamma, "seed": own.seed}
    few, few_held = hold_out(drawn.some(TRIAL_PIXELS, own.seed), train.groups, own.seed)
    on_progress("choosing features")
    until = time.monotonic() + CHOOSING * seconds
    chosen, families = choose_families(few, few_held, judges, channels, settings | {"c": own.c or TRIAL_C[1]}, until)
    families |= {family: {"channels": 0, "gain": 0.0} for family in own.features if family not in channels}
    drawn, few, few_held = (with_only(pixels, channels, chosen) for pixels in (drawn, few, few_held))

    on_progress("fitting")
    trials_began = time.monotonic()
    trials = TRIAL_C if own.c is None else (own.c,)
    losses = {c: fit_machine(few, few_held, **settings, c=c)[1] for c in trials}
    # A fit takes time in proportion to pixels and components.
    pace = (time.monotonic() - trials_began) / len(trials) / len(few) * own.components / settings["components"]
    left = began + seconds - time.monotonic()
    if left < len(drawn) * pace:
        drawn = drawn.some(max(len(few) // 4, int(left / pace)), own.seed)
    c = min(losses, key=lambda c: losses[c])
    fit, held = hold_out(drawn, train.groups, own.seed)
    machine, loss = fit_machine(fit, held, **settings | {"components": own.components}, c=c)
    machine.cnn = cnn if "cnn" in chosen else None
    spec = SvmSpec(
        name=job.name,
        num_classes=info.num_classes,
        classes=tuple(np.unique(fit.labels_P).tolist()),
        channels=chosen,
        components=len(machine.landmarks),
        gamma=machine.gamma,
        backbone=own.backbone if "cnn" in chosen else None,
        in_channels=info.channels,
        mean=mean,
        std=std,
        grayscale=info.grayscale,
        clahe=info.clahe,
    )
    scoring_began = time.monotonic()
    mious = score_on_val(
        SvmMember(spec, machine, torch.device("cpu")), val, info, partial(on_progress, "scoring on val")
    )
    now = time.monotonic()
    smooth_px = max(mious, key=lambda smooth_px: mious[smooth_px])
    metrics = {
        "val_miou": mious[smooth_px],
        "best_epoch": 1,
        "epochs": 1,
        "families": families,
        "pixels": len(fit),
        "c": c,
        "held_out_log_loss": loss,
    }
    save_svm(
        job.out_dir,
        machine,
        replace(spec, smooth_px=smooth_px),
        weights=start if "cnn" in chosen else Weights("none", None, None),
        params=job.record(),
        data_version=job.data_version,
        metrics=metrics,
    )
    row = {"epoch": 1, "loss": loss, "val_miou": mious[smooth_px]}
    write_curves(job.out_dir / "curves.csv", [row])
    timings = {"images_s": len(val) / (now - scoring_began), "seconds": now - began, "seconds_left": 0.0}
    write_curves(job.curves_path, [row | timings])
    return metrics


def _check_labels(train: Draw, val: Draw) -> None:
    if np.count_nonzero(train.class_pixels) < 2:
        raise InputError("train's labels name fewer than two classes, so nothing can be learned; label more")
    if not val.class_pixels.any():
        raise InputError("the val split holds no label, so its features can't be selected; raise split.val")
