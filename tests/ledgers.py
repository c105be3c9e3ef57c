"""Ledgers for tests: keys of persons, a ledger in a file, and one as earlier releases wrote it."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from segmill.promotion.keys import PublicKey, SigningKey, TrustedKeys
from segmill.promotion.ledger import Ledger, open_ledger
from segmill.promotion.rows import Entry, LedgerRow

MODEL = "segmill-brain"


def key_of(name: str) -> SigningKey:
    """Return a new key."""
    private = Ed25519PrivateKey.generate()
    line = private.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SigningKey(PublicKey(name, line), private)


def trusting(*keys: SigningKey) -> TrustedKeys:
    """Return a list of trusted keys."""
    return TrustedKeys(tuple(key.public for key in keys), "trusted_keys")


ANNA = key_of("anna")


def ledger_at(url: str | Path, key: SigningKey = ANNA) -> Ledger:
    """Return the ledger at a URL or in a file, which trusts ``key`` and signs with it."""
    url = f"sqlite:///{url}" if isinstance(url, Path) else url
    return open_ledger(url, trusted=trusting(key), key=key)


def record(ledger: Ledger, action: str, version: str, model: str = MODEL, **more: object) -> LedgerRow:
    """Begin and append one row."""
    return ledger.append(ledger.begin(model), Entry(action=action, version=version, **more))  # type: ignore[arg-type]


def write_earlier(path: Path, *rows: tuple[str, str, str | None, str | None], model: str = MODEL) -> None:
    """Write rows (action, version, previous, decision) as releases before this one did: their table, unsigned."""
    with sqlite3.connect(path) as connection:
        connection.execute(
            "CREATE TABLE IF NOT EXISTS promotions (id INTEGER NOT NULL, model VARCHAR(256) NOT NULL, number INTEGER "
            "NOT NULL, time VARCHAR(32) NOT NULL, action VARCHAR(16) NOT NULL, version VARCHAR(32) NOT NULL, previous "
            "VARCHAR(32), decision VARCHAR(16), reasons TEXT NOT NULL, facts TEXT NOT NULL, PRIMARY KEY (id), "
            "CONSTRAINT one_entry_per_number UNIQUE (model, number))"
        )
        (known,) = connection.execute("SELECT count(*) FROM promotions WHERE model = ?", (model,)).fetchone()
        for number, (action, version, previous, decision) in enumerate(rows, known + 1):
            connection.execute(
                "INSERT INTO promotions (model, number, time, action, version, previous, decision, reasons, facts) "
                "VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    model, number, f"2026-11-0{number}T00:00:00+00:00", action, version, previous, decision,
                    json.dumps(["It reaches the floor."]), json.dumps({"challenger_miou": 0.8}),
                ),
            )  # fmt: skip
    connection.close()
