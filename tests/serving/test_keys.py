"""API keys: made once, kept as hashes, and good for nothing when they are revoked, expired or replaced."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from pathlib import Path

import pytest

from segmill.errors import InfrastructureError, InputError
from segmill.serving.access import KeyRing, Refused
from segmill.serving.keys import ApiKey, ApiKeys, Scope, hash_of

DAY = timedelta(days=1)
SEGMENT = {Scope.SEGMENT}


@pytest.fixture
def keys(tmp_path: Path) -> ApiKeys:
    return ApiKeys(f"sqlite:///{tmp_path / 'ledger.db'}")


@pytest.fixture
def ring(keys: ApiKeys) -> KeyRing:
    return KeyRing(keys.all)


def refusal(ring: KeyRing, header: str | None, scope: Scope = Scope.SEGMENT) -> tuple[int, str]:
    with pytest.raises(Refused) as refused:
        ring.admit(header, scope)
    return refused.value.status, refused.value.sentence


def test_a_key_is_kept_as_its_hash(url: str) -> None:
    keys = ApiKeys(url)
    made, text = keys.create("camera-7", {Scope.SEGMENT, Scope.METRICS}, DAY)
    kept = next(key for key in keys.all() if key.id == made.id)
    assert kept == made
    assert kept.hash == hash_of(text) and text not in repr(kept)
    assert kept.expires is not None and kept.expires - kept.created == DAY


def test_no_byte_of_a_secret_is_in_the_database(keys: ApiKeys, tmp_path: Path) -> None:
    _, text = keys.create("camera-7", SEGMENT, None)
    assert text.rpartition("_")[2].encode() not in (tmp_path / "ledger.db").read_bytes()


def test_two_who_make_the_first_key_at_once_both_get_one(url: str) -> None:
    with ThreadPoolExecutor(4) as pool:
        made = list(pool.map(lambda number: ApiKeys(url).create(f"at once {number}", SEGMENT, DAY)[0].id, range(4)))
    assert set(made) <= {key.id for key in ApiKeys(url).all()}


def test_a_valid_key_is_admitted_for_its_scopes_alone(keys: ApiKeys, ring: KeyRing) -> None:
    made, text = keys.create("camera-7", SEGMENT, DAY)
    ring.refresh()
    assert ring.admit(f"Bearer {text}", Scope.SEGMENT) == made
    assert ring.admit(f"bearer  {text} ", Scope.SEGMENT) == made
    assert refusal(ring, f"Bearer {text}", Scope.ADMIN) == (403, "this key is not good for admin, only for segment")


@pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic c2VnbWlsbDo=", "segmill_0_0"])
def test_a_request_without_a_key_is_told_what_it_needs(ring: KeyRing, header: str | None) -> None:
    ring.refresh()
    assert refusal(ring, header) == (401, "this needs a key, as in `Authorization: Bearer segmill_...`")


@pytest.mark.parametrize("change", [lambda t: t[:-1], lambda t: t[:-1] + "z", lambda t: t + "0", lambda t: "x" + t])
def test_a_key_that_is_almost_right_is_not_known(keys: ApiKeys, ring: KeyRing, change: Callable[[str], str]) -> None:
    _, text = keys.create("camera-7", SEGMENT, DAY)
    ring.refresh()
    assert refusal(ring, f"Bearer {change(text)}") == (401, "this key is not known here")


@pytest.mark.parametrize("text", ["segmill__", "segmill_ä_ö", "segmill_a_b_c", "_" * 50, "x" * 100_000])
def test_no_text_is_more_than_unknown(ring: KeyRing, text: str) -> None:
    ring.refresh()
    assert refusal(ring, f"Bearer {text}") == (401, "this key is not known here")


def test_an_expired_key_says_so_to_who_has_it(keys: ApiKeys, ring: KeyRing) -> None:
    _, text = keys.create("camera-7", SEGMENT, timedelta(seconds=1))
    ring.refresh()
    time.sleep(1.1)
    assert refusal(ring, f"Bearer {text}") == (401, "this key is expired")
    assert refusal(ring, f"Bearer {text[:-1]}z") == (401, "this key is not known here")


def test_a_revoked_key_is_refused_within_seconds_by_a_replica_that_knew_it(keys: ApiKeys) -> None:
    made, text = keys.create("camera-7", SEGMENT, None)
    ring, over = KeyRing(keys.all, refresh_s=0.05), threading.Event()
    ring.refresh()
    watching = threading.Thread(target=ring.watch, args=(over,))
    watching.start()
    try:
        assert ring.admit(f"Bearer {text}", Scope.SEGMENT).id == made.id
        keys.revoke(made.id)
        until = time.monotonic() + 5
        while time.monotonic() < until:
            try:
                ring.admit(f"Bearer {text}", Scope.SEGMENT)
                time.sleep(0.02)
            except Refused as refused:
                assert (refused.status, refused.sentence, refused.key_id) == (401, "this key is revoked", made.id)
                return
        raise AssertionError("it was admitted for 5 s")
    finally:
        over.set()
        watching.join()


def test_a_key_that_is_rotated_goes_on_for_its_grace(url: str) -> None:
    keys = ApiKeys(url)
    old, _ = keys.create("camera-7", SEGMENT, 10 * DAY)
    new, text = keys.rotate(old.id, timedelta(hours=1))
    assert (new.name, new.scopes, new.replaces) == (old.name, old.scopes, old.id)
    assert new.hash == hash_of(text) and new.expires and new.expires - new.created == 10 * DAY
    ends = next(key for key in keys.all() if key.id == old.id).expires
    assert ends is not None and timedelta(minutes=59) < ends - new.created <= timedelta(hours=1, seconds=1)


def test_a_rotation_never_makes_the_old_key_live_longer(keys: ApiKeys) -> None:
    old, _ = keys.create("camera-7", SEGMENT, timedelta(minutes=5))
    keys.rotate(old.id, DAY)
    assert next(key for key in keys.all() if key.id == old.id).expires == old.expires


def test_what_is_no_valid_key_is_neither_revoked_nor_rotated(url: str) -> None:
    keys = ApiKeys(url)
    with pytest.raises(InputError, match=r"there is no key '0123'.*`segmill keys list` names all"):
        keys.revoke("0123")
    made, _ = keys.create("camera-7", SEGMENT, None)
    keys.revoke(made.id)
    for change in (lambda: keys.revoke(made.id), lambda: keys.rotate(made.id, DAY)):
        with pytest.raises(InputError, match=f"key {made.id} of camera-7 is revoked already"):
            change()


@pytest.mark.parametrize(
    ("name", "scopes", "lifetime"),
    [(" ", SEGMENT, DAY), ("x" * 257, SEGMENT, DAY), ("camera-7", set(), DAY), ("camera-7", SEGMENT, -DAY)],
)
def test_a_key_without_sense_is_refused(keys: ApiKeys, name: str, scopes: set[Scope], lifetime: timedelta) -> None:
    with pytest.raises(InputError):
        keys.create(name, scopes, lifetime)
    assert keys.all() == []


def test_keys_last_read_are_believed_for_a_while_when_the_database_is_away(keys: ApiKeys) -> None:
    made, text = keys.create("camera-7", SEGMENT, None)
    away = False

    def read() -> list[ApiKey]:
        if away:
            raise InfrastructureError("the ledger does not answer")
        return keys.all()

    ring = KeyRing(read, refresh_s=0.02, patience_s=0.5)
    assert refusal(ring, f"Bearer {text}") == (503, "keys can't be checked now; try again")
    ring.refresh()
    away, over = True, threading.Event()
    watching = threading.Thread(target=ring.watch, args=(over,))
    watching.start()
    try:
        time.sleep(0.2)
        assert ring.admit(f"Bearer {text}", Scope.SEGMENT).id == made.id
        time.sleep(0.5)
        assert refusal(ring, f"Bearer {text}") == (503, "keys can't be checked now; try again")
        away = False
        time.sleep(0.3)
        assert ring.admit(f"Bearer {text}", Scope.SEGMENT).id == made.id
    finally:
        over.set()
        watching.join()
