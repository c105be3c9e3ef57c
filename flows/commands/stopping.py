"""Ctrl-C and SIGTERM end any command within seconds: what takes longer to come to its end is cut off."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from typing import NoReturn

INTERRUPTED = 130  # the exit code, as shells and click say it
PATIENCE_S = 3.0
SAYS_WITHIN_S = 3.0

_patience_s = PATIENCE_S


def take_time(seconds: float) -> None:
    """Let this command have so long to come to its end: a service answers what it was asked."""
    global _patience_s
    _patience_s = seconds


def obey_signals(say: Callable[[], None]) -> None:
    """Let SIGTERM, a service manager's stop, end the command as Ctrl-C does, and both within ``PATIENCE_S``.

    They raise KeyboardInterrupt in the main thread once that runs Python code, which may be long after the signal where
    it waits in a library. So another thread hears of them too: it calls ``say``, for a sentence, and ends the process.
    """
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    heard, hears = os.pipe()
    os.set_blocking(hears, False)
    signal.set_wakeup_fd(hears, warn_on_full_buffer=False)

    def say_last() -> None:
        if display := sys.modules.get("flows.display"):
            display.end_pictures()
        say()

    def cut_off() -> None:
        while os.read(heard, 1)[0] not in (signal.SIGINT, signal.SIGTERM):
            pass
        time.sleep(_patience_s)
        # Libraries import when they are first used, and a KeyboardInterrupt in the middle of the main thread's import
        # can leave Python's import lock held for ever.
        saying = threading.Thread(target=say_last, daemon=True)
        saying.start()
        saying.join(SAYS_WITHIN_S)
        if saying.is_alive():
            os.write(sys.stderr.fileno(), b"interrupted\n")
            os._exit(INTERRUPTED)
        leave()

    threading.Thread(target=cut_off, daemon=True).start()


def leave(code: int = INTERRUPTED) -> NoReturn:
    """End this process now: libraries would wait at the exit, for servers that end by themselves or are gone.

    See ``segmill.orphans``.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
