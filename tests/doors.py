"""A door before a server on loopback: shut, it is as if the server were killed; it also answers 500, or only slowly."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Iterator
from typing import Literal
from urllib.parse import urlsplit

State = Literal["open", "shut", "500", "slow"]
SLOW_S = 3.0
# Without a body, which the answer to a HEAD request must not have.
FAILS = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"


class Door:
    """Passes bytes on to a server.

    Attributes:
        url: its own address, with the path of the server's.
        slow_s: what a connection takes to be made where it is slow.
    """

    def __init__(self, server: str, slow_s: float = SLOW_S) -> None:
        self.slow_s = slow_s
        self._server = urlsplit(server)
        self._state: State = "shut"
        self._listener: socket.socket | None = None
        self._open: set[socket.socket] = set()
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            self._port = probe.getsockname()[1]
        user, at, _ = self._server.netloc.rpartition("@")
        self.url = self._server._replace(netloc=f"{user}{at}127.0.0.1:{self._port}").geturl()

    def set(self, state: State) -> None:
        """Change how it answers from here on; shut, it also breaks what is under way."""
        self._state = state
        if state == "shut":
            if self._listener:
                self._listener.shutdown(socket.SHUT_RDWR)
                self._listener.close()
            self._listener = None
            for connection in list(self._open):
                _break(connection)
        elif self._listener is None:
            self._listener = socket.create_server(("127.0.0.1", self._port), backlog=64)
            threading.Thread(target=self._accept, args=(self._listener,), daemon=True).start()

    def _accept(self, listener: socket.socket) -> None:
        with contextlib.suppress(OSError):  # it was shut
            while True:
                connection = listener.accept()[0]
                threading.Thread(target=self._serve, args=(connection,), daemon=True).start()

    def _serve(self, connection: socket.socket) -> None:
        if self._state == "500":
            with contextlib.suppress(OSError), connection:
                connection.recv(2**16)
                connection.sendall(FAILS)
            return
        if self._state == "slow":
            time.sleep(self.slow_s)
        server = socket.create_connection((self._server.hostname or "", self._server.port or 80))
        self._open |= {connection, server}
        threading.Thread(target=self._pump, args=(server, connection), daemon=True).start()
        self._pump(connection, server)
        self._open -= {connection, server}

    def _pump(self, one: socket.socket, other: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while block := one.recv(2**16):
                if self._state == "500":
                    break
                other.sendall(block)
        _break(one)
        _break(other)


def failing(door: Door, state: State, for_s: float) -> None:
    """Let it fail for so many seconds; 0: from here on."""
    door.set(state)
    if for_s:
        time.sleep(for_s)
        door.set("shut")  # breaks what was begun
        door.set("open")


def _break(connection: socket.socket) -> None:
    with contextlib.suppress(OSError):
        connection.shutdown(socket.SHUT_RDWR)
    connection.close()


@contextlib.contextmanager
def door_before(server: str, slow_s: float = SLOW_S) -> Iterator[Door]:
    """Give an open door; shut after the block."""
    door = Door(server, slow_s)
    door.set("open")
    try:
        yield door
    finally:
        door.set("shut")
