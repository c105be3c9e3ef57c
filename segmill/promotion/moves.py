"""What people decide: back to an earlier version, a version promoted over the gate, an approval, a rejection."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any, Literal

from segmill.errors import InputError
from segmill.promotion import history
from segmill.promotion.ledger import Ledger, Writer
from segmill.promotion.rows import Entry, LedgerRow, Waiting, waiting

Approval = Literal["none", "one", "two"]
NEEDED: dict[Approval, int] = {"none": 0, "one": 1, "two": 2}


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What a person asks for.

    ``because``: the reason, in the person's words. ``check``: called with the version that would serve, before anything
    is written; it raises where that version may not serve (signature, does not load, other predictions).
    """

    because: str
    check: Callable[[str], dict[str, Any]]

    def __post_init__(self) -> None:
        if not self.because.strip():
            raise InputError("a decision needs a reason", 'say it with --because "..."')


def roll_back(ledger: Ledger, model: str, to: str | None, decision: Decision) -> LedgerRow:
    """Make an earlier champion serve again: ``to``, or the one before today's. The next run does not undo it.

    Raises:
        InputError: nothing serves, ``to`` serves already or never did, or there was no champion before.
        InfrastructureError: somebody else wrote to the ledger meanwhile.
    """
    writer = ledger.begin(model)
    serving = _serving(writer)
    target = to or history.before(writer.rows)
    if target is None:
        raise InputError(f"version {serving} of {model} is the first champion: there is none to go back to")
    if target == serving:
        raise InputError(f"version {target} of {model} serves already")
    if target not in {row.champion for row in writer.rows}:
        raise InputError(
            f"version {target} of {model} never served",
            f'`segmill promote {target} --because "..."` makes it the champion over the gate\'s verdict',
        )
    return _moved(ledger, writer, "rollback", target, decision)


def overrule(
    ledger: Ledger, model: str, version: str, decision: Decision, *, approval: Approval, days: float
) -> LedgerRow:
    """Make ``version`` the champion whatever the gate says, recorded as such; where approvals are asked for, wait.

    Raises:
        InputError: it serves already.
        InfrastructureError: somebody else wrote to the ledger meanwhile.
    """
    writer = ledger.begin(model)
    if writer.champion == version:
        raise InputError(f"version {version} of {model} serves already")
    if approval == "none":
        return _moved(ledger, writer, "overrule", version, decision)
    facts = {**decision.check(version), **waits(approval, days), "overrule": True}
    return ledger.append(writer, Entry(action="await", version=version, because=decision.because, facts=facts))


def waits(approval: Approval, days: float) -> dict[str, Any]:
    """Return the facts of a row that waits for approval: how many are needed, and until when they may come."""
    until = datetime.now(UTC) + timedelta(days=days)
    return {"approvals_needed": NEEDED[approval], "expires": until.isoformat(timespec="seconds")}


def approve(ledger: Ledger, model: str, version: str | None, decision: Decision, *, key_id: str) -> LedgerRow:
    """Approve what waits; with the last approval that is needed it becomes the champion.

    Where two are needed, they come from two keys, and neither is the key that signed the verdict.

    Raises:
        InputError: nothing waits, another version does, it expired, or this key may not approve (again).
        InfrastructureError: somebody else wrote to the ledger meanwhile.
    """
    writer = ledger.begin(model)
    wait = _waits(writer, version)
    if writer.champion != wait.row.champion:
        raise InputError(
            f"the champion of {model} changed since version {wait.version} was judged",
            "run `segmill retrain`, which judges it against today's champion",
        )
    needed = int(wait.row.facts["approvals_needed"])
    keys = {row.key_id for row in wait.approvals}
    if needed > 1 and key_id == wait.row.key_id:
        raise InputError("whoever made the version may not approve it", "two others do, each with a key of their own")
    if key_id in keys:
        raise InputError(f"this key has approved version {wait.version} already", "another person's is needed")
    facts = decision.check(wait.version) | {"approvals": len(keys) + 1, "approvals_needed": needed}
    if wait.row.facts.get("overrule"):
        facts["overrule"] = True
    enough = len(keys) + 1 >= needed
    entry = Entry(action="approve", version=wait.version, because=decision.because, facts=facts, serves=enough)
    return ledger.append(writer, entry)


def reject(ledger: Ledger, model: str, version: str | None, because: str) -> LedgerRow:
    """Reject what waits: it is not judged again. Errors as for ``approve``."""
    if not because.strip():
        raise InputError("a decision needs a reason", 'say it with --because "..."')
    writer = ledger.begin(model)
    wait = _waits(writer, version)
    return ledger.append(writer, Entry(action="reject", version=wait.version, because=because))


def expired(wait: Waiting, now: datetime | None = None) -> bool:
    """Tell whether the time to approve is over."""
    return wait.expires is not None and datetime.fromisoformat(wait.expires) < (now or datetime.now(UTC))


def _waits(writer: Writer, version: str | None) -> Waiting:
    wait = waiting(writer.rows)
    if wait is None:
        raise InputError(f"no version of {writer.model} waits for approval", "`segmill history` shows what was decided")
    if version is not None and version != wait.version:
        raise InputError(f"version {version} of {writer.model} does not wait for approval; version {wait.version} does")
    if expired(wait):
        raise InputError(
            f"the time to approve version {wait.version} of {writer.model} ended at {wait.expires}",
            "run `segmill retrain`, which judges it again",
        )
    return wait


def _serving(writer: Writer) -> str:
    if writer.champion is None:
        raise InputError(f"no version of {writer.model} serves")
    return writer.champion


def _moved(ledger: Ledger, writer: Writer, action: str, version: str, decision: Decision) -> LedgerRow:
    facts = decision.check(version)
    return ledger.append(writer, Entry(action=action, version=version, because=decision.because, facts=facts))
