from __future__ import annotations

import struct
import zlib
from io import BytesIO
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from segmill.data.schema.samples import list_samples
from segmill.data.storage.images import (
    image_content,
    image_size,
    read_deep_image,
    read_image,
    read_mask,
    read_raw_mask,
    to_8_bits,
)
from segmill.errors import InputError


def png_header(width: int, height: int, bits: int, color_type: int) -> bytes:
    """A PNG that has a header but no pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


DEEP = np.array([[[0, 100, 200], [300, 400, 600]]], np.uint16)  # HW3


def deep_colour(suffix: str) -> bytes:
    """DEEP as a file."""
    return cv2.imencode(suffix, DEEP[:, :, ::-1])[1].tobytes()


def chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


def save(path: Path, pixels: np.ndarray, mode: str | None = None) -> Path:
    image = Image.fromarray(pixels)
    (image.convert(mode) if mode else image).save(path)
    return path


def test_colour_comes_as_rgb_and_grey_as_one_channel(tmp_path: Path) -> None:
    red = np.zeros((2, 3, 3), np.uint8)
    red[..., 0] = 204
    grey = np.arange(6, dtype=np.uint8).reshape(2, 3)
    np.testing.assert_array_equal(read_image(save(tmp_path / "c.png", red)), red)
    np.testing.assert_array_equal(read_image(save(tmp_path / "p.png", red, "P")), red)
    np.testing.assert_array_equal(read_image(save(tmp_path / "a.png", red, "RGBA")), red)
    np.testing.assert_array_equal(read_image(save(tmp_path / "g.png", grey)), grey[:, :, None])


def test_exif_orientation_is_applied(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned: the viewer must rotate by 90 degrees clockwise
    path = tmp_path / "turned.png"
    Image.fromarray(np.array([[1, 2, 3]], np.uint8)).save(path, exif=exif)
    np.testing.assert_array_equal(read_image(path)[:, :, 0], [[1], [2], [3]])


def test_masks_keep_their_ids_from_grey_and_palette(tmp_path: Path) -> None:
    ids = np.array([[0, 1, 255], [3, 3, 2]], np.uint8)
    palette = Image.fromarray(ids, mode="P")
    palette.putpalette([5, 6, 7] * 256)
    palette.save(tmp_path / "palette.png")
    np.testing.assert_array_equal(read_mask(tmp_path / "palette.png"), ids)
    np.testing.assert_array_equal(read_mask(save(tmp_path / "grey.png", ids)), ids)
    np.testing.assert_array_equal(read_mask((tmp_path / "grey.png").read_bytes()), ids)


def test_pixels_of_another_kind_are_refused(tmp_path: Path) -> None:
    colour = save(tmp_path / "rgb.png", np.zeros((2, 2, 3), np.uint8))
    deep = save(tmp_path / "deep.png", np.zeros((2, 2), np.uint16))
    with pytest.raises(InputError, match="'RGB', not one channel"):
        read_mask(colour)
    with pytest.raises(InputError, match="not 8-bit grey or colour"):
        read_image(deep)
    Image.new("LAB", (2, 2)).save(tmp_path / "lab.tif")
    with pytest.raises(InputError, match="'LAB', not grey or colour"):
        read_image(tmp_path / "lab.tif")
    with pytest.raises(InputError, match="colours of more than 8 bits, which name no class"):
        read_raw_mask(deep_colour(".png"))
    with pytest.raises(InputError, match="'L;4', not 8 bits"):  # a decoder would turn id 1 into 17
        read_mask(png_header(2, 2, bits=4, color_type=0))


@pytest.mark.parametrize("size", [(2**13 + 1, 2**13), (60_000, 60_000)])
def test_a_header_bomb_is_refused_before_decoding(size: tuple[int, int]) -> None:
    with pytest.raises(InputError, match="its header claims"):
        read_mask(png_header(*size, bits=8, color_type=0))


def test_broken_files_are_refused(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (32, 32), dtype=np.uint8)
    content = save(tmp_path / "whole.png", noise).read_bytes()
    with pytest.raises(InputError, match="can't be decoded"):
        read_image(content[: len(content) // 2])
    with pytest.raises(InputError, match="can't be read as an image"):
        read_image(b"not an image")
    with pytest.raises(InputError, match="can't be decoded"):
        read_deep_image(deep_colour(".png")[:-20])


@pytest.mark.parametrize("suffix", [".png", ".tif"])
def test_16_bit_colour_is_scaled_over_all_channels_alike(suffix: str) -> None:
    content = deep_colour(suffix)
    with pytest.raises(InputError, match="not 8-bit grey or colour"):
        read_image(content)
    np.testing.assert_array_equal(read_deep_image(content), [[[0, 42, 85], [128, 170, 255]]])  # 255 / 600 each


def test_16_bit_grey_and_floats_are_scaled_to_their_window() -> None:
    scaled = to_8_bits(np.arange(1500, dtype=np.float32))  # 0.1 % and 99.9 % lie beyond 1 and before 1498
    assert (scaled[:2].tolist(), scaled[749:751].tolist(), scaled[1498:].tolist()) == ([0, 0], [127, 128], [255, 255])
    assert to_8_bits(np.array([np.nan, 0, 1, np.inf])).tolist() == [0, 0, 255, 0]
    assert to_8_bits(np.full((2, 2), 700, np.uint16)).tolist() == [[0, 0], [0, 0]]
    file = BytesIO()
    Image.fromarray(np.array([[0.0, 0.5, 1.0]], np.float32)).save(file, "TIFF")
    assert read_deep_image(file.getvalue())[:, :, 0].tolist() == [[0, 128, 255]]


def test_8_bit_content_passes_undecoded_with_its_true_suffix(tmp_path: Path) -> None:
    content = save(tmp_path / "a.jpg", np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8)).read_bytes()
    assert image_content(content) == (content, ".jpg")
    cut = content[:-1000]
    assert image_content(cut) == (cut, ".jpg")
    deep, suffix = image_content(save(tmp_path / "deep.png", np.array([[0, 5000]], np.uint16)).read_bytes())
    assert (read_image(deep)[:, :, 0].tolist(), suffix) == ([[0, 255]], ".png")


def test_the_size_is_that_of_the_upright_image() -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    file = BytesIO()
    Image.fromarray(np.zeros((2, 5), np.uint8)).save(file, "PNG", exif=exif)
    assert image_size(file.getvalue()) == (5, 2)
    assert read_image(file.getvalue()).shape == (5, 2, 1)


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
def test_several_pages_are_refused(kind: str) -> None:
    file = BytesIO()
    pages = [Image.fromarray(np.full((8, 8, 3), value, np.uint8)) for value in (0, 200)]
    pages[0].save(file, kind, save_all=True, append_images=pages[1:], lossless=True)
    for read in (read_image, read_mask, read_raw_mask):
        with pytest.raises(InputError, match="several pages or frames"):
            read(file.getvalue())


def test_other_kinds_of_files_are_not_opened_whatever_their_name() -> None:
    file = BytesIO()
    Image.fromarray(np.zeros((2, 2), np.uint8)).save(file, "GIF")
    for content in (file.getvalue(), b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"):
        with pytest.raises(InputError, match="can't be read as an image"):
            read_image(content)


@pytest.mark.parametrize(("bits", "top"), [(1, 1), (2, 3), (4, 15), (8, 255)])
def test_raw_masks_of_few_bits_keep_their_values(bits: int, top: int) -> None:
    values = np.array([[0, 1, top, 0, top, 1, 0, 1]], np.uint8)
    packed = np.packbits(np.unpackbits(values[0][:, None], axis=1)[:, 8 - bits :].ravel()).tobytes()
    header = png_header(8, 1, bits, color_type=0).rpartition(b"\0\0\0\0IDAT")[0]
    content = header + chunk(b"IDAT", zlib.compress(b"\0" + packed)) + chunk(b"IEND", b"")
    raw = read_raw_mask(content)
    assert (raw.pixels.tolist(), raw.top) == (values.tolist(), top)


def test_raw_masks_tell_palette_colours_depth_and_loss(tmp_path: Path) -> None:
    ids = np.array([[0, 1], [2, 1]], np.uint8)
    palette = Image.fromarray(ids)
    palette.putpalette([5, 6, 7, 8, 9, 10] + [0] * 762)
    palette.save(tmp_path / "p.png")
    raw = read_raw_mask(tmp_path / "p.png")
    assert raw.palette is not None
    assert (raw.pixels.tolist(), raw.palette[:2].tolist()) == (ids.tolist(), [[5, 6, 7], [8, 9, 10]])
    colours = np.array([[[1, 2, 3], [4, 4, 4]]], np.uint8)
    assert read_raw_mask(save(tmp_path / "c.png", colours)).pixels.tolist() == colours.tolist()
    grey = np.repeat(ids[:, :, None], 3, axis=2)
    assert read_raw_mask(save(tmp_path / "g.png", grey)).pixels.tolist() == ids.tolist()
    deep = read_raw_mask(save(tmp_path / "d.png", np.array([[0, 40_000]], np.uint16)))
    assert (deep.pixels.tolist(), deep.top, deep.lossy) == ([[0, 40_000]], 65535, False)
    assert read_raw_mask(save(tmp_path / "j.jpg", ids)).lossy
    Image.fromarray(grey).save(tmp_path / "l.webp", lossless=True)
    Image.fromarray(grey).save(tmp_path / "b.webp")
    assert not read_raw_mask(tmp_path / "l.webp").lossy
    assert read_raw_mask(tmp_path / "b.webp").lossy
    fractions = tmp_path / "f.tif"
    Image.fromarray(np.array([[0.5]], np.float32)).save(fractions)
    with pytest.raises(InputError, match="not whole numbers"):
        read_raw_mask(fractions)


@pytest.mark.parametrize(
    ("suffix", "dtype"),
    [*((suffix, np.uint8) for suffix in ("png", "jpg", "tif", "bmp", "webp")), ("png", np.uint16), ("tif", np.uint16)],
)
def test_damaged_files_are_read_or_refused_in_one_sentence(suffix: str, dtype: type, tmp_path: Path) -> None:
    random = np.random.default_rng(1)
    path = tmp_path / f"a.{suffix}"
    save(path, random.integers(0, 255, (24, 24)).astype(dtype))
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    for attempt in range(150):
        damaged = whole.copy()
        places = random.integers(0, min(len(whole), 4000 if attempt % 2 else 120), 1 + attempt % 6)
        damaged[places] ^= random.integers(1, 256, len(places)).astype(np.uint8)
        content = damaged[: len(whole) if attempt % 3 else random.integers(0, len(whole))].tobytes()
        for read in (read_image, read_deep_image, read_mask, read_raw_mask):
            try:
                read(content)
            except InputError as error:
                assert "; " in str(error)


def test_pairs_and_what_is_no_pair(tmp_path: Path) -> None:
    names = [
        "images/s/a.JPG",
        "masks/s/a.png",
        "images/b.png",
        "masks/c.png",
        "images/note.txt",
        "images/.DS_Store",
    ]
    names += ["images/d.png", "images/d.jpg", "masks/d.png", "masks/e.jpg"]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    entries, issues = list_samples(tmp_path)
    assert [(p.id, p.image.name, p.mask.name) for p in entries] == [
        ("d", "images/d.jpg", "masks/d.png"),
        ("s/a", "images/s/a.JPG", "masks/s/a.png"),
    ]
    said = {issue.file: issue.what for issue in issues}
    assert sorted(said) == ["images/b.png", "images/d.png", "images/note.txt", "masks/c.png", "masks/e.jpg"]
    assert said["images/b.png"] == "it has no mask masks/b.png"
    assert said["images/d.png"] == "d.jpg has the same stem"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images does not exist"):
        list_samples(tmp_path)


def test_an_image_without_a_finite_value_is_black() -> None:
    assert not to_8_bits(np.full((3, 4), np.nan, np.float32)).any()


def test_damaged_exif_turns_nothing() -> None:
    content = BytesIO()
    Image.new("RGB", (20, 10)).save(content, "JPEG", exif=b"Exif\x00\x00II*\x00\xff\xff\xff\xff")
    assert image_size(content.getvalue()) == (10, 20)
