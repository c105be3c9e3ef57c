from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from segmill.data.readers import list_pairs, read_image, read_mask
from segmill.errors import InputError


def png_header(width: int, height: int, bits: int, color_type: int) -> bytes:
    """A PNG that has a header but no pixels."""
    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"")


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
    pairs, findings = list_pairs(tmp_path)
    assert [(p.id, p.image.name, p.mask.name) for p in pairs] == [
        ("d", "d.jpg", "d.png"),
        ("s/a", "a.JPG", "a.png"),
    ]
    said = {finding.file: finding.what for finding in findings}
    assert sorted(said) == ["images/b.png", "images/d.png", "images/note.txt", "masks/c.png", "masks/e.jpg"]
    assert said["images/b.png"] == "it has no mask masks/b.png"
    assert said["images/d.png"] == "d.jpg has the same stem"


def test_a_missing_folder_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="images does not exist"):
        list_pairs(tmp_path)
