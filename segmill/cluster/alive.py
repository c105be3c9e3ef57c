"""Notices that the cluster is gone, before Ray waits for a minute and then ends this process without a word."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

from segmill.alongside import alongside
from segmill.cluster.waiting import say_lost

LOOK_EVERY_S = 0.5
ANSWERS_WITHIN_S = 5.0
# Ray gives up on its head (GCS) after 60 s; the one of a cluster elsewhere may come back before that. This machine's
# own does not, nor does a node's raylet, whose loss ends this process within seconds.
PATIENCE_S, PATIENCE_ELSEWHERE_S = 1.0, 30.0


@dataclass(frozen=True)
class Server:
    """A process of Ray that this one cannot do without, where it listens, and how long it may be away."""

    name: str
    host: str
    port: int
    patience_s: float

    def listens(self) -> bool:
        try:
            socket.create_connection((self.host, self.port), timeout=ANSWERS_WITHIN_S).close()
        except OSError:
            return False
        return True


@contextlib.contextmanager
def watching(address: str) -> Iterator[None]:
    """While the block runs, let whoever waits for work on the cluster fail with ClusterLost once it is gone."""
    servers = _servers(address)

    def look(over: threading.Event) -> None:
        answered = dict.fromkeys(servers, time.monotonic())
        while not over.wait(LOOK_EVERY_S):
            for server in servers:
                if server.listens():
                    answered[server] = time.monotonic()
                elif time.monotonic() - answered[server] > server.patience_s:
                    say_lost(
                        f"Ray's {server.name} at {server.host}:{server.port} is gone: it was killed, or its machine is "
                        "down or short of memory; run again: what is done is kept"
                    )
                    return

    with alongside(look):
        yield


def _servers(address: str) -> list[Server]:
    """Return the cluster's head and this node's part of it; none where a Ray client connects (ray://)."""
    if address.startswith("ray://"):
        return []
    import ray

    context = ray.get_runtime_context()
    host, _, port = context.gcs_address.rpartition(":")
    head = Server("head (GCS)", host, int(port), PATIENCE_S if address == "local" else PATIENCE_ELSEWHERE_S)
    own = [node for node in ray.nodes() if node["NodeID"] == context.get_node_id()]
    nodes = [Server("raylet", node["NodeManagerAddress"], node["NodeManagerPort"], PATIENCE_S) for node in own]
    return [head, *nodes]
