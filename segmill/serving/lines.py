"""The log of the service: a line of JSON for each thing that happens."""

from __future__ import annotations

import json
import logging
from typing import Any


def say(what: str, **facts: Any) -> None:
    """Write a line of JSON to the log."""
    logging.getLogger("segmill.serving").info(json.dumps({"event": what, **facts}))


def log_here() -> None:
    """Let this process write the service's lines to its standard error, which Ray keeps in a file."""
    log = logging.getLogger("segmill.serving")
    log.setLevel(logging.INFO)
    if not log.handlers:
        log.addHandler(logging.StreamHandler())
        log.propagate = False
