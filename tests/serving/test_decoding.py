"""What strangers send as images: decoded within limits, or refused in a sentence, and others are served meanwhile."""

from __future__ import annotations

import io
import signal
import struct
import time
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import psutil
import pytest
from PIL import Image

from segmill.data.storage.images import encode_png, read_image
from segmill.serving.access import Refused
from segmill.serving.decoding import Decoders, DecodingLimits, decoders

LIMITS = DecodingLimits(pixels=10**6, bytes=10**6, memory_bytes=2**28, seconds=5.0)
PIXELS = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
PNG = encode_png(PIXELS)


@pytest.fixture(scope="module")
def pool() -> Iterator[Decoders]:
    with decoders(1, LIMITS) as found:
        yield found


def png_of(width: int, height: int, rows: bytes = b"") -> bytes:
    """Return a PNG whose header claims this size, with these compressed rows."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b"")


def saved(kind: str, size: tuple[int, int] = (7, 5), **options: object) -> bytes:
    file = io.BytesIO()
    Image.new("RGB", size, (1, 2, 3)).save(file, kind, **options)
    return file.getvalue()


def processes() -> set[psutil.Process]:
    return {one for one in psutil.Process().children() if "segmill.serving.decoder" in one.cmdline()}


def refusal(pool: Decoders, content: bytes) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        pool.decode(content)
    return refused.value.status, refused.value.sentence


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF"])
@pytest.mark.parametrize("size", [(1, 1), (7, 5), (1000, 1000)])
def test_an_image_comes_out_as_the_pipeline_reads_it(pool: Decoders, kind: str, size: tuple[int, int]) -> None:
    content = saved(kind, size, **({"compression": "tiff_deflate"} if kind == "TIFF" else {}))
    assert np.array_equal(pool.decode(content), read_image(content))


def test_pixels_are_the_same(pool: Decoders) -> None:
    assert np.array_equal(pool.decode(PNG), PIXELS)


def test_exif_turns_an_image_and_does_not_get_it_past_the_limit(pool: Decoders) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    assert pool.decode(saved("JPEG", exif=exif)).shape == (7, 5, 3)
    assert refusal(pool, saved("JPEG", (1001, 1000), exif=exif))[0] == 422


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "can't be read"),
        (b"\x00" * 1000, "can't be read"),
        (b"GIF89a" + b"\x00" * 100, "can't be read"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "can't be read"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 1 1\n", "can't be read"),
        (PNG[:-40], "can't be decoded"),
        (PNG[:20], "can't be read"),
        (png_of(60_000, 60_000), "more than"),
        (png_of(2**31 - 1, 2**31 - 1), "more than"),
        (png_of(1001, 1000), "1001 x 1000 pixels, more than 1000000"),
        (png_of(1000, 1000, zlib.compress(b"\x00" * 10**8, 9)), ""),
        (saved("TIFF", save_all=True, append_images=[Image.new("RGB", (2, 2))]), "several pages"),
        (b"x" * (10**6 + 1), "has 1000001 bytes, more than 1000000"),
    ],
    ids=lambda value: value[:12].hex() if isinstance(value, bytes) else value,
)
def test_what_is_no_usable_image_is_refused_in_a_sentence(pool: Decoders, content: bytes, why: str) -> None:
    """Or read as the pipeline reads it, where more rows follow than the header claims."""
    if not why:
        assert pool.decode(content).shape == (1000, 1000, 1)
        return
    status, said = refusal(pool, content)
    assert status in (413, 422) and why in said and "\n" not in said
    assert np.array_equal(pool.decode(PNG), PIXELS), "the next request is served"


def test_an_image_that_takes_too_much_memory_costs_one_request() -> None:
    """Within the limit of pixels, but not of memory."""
    with decoders(1, DecodingLimits(pixels=10**8, bytes=10**7, memory_bytes=2**26, seconds=20.0)) as pool:
        assert refusal(pool, saved("PNG", (7000, 7000)))[0] == 422
        assert np.array_equal(pool.decode(PNG), PIXELS)


LARGE = saved("BMP", (500, 600))  # 900 kB, more than what a process that does not read can be sent


@pytest.mark.parametrize(
    ("sent", "content", "why"),
    [
        (signal.SIGSEGV, PNG, "failed"),
        (signal.SIGSTOP, PNG, "took longer than 1 s"),
        (signal.SIGSTOP, LARGE, "took longer than 1 s"),
    ],
)
def test_a_decoder_that_dies_or_hangs_costs_one_request(sent: signal.Signals, content: bytes, why: str) -> None:
    limits = DecodingLimits(pixels=10**6, bytes=10**6, memory_bytes=2**28, seconds=1.0)
    before = processes()
    with decoders(1, limits) as pool:
        assert np.array_equal(pool.decode(PNG), PIXELS)
        (process,) = processes() - before
        process.send_signal(sent)
        began = time.monotonic()
        assert refusal(pool, content) == (422, f"the image was not decoded: that {why}")
        assert time.monotonic() - began < 15
        assert np.array_equal(pool.decode(PNG), PIXELS)
        assert not process.is_running()


def test_many_at_once_each_get_their_own(pool: Decoders) -> None:
    images = [np.full((4, 4 + number, 3), number, np.uint8) for number in range(40)]
    with ThreadPoolExecutor(8) as threads:
        found = list(threads.map(lambda image: pool.decode(encode_png(image)), images))
    assert all(map(np.array_equal, images, found))


def test_who_finds_no_decoder_free_is_told_to_come_again() -> None:
    with decoders(0, DecodingLimits(seconds=0.1)) as none:
        assert refusal(none, PNG) == (503, "all decoders are busy; try again")


def test_decoders_end_with_the_pool() -> None:
    before = processes()
    with decoders(2) as pool:
        pool.decode(PNG)
        assert len(processes() - before) == 2
    assert processes() <= before
