"""API keys: who may ask the service for what. The ledger's database keeps their hashes, and never a key.

A key's secret has 256 random bits, so a plain SHA-256 of it can be guessed no better than the secret itself; the slow
hashes are for passwords, which people choose.
"""

from __future__ import annotations

import hashlib
import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from typing import Any

from sqlalchemy import Column, Connection, Integer, MetaData, String, Table, select, update

from segmill.errors import InputError, near_miss
from segmill.promotion.database import Database, has_table, make_tables

PREFIX = "segmill"
_TABLES = MetaData()
# ``hash``: of the whole key, hex. ``scopes``: words. Times are seconds since 1970, 0 for never.
API_KEYS = Table(
    "api_keys",
    _TABLES,
    Column("id", String(16), primary_key=True),
    Column("name", String(256), nullable=False),
    Column("hash", String(64), nullable=False),
    Column("scopes", String(64), nullable=False),
    Column("created_s", Integer, nullable=False),
    Column("expires_s", Integer, nullable=False),
    Column("revoked_s", Integer, nullable=False),
    Column("replaces", String(16), nullable=False),
)


class Scope(StrEnum):
    """What a key is good for: images to masks and the model's page; the figures of the service; its administration."""

    SEGMENT = "segment"
    METRICS = "metrics"
    ADMIN = "admin"


@dataclass(frozen=True)
class ApiKey:
    """A key as it is kept.

    Attributes:
        id: the part of the key that is no secret, and names it in logs.
        name: whose it is.
        hash: SHA-256 of the key, hex.
        created, expires, revoked: UTC; None for never.
        replaces: the id of the key that it was made for by ``rotate``, or "".
    """

    id: str
    name: str
    hash: str
    scopes: frozenset[Scope]
    created: datetime
    expires: datetime | None
    revoked: datetime | None
    replaces: str

    def state(self) -> str:
        """Return "valid", "expired" or "revoked"."""
        if self.revoked:
            return "revoked"
        return "expired" if self.expires and self.expires <= _now() else "valid"


class ApiKeys:
    """The keys in a ledger's database. Every method may raise InfrastructureError."""

    def __init__(self, url: str) -> None:
        self._database = Database(url)

    def create(self, name: str, scopes: Iterable[Scope], lifetime: timedelta | None) -> tuple[ApiKey, str]:
        """Make a key and return it with its text, which is kept nowhere. ``lifetime``: None for one without end.

        Raises InputError where the name is empty or too long, no scope is named, or the lifetime is not positive.
        """
        with self._database.writing() as connection:
            return _insert(connection, name, frozenset(scopes), lifetime, "")

    def all(self) -> list[ApiKey]:
        """Return every key there ever was, the oldest first."""
        with self._database.reading() as connection:
            if connection is None or not has_table(connection, API_KEYS):
                return []
            rows = connection.execute(select(API_KEYS).order_by(API_KEYS.c.created_s, API_KEYS.c.id)).mappings()
            return [_key(dict(row)) for row in rows]

    def rotate(self, key_id: str, grace: timedelta) -> tuple[ApiKey, str]:
        """Make a key that is good for the same, for as long as the old one was made for; that ends after ``grace``.

        Raises InputError where there is no such key, or it is not valid any more.
        """
        with self._database.writing() as connection:
            old = _valid(connection, key_id)
            lifetime = old.expires - old.created if old.expires else None
            made = _insert(connection, old.name, old.scopes, lifetime, old.id)
            ends = _now() + grace
            if old.expires is None or ends < old.expires:
                _change(connection, old.id, expires_s=_seconds(ends))
        return made

    def revoke(self, key_id: str) -> ApiKey:
        """Let a key be good for nothing from now on. Raises InputError where there is no such key that is valid."""
        with self._database.writing() as connection:
            key, now = _valid(connection, key_id), _now()
            _change(connection, key.id, revoked_s=_seconds(now))
        return replace(key, revoked=now)


def hash_of(text: str) -> str:
    """Return the SHA-256 of a key, hex."""
    return hashlib.sha256(text.encode()).hexdigest()


def id_of(text: str) -> str:
    """Return the id in a key's text; "" where it is none."""
    parts = text.split("_")
    return parts[1] if len(parts) == 3 and parts[0] == PREFIX else ""


def is_of(text: str, key: ApiKey) -> bool:
    """Tell whether ``text`` is this key, in a time that does not depend on how much of it is right."""
    return hmac.compare_digest(hash_of(text), key.hash)


def make_keys(connection: Connection) -> None:
    """Make the table of keys where it is not there."""
    make_tables(connection, _TABLES, API_KEYS, 7365679)


def _insert(
    connection: Connection, name: str, scopes: frozenset[Scope], lifetime: timedelta | None, replaces: str
) -> tuple[ApiKey, str]:
    if not 0 < len(name.strip()) <= 256:
        raise InputError("a key's name is empty or longer than 256 characters", "name who uses it, as `camera-7`")
    if not scopes:
        raise InputError("a key without a scope is good for nothing", f"name some of {', '.join(Scope)}")
    if lifetime is not None and lifetime <= timedelta():
        raise InputError("a key can't end before it begins", "name a lifetime above 0")
    make_keys(connection)
    number, now = secrets.token_hex(6), _now()
    text = f"{PREFIX}_{number}_{secrets.token_hex(32)}"
    expires = now + lifetime if lifetime else None
    key = ApiKey(number, name.strip(), hash_of(text), scopes, now, expires, None, replaces)
    row = {
        "id": key.id, "name": key.name, "hash": key.hash, "scopes": " ".join(sorted(scopes)),
        "created_s": _seconds(now), "expires_s": _seconds(expires), "revoked_s": 0, "replaces": replaces,
    }  # fmt: skip
    connection.execute(API_KEYS.insert().values(row))
    return key, text


def _valid(connection: Connection, key_id: str) -> ApiKey:
    """Return the key, which nobody else changes until the transaction ends; InputError where it is not valid."""
    known: list[str] = []
    if has_table(connection, API_KEYS):
        chosen = select(API_KEYS).where(API_KEYS.c.id == key_id).with_for_update()
        if row := connection.execute(chosen).mappings().one_or_none():
            key = _key(dict(row))
            if (state := key.state()) != "valid":
                raise InputError(f"key {key_id} of {key.name} is {state} already", "`segmill keys create` makes one")
            return key
        known = list(connection.scalars(select(API_KEYS.c.id)))
    raise InputError(f"there is no key {key_id!r}{near_miss(key_id, known)}", "`segmill keys list` names all")


def _change(connection: Connection, key_id: str, **values: int) -> None:
    connection.execute(update(API_KEYS).where(API_KEYS.c.id == key_id).values(values))


def _key(row: dict[str, Any]) -> ApiKey:
    return ApiKey(
        id=row["id"],
        name=row["name"],
        hash=row["hash"],
        scopes=frozenset(map(Scope, row["scopes"].split())),
        created=_time(row["created_s"]) or _now(),
        expires=_time(row["expires_s"]),
        revoked=_time(row["revoked_s"]),
        replaces=row["replaces"],
    )


def _now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)


def _seconds(time: datetime | None) -> int:
    return int(time.timestamp()) if time else 0


def _time(seconds: int) -> datetime | None:
    return datetime.fromtimestamp(seconds, UTC) if seconds else None
