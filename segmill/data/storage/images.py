"""Pixels of image and mask files of any kind, decoded and encoded."""

from __future__ import annotations

import struct
import warnings
import zlib
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFile, ImageOps, UnidentifiedImageError

from segmill.errors import InputError

MAX_PIXELS = 2**26  # 8192 x 8192; a header that claims more is refused before anything is decoded
WINDOW_PERCENT = (0.1, 99.9)  # pixels of more than 8 bits: what is between these percentiles gets 0..255
_FORMATS = ("BMP", "JPEG", "PNG", "TIFF", "WEBP")  # whatever the file is called; no other decoder is let loose on it
_SUFFIX_OF = {"BMP": ".bmp", "JPEG": ".jpg", "MPO": ".jpg", "PNG": ".png", "TIFF": ".tif", "WEBP": ".webp"}
_GREY_MODES = ("1", "L", "LA")
_COLOUR_MODES = ("P", "PA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr")
_DEEP_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N", "F")
_MASK_MODES = ("1", "L", "P")
_STRETCHED = {"L;2": 85, "L;4": 17}  # what a decoder multiplies the values of such pixels by
# What decoders raise for bytes they do not understand: by their documentation and by feeding them broken files.
DECODER_ERRORS = (
    OSError, EOFError, SyntaxError, ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError,
    struct.error, zlib.error,
)  # fmt: skip


def read_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode an image file, given by path or content, to HWC uint8 with C = 1 (grey) or 3 (RGB).

    EXIF orientation is applied and alpha dropped. InputError says what is wrong: unreadable, cut short,
    larger than MAX_PIXELS, not 8 bits per channel, several pages.
    """
    with _open(source) as image:
        if _is_deep(image):
            what = f"its pixels are '{_raw_mode(image)}', not 8-bit grey or colour"
            raise InputError(what, "convert it to 8 bits")
        return _decode_image(image)


def read_deep_image(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode as ``read_image`` does, pixels of 16 or 32 bits too: these are scaled by ``to_8_bits``."""
    with _open(source) as image:
        return to_8_bits(_decode_deep(image, source)) if _is_deep(image) else _decode_image(image)


def image_content(content: bytes) -> tuple[bytes, str]:
    """Return an image file's content with 8 bits per channel, and the suffix its format has.

    8-bit content comes back as it is, its pixels not decoded; deeper pixels as the PNG of ``read_deep_image``.
    InputError where the header tells that ``read_image`` would refuse it.
    """
    with _open(content) as image:
        if not _is_deep(image):
            return content, _SUFFIX_OF[str(image.format)]
    return encode_png(read_deep_image(content)), ".png"


def image_size(content: bytes) -> tuple[int, int]:
    """Return the upright height and width in px from an image's header. InputError as for ``read_image``."""
    with _open(content) as image:
        try:
            turned = image.getexif().get(0x0112, 1) in (5, 6, 7, 8)
        except DECODER_ERRORS:
            turned = False
        return (image.width, image.height) if turned else (image.height, image.width)


def to_8_bits(pixels: NDArray[Any]) -> NDArray[np.uint8]:
    """Scale pixels of any range to uint8: linear, WINDOW_PERCENT of this image at 0 and 255, clipped beyond.

    The window is the image's own and the same for its channels, so that 10, 12 and 16 bits in a 16-bit file come
    out alike, in training and in prediction. Values that are not finite count as the lowest; an image of one
    value becomes 0.
    """
    values = pixels.astype(np.float32)
    finite = np.isfinite(values)
    if not finite.any():
        return np.zeros(pixels.shape, np.uint8)
    low = np.percentile(values[finite], WINDOW_PERCENT[0], method="lower")
    high = np.percentile(values[finite], WINDOW_PERCENT[1], method="higher")
    return apply_window(values, float(low), float(high))


