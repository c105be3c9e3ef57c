"""What people decide about who serves: checked, written to the ledger, and the alias brought in line with it."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from flows.environment import tracking_uri
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.promotion.ledger import Ledger
    from segmill.promotion.moves import Decision
    from segmill.promotion.rows import LedgerRow

    Decide = Callable[[Ledger, str, Decision], LedgerRow]


@dataclass(frozen=True)
class Made:
    """A decision that is in the ledger: its row, what came of it, what else was found, and how long it all took.

    ``load_s``: of ``seconds``, what importing and loading the version took that is to serve; 0 where none was loaded.
    """

    row: LedgerRow
    outcome: str
    noticed: list[str]
    seconds: float
    load_s: float

    def facts(self) -> dict[str, Any]:
        """Return what ``--json`` prints."""
        return {
            "model": self.row.model, "version": self.row.version, "action": self.row.action, "row": self.row.number,
            "champion": self.row.champion, "previous": self.row.previous, "because": self.row.because,
            "outcome": self.outcome, "noticed": self.noticed, "seconds": round(self.seconds, 1),
            "load_seconds": round(self.load_s, 1),
        }  # fmt: skip


def make(workspace: Workspace, params: Params, because: str, decide: Decide) -> Made:
    """Let ``decide`` append its row after the same checks as a promotion; bring MLflow in line; send the notices.

    It takes no lock of the workspace: a rollback does not wait for a training.

    Raises:
        InputError, SignatureError, SegmillError: the version may not serve, or the decision is none.
        InfrastructureError: MLflow or the ledger does not answer, or somebody else wrote to the ledger meanwhile.
    """
    from flows.leftovers import send_unsent
    from flows.notices import deliver_pending
    from flows.standing import remember
    from segmill.promotion.keys import trusted_keys
    from segmill.promotion.moves import Decision
    from segmill.promotion.preflight import preflight
    from segmill.promotion.signers import ensure_signer
    from tasks.promote import mirrored, opened_ledger, outcome_of
    from tasks.register import model_name

    began, load_s = time.monotonic(), 0.0
    ensure_signer(workspace.root)
    uri, model, trusted = tracking_uri(workspace, params), model_name(workspace, params), trusted_keys(workspace.root)

    def check(version: str) -> dict[str, Any]:
        nonlocal load_s
        found = preflight(uri, model, version, trusted)
        load_s = found.load_s
        return {
            "manifest_sha256": found.manifest_sha256,
            "golden_pixels": found.pixels,
            "golden_differing": found.differing,
        }

    book = opened_ledger(workspace, params)
    with mirrored(workspace, params, uri, book, model) as noticed:
        row = decide(book, model, Decision(because=because, check=check))
    outcome = outcome_of(row, book.rows(model))
    remember(workspace, params)
    send_unsent(workspace, params)
    deliver_pending(workspace, params)
    return Made(row, outcome, noticed, time.monotonic() - began, load_s)
