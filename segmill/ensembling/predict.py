"""An ensemble: the weighted mean of its members' probabilities, rebuilt from its folder alone."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from segmill.errors import InputError

if TYPE_CHECKING:
    from segmill.anomaly.detector import Anomaly, Detector
    from segmill.anomaly.scores import Watched

Image = NDArray[np.uint8]
Probs = NDArray[np.float32]

FORMAT = 1
# Pixels predicted at once: their probabilities at 20 classes are 80 MB per member.
PIXELS_AT_ONCE = 2**20


class PredictsProbs(Protocol):
    """What a member is to an ensemble; deep and classical members alike."""

    def predict_probs(self, image_BHWC: Image) -> Probs:
        """Return probs_BKHW float32 for uint8 images of one size, at that size."""
        ...


@runtime_checkable
class PredictsHeads(Protocol):
    """A member that can have auxiliary heads besides; ``kept_heads`` names those it was saved with."""

    @property
    def kept_heads(self) -> tuple[str, ...]: ...

    def predict_heads(self, image_BHWC: Image) -> dict[str, Probs]:
        """Return what each kept head says, by its name: float32, one row per image."""
        ...


class Ensemble:
    """Members and their weights.

    Attributes:
        members: name to member, in the ensemble's order.
        weights: name to weight, each 0 or more, together 1.
        tta_hflip: whether each prediction is averaged with that of the mirrored image.
        facts: the content of ``ensemble.json``: classes, ignore id, data version and scores on val.
        detector: of anomalies; None where none was made.
    """

    def __init__(
        self,
        members: Mapping[str, PredictsProbs],
        weights: Mapping[str, float],
        *,
        tta_hflip: bool,
        facts: dict[str, Any],
        detector: Detector | None = None,
    ) -> None:
        self.members = dict(members)
        self.weights = dict(weights)
        self.tta_hflip = tta_hflip
        self.facts = facts
        self.detector = detector

    @classmethod
    def load(cls, folder: Path, *, idle: bool = False) -> Ensemble:
        """Rebuild the ensemble in ``folder``.

        Args:
            folder: holds ``ensemble.json`` and ``members/NAME/``.
            idle: also load members of weight 0, which no prediction needs but a comparison of members does.

        Raises:
            InputError: the folder is no ensemble, or one of another format.
        """
        from segmill.anomaly.detector import load_detector
        from segmill.models.loading import load_member

        facts = read_ensemble(folder)
        members = {
            name: load_member(folder / "members" / name)
            for name, weight in facts["weights"].items()
            if weight > 0 or idle
        }
        return cls(members, facts["weights"], tta_hflip=facts["flips"], facts=facts, detector=load_detector(folder))

    def voting(self) -> Ensemble:
        """Return the ensemble without members of weight 0, which no prediction needs."""
        return self.with_members({name: member for name, member in self.members.items() if self.weights[name] > 0})

    def with_members(self, members: Mapping[str, PredictsProbs]) -> Ensemble:
        """Return the ensemble with these instead of its members."""
        return Ensemble(members, self.weights, tta_hflip=self.tta_hflip, facts=self.facts, detector=self.detector)

    def member_probs(self, image_BHWC: Image) -> Iterator[tuple[str, Probs]]:
        """Yield each loaded member's name and probs_BKHW float32, one member at a time."""
        for name, member in self.members.items():
            yield name, flipped_probs(member, image_BHWC) if self.tta_hflip else member.predict_probs(image_BHWC)

    def predict_probs(self, image_BHWC: Image) -> Probs:
        """Return the weighted mean probs_BKHW float32, at the image's own size; sums to 1 over K.

        Args:
            image_BHWC: uint8, any H and W, three channels.

        Raises:
            InputError: another dtype or shape.
        """
        return mix(self.member_probs(image_BHWC), self.weights)

    def watch(self, image_BHWC: Image, pixel: Collection[str], member: str = "") -> tuple[Probs, Watched]:
        """Return probs_BKHW as ``predict_probs`` does, the same bits, and the anomaly scores ``pixel`` of each pixel.

        Args:
            image_BHWC: uint8, any H and W, three channels.
            pixel: names of ``anomaly.scores``.
            member: a network whose logits and features are watched too; "" for none.

        Raises:
            InputError: another dtype or shape.
        """
        from segmill.anomaly.scores import LOGIT_SCORES, Watched, entropy
        from segmill.anomaly.watching import watching

        own_BHW = np.zeros((len(image_BHWC), *image_BHWC.shape[1:3]), np.float32)

        def noted() -> Iterator[tuple[str, Probs]]:
            for name, probs_BKHW in self.member_probs(image_BHWC):
                if "disagreement" in pixel and self.weights[name] > 0:
                    own_BHW[:] += np.float32(self.weights[name]) * entropy(probs_BKHW)
                yield name, probs_BKHW

        with ExitStack() as stack:
            module: Any = getattr(self.members[member], "module", None) if member else None
            logits = bool(set(LOGIT_SCORES) & set(pixel))
            watch = stack.enter_context(watching(module, logits=logits)) if module is not None else None
            probs_BKHW = mix(noted(), self.weights)
        found = {name: one for name, one in watch.pixel(len(image_BHWC)).items() if name in pixel} if watch else {}
        if {"entropy", "disagreement"} & set(pixel):
            found["entropy"] = entropy(probs_BKHW)
            if "disagreement" in pixel:
                found["disagreement"] = found["entropy"] - own_BHW
        return probs_BKHW, Watched(found, watch.features(len(image_BHWC)) if watch else None)

    def predict_judged(
        self, image_BHWC: Image, *, values: Sequence[str] = (), maps: bool = False
    ) -> tuple[Probs, list[Anomaly | None]]:
        """Return probs_BKHW as ``predict_probs`` does, and what the detector says of each image; None without one.

        Args:
            image_BHWC: uint8, any H and W, three channels.
            values: each image's of the manifest's column that the detector is calibrated by; none where left out.
            maps: whether the anomaly of each pixel is wanted too.
        """
        if (detector := self.detector) is None:
            return self.predict_probs(image_BHWC), [None] * len(image_BHWC)
        pixel = {name for name in detector.needs if name != "mahalanobis"} | ({detector.pixel_score} if maps else set())
        probs_BKHW, watched = self.watch(image_BHWC, pixel, detector.member)
        return probs_BKHW, list(detector.judge(watched, values or [""] * len(image_BHWC), maps=maps))

    def predict_anomaly(self, images: Image | Sequence[Image], *, value: str = "") -> dict[str, list[Any]]:
        """Return how unusual each image is: lists ``score``, ``p_value`` and ``abstain``, as ``Anomaly`` has them.

        Raises:
            InputError: the model has no detector, or the images are refused, as for ``predict``.
        """
        if self.detector is None:
            raise InputError(
                "this model has no anomaly detector; name groups in split.calibration and run `segmill retrain`"
            )
        found: list[dict[str, Any]] = []
        for image_BHWC in batches(as_images(images)):
            _, judged = self.predict_judged(image_BHWC, values=[value] * len(image_BHWC))
            found += [one.as_json() for one in judged if one]
        return {name: [one[name] for one in found] for name in ("score", "p_value", "abstain")}

    def predict(self, images: Image | Sequence[Image]) -> NDArray[np.uint8] | list[NDArray[np.uint8]]:
        """Return class ids, uint8, at each image's own size.

        Args:
            images: an array B x H x W x C, or a list of H x W x C images of any sizes. C is 3, or 1 for grey.

        Returns:
            B x H x W for an array, a list of H x W for a list.

        Raises:
            InputError: another dtype, number of axes or channels; the message names the image.
        """
        maps = [
            ids
            for image_BHWC in batches(as_images(images))
            for ids in self.predict_probs(image_BHWC).argmax(axis=1).astype(np.uint8)
        ]
        return np.stack(maps) if isinstance(images, np.ndarray) else maps

    def predict_both(self, images: Image | Sequence[Image]) -> tuple[Any, Any]:
        """Return the class ids of ``predict`` together with the float32 probabilities.

        Returns:
            Ids and probabilities: B x H x W and B x K x H x W for an array, lists of H x W and of K x H x W
            for a list.
        """
        probs = [one for image_BHWC in batches(as_images(images)) for one in self.predict_probs(image_BHWC)]
        maps = [one.argmax(axis=0).astype(np.uint8) for one in probs]
        return (np.stack(maps), np.stack(probs)) if isinstance(images, np.ndarray) else (maps, probs)

    def predict_aux(self, images: Image | Sequence[Image]) -> dict[str, dict[str, Any]]:
        """Return what the auxiliary heads say, by member and head, of the members that were saved with theirs.

        Heads are neither mixed nor averaged with those of mirrored images: each is its member's own word.

        Returns:
            float32. For an array: ``presence`` B x K and ``boundary`` B x 1 x H x W probabilities, ``distance``
            B x K x H x W in -1..1. For a list: lists of K, 1 x H x W and K x H x W.

        Raises:
            InputError: no member has heads, or the images are refused, as for ``predict``.
        """
        asked = {
            name: member
            for name, member in self.members.items()
            if isinstance(member, PredictsHeads) and member.kept_heads
        }
        if not asked:
            raise InputError(
                "no member of this model has auxiliary heads; train one with aux_heads and keep_heads: true"
            )
        said: dict[str, dict[str, list[Probs]]] = {
            name: {head: [] for head in member.kept_heads} for name, member in asked.items()
        }
        for image_BHWC in batches(as_images(images)):
            for name, member in asked.items():
                for head, values in member.predict_heads(image_BHWC).items():
                    said[name][head] += list(values)
        stack = np.stack if isinstance(images, np.ndarray) else list
        return {name: {head: stack(values) for head, values in heads.items()} for name, heads in said.items()}


