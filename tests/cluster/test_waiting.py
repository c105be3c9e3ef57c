from __future__ import annotations

import signal
import time
from typing import NoReturn

import pytest

from segmill.cluster.waiting import fetch
from segmill.cluster.work import on_ray


class Ended(BaseException):
    """As Prefect's handler of SIGTERM raises it in a flow: no Exception, and no KeyboardInterrupt."""


def test_what_a_signals_handler_raises_while_ray_is_waited_for_comes_out(joined: None) -> None:
    def end(*_: object) -> NoReturn:
        raise Ended

    running = on_ray(time.sleep, 20)
    before = signal.signal(signal.SIGALRM, end)
    try:
        for _ in range(5):
            signal.setitimer(signal.ITIMER_REAL, 0.3)
            with pytest.raises(Ended):
                fetch(running.reference)
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
