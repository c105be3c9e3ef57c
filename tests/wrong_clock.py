"""A clock that is days ahead or back, for one process and what it starts: Debian's libfaketime."""

from __future__ import annotations

from pathlib import Path

import pytest


def wrong_clock(days: int) -> dict[str, str]:
    """Return the variables that a process with such a clock is started with. Time that only passes, passes as ever."""
    library = next(iter(Path("/usr/lib").glob("*/faketime/libfaketimeMT.so.1")), None)
    if library is None:
        pytest.skip("there is no libfaketime here")
    return {"LD_PRELOAD": str(library), "FAKETIME": f"{days:+d}d", "FAKETIME_DONT_FAKE_MONOTONIC": "1"}
