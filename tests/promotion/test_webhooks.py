"""Webhooks are signed as the Standard Webhooks specification has it, follow no redirect, and show no secret."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest
from postings import SECRET, Endpoint, a_row, endpoint, is_signed
from sqlalchemy import create_engine

from segmill.errors import InputError
from segmill.notify_params import EVENTS
from segmill.promotion.delivery import Delivered, deliver
from segmill.promotion.outbox import METADATA, add
from segmill.promotion.webhooks import signature, webhook


@pytest.fixture
def url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """Return the address of a ledger's database with one notice to send; HOOK_SECRET holds the secret."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    engine = create_engine(f"sqlite:///{tmp_path}/ledger.db")
    METADATA.create_all(engine)
    with engine.begin() as connection:
        add(connection, a_row())
    return str(engine.url)


def posted(url: str, there: Endpoint, address: str | None = None) -> Delivered:
    return deliver(url, [webhook(address or there.url, "HOOK_SECRET", frozenset(EVENTS))])


def test_the_signature_is_that_of_the_specifications_own_libraries() -> None:
    """Secret, id, time, body and signature of the tests of github.com/standard-webhooks/standard-webhooks."""
    secret, id = "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek"
    signed = signature(secret, id, 1614265330, b'{"test": 2432232314}')
    assert signed == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_type_time_and_the_row_are_in_the_body(url: str) -> None:
    with endpoint() as there:
        assert posted(url, there) == Delivered(sent=1)
        (posting,) = there.postings
    content = json.loads(posting.body)
    assert content["type"] == "segmill.promoted" and content["timestamp"] == a_row().time
    assert content["data"]["model"] == "segmill-street" and content["data"]["reasons"] == a_row().reasons
    assert posting.headers["content-type"] == "application/json" and is_signed(posting)


def test_two_secrets_sign_while_one_replaces_the_other(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    new = "whsec_" + base64.b64encode(b"n" * 24).decode()
    monkeypatch.setenv("HOOK_SECRET", f"{new} {SECRET}")
    with endpoint() as there:
        posted(url, there)
        (posting,) = there.postings
    assert is_signed(posting, SECRET) and is_signed(posting, new)
    assert not is_signed(posting, "whsec_" + base64.b64encode(b"o" * 24).decode())


def test_a_redirect_is_not_followed(url: str) -> None:
    with endpoint() as there:
        there.answers = [307]
        failed = posted(url, there)
        assert "answered 307, and redirects are not followed; name the address itself" in str(failed.last_error)
        assert [posting.path for posting in there.postings] == ["/hook"]


def test_user_and_password_are_sent_and_not_shown(url: str, tmp_path: Path) -> None:
    with endpoint() as there:
        there.answers = [401]
        failed = posted(url, there, there.url.replace("//", "//user:w0rd@"))
        (posting,) = there.postings
    assert base64.b64decode(posting.headers["authorization"].split()[1]) == b"user:w0rd"
    assert failed.last_error == f"webhook {there.url}: answered 401"
    assert b"w0rd" not in (tmp_path / "ledger.db").read_bytes()


@pytest.mark.parametrize("secret", ["", "short", "whsec_c2hvcnQ=", f"whsec_{'A' * 100}", f"whsec_{'A' * 32}!!!!"])
def test_without_a_proper_secret_nothing_is_sent(url: str, monkeypatch: pytest.MonkeyPatch, secret: str) -> None:
    monkeypatch.setenv("HOOK_SECRET", secret)
    with endpoint() as there:
        failed = posted(url, there)
        assert there.postings == [] and failed.waiting == 1
    said = str(failed.last_error)
    assert "HOOK_SECRET with its secret is not set" in said or "whsec_ and 24 to 64 bytes in base64" in said
    assert not secret or secret not in said


def test_a_wrong_secret_among_two_is_refused() -> None:
    with pytest.raises(InputError, match="24 to 64 bytes"):
        signature(f"{SECRET} whsec_!", "msg_1", 1, b"{}")
