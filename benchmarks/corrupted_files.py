"""Puts 1,000 broken and hostile files into a set, checks it, and says whether each was named, in what time and memory.

    python benchmarks/corrupted_files.py [--files 1000] [--seed 0]

Cut short, bits turned, the wrong type, headers that claim 60,000 x 60,000 px or tiles of that size, no bytes, 8 GiB of
nothing, links out of the set, to /dev/zero and to themselves, pipes, sockets, folders named as images; and a packed set
whose index points out of it and past its end. A file with turned bits may still be an image of the right size: then
nothing can be said of it, and it is counted apart. Memory is the sum of the proportional shares (PSS) of all processes.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import tempfile
import threading
import time
import zlib
from collections import Counter
from collections.abc import Callable
from io import BytesIO
from pathlib import Path

import numpy as np
import psutil
from PIL import Image

from segmill.alongside import alongside
from segmill.data.ingest.builtin import STREET_CLASSES, draw_street
from segmill.data.ingest.intake import NewSample, write_set
from segmill.data.schema.issues import IssuesFound
from segmill.data.schema.manifest import DatasetInfo, write_dataset_info
from segmill.data.splitting.shares import SplitShares
from segmill.data.storage.images import encode_png, read_image
from segmill.data.storage.raw_set import INDEX_FILE
from segmill.data.validation.checks import validate_dataset
from segmill.errors import InputError

GOOD = 60
SIZE = (96, 128)
CLAIMED = 60_000
FORMATS = {"png": "PNG", "jpg": "JPEG", "tif": "TIFF", "bmp": "BMP", "webp": "WEBP"}

Break = Callable[[Path, np.random.Generator], str]  # makes of a path, without suffix, a broken file; returns its suffix


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--files", type=int, default=1000, help="broken ones (default 1000)")
    parser.add_argument("--seed", type=int, default=0, help="of what is cut and turned where (default 0)")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        raw_dir = Path(folder) / "loose"
        planted = write_broken(raw_dir, arguments.files, arguments.seed)
        report(raw_dir, planted)
        packed = Path(folder) / "packed"
        report(packed, write_broken_pack(packed))


def write_broken(raw_dir: Path, count: int, seed: int) -> dict[str, str]:
    """Write GOOD scenes and ``count`` broken images beside good masks; return name -> how it is broken."""
    rng = np.random.default_rng(seed)
    names = [f"good{index:03d}" for index in range(GOOD)]
    write_dataset_info(raw_dir, info(names))
    for kind in ("images", "masks"):
        (raw_dir / kind).mkdir(parents=True)
    for index, name in enumerate(names):
        image, mask = draw_street(SIZE, seed=seed, sequence=index, frame=0)
        Image.fromarray(image).save(raw_dir / "images" / f"{name}.png")
        Image.fromarray(mask).save(raw_dir / "masks" / f"{name}.png")
    mask = encode_png(draw_street(SIZE, seed=seed, sequence=0, frame=0)[1])
    planted: dict[str, str] = {}
    ways = breaks()
    for number in range(count):
        title, make = ways[number % len(ways)]
        stem = f"bad{number:04d}"
        suffix = make(raw_dir / "images" / stem, rng)
        (raw_dir / "masks" / f"{stem}.png").write_bytes(mask)
        planted[f"images/{stem}.{suffix}"] = title
    return planted


def info(names: list[str]) -> DatasetInfo:
    third = len(names) // 3
    parts = names[:third], names[third : 2 * third], names[2 * third :]
    return DatasetInfo(
        "broken", STREET_CLASSES, splits=dict(zip(("val", "test", "train"), map(tuple, parts), strict=True))
    )


def report(raw_dir: Path, planted: dict[str, str]) -> None:
    """Check the set and print what became of each way of being broken."""
    peak = [0]
    began = time.monotonic()
    with alongside(lambda over: weigh(over, peak)):
        try:
            validate_dataset(raw_dir, raw_dir.with_suffix(".parquet"), shares=SplitShares(0.2, 0.2, 0), jobs=2)
            raise SystemExit("nothing was found")
        except IssuesFound as error:
            issues = error.issues
    seconds = time.monotonic() - began
    kind_of = {file: issue.kind for issue in issues for file in issue.files}
    ways: dict[str, Counter[str]] = {}
    for name, title in planted.items():
        became = kind_of.get(name) or ("still an image" if is_image(raw_dir / name) else "MISSED")
        ways.setdefault(title, Counter())[became] += 1
    print(f"{raw_dir.name} set, {len(planted)} broken files")
    for title, became in ways.items():
        print(
            f"  {title:44} {sum(became.values()):5}   " + ", ".join(f"{n} {kind}" for kind, n in became.most_common())
        )
    missed = sum(became["MISSED"] for became in ways.values())
    healthy = sorted(file for file in kind_of if "good" in file)
    print(
        f"  missed {missed}, healthy files named {len(healthy)}, {seconds:.1f} s, peak memory {peak[0] / 2**30:.2f} GiB"
    )
    print("  kinds: " + ", ".join(f"{len(issue.files)} {issue.kind}" for issue in issues), flush=True)


def is_image(path: Path) -> bool:
    try:
        read_image(path)
    except (InputError, OSError):
        return False
    return True


def weigh(over: threading.Event, peak: list[int]) -> None:
    me = psutil.Process()
    while not over.wait(0.1):
        total = 0
        for process in (me, *me.children(recursive=True)):
            try:
                total += process.memory_full_info().pss
            except psutil.Error:
                continue
        peak[0] = max(peak[0], total)


def breaks() -> list[tuple[str, Break]]:
    """Return every way of being broken, with its title."""
    ways: list[tuple[str, Break]] = []
    for suffix in FORMATS:
        ways.append((f"{suffix} cut short", encoded(suffix, cut_short)))
        ways.append(
            (f"{suffix} with 1 bit turned in its first 64 bytes", encoded(suffix, lambda c, r: turned(c, r, 1, 64)))
        )
        ways.append((f"{suffix} with 20 bits turned", encoded(suffix, lambda c, r: turned(c, r, 20, len(c)))))
        ways.append((f"{suffix} that claims {CLAIMED} x {CLAIMED} px", encoded(suffix, BOMBS[suffix])))
    ways += [
        ("tif with tiles of 60000 x 60000 px", lambda path, rng: write(path, "tif", tiled_tiff())),
        ("png that unpacks to 300 times its size", lambda path, rng: write(path, "png", packed_png())),
        ("no bytes", lambda path, rng: write(path, "png", b"")),
        ("random bytes", lambda path, rng: write(path, "jpg", rng.bytes(5000))),
        ("text", lambda path, rng: write(path, "png", b"../../etc/passwd\n" * 50)),
        ("PostScript, which a decoder would run", lambda path, rng: write(path, "png", POSTSCRIPT)),
        ("a GIF", encoded("png", lambda content, rng: again(content, "GIF"))),
        ("a zip", lambda path, rng: write(path, "tif", b"PK\x03\x04" + rng.bytes(300))),
        ("8 GiB of nothing", sparse),
        ("a link to /dev/zero", linked("/dev/zero")),
        ("a link to /etc/passwd", linked("/etc/passwd")),
        ("a link up and out", linked("../../../../etc/hostname")),
        ("a link to itself", lambda path, rng: linked(f"{path.name}.png")(path, rng)),
        ("a link to nothing", linked("nowhere.png")),
        ("a pipe", lambda path, rng: (os.mkfifo(path.with_suffix(".png")), "png")[1]),
        ("a socket", socket_at),
        ("a folder", lambda path, rng: (path.with_suffix(".png").mkdir(), "png")[1]),
    ]
    return ways


def write(path: Path, suffix: str, content: bytes) -> str:
    path.with_suffix(f".{suffix}").write_bytes(content)
    return suffix


def encoded(suffix: str, change: Callable[[bytes, np.random.Generator], bytes]) -> Break:
    def make(path: Path, rng: np.random.Generator) -> str:
        image = draw_street(SIZE, seed=1, sequence=int(rng.integers(1000)), frame=0)[0]
        target = BytesIO()
        options = (
            {"compression": str(rng.choice(["tiff_lzw", "tiff_adobe_deflate", "jpeg"]))} if suffix == "tif" else {}
        )
        Image.fromarray(image).save(target, FORMATS[suffix], **options)
        return write(path, suffix, change(target.getvalue(), rng))

    return make


def cut_short(content: bytes, rng: np.random.Generator) -> bytes:
    return content[: int(len(content) * rng.uniform(0, 0.95))]


def turned(content: bytes, rng: np.random.Generator, bits: int, within: int) -> bytes:
    changed = bytearray(content)
    for place in rng.integers(0, min(within, len(content)), bits):
        changed[place] ^= 1 << int(rng.integers(8))
    return bytes(changed)


def again(content: bytes, kind: str) -> bytes:
    target = BytesIO()
    Image.open(BytesIO(content)).save(target, kind)
    return target.getvalue()


def bomb_png(content: bytes, rng: np.random.Generator) -> bytes:
    header = b"IHDR" + struct.pack(">II", CLAIMED, CLAIMED) + content[24:29]
    return content[:12] + header + struct.pack(">I", zlib.crc32(header)) + content[33:]


def bomb_jpg(content: bytes, rng: np.random.Generator) -> bytes:
    place = content.index(b"\xff\xc0") + 5
    return content[:place] + struct.pack(">HH", CLAIMED, CLAIMED) + content[place + 4 :]


def bomb_bmp(content: bytes, rng: np.random.Generator) -> bytes:
    return content[:18] + struct.pack("<ii", CLAIMED, CLAIMED) + content[26:]


def bomb_tif(content: bytes, rng: np.random.Generator) -> bytes:
    return with_tags(content, {256: CLAIMED, 257: CLAIMED})


def bomb_webp(content: bytes, rng: np.random.Generator) -> bytes:
    """Put an extended header of that canvas before the picture (RFC 9649, section 2.7)."""
    size = struct.pack("<I", CLAIMED - 1)[:3]
    extended = b"VP8X" + struct.pack("<I", 10) + bytes(4) + size + size
    return b"RIFF" + struct.pack("<I", len(content) - 8 + len(extended)) + b"WEBP" + extended + content[12:]


BOMBS = {"png": bomb_png, "jpg": bomb_jpg, "bmp": bomb_bmp, "tif": bomb_tif, "webp": bomb_webp}
POSTSCRIPT = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 100 100\n%%EndComments\n(/etc/passwd) (r) file\n"


def with_tags(content: bytes, values: dict[int, int]) -> bytes:
    """Write other values into tags of a little-endian TIFF's first directory."""
    changed = bytearray(content)
    (place,) = struct.unpack_from("<I", content, 4)
    (count,) = struct.unpack_from("<H", content, place)
    for entry in range(place + 2, place + 2 + 12 * count, 12):
        (tag,) = struct.unpack_from("<H", content, entry)
        if tag in values:
            struct.pack_into("<HII", changed, entry + 2, 4, 1, values[tag])
    return bytes(changed)


