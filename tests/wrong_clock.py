"""A clock that is days ahead or back, for one process and what it starts: Debian's libfaketime."""

from __future__ import annotations

import functools
import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

# libfaketime 0.9.10 moves the end of a sleep by the monotonic clock too, which Python's `time.sleep` asks for (EINVAL);
# where it fakes that clock, the timed locks of Python, which it does not know of, wait for days.
SLEEP = """
#include <errno.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>
int clock_nanosleep(clockid_t clock, int flags, const struct timespec *wanted, struct timespec *left) {
    return syscall(SYS_clock_nanosleep, clock, flags, wanted, left) ? errno : 0;
}
"""


def wrong_clock(days: int) -> dict[str, str]:
    """Return the variables that a process with such a clock is started with. Time that only passes, passes as ever."""
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    if library is None or shutil.which("cc") is None:
        pytest.skip("there is no libfaketime here, or no C compiler")
    return {"LD_PRELOAD": f"{_sleep()}:{library}", "FAKETIME": f"{days:+d}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}


@functools.cache
def _sleep() -> Path:
    """Return a library whose sleep by the monotonic clock is the system's."""
    folder = Path(tempfile.mkdtemp(prefix="segmill-sleep-"))
    (folder / "sleep.c").write_text(f"#define _GNU_SOURCE\n{SLEEP}")
    subprocess.run(["cc", "-shared", "-fPIC", "-o", "sleep.so", "sleep.c"], cwd=folder, check=True)
    return folder / "sleep.so"
