"""What the values or colours of masks mean: which there are, a class map proposed from them, and their class ids."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from segmill.data.schema.manifest import IGNORE_ID, INFO_FILE, ClassInfo, DatasetInfo
from segmill.data.storage.images import RawMask
from segmill.errors import InputError

MAX_CLASSES = 254
MAX_COLOURS = 4_096  # distinct ones; a set with more is smoothed or no mask, and counting stops
LOSSY_SHARE = 0.98  # of a blurred mask's pixels must be near black or white
_BLOCK = 2**20  # px looked up at a time, so that a large mask takes little memory
_GREY = 0x010101


def colour_text(code: int) -> str:
    """Return "#rrggbb" of a colour 0xrrggbb."""
    return f"#{code:06x}"


def colour_codes(mask_HWC: NDArray[np.uint8]) -> NDArray[np.int32]:
    """Return the colours of an HWC uint8 RGB mask as HW int32 0xrrggbb."""
    wide = mask_HWC.astype(np.int32)
    return wide[..., 0] << 16 | wide[..., 1] << 8 | wide[..., 2]


def distinct_colours(mask_HWC: NDArray[np.uint8]) -> dict[str, int]:
    """Return "#rrggbb" -> pixels of an HWC uint8 RGB mask, in order of colour."""
    codes, counts = np.unique(colour_codes(mask_HWC), return_counts=True)
    return {colour_text(int(code)): int(count) for code, count in zip(codes, counts, strict=True)}


def distinct_palette(count: int) -> list[str]:
    """Return ``count`` (256 at most) different colours "#rrggbb", black first, by Pascal VOC's colour map.

    Source: VOCdevkit, VOClabelcolormap.m: bits 0, 1, 2 of the id become the highest bits of red, green and blue, bits
    3, 4, 5 the next ones.
    """
    colours = []
    for index in range(count):
        rgb = [sum((index >> (3 * bit + channel) & 1) << (7 - bit) for bit in range(8)) for channel in range(3)]
        colours.append("#{:02x}{:02x}{:02x}".format(*rgb))
    return colours


def propose_classes(colours: Iterable[str]) -> tuple[ClassInfo, ...]:
    """Return a class per colour "#rrggbb", in order of colour (black first), named after it.

    The name is CSS's where it has one ("red"), else "colour_rrggbb". InputError for fewer than 2 or more than
    MAX_CLASSES colours.
    """
    from PIL import ImageColor

    css: dict[str, str] = {}
    for name, colour in sorted(ImageColor.colormap.items()):
        css.setdefault(str(colour).lower(), name)
    ordered = sorted({colour.lower() for colour in colours})
    _check_count(len(ordered), "colours")
    return tuple(ClassInfo(i, css.get(c, f"colour_{c[1:]}"), c) for i, c in enumerate(ordered))


def colours_to_ids(mask_HWC: NDArray[np.uint8], classes: Sequence[ClassInfo]) -> NDArray[np.uint8]:
    """Return the HW uint8 class ids of an HWC uint8 RGB mask whose colours are those of ``classes``.

    InputError names colours that are no class's, with the class that is closest.
    """
    return _by_colour(classes).to_ids(RawMask(mask_HWC))


@dataclass(frozen=True)
class Scheme:
    """How the pixels of a set's masks become class ids.

    ``by``: what a pixel is looked up by: its value, its colour, or whether it is in the upper half of the range.
    ``codes``: what is known, in order; ``ids``: the class ids of these. Not used by threshold.
    """

    by: Literal["value", "colour", "threshold"]
    codes: tuple[int, ...]
    ids: tuple[int, ...]
    classes: tuple[ClassInfo, ...] = ()

    @property
    def keeps_values(self) -> bool:
        """Whether every value is its own class id."""
        return self.by == "value" and self.codes == self.ids

    def to_ids(self, raw: RawMask) -> NDArray[np.uint8]:
        """Return HW uint8 class ids; InputError names values or colours that mean nothing here."""
        height, width = raw.pixels.shape[:2]
        ids_HW = np.empty((height, width), np.uint8)
        codes, ids = np.array(self.codes, np.int64), np.array(self.ids, np.uint8)
        strange: Counter[int] = Counter()
        for rows in _blocks(height, width):
            found = self._codes(RawMask(raw.pixels[rows], raw.palette, raw.lossy, raw.top))
            if self.by == "threshold":
                ids_HW[rows] = found
                continue
            place = np.minimum(np.searchsorted(codes, found), len(codes) - 1)
            unknown = found[codes[place] != found]
            if unknown.size:
                values, counts = np.unique(unknown, return_counts=True)
                strange.update(dict(zip(values.tolist(), counts.tolist(), strict=True)))
            ids_HW[rows] = ids[place]
        if strange:
            raise InputError(self._complaint(strange))
        return ids_HW

    def _codes(self, raw: RawMask) -> NDArray[Any]:
        if self.by == "threshold":
            grey = raw.pixels if raw.pixels.ndim == 2 else raw.pixels.astype(np.uint16).sum(2) // 3
            return grey > raw.top // 2
        if self.by == "colour":
            return _colours_of(raw)
        if raw.pixels.ndim == 3:
            raise InputError("it has colours where the set's other masks have class ids", "export class ids")
        return raw.pixels.astype(np.int64)

    def _complaint(self, strange: Counter[int]) -> str:
        show = colour_text if self.by == "colour" else str
        most = ", ".join(f"{show(code)} ({count} px)" for code, count in strange.most_common(5))
        more = f" and {len(strange) - 5} more" if len(strange) > 5 else ""
        kind = "colours" if self.by == "colour" else "values"
        hint = ""
        if self.by == "colour" and self.codes:
            code = strange.most_common(1)[0][0]
            near = min(self.codes, key=lambda known: _distance(known, code))
            hint = f" (closest to {show(code)} is {show(near)})"
        return f"it holds {kind} that are no class: {most}{more}{hint}; correct the mask or the class map"


@dataclass
class Census:
    """What the masks of a set hold, mask by mask; small, so that processes can count and be added up."""

    values: Counter[int] = field(default_factory=Counter)  # of masks without colour, and palette indices
    colours: Counter[int] = field(default_factory=Counter)  # 0xrrggbb of all masks up to 8 bits
    palette: dict[int, int] = field(default_factory=dict)  # index -> colour, of indices in use
    palettes_differ: bool = False
    coloured: bool = False  # some mask has real colours
    lossy: int = 0  # masks in a format that blurs
    near_ends: int = 0  # pixels of those near black or white
    between: int = 0  # and the others
    tops: set[int] = field(default_factory=set)

    def add(self, raw: RawMask) -> None:
        """Count one mask. InputError where it has too many values to be a mask."""
        if raw.lossy:
            wide = raw.pixels.astype(np.int16)
            dark, light = (wide <= 48), (wide >= 207)
            ends = (dark | light) if wide.ndim == 2 else (dark.all(2) | light.all(2))
            self.lossy += 1
            self.near_ends += int(ends.sum())
            self.between += int(ends.size - ends.sum())
            return
        self.tops.add(raw.top)
        coloured = raw.pixels.ndim == 3
        codes = Counter[int]()
        for rows in _blocks(*raw.pixels.shape[:2]):
            block = raw.pixels[rows]
            found, counts = np.unique(colour_codes(block) if coloured else block, return_counts=True)
            codes.update(dict(zip(found.tolist(), counts.tolist(), strict=True)))
            if len(codes) > MAX_COLOURS:
                kind = "colours" if coloured else "values"
                raise InputError(
                    f"it holds more than {MAX_COLOURS} {kind}, so it is no mask or was smoothed; "
                    "export it without anti-aliasing"
                )
        if coloured:
            self.coloured = True
            self.colours.update(codes)
            return
        self.values.update(codes)
        for index, count in codes.items():
            colour = _colour_of(raw, index)
            if colour is not None:
                self.colours[colour] += count
                if raw.palette is not None and self.palette.setdefault(index, colour) != colour:
                    self.palettes_differ = True

    def merge(self, other: Census) -> None:
        """Add what another census counted."""
        for index, colour in other.palette.items():
            if self.palette.setdefault(index, colour) != colour:
                self.palettes_differ = True
        self.values.update(other.values)
        self.colours.update(other.colours)
        self.palettes_differ |= other.palettes_differ
        self.coloured |= other.coloured
        self.lossy += other.lossy
        self.near_ends += other.near_ends
        self.between += other.between
        self.tops |= other.tops

    def propose(self) -> tuple[Scheme, str]:
        """Return how to read these masks, with the classes proposed, and a sentence that says so.

        By colour where some mask has real colours or palettes disagree. Else by value: two values, one of them 0, are
        background and foreground; values that run from 0 (half of them or more present; the largest possible one,
        255, means ignore) are class ids as they are; others become ids in order. Blurred masks (JPEG) are cut at half
        brightness where nearly all of their pixels are black or white. InputError where none of this fits.
        """
        if self.lossy:
            return self._binary_of_lossy()
        if self.coloured or self.palettes_differ:
            classes = propose_classes(map(colour_text, self.colours))
            why = "the palettes differ" if not self.coloured else "the masks are coloured"
            return _by_colour(classes), f"{why}: {len(classes)} classes were named after their colours in {INFO_FILE}"
        values = sorted(self.values)
        if not values:
            raise InputError("the masks hold no pixel", "check the folder of masks")
        top = max(self.tops)
        foreground = values[-1] or top
        if len(values) <= 2 and values[0] == 0 and foreground > 1 and (foreground <= 255 or foreground == top):
            light = "#ffffff" if foreground in (top, 255) else colour_text(foreground * _GREY)
            classes = (ClassInfo(0, "background", "#000000"), ClassInfo(1, "foreground", light))
            said = (
                f"the masks hold {' and '.join(map(str, values))}: 0 was read as background, {foreground} as foreground"
            )
            return Scheme("value", (0, foreground), (0, 1), classes), said
        ignored = [top] if values[-1] == top and top >= IGNORE_ID else []
        known = values[: len(values) - len(ignored)]
        if known and known[-1] < 2 * len(known) and 1 <= known[-1] < MAX_CLASSES:
            return self._as_they_are(known[-1] + 1, ignored)
        return self._in_order(values)

    def _binary_of_lossy(self) -> tuple[Scheme, str]:
        total = self.near_ends + self.between
        black_or_white = {0, 0xFFFFFF}
        if self.near_ends < LOSSY_SHARE * total or not set(self.colours) <= black_or_white:
            raise InputError(
                f"{self.lossy} masks are JPEG or lossy WebP, which blurs class ids, and are not black and white; "
                "export them as PNG"
            )
        classes = (ClassInfo(0, "background", "#000000"), ClassInfo(1, "foreground", "#ffffff"))
        said = f"{self.lossy} masks are JPEG or lossy WebP: cut at half brightness into background and foreground"
        return Scheme("threshold", (), (), classes), said

    def _as_they_are(self, count: int, ignored: list[int]) -> tuple[Scheme, str]:
        names = ["background", "foreground"] if count == 2 else [f"class_{i}" for i in range(count)]
        drawn = [colour_text(self.palette[i]) if i in self.palette else "" for i in range(count)]
        colours = drawn if len({*drawn, ""}) == count + 1 else distinct_palette(count)
        classes = tuple(ClassInfo(i, name, colour) for i, (name, colour) in enumerate(zip(names, colours, strict=True)))
        codes, ids = [*range(count), *ignored], [*range(count), *[IGNORE_ID] * len(ignored)]
        said = f"the masks hold class ids 0..{count - 1}" + (f" and {ignored[0]}, read as ignore" if ignored else "")
        return Scheme("value", tuple(codes), tuple(ids), classes), f"{said}; name the classes in {INFO_FILE}"

    def _in_order(self, values: list[int]) -> tuple[Scheme, str]:
        _check_count(len(values), "values")
        if values[-1] <= 255:
            colours = [colour_text(value * _GREY) for value in values]  # a later mask is matched by it
        else:
            colours = distinct_palette(len(values))
        classes = tuple(ClassInfo(i, f"value_{v}", c) for i, (v, c) in enumerate(zip(values, colours, strict=True)))
        said = (
            f"the masks hold the {len(values)} values {', '.join(map(str, values[:10]))}{', ...' * (len(values) > 10)}"
        )
        scheme = Scheme("value", tuple(values), tuple(range(len(values))), classes)
        return scheme, f"{said}: ids were assigned in this order; name the classes in {INFO_FILE}"


def ids_by_info(raw: RawMask, info: DatasetInfo) -> NDArray[np.uint8]:
    """Return the HW uint8 class ids of a mask that belongs to a set which has its class map already.

    Colours, palette's too, are matched with the classes' colours; grey levels are where all the classes' colours are
    grey; other values are class ids or the ignore id. InputError where nothing of this fits.
    """
    by_colour = _by_colour(info.classes)
    if raw.pixels.ndim == 3 and not raw.lossy:
        return by_colour.to_ids(raw)
    if raw.lossy:
        if info.num_classes != 2:
            raise InputError("it is JPEG or lossy WebP, which blurs class ids", "export it as PNG")
        return Scheme("threshold", (), ()).to_ids(raw)
    known = [*range(info.num_classes), info.ignore_id]
    schemes = [Scheme("value", tuple(known), tuple(known))]
    if info.num_classes == 2 and raw.top > 255:
        schemes.insert(0, Scheme("value", (0, raw.top), (0, 1)))
    greys = all(code % _GREY == 0 for code in by_colour.codes)
    if raw.palette is not None or (greys and raw.top == 255):
        schemes.insert(0, by_colour)
    for scheme in schemes[:-1]:
        try:
            return scheme.to_ids(raw)
        except InputError:
            continue
    return schemes[-1].to_ids(raw)


def _by_colour(classes: Sequence[ClassInfo]) -> Scheme:
    codes = {int(one.color[1:], 16): one.id for one in classes}
    if len(codes) < len(classes):
        raise InputError(
            "two classes of dataset.yaml have the same colour, so colours can't tell them apart; change one"
        )
    return Scheme("colour", tuple(sorted(codes)), tuple(codes[code] for code in sorted(codes)), tuple(classes))


def _colours_of(raw: RawMask) -> NDArray[Any]:
    if raw.pixels.ndim == 3:
        return colour_codes(raw.pixels)
    if raw.palette is not None:
        table = np.full(256, -1, np.int64)
        table[: len(raw.palette)] = colour_codes(raw.palette[:256])
        colours: NDArray[Any] = table[raw.pixels]
        return colours
    if raw.top == 1:
        return raw.pixels.astype(np.int64) * 0xFFFFFF
    return np.where(raw.pixels <= 255, raw.pixels.astype(np.int64) * _GREY, -1)


def _colour_of(raw: RawMask, value: int) -> int | None:
    colour = int(_colours_of(RawMask(np.array([value]), raw.palette, raw.lossy, raw.top))[0])
    return None if colour < 0 else colour


def _distance(one: int, two: int) -> int:
    return sum(((one >> shift & 255) - (two >> shift & 255)) ** 2 for shift in (16, 8, 0))


def _check_count(count: int, kind: str) -> None:
    if not 2 <= count <= MAX_CLASSES:
        raise InputError(
            f"the masks hold {count} different {kind}, and a class map needs 2 to {MAX_CLASSES}; "
            "export class ids without anti-aliasing"
        )


def _blocks(height: int, width: int) -> Iterator[slice]:
    rows = max(1, _BLOCK // max(1, width))
    for start in range(0, height, rows):
        yield slice(start, start + rows)