def tiled_tiff() -> bytes:
    """A TIFF of 64 x 64 px whose one tile claims to be far larger, compressed so that libtiff decodes it."""
    tile = zlib.compress(bytes(64 * 64))
    tags = {
        256: 64, 257: 64, 258: 8, 259: 8, 262: 1, 277: 1, 322: CLAIMED, 323: CLAIMED, 324: 0, 325: len(tile),
    }  # fmt: skip
    start = 8 + 2 + 12 * len(tags) + 4
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, start if tag == 324 else tags[tag]) for tag in sorted(tags))
    return b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", len(tags)) + entries + bytes(4) + tile


def packed_png() -> bytes:
    """A PNG of the largest size allowed, whose rows end early: its few bytes unpack to much."""
    header = b"IHDR" + struct.pack(">IIBBBBB", 8192, 8192, 8, 0, 0, 0, 0)
    rows = b"IDAT" + zlib.compress(bytes(8193 * 4000))
    chunks = b"".join(struct.pack(">I", len(c) - 4) + c + struct.pack(">I", zlib.crc32(c)) for c in (header, rows))
    return b"\x89PNG\r\n\x1a\n" + chunks


def sparse(path: Path, rng: np.random.Generator) -> str:
    with path.with_suffix(".png").open("wb") as file:
        file.truncate(8 * 2**30)
    return "png"


