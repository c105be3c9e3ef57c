"""MLflow brought in line with the ledger: its alias `champion` and its tags; whoever else moved the alias is named."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from segmill.errors import InfrastructureError
from segmill.promotion import chain, heads, points
from segmill.promotion.chain import Witness
from segmill.promotion.heads import Mirror
from segmill.promotion.ledger import Conflict, Ledger, LedgerError, Position
from segmill.promotion.registry import CHAMPION
from segmill.promotion.rows import Entry, LedgerRow, champion
from segmill.tracking import reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient

PASSES = 50  # each begins anew because somebody else wrote meanwhile, or ends with one write of our own


def reconcile(uri: str, ledger: Ledger, model: str, witnesses: Sequence[Witness] = ()) -> list[str]:
    """Set MLflow's alias `champion` to the version that serves by the ledger's last row; return what is to be said.

    A move of our own that was not finished is finished without a word. Where somebody else moved the alias, a row
    `alias` is written and a sentence returned. A model whose alias was set before its ledger had a signed row keeps its
    champion, by a row `adopt`. The tags that keep the last row follow. Reads again until nothing is to be done, so two
    who do it at once end with the same.

    Args:
        uri: tracking and registry URI.
        ledger: that records the model.
        model: the registered model's name; nothing is done where MLflow has none.
        witnesses: what else says which row is the last (``heads.in_workspace``).

    Raises:
        LedgerError: the ledger is not to be believed, is older than MLflow's tags or a witness, or is not the one that
            records the model; the champion's version is not in MLflow any more. Nothing was changed then.
        InfrastructureError: MLflow or the database does not answer.
        InputError: a row is to be written, and there is no key to sign it with.
    """
    said: list[str] = []
    moves: list[int] = []
    with reaching(uri) as client:
        for _ in range(PASSES):
            with _at_once():
                if _pass(client, ledger, model, witnesses, said, moves):
                    return said
    raise InfrastructureError(f"others keep moving the champion of {model}; try again when they are done")


def adopt(uri: str, ledger: Ledger, model: str, because: str) -> LedgerRow:
    """Make this ledger the one that records the model from now on; return the row. Who serves stays as it is.

    For a model that another ledger recorded, and for a ledger restored from a backup. Tags that name rows which this
    ledger does not have are removed.

    Raises:
        LedgerError: rows of this ledger are not to be believed; a new one can be adopted instead.
        InputError: MLflow has no such model, or there is no key to sign with.
        InfrastructureError: MLflow or the database does not answer, or somebody appended meanwhile.
    """
    with reaching(uri) as client:
        mirror = heads.read_mirror(client, model)
        writer = ledger.begin(model)
        serves = mirror.champion if mirror else None
        reasons = [f"{ledger.address} is the ledger of {model} from now on"]
        if mirror and mirror.ledger:
            reasons.append(f"before, it was {mirror.ledger} at {mirror.address}")
        if serves != writer.champion:
            reasons.append(f"{_whose(serves)}, as in MLflow; by this ledger's last row {_whose(writer.champion)}")
        entry = Entry(
            action="adopt", version=serves or writer.champion or "", reasons=reasons, because=because,
            serves=serves is not None,
        )  # fmt: skip
        row = ledger.append(writer, entry)
        position = ledger.position(model)
        gone = [
            version
            for version, witness in heads.of_versions(client, model)
            if chain.contradiction(witness, position.ledger, position.rows)
        ]
        heads.drop_tags(client, gone, model)
        if mirror:
            heads.claim(client, model, position.ledger, ledger.address)
            heads.write_tags(client, row, position.ledger)
    reconcile(uri, ledger, model)
    return row


def _pass(
    client: MlflowClient, ledger: Ledger, model: str, witnesses: Sequence[Witness], said: list[str], moves: list[int]
) -> bool:
    """Do the next thing that is to be done; True where there is none. ``moves``: those of ours that are not done."""
    position = ledger.position(model)
    mirror = heads.read_mirror(client, model)
    if mirror is None or not (position.rows or mirror.champion or mirror.ledger):
        return True
    if not ledger.is_at(model, position):
        return False
    _refuse_to_follow(position, mirror, ledger, model, witnesses)
    if entry := _to_record(position, mirror, model):
        writer = ledger.begin(model)
        if writer.head == len(position.rows):
            ledger.append(writer, entry)
            said += entry.reasons
    elif not _signed(position.rows):
        return True
    elif not mirror.ledger:
        heads.claim(client, model, position.ledger, ledger.address)
    elif mirror.champion != (serves := champion(position.rows)):
        if mirror.champion not in _unfinished(position):
            said.append(_late(model, str(mirror.champion), serves))
        moves.append(ledger.begin_move(model, serves))
        points.at("before alias")
        _set_champion(client, model, serves, position.rows[-1])
        points.at("after alias")
    elif not heads.is_current(mirror, position.rows[-1], position.ledger):
        if mirror.address != ledger.address:  # its database was moved
            heads.claim(client, model, position.ledger, ledger.address)
        heads.write_tags(client, position.rows[-1], position.ledger)
    else:
        if moves or position.mirrored < len(position.rows):
            points.at("before mirrored")
            ledger.mirrored(model, len(position.rows), moves)
            points.at("after mirrored")
        return True
    return False


@contextmanager
def _at_once() -> Iterator[None]:
    """Pass over what happens where somebody else writes at the same moment: the next pass sees what came of it."""
    from mlflow.exceptions import MlflowException

    try:
        yield
    except Conflict:
        pass
    except MlflowException as error:  # two who make one tag or alias: MLflow looks first, and then inserts
        if not any(sign in str(error) for sign in ("UNIQUE constraint", "duplicate key", "Duplicate entry")):
            raise


def _refuse_to_follow(
    position: Position, mirror: Mirror, ledger: Ledger, model: str, witnesses: Sequence[Witness]
) -> None:
    """Raise LedgerError where MLflow must not be brought in line with this ledger."""
    adopting = '`segmill ledger adopt --because "..."` makes this one the model\'s'
    if mirror.ledger and mirror.ledger != position.ledger:
        if mirror.address == ledger.address:
            raise LedgerError(
                f"the ledger of {model} at {ledger.address} was lost or replaced; restore it, or {adopting}"
            )
        raise LedgerError(
            f"{model} is recorded in another ledger than {ledger.address}: {mirror.ledger} at {mirror.address}; name "
            f"that in promotion.ledger_url, or {adopting}"
        )
    if position.doubts:
        raise LedgerError(f"{position.doubts[0]}; `segmill ledger verify` says more, and nobody is promoted until then")
    for witness in (*([mirror.head] if mirror.head else ()), *witnesses):
        if said := chain.contradiction(witness, position.ledger, position.rows):
            raise LedgerError(f"{said}; bring back the database, or {adopting}")


def _to_record(position: Position, mirror: Mirror, model: str) -> Entry | None:
    """Return the row that says why the alias is where it is: nobody of this ledger set it there."""
    found, serves = mirror.champion, champion(position.rows)
    if found == serves:
        return None
    if not _signed(position.rows):
        if found is None:  # nothing serves, whatever an earlier release wrote
            return None
        last = f"the last row of an earlier release, by which {_whose(serves)}" if position.rows else "any row"
        reason = f"version {found} of {model} was champion in MLflow before this ledger signed {last}; it stays"
        return Entry(action="adopt", version=found, serves=True, reasons=[reason])
    if found in _unfinished(position) or found in _moving(position):
        return None
    row = position.rows[-1]
    reasons = [
        f"somebody else moved the champion of {model} in MLflow: {_whose(found)} there, and {_whose(serves)} by the "
        f"ledger (row {row.number} of {row.time}), which is set again; MLflow does not keep who moved it"
    ]
    facts = {"from": serves, "to": found, "since": row.time}
    return Entry(action="alias", version=found or serves or "", reasons=reasons, facts=facts)


def _unfinished(position: Position) -> set[str | None]:
    """Return where the alias may be because a move of our own was not finished."""
    done = position.rows[: position.mirrored]
    later = position.rows[position.mirrored :]
    return {
        champion(done),
        *(row.champion for row in later),
        *(row.facts["to"] for row in later if row.action == "alias"),
    }


def _moving(position: Position) -> set[str | None]:
    return {version or None for version in position.moving}


def _signed(rows: Sequence[LedgerRow]) -> bool:
    return bool(rows) and not rows[-1].taken_over


def _set_champion(client: MlflowClient, model: str, version: str | None, row: LedgerRow) -> None:
    from mlflow.exceptions import MlflowException

    if version is None:
        client.delete_registered_model_alias(model, CHAMPION)
        return
    try:
        client.set_registered_model_alias(model, CHAMPION, version)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        raise LedgerError(
            f"version {version} of {model}, the champion by row {row.number} of the ledger, is not in MLflow any more; "
            "`segmill rollback --to VERSION` makes another one the champion"
        ) from None


def _late(model: str, found: str, serves: str | None) -> str:
    return f"a run that was late had set version {found} of {model} as champion; {_whose(serves)} again"


def _whose(version: str | None) -> str:
    return "no version serves" if version is None else f"version {version} serves"
