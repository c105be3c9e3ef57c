"""A process that decodes images for ``decoding``, under a limit of memory: what brings it down costs one request.

python -m segmill.serving.decoder CONNECTION MEMORY_BYTES MAX_PIXELS
"""

from __future__ import annotations

import json
import resource
import sys
from multiprocessing.connection import Connection
from pathlib import Path

from segmill.data.storage.images import image_size, read_image
from segmill.errors import InputError


def decoded(content: bytes, most_pixels: int) -> tuple[dict[str, object], bytes]:
    """Return the facts of an answer, and the pixels: ``shape`` of HWC uint8, or ``refused``, a sentence."""
    try:
        height, width = image_size(content)
        if height * width > most_pixels:
            raise InputError(f"it has {width} x {height} pixels, more than {most_pixels}", "cut it into tiles")
        image_HWC = read_image(content)
    except InputError as error:
        return {"refused": str(error)}, b""
    except MemoryError:
        return {"refused": "it takes more memory than an image may"}, b""
    return {"shape": image_HWC.shape}, image_HWC.tobytes()


def main() -> None:
    number, memory_bytes, most_pixels = map(int, sys.argv[1:])
    connection = Connection(number)
    pages = int(Path("/proc/self/statm").read_text().split()[0])  # what this program itself has mapped
    most = pages * resource.getpagesize() + memory_bytes
    resource.setrlimit(resource.RLIMIT_AS, (most, most))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    connection.send_bytes(b"ready")
    while True:
        try:
            content = connection.recv_bytes()
        except EOFError:
            return
        facts, pixels = decoded(content, most_pixels)
        del content
        connection.send_bytes(json.dumps(facts).encode())
        if pixels:
            connection.send_bytes(pixels)


if __name__ == "__main__":
    main()