def apply_window(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map ``low``..``high`` linearly to 0..255, rounded and clipped; what is not finite becomes 0."""
    if not high > low:
        return np.zeros(values.shape, np.uint8)
    scaled = (np.nan_to_num(values.astype(np.float32), nan=low, posinf=low, neginf=low) - low) * (255 / (high - low))
    grey: NDArray[np.uint8] = np.clip(np.rint(scaled), 0, 255).astype(np.uint8)
    return grey


def encode_png(pixels: NDArray[np.uint8]) -> bytes:
    """Return HW, HW1 or HW3 uint8 pixels as a PNG."""
    encoded = BytesIO()
    Image.fromarray(pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels).save(encoded, "PNG")
    return encoded.getvalue()


def read_mask(source: Path | bytes) -> NDArray[np.uint8]:
    """Decode a single-channel mask (grey or palette PNG), given by path or content, to HW uint8 class ids.

    InputError as for ``read_image``, also for masks with several channels.
    """
    with _open(source) as image:
        if image.mode not in _MASK_MODES:
            raise InputError(f"its pixels are '{image.mode}', not one channel of 8-bit class ids", "convert it")
        if image.mode == "L" and _raw_mode(image) != "L":  # 2 or 4 bits: decoders stretch these to 0..255
            raise InputError(f"its pixels are packed as '{_raw_mode(image)}', not 8 bits each", "convert it to 8 bits")
        return _decode(image)


def is_plain_mask(content: bytes) -> bool:
    """Tell from its header whether a mask is a PNG that ``read_mask`` reads. InputError as for ``read_image``."""
    with _open(content) as image:
        packed = image.mode == "L" and _raw_mode(image) != "L"
        return image.format == "PNG" and image.mode in _MASK_MODES and not packed


@dataclass(frozen=True)
class RawMask:
    """A mask as its file holds it, before anyone knows what its values mean.

    ``pixels``: HW of whole numbers (grey levels or palette indices), or HW3 uint8 (RGB). ``palette``: colours of
    the indices, N x 3 uint8, of a palette file. ``lossy``: the format blurs values. ``top``: the largest value
    the pixels could hold.
    """

    pixels: NDArray[Any]
    palette: NDArray[np.uint8] | None = None
    lossy: bool = False
    top: int = 255


def read_raw_mask(source: Path | bytes) -> RawMask:
    """Decode a mask of any kind: grey of 1 to 32 bits, palette, RGB; alpha is dropped, equal channels become one.

    InputError as for ``read_image``, also for fractions and negative values.
    """
    with _open(source) as image:
        lossy = image.format in ("JPEG", "MPO") or (image.format == "WEBP" and not _is_lossless_webp(source))
        if image.mode == "P":
            indices = _decode(image)
            colours = image.getpalette("RGB")
            return RawMask(indices, None if colours is None else np.array(colours, np.uint8).reshape(-1, 3))
        if _is_deep(image):
            return _whole_numbers(_one_channel(_decode_deep(image, source)))
        if image.mode in _GREY_MODES:
            stretch = _STRETCHED.get(_raw_mode(image)[:3], 1)
            values = _decode(image)  # with alpha: HW2
            grey = (values if values.ndim == 2 else values[:, :, 0]) // stretch
            return RawMask(grey, lossy=lossy, top=1 if image.mode == "1" else 255 // stretch)
        return RawMask(_one_channel(_decode(image, "RGB", upright=False)), lossy=lossy)


def _one_channel(pixels: NDArray[Any]) -> NDArray[Any]:
    if pixels.ndim == 3 and pixels.shape[2] == 3 and not np.array_equal(pixels.min(2), pixels.max(2)):
        return pixels
    return pixels if pixels.ndim == 2 else pixels[:, :, 0]


def _whole_numbers(pixels: NDArray[Any]) -> RawMask:
    if pixels.ndim == 3:
        raise InputError("it has colours of more than 8 bits, which name no class", "convert it to 8 bits")
    if not np.isfinite(pixels).all() or (pixels < 0).any() or (pixels != np.rint(pixels)).any():
        raise InputError("its pixels are not whole numbers from 0 up", "export class ids")
    top = 65535 if pixels.dtype == np.uint16 else 2**31 - 1
    return RawMask(pixels.astype(np.int64), top=top)


def _is_lossless_webp(source: Path | bytes) -> bool:
    """Tell by the first chunks whether a WebP file is of the lossless kind (RFC 9649, section 2)."""
    if isinstance(source, bytes):
        content = source[:4096]
    else:
        with source.open("rb") as file:
            content = file.read(4096)
    return b"VP8L" in content


def _raw_mode(image: Image.Image) -> str:
    """Return how the file packs its pixels, as Pillow names it: 'L', 'L;4', 'RGB;16B'."""
    if not isinstance(image, ImageFile.ImageFile) or not image.tile:
        return image.mode
    args = image.tile[0].args
    raw = args[0] if isinstance(args, tuple) and args else args
    return raw if isinstance(raw, str) else image.mode


def _is_deep(image: ImageFile.ImageFile) -> bool:
    """Tell whether pixels have more than 8 bits per channel. InputError for kinds that are no image's."""
    if image.mode in _DEEP_MODES:
        return True
    if image.mode not in _GREY_MODES + _COLOUR_MODES:
        raise InputError(f"its pixels are '{image.mode}', not grey or colour", "convert it")
    return ";16" in _raw_mode(image)


def _decode_image(image: ImageFile.ImageFile) -> NDArray[np.uint8]:
    if image.mode in _GREY_MODES:
        return _decode(image, "L")[:, :, None]
    return _decode(image, "RGB")


def _decode_deep(image: ImageFile.ImageFile, source: Path | bytes) -> NDArray[Any]:
    """Decode grey of 16 or 32 bits to HW1, colour of 16 bits to HW3 (RGB), upright by EXIF."""
    if image.mode in _DEEP_MODES:
        try:
            return np.array(ImageOps.exif_transpose(image))[:, :, None]
        except DECODER_ERRORS as error:
            raise InputError(f"its pixels can't be decoded ({error})", "replace or remove it") from error
    import cv2  # Pillow keeps the upper 8 bits of such colours only

    content = source if isinstance(source, bytes) else source.read_bytes()
    try:
        pixels = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error as error:
        raise InputError(f"its pixels can't be decoded ({error.err})", "replace or remove it") from error
    if pixels is None:
        raise InputError("its pixels can't be decoded", "replace or remove it")
    upright: NDArray[Any] = pixels[:, :, None] if pixels.ndim == 2 else pixels[:, :, 2::-1]  # of BGR or BGRA
    return upright


def _open(source: Path | bytes) -> ImageFile.ImageFile:
    """Read the header only and refuse what is no image, has several pages or claims too many pixels."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of oversize, our own, lower limit follows; of odd tags, nothing does
            image = Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=_FORMATS)
    except Image.DecompressionBombError as error:
        raise InputError(f"its header claims more than {MAX_PIXELS} pixels", "cut it into tiles") from error
    except UnidentifiedImageError as error:
        raise InputError("it can't be read as an image", "replace or remove it") from error
    except DECODER_ERRORS as error:
        raise InputError(f"it can't be read ({error})", "replace or remove it") from error
    if image.width * image.height > MAX_PIXELS:
        size = f"{image.width} x {image.height}"
        image.close()
        raise InputError(f"its header claims {size} pixels, more than {MAX_PIXELS}", "cut it into tiles")
    if image.format != "MPO" and getattr(image, "is_animated", False):  # a camera's MPO is a JPEG with previews behind
        image.close()
        raise InputError("it holds several pages or frames, and which one is meant is not said", "save one alone")
    return image


def _decode(image: Image.Image, mode: str | None = None, *, upright: bool = True) -> NDArray[np.uint8]:
    """Decode converted to ``mode``, and upright (by EXIF) unless told not to; without a mode, as stored."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what Pillow warns of while decoding, it repairs or raises
            if mode is None:
                return np.array(image, dtype=np.uint8)
            return np.array((ImageOps.exif_transpose(image) if upright else image).convert(mode), dtype=np.uint8)
    except DECODER_ERRORS as error:
        raise InputError(f"its pixels can't be decoded ({error})", "replace or remove it") from error