def read_ensemble(folder: Path) -> dict[str, Any]:
    """Read ``ensemble.json``; InputError where there is none or it has another format."""
    path = folder / "ensemble.json"
    try:
        facts: dict[str, Any] = json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise InputError(f"{folder} is no ensemble ({error}); run the ensemble stage first") from None
    if facts.get("format") != FORMAT:
        raise InputError(f"{path} has format {facts.get('format')}; this segmill reads {FORMAT}: build it again")
    return facts


def mix(named_probs: Iterable[tuple[str, Probs]], weights: Mapping[str, float]) -> Probs:
    """Return the weighted sum of probs_BKHW; members of weight 0 are skipped."""
    parts = ((weights[name], probs) for name, probs in named_probs if weights[name] > 0)
    weight, probs = next(parts)
    total = np.multiply(probs, np.float32(weight))
    for weight, probs in parts:
        total += np.float32(weight) * probs
    return total


def flipped_probs(member: PredictsProbs, image_BHWC: Image) -> Probs:
    """Return the mean of a member's probs_BKHW for the images and for their mirror images, mirrored back."""
    probs_BKHW = member.predict_probs(image_BHWC)
    probs_BKHW += member.predict_probs(np.ascontiguousarray(image_BHWC[:, :, ::-1]))[..., ::-1]
    probs_BKHW /= 2
    return probs_BKHW


