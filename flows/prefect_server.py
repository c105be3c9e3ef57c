"""Prefect's server for the duration of a command, where no other one is named."""

from __future__ import annotations

import signal
import threading

from prefect.client.orchestration import get_client

from segmill.orphans import end_with_this_process


def start_server() -> None:
    """Start the server that Prefect's clients of this process then use, out of reach of the terminal's Ctrl-C.

    A terminal sends Ctrl-C to every process of a command. A server that ends at once leaves the flow asking it, for
    minutes; this one ends with this process. It inherits the blocked signal from the thread that starts it, while this
    thread can still be interrupted.
    """
    end_with_this_process()
    failed: list[BaseException] = []

    def start() -> None:
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
        try:
            with get_client(sync_client=True):
                pass
        except BaseException as error:
            failed.append(error)

    thread = threading.Thread(target=start, daemon=True)
    thread.start()
    thread.join()
    if failed:
        raise failed[0]
