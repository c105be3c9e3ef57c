"""Pixels and pairs from the canonical layout: images/** and masks/** with the same relative stem."""

from __future__ import annotations

import warnings
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from segmill.errors import InputError

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp")
MASK_SUFFIXES = (".png",)
MAX_PIXELS = 2**26  # 8192 x 8192; a header that claims more is refused before anything is decoded
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_MASK_MODES = ("1", "L", "P")


@dataclass(frozen=True)
class Pair:
    """One sample's two files; ``id`` is the relative stem with '/'."""

    id: str
    image: Path
    mask: Path


@dataclass(frozen=True)
class Finding:
    """What is wrong with one file, and what to do: one line."""

    file: str
    what: str
    fix: str

    def __str__(self) -> str:
        return f"{self.file}: {self.what}; {self.fix}"


def list_pairs(raw_dir: Path) -> tuple[list[Pair], list[Finding]]:
    """Return the complete pairs in order of id, and a finding for every file that is no part of one.

    Hidden files are passed over. InputError where images/ or masks/ is missing.
    """
    images, findings = _list_folder(raw_dir, "images", IMAGE_SUFFIXES)
    masks, mask_findings = _list_folder(raw_dir, "masks", MASK_SUFFIXES)
    findings += mask_findings
    for sample_id in sorted(images.keys() - masks.keys()):
        file = images[sample_id].relative_to(raw_dir).as_posix()
        findings.append(Finding(file, f"it has no mask masks/{sample_id}.png", "add the mask or remove the image"))
    for sample_id in sorted(masks.keys() - images.keys()):
        file = masks[sample_id].relative_to(raw_dir).as_posix()
        fix = "add the image or remove the mask"
        findings.append(Finding(file, f"this mask has no image images/{sample_id}.*", fix))
    both = sorted(images.keys() & masks.keys())
    return [Pair(sample_id, images[sample_id], masks[sample_id]) for sample_id in both], findings


def _list_folder(raw_dir: Path, kind: str, suffixes: tuple[str, ...]) -> tuple[dict[str, Path], list[Finding]]:
    folder = raw_dir / kind
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist; put the samples' {kind} there")
    files: dict[str, Path] = {}
    findings = []
    for path in sorted(folder.rglob("*")):
        relative = path.relative_to(folder)
        if path.is_dir() or any(part.startswith(".") for part in relative.parts):
            continue
        sample_id = relative.with_suffix("").as_posix()
        name = f"{kind}/{relative.as_posix()}"
        if path.suffix.lower() not in suffixes:
            allowed = ", ".join(suffixes)
            findings.append(Finding(name, f"'{path.suffix}' is not one of {allowed}", "convert or remove it"))
        elif sample_id in files:
            findings.append(Finding(name, f"{files[sample_id].name} has the same stem", "rename or remove one"))
        else:
            files[sample_id] = path
    return files, findings


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode an image file, given by path or content, to HWC uint8 with C = 1 (grey) or 3 (RGB).

    EXIF orientation is applied and alpha dropped. InputError says what is wrong: unreadable, cut short,
    larger than MAX_PIXELS, not 8 bits per channel.
    """
    with _open(source) as image:
        if image.mode not in _GREY_MODES + _COLOUR_MODES:
            raise InputError(f"its pixels are '{image.mode}', not 8-bit grey or colour; convert it to 8 bits")
        if image.mode in _GREY_MODES:
            return _decode(image, "L")[:, :, None]
        return _decode(image, "RGB")


def read_mask(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode a single-channel mask (grey or palette PNG), given by path or content, to HW uint8 class ids.

    InputError as for ``read_image``, also for masks with several channels.
    """
    with _open(source) as image:
        if image.mode not in _MASK_MODES:
            raise InputError(f"its pixels are '{image.mode}', not one channel of 8-bit class ids; convert it")
        if image.mode == "L" and image.tile[0].args != "L":  # 2 or 4 bits: decoders stretch these to 0..255
            raise InputError(f"its pixels are packed as '{image.tile[0].args}', not 8 bits each; convert it to 8 bits")
        return _decode(image)


def _open(source: Path | bytes) -> ImageFile.ImageFile:
    """Read the header only and refuse what is no image or claims too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # our own, lower limit follows
            image = Image.open(BytesIO(source) if isinstance(source, bytes) else source)
    except Image.DecompressionBombError as error:
        raise InputError(f"its header claims more than {MAX_PIXELS} pixels; cut it into tiles") from error
    except UnidentifiedImageError as error:
        raise InputError("it can't be read as an image; replace or remove it") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise InputError(f"it can't be read ({error}); replace or remove it") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise InputError(f"its header claims {size} pixels, more than {MAX_PIXELS}; cut it into tiles")
    return image


def _decode(image: Image.Image, mode: str | None = None) -> NDArray[np.uint8]:
    """Decode upright (by EXIF) and converted to ``mode``; without a mode, as stored."""
    try:
        if mode is None:
            return np.array(image, dtype=np.uint8)
        return np.array(ImageOps.exif_transpose(image).convert(mode), dtype=np.uint8)
    except (OSError, SyntaxError, ValueError, EOFError) as error:
        raise InputError(f"its pixels can't be decoded ({error}); replace or remove it") from error
