"""A real HTTP endpoint on loopback that answers as a test says, and rows of a ledger for notices."""

from __future__ import annotations

import base64
import hashlib
import hmac
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from segmill.promotion.rows import LedgerRow

HANGS_S = 30.0  # how long "hang" takes
SECRET = "whsec_" + base64.b64encode(bytes(range(32))).decode()


ROW = LedgerRow(
    model="segmill-street", number=1, time="2026-11-29T08:00:00+00:00", action="promote", version="2", champion="2",
    previous="1", decision="PASS", reasons=["mIoU is 0.02 higher."], facts={}, because="", actor={"name": "Ada"},
    writer=1, previous_hash="", hash="", key_id="", signature="",
)  # fmt: skip


def a_row(action: str = "promote", **fields: Any) -> LedgerRow:
    """Return a row of a ledger with a hash of its own, as far as notices go."""
    made = replace(ROW, action=action, **fields)
    return replace(made, hash=hashlib.sha256(f"{made.model} {made.number}".encode()).hexdigest())


@dataclass(frozen=True)
class Posting:
    """A request that came: its path, its headers in small letters, and its body."""

    path: str
    headers: dict[str, str]
    body: bytes

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]


@dataclass
class Endpoint:
    """A server that keeps what is posted. ``answers``: the next ones, "hang" or a status; 204 where there is none."""

    port: int
    postings: list[Posting] = field(default_factory=list)
    answers: list[int | str] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"


@contextmanager
def endpoint(port: int = 0) -> Iterator[Endpoint]:
    """Serve on a port of loopback, a free one for 0, while the block runs; nobody listens there before and after."""
    over = threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            found.postings.append(
                Posting(self.path, {name.lower(): value for name, value in self.headers.items()}, body)
            )
            answer = found.answers.pop(0) if found.answers else 204
            if isinstance(answer, str):
                over.wait(HANGS_S)
                return
            self.send_response(answer)
            if 300 <= answer < 400:
                self.send_header("location", "/elsewhere")
            self.end_headers()

        def log_message(self, *parts: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", port), Handler)
    server.daemon_threads = True
    found = Endpoint(server.server_address[1])
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield found
    finally:
        over.set()
        server.shutdown()
        server.server_close()
        thread.join()


def free_port() -> int:
    """Return a port of loopback where nobody listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def is_signed(posting: Posting, secret: str = SECRET) -> bool:
    """Check a posting as a receiver would who read the specification and nothing of ours."""
    age_s = abs(time.time() - int(posting.headers["webhook-timestamp"]))
    signed = f"{posting.headers['webhook-id']}.{posting.headers['webhook-timestamp']}.".encode() + posting.body
    digest = hmac.digest(base64.b64decode(secret.split("_", 1)[1]), signed, "sha256")
    given = [one.split(",", 1) for one in posting.headers["webhook-signature"].split(" ")]
    matches = [scheme == "v1" and hmac.compare_digest(base64.b64decode(value), digest) for scheme, value in given]
    return age_s < 300 and any(matches)
