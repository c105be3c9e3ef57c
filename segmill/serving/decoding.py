"""Decodes what strangers send: in processes of its own, within limits of pixels, memory and time."""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from multiprocessing import Pipe

import numpy as np
from numpy.typing import NDArray

from segmill.credentials import without_credentials
from segmill.serving.access import Refused

STARTS_WITHIN_S = 60.0


@dataclass(frozen=True)
class DecodingLimits:
    """What an image may take.

    Attributes:
        pixels: height x width; a header that claims more is refused before anything is decoded.
        bytes: of the file.
        memory_bytes: of the decoder, beside its program.
        seconds: from the first byte of the file to the last pixel; also to wait for a decoder that is free.
    """

    pixels: int = 2**24
    bytes: int = 2**25
    memory_bytes: int = 2**29
    seconds: float = 10.0


class Decoders:
    """A few processes that decode; ``decode`` may be called by many threads. Close it at the end."""

    def __init__(self, count: int, limits: DecodingLimits = DecodingLimits()) -> None:
        self._limits = limits
        self._free: queue.LifoQueue[_Decoder] = queue.LifoQueue()
        for _ in range(count):
            self._free.put(_Decoder(limits))

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Return an image file's pixels as ``images.read_image`` does, HWC uint8 with C = 1 (grey) or 3 (RGB).

        Raises Refused: 413 where it is too large, 422 where it is no image that can be read, 503 where no decoder is
        free in time.
        """
        if len(content) > self._limits.bytes:
            raise Refused(413, f"the image has {len(content)} bytes, more than {self._limits.bytes}")
        try:
            decoder = self._free.get(timeout=self._limits.seconds)
        except queue.Empty:
            raise Refused(503, "all decoders are busy; try again") from None
        try:
            return decoder.decode(content)
        except (EOFError, OSError, TimeoutError) as error:
            decoder.end()
            decoder = _Decoder(self._limits)
            slow = f"took longer than {self._limits.seconds:g} s" if isinstance(error, TimeoutError) else "failed"
            raise Refused(422, f"the image was not decoded: that {slow}") from None
        finally:
            self._free.put(decoder)

    def close(self) -> None:
        """End the processes that are free."""
        while True:
            try:
                self._free.get_nowait().end()
            except queue.Empty:
                return


@contextmanager
def decoders(count: int, limits: DecodingLimits = DecodingLimits()) -> Iterator[Decoders]:
    """Have ``count`` decoders while the block runs."""
    pool = Decoders(count, limits)
    try:
        yield pool
    finally:
        pool.close()


class _Decoder:
    """One process. It starts at once and is waited for when it is first asked."""

    def __init__(self, limits: DecodingLimits) -> None:
        self._limits, self._ready, self._lock = limits, False, threading.Lock()
        self._connection, its_end = Pipe()
        numbers = [its_end.fileno(), limits.memory_bytes, limits.pixels]
        self._process = subprocess.Popen(
            [sys.executable, "-m", "segmill.serving.decoder", *map(str, numbers)],
            pass_fds=[its_end.fileno()],
            env=without_credentials() | {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        its_end.close()

    def decode(self, content: bytes) -> NDArray[np.uint8]:
        """Raises Refused, TimeoutError where it takes too long, EOFError or OSError where the process ended."""
        with self._lock:
            if not self._ready:
                with self._within(STARTS_WITHIN_S):
                    self._connection.recv_bytes()
                self._ready = True
            with self._within(self._limits.seconds):
                self._connection.send_bytes(content)
                facts = json.loads(self._connection.recv_bytes())
                pixels = b"" if "refused" in facts else self._connection.recv_bytes()
        if "refused" in facts:
            raise Refused(422, f"the image was refused: {facts['refused']}")
        return np.frombuffer(pixels, np.uint8).reshape(facts["shape"])

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._connection.close()

    @contextmanager
    def _within(self, seconds: float) -> Iterator[None]:
        """Kill the process where the block takes longer: one that stopped reading or writing would block it for ever.

        Raises TimeoutError then.
        """
        late = threading.Event()

        def kill() -> None:
            late.set()
            self._process.kill()

        timer = threading.Timer(seconds, kill)
        timer.start()
        try:
            yield
        except (EOFError, OSError):
            if late.is_set():
                raise TimeoutError from None
            raise
        finally:
            timer.cancel()
            timer.join()
        if late.is_set():
            raise TimeoutError
