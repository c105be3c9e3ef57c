"""A hint by webhook: a promotion's own notice makes the service look at the ledger, and nothing unsigned does."""

from __future__ import annotations

import base64
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from answering import Brightness, Service, answering
from postings import SECRET

from flows.commands.serve import hint_secrets
from segmill.errors import InputError
from segmill.notify_params import EVENTS, NotifyParams
from segmill.promotion.delivery import Delivered, deliver
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.rows import Entry
from segmill.promotion.signers import set_up
from segmill.promotion.webhooks import signature, webhook
from segmill.serving.hints import AT_ONCE, MOST_BYTES, webhook_hints
from segmill.serving.keys import Scope

OTHER = "whsec_" + base64.b64encode(b"o" * 24).decode()


@pytest.fixture(scope="module")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    with answering(Brightness(), tmp_path_factory.mktemp("service"), secret=f"{OTHER} {SECRET}") as found:
        yield found


def headers(body: bytes, *, secret: str = SECRET, sent_s: float | None = None, id: str = "msg_1") -> dict[str, str]:
    sent = int(time.time() if sent_s is None else sent_s)
    return {
        "webhook-id": id,
        "webhook-timestamp": str(sent),
        "webhook-signature": signature(secret, id, sent, body),
    }


def test_a_promotions_notice_is_a_hint_within_two_seconds(
    service: Service, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    set_up(tmp_path)
    book = workspace_ledger(tmp_path)
    target = webhook(f"{service.client.base_url}/v1/hint", "HOOK_SECRET", frozenset(EVENTS))
    book.append(book.begin("segmill-street"), Entry(action="promote", version="1", decision="PASS"))
    deliver(ledger_url(tmp_path), [target])  # a target gets what happens after it is named
    book.append(book.begin("segmill-street"), Entry(action="promote", version="2", decision="PASS"))
    before, began = len(service.hints), time.monotonic()
    assert deliver(ledger_url(tmp_path), [target]) == Delivered(sent=1)
    assert len(service.hints) > before and service.hints[-1] - began < 2
    until = time.monotonic() + 10
    while not (rows := [row for row in service.audit.last(20) if row["key"] == "webhook"]):
        assert time.monotonic() < until
        time.sleep(0.1)
    assert rows[0]["route"] == "/v1/hint" and rows[0]["status"] == 202 and rows[0]["bytes_in"] > 100


def test_what_is_not_signed_or_old_or_of_another_secret_is_no_hint(service: Service) -> None:
    body, hints = b'{"type":"segmill.promoted"}', len(service.hints)
    good = headers(body)
    unknown = "whsec_" + base64.b64encode(b"u" * 24).decode()
    for wrong in (
        good | {"webhook-signature": ""},
        good | {"webhook-signature": "v1," + base64.b64encode(b"0" * 32).decode()},
        good | {"webhook-signature": good["webhook-signature"].replace("v1,", "v1a,")},
        good | {"webhook-id": "msg_2"},
        good | {"webhook-timestamp": str(int(good["webhook-timestamp"]) + 1)},
        good | {"webhook-timestamp": "now"},
        good | {"webhook-timestamp": "9" * 5000},
        headers(body + b" "),
        headers(body, secret=unknown),
        headers(body, sent_s=time.time() - 310),
        headers(body, sent_s=time.time() + 310),
        {name: value for name, value in good.items() if name != "webhook-timestamp"},
    ):
        answer = service.client.post("/v1/hint", content=body, headers=wrong)
        assert answer.status_code == 401 and answer.json()["error"].startswith("the header webhook-"), wrong
    assert len(service.hints) == hints
    assert service.client.post("/v1/hint", content=body, headers=headers(body, secret=OTHER)).status_code == 202
    assert service.client.post("/v1/hint", headers=service.key(Scope.ADMIN)).status_code == 202
    assert len(service.hints) == hints + 2


def test_a_signature_opens_nothing_else_and_does_not_replace_a_wrong_key(service: Service) -> None:
    signed = headers(b"")
    for path in ("/v1/model", "/metrics", "/", "/v1/hint/", "//v1/hint"):
        assert service.client.get(path, headers=signed).status_code == 401
    assert service.client.post("/v1/segment", headers=signed).status_code == 401
    assert service.client.post("/v1/hint", headers=signed | service.key(Scope.SEGMENT)).status_code == 403
    assert service.client.get("/v1/hint", headers=signed).status_code == 405


def test_without_a_secret_no_signature_is_good(tmp_path: Path) -> None:
    with answering(Brightness(), tmp_path) as service:
        assert service.client.post("/v1/hint", headers=headers(b"")).status_code == 401
        assert service.hints == []


def test_strangers_bodies_are_small_few_and_short_of_time(service: Service) -> None:
    large = b"x" * (MOST_BYTES + 1)
    assert service.client.post("/v1/hint", content=large, headers=headers(large)).status_code == 413
    start = b"POST /v1/hint HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\nwebhook-signature: v1,x\r\n\r\nx"
    waiting = [socket.create_connection(service.address, timeout=10) for _ in range(AT_ONCE)]
    try:
        for connection in waiting:
            connection.sendall(start)
        until = time.monotonic() + 1.5  # they are cut off after LIMITS.body_s, 2 s
        while (busy := service.client.post("/v1/hint", headers=headers(b""))).status_code == 202:
            assert time.monotonic() < until
        assert (busy.status_code, busy.headers["retry-after"]) == (503, "1")
        assert service.client.get("/v1/model", headers=service.key()).status_code == 200, "others are answered"
        assert all(connection.recv(4096).startswith(b"HTTP/1.1 408") for connection in waiting)
    finally:
        for connection in waiting:
            connection.close()
    assert service.client.post("/v1/hint", headers=headers(b"")).status_code == 202


def test_the_secrets_variable_is_that_of_the_webhook_that_names_the_service(monkeypatch: pytest.MonkeyPatch) -> None:
    hooks = [
        {"url": "https://service.example.org:8000/v1/hint", "secret_env": "HINT_SECRET"},
        {"url": "https://chat.example.org/models", "secret_env": "CHAT_SECRET"},
        {"url": "https://other.example.org/segment/v1/hint", "secret_env": "HINT_SECRET"},
    ]
    assert hint_secrets(NotifyParams.model_validate({"webhooks": hooks})) == ("HINT_SECRET",)
    assert webhook_hints([]) is None
    with pytest.raises(InputError, match="the environment variable HINT_SECRET is not set"):
        webhook_hints(["HINT_SECRET"])
    monkeypatch.setenv("HINT_SECRET", "secret")
    with pytest.raises(InputError, match="the secret is not whsec_ and 24 to 64 bytes"):
        webhook_hints(["HINT_SECRET"])
    monkeypatch.setenv("HINT_SECRET", SECRET)
    assert webhook_hints(["HINT_SECRET"]) is not None