def batches(images: Iterable[Image], pixels: int = PIXELS_AT_ONCE) -> Iterator[Image]:
    """Stack consecutive H x W x C images of one size into image_BHWC of at most ``pixels`` pixels, in order.

    An image larger than that is a batch of its own.
    """
    stack: list[Image] = []
    for image in images:
        full = len(stack) + 1 > max(1, pixels // (image.shape[0] * image.shape[1]))
        if stack and (full or stack[0].shape != image.shape):
            yield np.stack(stack)
            stack = []
        stack.append(image)
    if stack:
        yield np.stack(stack)


def as_images(images: Any) -> list[Image]:
    """Check images from outside and return them as H x W x 3 uint8 each.

    Args:
        images: an array B x H x W x C, or a list of H x W x C arrays or nested lists (as JSON brings them);
            integers in 0..255, C is 3, or 1 for grey, which is repeated; alpha (C is 4 or 2) is dropped, as it is
            from the files that training reads.

    Raises:
        InputError: anything else, or no image at all; the message names the image.
    """
    if isinstance(images, np.ndarray) and images.ndim == 3:
        raise InputError(f"One image of shape {images.shape} came; give a batch B x H x W x C: image[None].")
    if len(images) == 0:
        raise InputError("No image came; give at least one.")
    return [_as_image(index, image) for index, image in enumerate(images)]


def _as_image(index: int, content: Any) -> Image:
    try:
        image = np.asarray(content)
    except ValueError as error:
        raise InputError(f"Image {index} is no array ({error}); give integers H x W x C.") from None
    if image.ndim != 3 or image.shape[2] not in (1, 2, 3, 4) or not image.size:
        raise InputError(
            f"Image {index} has shape {image.shape}; allowed is H x W x 3, or x 1 for grey, and either with alpha."
        )
    image = image[:, :, : 1 if image.shape[2] < 3 else 3]
    if image.dtype.kind not in "iu" or not 0 <= int(image.min()) <= int(image.max()) <= 255:
        raise InputError(
            f"Image {index} is {image.dtype} in {image.min()}..{image.max()}; give uint8 in 0..255, not scaled to 0..1."
        )
    return np.broadcast_to(image.astype(np.uint8, copy=False), (*image.shape[:2], 3))
