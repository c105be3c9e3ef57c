"""Which version serves: the ledger's last row says so, verified; MLflow's alias, which anybody may move, does not."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from segmill.promotion import chain
from segmill.promotion.chain import Witness
from segmill.promotion.ledger import Ledger, LedgerError


@dataclass(frozen=True)
class Head:
    """The ledger's last row about a model.

    Attributes:
        version: that serves by it; None: none does.
        ledger: the ledger's random name.
        number, hash: the row's.
        since: the number of the row that made the version the champion.
    """

    version: str | None
    ledger: str
    number: int
    hash: str
    since: int


def read_head(ledger: Ledger, model: str, witnesses: Sequence[Witness] = (), last: Head | None = None) -> Head:
    """Return which version of ``model`` serves.

    Args:
        ledger: that records the model.
        model: the registered model's name.
        witnesses: what else says which row is the last (``heads.in_workspace``).
        last: what was returned before: an older copy of the database is then refused.

    Raises:
        LedgerError: the rows are not to be believed, or contradict a witness; nothing new may be served by them.
        InfrastructureError: the database does not answer.
    """
    position = ledger.position(model)
    if position.doubts:
        raise LedgerError(f"{position.doubts[0]}; `segmill ledger verify` says more")
    if last is not None and last.number:  # 0: there was no row
        witnesses = [*witnesses, Witness("this service", last.ledger, last.number, last.hash)]
    for witness in witnesses:
        if said := chain.contradiction(witness, position.ledger, position.rows):
            raise LedgerError(f"{said}; `segmill ledger verify` says more")
    if not position.rows:
        return Head(None, position.ledger, 0, "", 0)
    row = position.rows[-1]
    if not row.verifiable:
        raise LedgerError(f"no row of {model} is signed yet; the next run of segmill writes one")
    since = row.number
    for before in reversed(position.rows):
        if before.champion != row.champion:
            break
        since = before.number
    return Head(row.champion, position.ledger, row.number, row.hash, since)
