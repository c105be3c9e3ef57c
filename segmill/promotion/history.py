"""What the ledger's rows say of the past: judgements on a test set, verdicts, former champions, what people decided."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from segmill.promotion.budget import Judgement

if TYPE_CHECKING:
    from segmill.promotion.rows import LedgerRow

BY_PEOPLE = ("rollback", "overrule")


def judgements(rows: Sequence[LedgerRow]) -> list[Judgement]:
    """Return, oldest first, every verdict of one model for which test images were looked at.

    Verdicts of releases before the lifetime rule name no groups: they count on no test set.
    """
    return [
        Judgement(
            groups=frozenset(row.facts["test_groups"]),
            passed=row.decision == "PASS",
            floor=row.previous is None,
            recipe=row.facts["recipe"],
            sealed=row.facts["sealed"],
        )
        for row in rows
        if row.facts.get("judged")
    ]


def last_verdict(rows: Sequence[LedgerRow], version: str) -> LedgerRow | None:
    """Return the last row with a verdict on ``version``."""
    return next((row for row in reversed(rows) if row.version == version and row.decision is not None), None)


def moves(rows: Sequence[LedgerRow]) -> list[LedgerRow]:
    """Return the rows that changed who serves, oldest first."""
    return [row for row in rows if row.champion != row.previous]


def before(rows: Sequence[LedgerRow]) -> str | None:
    """Return the version that a rollback goes back to; None where the champion is the first."""
    champions = line(rows)
    return champions[-2] if len(champions) > 1 else None


def line(rows: Sequence[LedgerRow]) -> list[str]:
    """Return the champions, each promoted over the one before it; the last one serves, where any does.

    Several rollbacks go back one by one: what was rolled back from is not gone back to.
    """
    champions: list[str] = []
    for row in moves(rows):
        if row.champion in champions:
            del champions[champions.index(row.champion) :]
        if row.champion is not None:
            champions.append(row.champion)
    return champions


def set_aside(rows: Sequence[LedgerRow], version: str) -> LedgerRow | None:
    """Return the row by which a person decided against ``version``: a rollback from it, another one promoted over it.

    None where nobody did, or a person brought it back since. The gate does not undo what people decided.
    """
    for row in reversed(rows):
        if row.champion == version and row.action in (*BY_PEOPLE, "approve"):
            return None
        if row.action == "reject" and row.version == version:
            return row
        over_the_gate = row.action in BY_PEOPLE or row.facts.get("overrule")
        if over_the_gate and row.previous == version and row.champion != version:
            return row
    return None