def linked(target: str) -> Break:
    def make(path: Path, rng: np.random.Generator) -> str:
        path.with_suffix(".png").symlink_to(target)
        return "png"

    return make


def socket_at(path: Path, rng: np.random.Generator) -> str:
    with socket.socket(socket.AF_UNIX) as end:
        end.bind(str(path.with_suffix(".png")))
    return "png"


def write_broken_pack(raw_dir: Path) -> dict[str, str]:
    """Write a packed set whose index points where it must not; return name -> how it is broken."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    names = [f"s{index:03d}" for index in range(GOOD)]
    samples = []
    for index, name in enumerate(names):
        image, mask = draw_street(SIZE, seed=3, sequence=index, frame=0)
        samples.append(NewSample(name, encode_png(image), ".png", encode_png(mask)))
    write_set(raw_dir, info(names), samples, shares=SplitShares(0.2, 0.2, 0), packed=True)
    rows = pq.read_table(raw_dir / INDEX_FILE).to_pylist()
    ways = {
        "a pack above the set": {"pack": "../../../../etc/passwd"},
        "a pack elsewhere": {"pack": "/etc/passwd"},
        "a pack that is a device": {"pack": "/dev/zero"},
        "a pack that is not there": {"pack": "packs/none.tar"},
        "an offset before the start": {"image_offset": -5},
        "an offset beyond the end": {"image_offset": 2**50},
        "a length without end": {"image_bytes": 2**62},
        "a negative length": {"image_bytes": -7},
    }
    planted = {}
    for number, (title, change) in enumerate(ways.items()):
        rows[5 * number] |= change
        planted[rows[5 * number]["image_name"]] = title
    schema = pq.read_schema(raw_dir / INDEX_FILE)
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), raw_dir / INDEX_FILE)
    return planted


if __name__ == "__main__":
    main()
