"""Lets the service's decoders read thousands of damaged images: what came of them, in what time and memory.

    python benchmarks/fuzzed_images.py [--bodies 10000] [--seed 16] [--json]

Real PNG, JPEG, TIFF, BMP and WebP files of many kinds are damaged at random places: bits, numbers, blocks, lengths, cut
ends, parts of one file in another; half of the PNGs get right checksums again, so that the damage is decoded.
Every hundredth image is whole and has to come out as it went in. A body that ends the benchmark, or a whole image that
does not come out, is a failure: exit code 1.
"""

from __future__ import annotations

import argparse
import collections
import io
import json
import struct
import sys
import time
import zlib
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
from PIL import Image

from segmill.data.storage.images import read_image
from segmill.serving.access import Refused
from segmill.serving.decoding import Decoders, DecodingLimits, decoders

WHOLE_EVERY = 100
NUMBERS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
DECODERS = 2


def whole_images() -> list[bytes]:
    """Return real files of each format, of several modes, sizes and ways to compress."""
    rng = np.random.default_rng(0)
    noise = Image.fromarray(rng.integers(0, 256, (48, 67, 3), np.uint8))
    smooth = noise.resize((160, 120), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[0x0112], exif[0x010E] = 6, "a camera"
    kinds: list[tuple[str, dict[str, Any]]] = [
        ("PNG", {}),
        ("PNG", {"compress_level": 0}),
        ("PNG", {"exif": exif}),
        ("JPEG", {"quality": 90, "exif": exif}),
        ("JPEG", {"progressive": True, "subsampling": 0}),
        ("TIFF", {}),
        ("TIFF", {"exif": exif}),
        *(
            ("TIFF", {"compression": name})
            for name in ("tiff_lzw", "tiff_deflate", "packbits", "jpeg", "tiff_adobe_deflate")
        ),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True, "exif": exif}),
    ]
    modes = {"PNG": ["RGB", "L", "P", "RGBA", "1"], "TIFF": ["RGB", "L", "CMYK"], "JPEG": ["RGB", "L", "CMYK"]}
    found = []
    for image in (noise, smooth):
        for kind, options in kinds:
            for mode in modes.get(kind, ["RGB"]):
                if options.get("compression") == "jpeg" and mode == "CMYK":
                    continue
                content = io.BytesIO()
                image.convert(mode).save(content, kind, **options)
                found.append(content.getvalue())
    return found


def damaged(whole: list[bytes], rng: np.random.Generator) -> bytes:
    """Return one of the images with one to eight damages."""
    content = bytearray(whole[rng.integers(len(whole))])
    for _ in range(rng.integers(1, 9)):
        size = len(content)
        # Half of the damage goes to the first bytes, where the headers are.
        at = int(rng.integers(min(size, 200) if rng.random() < 0.5 else size))
        match rng.integers(7):
            case 0:
                content[at] ^= 1 << int(rng.integers(8))
            case 1:
                content[at] = int(rng.integers(256))
            case 2:
                form = ("<B", "<H", ">H", "<I", ">I")[rng.integers(5)]
                number = NUMBERS[rng.integers(len(NUMBERS))] & (2 ** (8 * struct.calcsize(form)) - 1)
                content[at : at + struct.calcsize(form)] = struct.pack(form, number)
            case 3:
                del content[at : at + int(rng.integers(1, 64))]
            case 4:
                content[at:at] = rng.bytes(int(rng.integers(1, 64)))
            case 5:
                other = whole[rng.integers(len(whole))]
                start = int(rng.integers(len(other)))
                content[at : at + 64] = other[start : start + 64]
            case 6 if rng.random() < 0.3:
                del content[at + 1 :]
        if not content:
            content = bytearray(b"\x00")
    return with_checksums(bytes(content)) if rng.random() < 0.5 else bytes(content)


def with_checksums(content: bytes) -> bytes:
    """Return a PNG whose chunks' checksums are right; other content as it is."""
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        return content
    made, at = bytearray(content), 8
    while at + 12 <= len(made):
        end = at + 8 + int.from_bytes(made[at : at + 4], "big")
        if end + 4 > len(made):
            break
        made[end : end + 4] = zlib.crc32(made[at + 4 : end]).to_bytes(4, "big")
        at = end + 4
    return bytes(made)


def outcome(pool: Decoders, content: bytes) -> tuple[str, float]:
    """Return what came of an image, and after how many seconds."""
    began = time.perf_counter()
    try:
        image_HWC = pool.decode(content)
        what = "200 decoded" if image_HWC.ndim == 3 and image_HWC.dtype == np.uint8 else "decoded to something else"
    except Refused as error:
        kind = error.sentence.partition(":")[0] if "not decoded" not in error.sentence else error.sentence
        what = f"{error.status} {kind}"
    return what, time.perf_counter() - began


def peak_bytes() -> int:
    """Return the most memory that a decoder of those that run now has had."""
    most = 0
    for process in psutil.Process().children():
        with open(f"/proc/{process.pid}/status") as status:
            lines = dict(line.split(":", 1) for line in status)
        most = max(most, 1024 * int(lines.get("VmHWM", "0 kB").split()[0]))
    return most


def measured(bodies: int, seed: int) -> dict[str, Any]:
    whole, rng = whole_images(), np.random.default_rng(seed)
    expected = [read_image(content) for content in whole]
    counts: collections.Counter[str] = collections.Counter()
    seconds: list[float] = []
    wrong, peak, began = 0, 0, time.monotonic()
    before = psutil.Process().memory_info().rss
    with decoders(DECODERS, DecodingLimits()) as pool, ThreadPoolExecutor(DECODERS) as threads:
        for start in range(0, bodies, WHOLE_EVERY):
            made = [damaged(whole, rng) for _ in range(min(WHOLE_EVERY, bodies - start))]
            for what, took in threads.map(lambda content: outcome(pool, content), made):
                counts[what] += 1
                seconds.append(took)
            number = start // WHOLE_EVERY % len(whole)
            wrong += not np.array_equal(pool.decode(whole[number]), expected[number])
            peak = max(peak, peak_bytes())
    return {
        "bodies": bodies,
        "seed": seed,
        "counts": dict(sorted(counts.items())),
        "whole_images_that_came_out_wrong": wrong,
        "seconds": round(time.monotonic() - began, 1),
        "ms_median_p99_most": [round(1000 * float(np.quantile(seconds, share)), 1) for share in (0.5, 0.99, 1)],
        "decoder_peak_mb": round(peak / 2**20),
        "service_grew_mb": round((psutil.Process().memory_info().rss - before) / 2**20),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--bodies", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=16)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    found = measured(options.bodies, options.seed)
    if options.json:
        print(json.dumps(found))
    else:
        for name, value in found.items():
            print(f"{name}: {value}")
    sys.exit(bool(found["whole_images_that_came_out_wrong"]))


if __name__ == "__main__":
    main()
