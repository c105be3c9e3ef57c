"""The chain: each row's hash holds the hash of the row before it, and is signed. What of a chain is to be believed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from itertools import groupby
from typing import Any

from segmill.promotion.keys import SignatureError, TrustedKeys
from segmill.promotion.rows import LedgerRow

PURPOSE = "segmill ledger row, version 1"  # no signature made for another purpose is one of a row
UNREADABLE = "unreadable"  # the action of a row whose content is no row's
_SIGNED = [  # the fields of a row that its content holds
    one.name
    for one in fields(LedgerRow)
    if one.name not in ("previous_hash", "hash", "key_id", "signature", "doubt", "taken_over")
]


@dataclass(frozen=True)
class StoredRow:
    """A row as the database holds it. ``payload``: its content as canonical JSON."""

    model: str
    number: int
    payload: str
    previous_hash: str
    hash: str
    key_id: str
    signature: str


@dataclass(frozen=True)
class Witness:
    """A place outside the database that says which row was the last: ``number`` and ``hash`` of ledger ``ledger``."""

    where: str
    ledger: str
    number: int
    hash: str


def payload(**content: Any) -> str:
    """Return a row's content as canonical JSON: sorted keys, no spaces, ASCII. ValueError for NaN and infinities."""
    return json.dumps(content, sort_keys=True, separators=(",", ":"), allow_nan=False)


def genesis(ledger: str, model: str) -> str:
    """Return what the first row of a model has as the hash before it: rows of another ledger or model never fit."""
    return _sha256("segmill ledger", ledger, model)


def row_hash(previous_hash: str, content: str) -> str:
    """Return the sha256 over the hash before and the row's content."""
    return _sha256(previous_hash, content)


def message(hashed: str) -> bytes:
    """Return what is signed for a row with this hash."""
    return f"{PURPOSE}\n{hashed}".encode()


def read_rows(stored: Sequence[StoredRow], ledger: str, model: str, trusted: TrustedKeys) -> list[LedgerRow]:
    """Return the rows of one model, by number, each with why it is not to be believed, where it is not.

    A row that an earlier release wrote has no signature; it may only come before the first one that has.
    """
    rows: list[LedgerRow] = []
    before, last, signed = genesis(ledger, model), 0, False
    for one in stored:
        content, doubt = _content(one, model)
        taken_over = bool(content.pop("taken_over", False))
        if not doubt and one.number != last + 1:
            missing = f"row {last + 1}" if one.number == last + 2 else f"rows {last + 1} to {one.number - 1}"
            doubt = f"{missing} before it {'is' if one.number == last + 2 else 'are'} missing"
        elif not doubt and one.previous_hash != before:
            doubt = "it does not follow the row before it"
        if not doubt and one.hash != row_hash(one.previous_hash, one.payload):
            doubt = "its content was changed after it was written"
        if not doubt and (signed or not taken_over):
            doubt = _doubt_of_signature(one, trusted)
        signed = signed or not taken_over
        rows.append(
            LedgerRow(
                **content, previous_hash=one.previous_hash, hash=one.hash, key_id=one.key_id, signature=one.signature,
                doubt=doubt, taken_over=taken_over,
            )
        )  # fmt: skip
        before, last = one.hash, one.number
    return rows


def row_of(stored: StoredRow) -> LedgerRow:
    """Return the row that was just made and signed."""
    content = json.loads(stored.payload)
    return LedgerRow(
        **content, previous_hash=stored.previous_hash, hash=stored.hash, key_id=stored.key_id,
        signature=stored.signature,
    )  # fmt: skip


def doubts(rows: Sequence[LedgerRow]) -> list[str]:
    """Return a sentence for each run of rows of one model that are not to be believed for the same reason."""
    said = []
    for (why, _), group in groupby(enumerate(rows), key=lambda pair: (pair[1].doubt, pair[1].doubt == "")):
        numbers = [row.number for _, row in group]
        if why:
            several = len(numbers) > 1
            which = f"rows {numbers[0]} to {numbers[-1]}" if several else f"row {numbers[0]}"
            said.append(f"{which} of {rows[0].model} {'are' if several else 'is'} not to be believed: {why}")
    if rows and rows[-1].taken_over:
        said.append(f"the rows of {rows[0].model} that were signed are missing: the last one is of an earlier release")
    return said


def contradiction(witness: Witness, ledger: str, rows: Sequence[LedgerRow]) -> str:
    """Return how a witness contradicts the rows of a model, "" where it does not; it may know fewer rows."""
    if witness.ledger != ledger:
        return f"{witness.where} names another ledger, {witness.ledger or 'without a name'}; this one is {ledger}"
    last = rows[-1].number if rows else 0
    found = next((row for row in rows if row.number == witness.number), None)
    if found is None:
        known = f"the database ends with row {last}" if witness.number > last else f"row {witness.number} is missing"
        return (
            f"{witness.where} knows row {witness.number}, and {known}: rows were cut off, or an old copy was restored"
        )
    if found.hash != witness.hash:
        return f"{witness.where} has another hash for row {witness.number}: rows were rewritten"
    return ""


def _content(stored: StoredRow, model: str) -> tuple[dict[str, Any], str]:
    """Return the fields of a row from its payload, and what is wrong with them."""
    try:
        content = json.loads(stored.payload)
        found = {name: content[name] for name in _SIGNED} | {"taken_over": content.get("taken_over", False)}
    except (ValueError, KeyError, TypeError):
        nothing: dict[str, Any] = dict.fromkeys(_SIGNED, "") | {
            "champion": None,
            "previous": None,
            "decision": None,
            "reasons": [],
        }
        unread = {"model": model, "number": stored.number, "action": UNREADABLE, "writer": 0, "facts": {}, "actor": {}}
        return nothing | unread, "its content is not that of a row"
    if (found["model"], found["number"]) != (model, stored.number):
        own = f"row {found['number']} of {found['model']}"
        return found | {"model": model, "number": stored.number}, f"its content is that of {own}"
    return found, ""


def _doubt_of_signature(stored: StoredRow, trusted: TrustedKeys) -> str:
    if not stored.signature:
        return "nobody signed it"
    try:
        trusted.signer(message(stored.hash), stored.key_id, stored.signature)
    except SignatureError as error:
        return str(error)
    return ""


def _sha256(*parts: str) -> str:
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()
