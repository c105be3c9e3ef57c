"""The ledger's last row, also kept where its database is not: in MLflow's tags, and in a file that git has."""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from segmill.data.versioning.repository import commit_contents, committed, git_head
from segmill.files import write_atomically
from segmill.promotion import points
from segmill.promotion.chain import Witness
from segmill.promotion.ledger import Ledger
from segmill.promotion.registry import CHAMPION
from segmill.promotion.rows import LedgerRow
from segmill.tracking import reaching

if TYPE_CHECKING:
    from mlflow import MlflowClient

FILE = "ledger_head.json"  # in the workspace's root
LEDGER_TAG = "ledger"  # of the registered model: the ledger's random name
ADDRESS_TAG = "ledger_address"  # of the registered model
HEAD_TAG = "ledger_head"  # of the registered model, and of the version that the row is about: "LEDGER NUMBER HASH"


@dataclass(frozen=True)
class Mirror:
    """What MLflow says of a registered model.

    Attributes:
        champion: the version that carries the alias; None: none does.
        ledger: the random name of the ledger that records the model; "" where none has said so.
        address: where that is.
        head: the row that was its last one; None where no tag says so.
    """

    champion: str | None
    ledger: str
    address: str
    head: Witness | None


def read_mirror(client: MlflowClient, model: str) -> Mirror | None:
    """Return what MLflow says of the model; None where it has no such model."""
    from mlflow.exceptions import MlflowException

    try:
        found = client.get_registered_model(model)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
    alias, tags = found.aliases.get(CHAMPION), found.tags
    head = _of_tag(tags, f"MLflow's tag {HEAD_TAG} of {model}")
    return Mirror(
        None if alias is None else str(alias), tags.get(LEDGER_TAG, ""), tags.get(ADDRESS_TAG, "an unknown place"), head
    )


def claim(client: MlflowClient, model: str, ledger: str, address: str) -> None:
    """Say in the model's tags that this ledger records it."""
    for key, value in {LEDGER_TAG: ledger, ADDRESS_TAG: address}.items():
        client.set_registered_model_tag(model, key, value)


def write_tags(client: MlflowClient, row: LedgerRow, ledger: str) -> None:
    """Keep the last row in the tags of the model and of the version that it is about, if MLflow still has that."""
    from mlflow.exceptions import MlflowException

    head = f"{ledger} {row.number} {row.hash}"
    client.set_registered_model_tag(row.model, HEAD_TAG, head)
    points.at("between head tags")
    try:
        client.set_model_version_tag(row.model, row.version, HEAD_TAG, head)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":  # the version was deleted
            raise


def drop_tags(client: MlflowClient, versions: Iterable[str], model: str) -> None:
    """Take the tag from these versions, which names rows that there are not."""
    for version in versions:
        client.delete_model_version_tag(model, version, HEAD_TAG)


def is_current(mirror: Mirror, row: LedgerRow, ledger: str) -> bool:
    """Tell whether the model's tags name this row as the last."""
    head = mirror.head
    return head is not None and mirror.ledger == ledger and (head.number, head.hash) == (row.number, row.hash)


def of_versions(client: MlflowClient, model: str) -> list[tuple[str, Witness]]:
    """Return what the tags of the model's versions say, by version."""
    found = []
    for one in client.search_model_versions(f"name='{model}'"):
        if witness := _of_tag(one.tags, f"MLflow's tag {HEAD_TAG} of version {one.version} of {model}"):
            found.append((str(one.version), witness))
    return found


def in_workspace(root: Path, model: str) -> list[Witness]:
    """Return what the workspace's file, and the one that git has, say of the model's last row."""
    here = root / FILE
    texts = {str(here): here.read_bytes() if here.is_file() else None, f"{FILE} in git": committed(root, FILE)}
    found = []
    for where, text in texts.items():
        if text is None:
            continue
        try:
            content = json.loads(text)
            if (head := content["heads"].get(model)) is not None:
                found.append(Witness(where, content["ledger"], head["number"], head["hash"]))
        except (ValueError, KeyError, TypeError, AttributeError):
            found.append(Witness(f"{where} (damaged)", "", 0, ""))
    return found


def examine(uri: str, root: Path, ledger: Ledger, model: str) -> list[str]:
    """Return a sentence for everything that is wrong with a model's ledger, by its rows and by whatever keeps its head.

    Args:
        uri: tracking and registry URI; a database file that is not there keeps nothing.
        root: the workspace.
        ledger: that records the model.
        model: the registered model's name.

    Raises InfrastructureError where MLflow or the ledger's database does not answer.
    """
    witnesses, missing = in_workspace(root, model), ""
    file = uri.removeprefix("sqlite:///")
    if file == uri or Path(file).is_file():
        with reaching(uri) as client:
            if mirror := read_mirror(client, model):
                witnesses += [mirror.head] if mirror.head else []
                witnesses += [witness for _, witness in of_versions(client, model)]
                if mirror.head is None and (mirrored := ledger.position(model).mirrored) and mirror.ledger:
                    missing = f"MLflow's tag {HEAD_TAG} of {model} is missing, and row {mirrored} was kept there"
    return ledger.verify(model, witnesses) + ([missing] if missing else [])


def write_file(root: Path, row: LedgerRow, ledger: str, *, commit: bool) -> None:
    """Keep the last row in the workspace's file, and commit that where it is wanted and nothing else was committed.

    Args:
        root: the workspace.
        row: the model's last one.
        ledger: the ledger's random name. The heads of another ledger go.
        commit: whether segmill commits runs here; without a commit to begin with it does not.
    """
    path, heads = root / FILE, {}
    with suppress(FileNotFoundError, ValueError, KeyError, TypeError):
        kept = json.loads(path.read_text())
        heads = dict(kept["heads"]) if kept["ledger"] == ledger else {}
    heads[row.model] = {"number": row.number, "hash": row.hash}
    text = json.dumps({"ledger": ledger, "heads": heads}, indent=2, sort_keys=True) + "\n"
    if not path.is_file() or path.read_text() != text:
        write_atomically(path, text)
    if commit and (onto := git_head(root)) is not None:
        title = f"ledger of {row.model}: row {row.number}, {row.action} {row.version}".rstrip()
        commit_contents(root, {FILE: text.encode()}, title, onto=onto)


def _of_tag(tags: dict[str, str], where: str) -> Witness | None:
    if HEAD_TAG not in tags:
        return None
    try:
        ledger, number, hashed = tags[HEAD_TAG].split(" ")
        return Witness(where, ledger, int(number), hashed)
    except ValueError:
        return Witness(f"{where} (damaged)", "", 0, "")
