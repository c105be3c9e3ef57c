"""A row of the ledger, the entry it is made from, and what rows say: who serves, and which version waits for whom."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from segmill.errors import InputError, near_miss

# The actions, and whether each makes its version the champion: always, never, or as the entry says.
ACTIONS: dict[str, bool | None] = {
    "promote": True,  # a PASS
    "refuse": False,  # a verdict that is not PASS
    "await": False,  # a PASS that waits for approval
    "approve": None,  # by a person; the last that was needed makes the version the champion
    "reject": False,  # by a person
    "overrule": True,  # `segmill promote`
    "rollback": True,
    "alias": False,  # somebody else moved MLflow's alias; it is brought back
    "adopt": None,  # this ledger is the model's one from now on
    "measure": False,  # a figure measured later
    "collect": False,  # its files are deleted, by `segmill gc`
}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """What is to be recorded. The ledger adds the rest: numbers, time, who, who served before, hash, signature.

    Attributes:
        action: one of ``ACTIONS``.
        version: the registry's version that it is about.
        decision: the gate's, such as PASS; None where the gate was not used.
        reasons: sentences.
        facts: JSON-able figures behind them.
        because: what a person gave as the reason, "" where nobody did.
        serves: whether the version is the champion after it. Only ``approve`` and ``adopt`` need it.
    """

    action: str
    version: str
    decision: str | None = None
    reasons: Sequence[str] = ()
    facts: dict[str, Any] = field(default_factory=dict)
    because: str = ""
    serves: bool | None = None

    def makes_champion(self) -> bool:
        """Tell whether ``version`` serves after it; InputError for an unknown action or a contradiction."""
        if self.action not in ACTIONS:
            known = list(ACTIONS)
            raise InputError(
                f"action {self.action} is unknown to the ledger{near_miss(self.action, known)} "
                f"(allowed: {', '.join(known)})"
            )
        always = ACTIONS[self.action]
        if always is not None and self.serves not in (None, always):
            raise InputError(f"an entry {self.action} {'always' if always else 'never'} makes its version the champion")
        return bool(self.serves if always is None else always)


@dataclass(frozen=True, kw_only=True)
class LedgerRow:
    """One row of the ledger, as it was read.

    Attributes:
        model: the registered model's name.
        number: 1, 2, 3, ... per model.
        time: UTC, ISO 8601; of the writer's clock.
        action, version, decision, reasons, facts, because: as in ``Entry``.
        champion: the version that serves after it; None: none does.
        previous: the version that served before it.
        actor: who it was, as the environment said (``identity.actor``).
        writer: the fencing number of who wrote it; 0 where an earlier release did.
        previous_hash, hash, key_id, signature: see ``chain``.
        doubt: why the row is not to be believed, "" where its hash and signature are right.
        taken_over: an earlier release wrote it, which signed nothing.
    """

    model: str
    number: int
    time: str
    action: str
    version: str
    champion: str | None
    previous: str | None
    decision: str | None
    reasons: list[str]
    facts: dict[str, Any]
    because: str
    actor: dict[str, str]
    writer: int
    previous_hash: str
    hash: str
    key_id: str
    signature: str
    doubt: str = ""
    taken_over: bool = False

    @property
    def verifiable(self) -> bool:
        """Whether a trusted key signed it, and nobody changed it since."""
        return not self.doubt and not self.taken_over


@dataclass(frozen=True)
class Waiting:
    """A version that passed and waits for approval.

    Attributes:
        row: the row ``await``.
        approvals: the rows ``approve`` since, oldest first; several may be by one key.
        expires: UTC, ISO 8601, from the row's facts; None: never.
    """

    row: LedgerRow
    approvals: tuple[LedgerRow, ...] = ()

    @property
    def version(self) -> str:
        return self.row.version

    @property
    def expires(self) -> str | None:
        return self.row.facts.get("expires")

    @property
    def missing(self) -> int:
        """How many approvals are still needed, each by another key."""
        return int(self.row.facts["approvals_needed"]) - len({row.key_id for row in self.approvals})

    def facts(self) -> dict[str, Any]:
        """Return what `segmill status --json` says of it."""
        return {"version": self.version, "approvals_missing": self.missing, "expires": self.expires}


def champion(rows: Sequence[LedgerRow]) -> str | None:
    """Return the version that serves by the rows of one model (oldest first); None: none does."""
    return rows[-1].champion if rows else None


def waiting(rows: Sequence[LedgerRow]) -> Waiting | None:
    """Return the version that waits for approval by the rows of one model (oldest first); None: none does."""
    found: Waiting | None = None
    for row in rows:
        if row.action == "await":
            found = Waiting(row)
        elif found and row.version == found.version:
            if row.champion == row.version or row.action == "reject":
                found = None
            elif row.action == "approve":
                found = Waiting(found.row, (*found.approvals, row))
    return found
