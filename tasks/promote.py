"""Step promote: challenger meets champion on the same test images; the gate decides, the ledger keeps it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any

from segmill.data.versioning.repository import commits_runs
from segmill.errors import InfrastructureError
from segmill.params import Params
from segmill.promotion import heads, history, registry
from segmill.promotion.ledger import Conflict, Ledger, workspace_ledger
from segmill.promotion.moves import expired, waits
from segmill.promotion.reconcile import reconcile
from segmill.promotion.rows import Entry, LedgerRow, waiting
from segmill.promotion.versions import serves_after_all
from segmill.workspace import Workspace
from tasks.judging import Case, gate_settings, judge, measured_since
from tasks.register import Registered, missing_sentences

MOST_TRIES = 5  # against others who write to the ledger at the same time


@dataclass(frozen=True)
class Judged:
    """The gate's decision on a version, the sentences and figures behind it, and what came of it.

    ``rival``: the version that it was compared with, None where there was none. ``rival_serves``: it stays champion.
    ``row`` and ``row_hash``: of the ledger's row with the verdict; "" is the hash of an earlier release's.
    ``noticed``: sentences: who else moved the alias.
    """

    decision: str
    reasons: list[str]
    facts: dict[str, Any]
    outcome: str
    rival: str | None
    rival_serves: bool
    row: int
    row_hash: str
    noticed: tuple[str, ...] = ()


def promote(workspace: Workspace, params: Params, uri: str, registered: Registered) -> Judged:
    """Judge the version against the champion and, if the gate passes, make it the champion or let it wait for approval.

    A version that was judged before against the same champion and under the same settings is not judged again, nor one
    that serves already, nor one that a person decided against. The page of the verdict before goes, so that a run which
    ends before it has written its own is not taken for a complete one. Where somebody else writes to the ledger
    meanwhile, the version is judged again against the champion of then.

    Raises:
        InputError: the champion knows other classes than the data, and dataset.yaml does not say what became of them.
        SignatureError: a version is not signed, not by a trusted key, or not what was signed.
        LedgerError: the ledger is not to be believed, or is not the model's.
        InfrastructureError: MLflow or the ledger does not answer, or others write to it all the time.
    """
    workspace.page.unlink(missing_ok=True)
    book = opened_ledger(workspace, params)
    with ExitStack() as after:
        with mirrored(workspace, params, uri, book, registered.model) as noticed:
            for tries_left in reversed(range(MOST_TRIES)):
                try:
                    judged = _judge(workspace, params, uri, registered, book)
                    break
                except Conflict:
                    if not tries_left:
                        raise
            after.enter_context(with_outcome(judged.outcome))
        if book.position(registered.model).rows[-1].champion == registered.version:
            registry.drop_alias(uri, registered.model, registry.CHALLENGER, registered.version)
    return replace(judged, noticed=tuple(noticed))


@contextmanager
def with_outcome(outcome: str) -> Iterator[None]:
    """Let an error of a server that comes after the verdict say the verdict too, which is in the ledger."""
    try:
        yield
    except InfrastructureError as error:
        raise InfrastructureError(f"{outcome}, but the run was not completed: {error}") from error


def opened_ledger(workspace: Workspace, params: Params) -> Ledger:
    """Return the ledger that the settings name; its rows come with their notices."""
    return workspace_ledger(workspace.root, params.promotion.ledger_url)


@contextmanager
def mirrored(workspace: Workspace, params: Params, uri: str, book: Ledger, model: str) -> Iterator[list[str]]:
    """Bring MLflow in line with the ledger before and after the block; yield a list of sentences on what was found.

    What a run left unfinished that died is finished, and whoever else moved the alias is named.
    """
    noticed = bring_in_line(workspace, params, uri, book, model)
    yield noticed
    noticed += bring_in_line(workspace, params, uri, book, model)


def bring_in_line(workspace: Workspace, params: Params, uri: str, book: Ledger, model: str) -> list[str]:
    """Let MLflow's alias and the copies of the ledger's last row follow the ledger; return what is to be said.

    Raises LedgerError and InfrastructureError as ``reconcile``.
    """
    said = reconcile(uri, book, model, heads.in_workspace(workspace.root, model))
    position = book.position(model)
    if position.rows and (serving := position.rows[-1].champion):
        serves_after_all(uri, model, serving)
    if position.rows and not position.rows[-1].taken_over:
        commit = commits_runs(workspace.root) if params.git.commit is None else params.git.commit
        heads.write_file(workspace.root, position.rows[-1], position.ledger, commit=commit)
    return said


def _judge(workspace: Workspace, params: Params, uri: str, registered: Registered, book: Ledger) -> Judged:
    """Judge once, and append what was decided; Conflict where somebody else appended meanwhile."""
    writer = book.begin(registered.model)
    if known := earlier_judgement(writer.rows, registered.version, gate_settings(params)):
        return known
    case = Case(
        workspace=workspace, params=params, uri=uri, model=registered.model, challenger=registered.version,
        rows=writer.rows,
    )  # fmt: skip
    if entry := measured_since(case):
        writer = writer.after(book.append(writer, entry))
        case = replace(case, rows=writer.rows)
    verdict = judge(case)
    settings = params.promotion
    action, facts, reasons = "refuse", verdict.facts, verdict.reasons
    if registered.missing:
        facts = facts | {"missing_members": registered.missing}
        reasons = [*reasons, *missing_sentences(registered.missing)]
    if verdict.decision == "PASS":
        action = "promote" if settings.approval == "none" else "await"
        facts = facts | (waits(settings.approval, settings.approval_days) if action == "await" else {})
    entry = Entry(action=action, version=registered.version, decision=verdict.decision, reasons=reasons, facts=facts)
    row = book.append(writer, entry)
    return _judged(row, [*writer.rows, row])


def earlier_judgement(rows: Sequence[LedgerRow], version: str, settings: Mapping[str, Any]) -> Judged | None:
    """Return the ledger's last verdict on this version where it is not to be judged again.

    That is so where it serves; where a person decided against it; where it waits for approval; and where the same
    champion serves as when it was judged, under the same ``settings`` (``judging.gate_settings``).
    """
    row = history.last_verdict(rows, version)
    if row is None:
        return None
    champion = rows[-1].champion
    if champion == version or history.set_aside(rows, version):
        return _judged(row, rows)
    if row.taken_over or row.facts.get("settings") != settings or row.champion != champion:
        return None
    wait = waiting(rows)
    if row.action == "await" and (wait is None or wait.version != version or expired(wait)):
        return None
    return _judged(row, rows)


def _judged(row: LedgerRow, rows: Sequence[LedgerRow]) -> Judged:
    """Say what came of the verdict in ``row``, by all rows since."""
    champion = rows[-1].champion
    return Judged(
        decision=str(row.decision),
        reasons=row.reasons,
        facts=row.facts,
        outcome=outcome_of(row, rows),
        rival=row.previous if row.previous != row.version else None,
        rival_serves=row.previous is not None and row.previous == champion,
        row=row.number,
        row_hash="" if row.taken_over else row.hash,
    )


def outcome_of(row: LedgerRow, rows: Sequence[LedgerRow]) -> str:
    """Say in a sentence what became of the version that ``row`` is about, by all rows of its model since."""
    version, model, champion = row.version, row.model, rows[-1].champion
    which = f"version {version} of {model}"
    stays = f"version {champion} stays the champion" if champion else "there is no champion"
    if champion == version:
        how = {"overrule": "now, over the gate's verdict", "rollback": "again, by a rollback"}
        return f"{which} is the champion {how.get(history.moves(rows)[-1].action, 'now')}"
    if against := history.set_aside(rows, version):
        what = {
            "rollback": "was rolled back",
            "reject": "was rejected",
            "overrule": "was replaced",
            "approve": "was replaced",
        }[against.action]
        return (
            f"{which} {what} by {against.actor.get('git') or against.actor.get('user') or 'somebody'} on "
            f"{against.time[:10]} ({against.because}), so it is not judged again; {stays}; `segmill promote {version} "
            '--because "..."` brings it back'
        )
    wait = waiting(rows)
    if wait is not None and wait.version == version:
        until = datetime.fromisoformat(str(wait.expires)).astimezone().strftime("%Y-%m-%d %H:%M %Z")
        approvals = f"{wait.missing} approval{'s' if wait.missing > 1 else ''}"
        approve = f'`segmill approve {version} --because "..."`'
        return f"{which} waits for {approvals} until {until} ({approve}); {stays} until then"
    return f"{which} was not promoted; {stays}"
