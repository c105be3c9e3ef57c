"""Changes a ledger in 100 ways that its owner would not, and counts how many `segmill ledger verify` finds.

    python benchmarks/ledger_mutations.py [--mutations 100] [--seed 0] [--json]

The ledger is a SQLite database with two models, one of which an earlier release began; its heads are kept in a real
MLflow store, in a workspace's file and in git. Each mutation begins from the same state, in which nothing
is found. Those who change it can write to the database; some can also write to MLflow and to the workspace, one has
a key of his own, and one even has a key that the workspace trusts. Exit code 1 where a mutation is not found.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import shutil
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from segmill.data.versioning.repository import commit_files, create_repository
from segmill.promotion import chain, heads
from segmill.promotion.database import EARLIER, Database
from segmill.promotion.keys import SigningKey, TrustedKeys, make_signing_key
from segmill.promotion.ledger import Ledger, open_ledger
from segmill.promotion.reconcile import reconcile
from segmill.promotion.rows import Entry

MODELS = ("segmill-brain", "segmill-street")
ROWS = 12  # of each model
FIELDS = (
    "version",
    "champion",
    "previous",
    "decision",
    "because",
    "time",
    "action",
    "writer",
    "reasons",
    "facts",
    "actor",
)


@dataclass
class Scene:
    """What a mutation may change: the ledger's database, MLflow, and the workspace; and the keys there are."""

    folder: Path
    trusted: SigningKey
    foreign: SigningKey
    rng: random.Random

    @property
    def database(self) -> Path:
        return self.folder / "ledger.db"

    @property
    def root(self) -> Path:
        return self.folder / "workspace"

    @property
    def uri(self) -> str:
        return f"sqlite:///{self.folder}/mlflow.db"

    def ledger(self, path: Path | None = None) -> Ledger:
        trusted = TrustedKeys((self.trusted.public,), "trusted_keys")
        return open_ledger(f"sqlite:///{path or self.database}", trusted=trusted, key=self.trusted)

    def sql(self, statement: str, *values: Any) -> list[Any]:
        with sqlite3.connect(self.database) as connection:
            found = connection.execute(statement, values).fetchall()
        connection.close()
        return found

    def sql_of_mlflow(self, statement: str, *values: Any) -> None:
        with sqlite3.connect(self.folder / "mlflow.db") as connection:
            assert connection.execute(statement, values).rowcount > 0
        connection.close()

    def tag(self, model: str, value: str) -> None:
        change = "UPDATE registered_model_tags SET value = ? WHERE key = 'ledger_head' AND name = ?"
        self.sql_of_mlflow(change, value, model)

    def findings(self) -> list[str]:
        return [said for model in MODELS for said in heads.examine(self.uri, self.root, self.ledger(), model)]


@dataclass
class Line:
    """A row to rewrite."""

    model: str
    number: int
    payload: str
    previous_hash: str
    hash: str
    key_id: str
    signature: str

    def edit(self, **changes: Any) -> None:
        content = json.loads(self.payload)
        self.payload = chain.payload(**{**content, **changes})


def read(scene: Scene, model: str) -> list[Line]:
    return [Line(*row) for row in scene.sql("SELECT * FROM ledger_rows WHERE model = ? ORDER BY number", model)]


def write(scene: Scene, model: str, lines: list[Line], *, head: bool = False) -> None:
    """Put these rows in place of the model's; with ``head`` the database's own line says so too."""
    scene.sql("DELETE FROM ledger_rows WHERE model = ?", model)
    for line in lines:
        scene.sql("INSERT INTO ledger_rows VALUES (?, ?, ?, ?, ?, ?, ?)", *vars(line).values())
    if head and lines:
        last = lines[-1]
        writer = json.loads(last.payload)["writer"]
        statement = "UPDATE ledger_models SET head = ?, head_hash = ?, fenced = ?, mirrored = min(mirrored, ?)"
        scene.sql(f"{statement} WHERE model = ?", last.number, last.hash, writer, last.number, model)


def chained(lines: list[Line], key: SigningKey | None = None, claimed: str | None = None) -> list[Line]:
    """Number the rows, compute their hashes anew, and sign those that are signed with ``key``, where one is given."""
    before = lines[0].previous_hash
    for number, line in enumerate(lines, lines[0].number):
        if line.number != number:
            line.number = number
            line.edit(number=number)
        line.previous_hash, line.hash = before, chain.row_hash(before, line.payload)
        if key and line.signature:
            line.signature, line.key_id = key.sign(chain.message(line.hash)), claimed or key.public.id
        before = line.hash
    return lines


def changed(scene: Scene, line: Line) -> None:
    """Change one field of a row to another value."""
    name = scene.rng.choice(FIELDS)
    now = json.loads(line.payload)[name]
    other = {"writer": 99, "reasons": ["no reason"], "facts": {"gain": 0.5}, "actor": {"user": "mallory"}}.get(
        name, "77"
    )
    line.edit(**{name: other if now != other else "78"})


def a_field(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    changed(scene, scene.rng.choice(lines))
    write(scene, model, lines)


def a_field_and_its_hash(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    line = scene.rng.choice(lines)
    changed(scene, line)
    line.hash = chain.row_hash(line.previous_hash, line.payload)
    write(scene, model, lines, head=True)


def rewritten_with(key: Callable[[Scene], SigningKey | None], *, claimed: bool = False) -> Callable[[Scene, str], None]:
    def mutate(scene: Scene, model: str) -> None:
        lines = read(scene, model)
        changed(scene, scene.rng.choice(lines))
        chained(lines, key(scene), scene.trusted.public.id if claimed else None)
        write(scene, model, lines, head=True)

    return mutate


def removed(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    del lines[scene.rng.randrange(len(lines))]
    write(scene, model, lines)


def removed_and_closed_up(key: Callable[[Scene], SigningKey | None]) -> Callable[[Scene, str], None]:
    def mutate(scene: Scene, model: str) -> None:
        lines = read(scene, model)
        del lines[scene.rng.randrange(1, len(lines))]
        write(scene, model, chained(lines, key(scene)), head=True)

    return mutate


def inserted(scene: Scene, model: str, **changes: Any) -> None:
    lines = read(scene, model)
    at = scene.rng.randrange(1, len(lines) + 1)
    made = Line(**vars(lines[at - 1]))
    made.number += 1
    made.edit(number=made.number, version="99", champion="99", **changes)
    if changes:
        made.signature = made.key_id = ""
    write(scene, model, chained([*lines[:at], made, *lines[at:]]), head=True)


def inserted_as_of_an_earlier_release(scene: Scene, model: str) -> None:
    inserted(scene, model, taken_over=True)


def appended_by_a_stranger(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    made = Line(**vars(lines[-1]))
    made.number += 1
    made.edit(number=made.number, version="99", champion="99")
    (made,) = chained([made], scene.foreign)
    write(scene, model, [*lines, made], head=True)


def reordered(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    one, other = scene.rng.sample(range(len(lines)), 2)
    lines[one].number, lines[other].number = lines[other].number, lines[one].number
    write(scene, model, sorted(lines, key=lambda line: line.number))


def reordered_and_rehashed(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    one, other = scene.rng.sample(range(1, len(lines)), 2)
    lines[one], lines[other] = lines[other], lines[one]
    write(scene, model, chained(lines), head=True)


def cut(scene: Scene, model: str, *, head: bool = False) -> None:
    lines = read(scene, model)
    write(scene, model, lines[: scene.rng.randrange(ROWS // 2, ROWS)], head=head)


def cut_and_said_so(scene: Scene, model: str) -> None:
    cut(scene, model, head=True)


def cut_and_told_mlflow(scene: Scene, model: str) -> None:
    """Who can write to MLflow too: git has the head that was."""
    cut(scene, model, head=True)
    row = scene.ledger().rows(model)[-1]
    value = f"{scene.ledger().named()} {row.number} {row.hash}"
    scene.sql_of_mlflow(
        "UPDATE registered_model_tags SET value = ? WHERE key = 'ledger_head' AND name = ?", value, model
    )
    scene.sql_of_mlflow("DELETE FROM model_version_tags WHERE key = 'ledger_head' AND name = ?", model)


def yesterday(scene: Scene, model: str) -> None:
    shutil.copy(scene.folder / f"yesterday-{scene.rng.randrange(1, ROWS - 1)}.db", scene.database)


def yesterday_continued(scene: Scene, model: str) -> None:
    """An old copy that a run went on from, with a key that is trusted."""
    yesterday(scene, model)
    while len(scene.ledger().rows(model)) < ROWS + 2:
        scene.ledger().append(scene.ledger().begin(model), Entry(action="promote", version="1"))


def emptied(scene: Scene, model: str) -> None:
    scene.sql("DELETE FROM ledger_rows WHERE model = ?", model)
    if scene.rng.random() < 0.5:
        scene.sql("DELETE FROM ledger_models WHERE model = ?", model)


def models_swapped(scene: Scene, model: str) -> None:
    for table in ("ledger_rows", "ledger_models"):
        for name, other in ((MODELS[0], "x"), (MODELS[1], MODELS[0]), ("x", MODELS[1])):
            scene.sql(f"UPDATE {table} SET model = ? WHERE model = ?", other, name)


def a_row_of_another_model(scene: Scene, model: str) -> None:
    other = next(name for name in MODELS if name != model)
    lines, at = read(scene, model), scene.rng.randrange(1, ROWS)
    lines[at] = Line(**{**vars(read(scene, other)[at]), "model": model})
    write(scene, model, lines, head=True)


def versions_swapped(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    for line in lines:
        champion = json.loads(line.payload)["champion"]
        line.edit(champion={"1": "2", "2": "1"}.get(champion, champion))
    write(scene, model, chained(lines), head=True)


def an_earlier_row(scene: Scene, model: str) -> None:
    lines = read(scene, MODELS[0])
    scene.rng.choice(lines[:3]).edit(decision="PASS", version="66", champion="66")
    write(scene, MODELS[0], chained(lines) if scene.rng.random() < 0.5 else lines, head=True)


def the_head(scene: Scene, model: str) -> None:
    column, value = scene.rng.choice(
        [("head", 5), ("head", 99), ("head_hash", "0" * 64), ("mirrored", 99), ("writers", 1), ("fenced", 99)]
    )
    scene.sql(f"UPDATE ledger_models SET {column} = ? WHERE model = ?", value, model)


def the_ledgers_name(scene: Scene, model: str) -> None:
    scene.sql("UPDATE ledger_meta SET value = 'feedfacefeedface' WHERE key = 'ledger'")


def a_signature(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    one, other = scene.rng.sample(lines[3:], 2)
    column = scene.rng.choice(["signature", "key_id", "previous_hash", "hash", "gone"])
    if column == "gone":
        one.signature = one.key_id = ""
    elif column == "key_id":
        one.key_id = scene.foreign.public.id
    else:
        setattr(one, column, getattr(other, column))
    write(scene, model, lines)


def signed_by_a_stranger(scene: Scene, model: str) -> None:
    lines = read(scene, model)
    line = scene.rng.choice(lines[3:])
    line.signature = scene.foreign.sign(chain.message(line.hash))
    line.key_id = scene.rng.choice([scene.foreign.public.id, scene.trusted.public.id])
    write(scene, model, lines)


def another_ledger(scene: Scene, model: str) -> None:
    """One that was made for trying things out, with the same key."""
    scene.database.unlink()
    for version in "123":
        scene.ledger().append(scene.ledger().begin(model), Entry(action="promote", version=version))


def forged_earlier_table(scene: Scene, model: str) -> None:
    """All that is signed is gone, and the table of an earlier release says what its maker likes."""
    scene.database.unlink()
    with Database(f"sqlite:///{scene.database}").writing() as connection:
        EARLIER.create(connection, checkfirst=True)
    for table in ("ledger_rows", "ledger_models", "ledger_meta", "ledger_moves"):
        scene.sql(f"DROP TABLE {table}")
    earlier(scene, model, 3)


def a_tag(scene: Scene, model: str) -> None:
    ledger, row = scene.ledger().named(), scene.rng.choice([3, 99])
    value = scene.rng.choice(["x", f"{ledger} {row} {'0' * 64}"])
    scene.sql_of_mlflow(
        "UPDATE registered_model_tags SET value = ? WHERE key = 'ledger_head' AND name = ?", value, model
    )


def a_tag_gone(scene: Scene, model: str) -> None:
    scene.sql_of_mlflow("DELETE FROM registered_model_tags WHERE key = 'ledger_head' AND name = ?", model)


def the_file(scene: Scene, model: str) -> None:
    path = scene.root / heads.FILE
    text = path.read_text()
    number = scene.rng.choice(["99", "3"])
    path.write_text(text.replace(f'"number": {ROWS}', f'"number": {number}'))


MUTATIONS: dict[str, Callable[[Scene, str], None]] = {
    "a field changed": a_field,
    "a field changed, its hash computed anew": a_field_and_its_hash,
    "chain rewritten, hashes computed anew": rewritten_with(lambda _: None),
    "chain rewritten, signed with a foreign key": rewritten_with(lambda scene: scene.foreign),
    "chain rewritten, signed with a foreign key under the trusted one's name": rewritten_with(
        lambda scene: scene.foreign, claimed=True
    ),
    "chain rewritten, signed with the trusted key": rewritten_with(lambda scene: scene.trusted),
    "a row removed": removed,
    "a row removed, the others closed up": removed_and_closed_up(lambda _: None),
    "a row removed, the others closed up and signed with the trusted key": removed_and_closed_up(lambda s: s.trusted),
    "a row inserted": inserted,
    "a row inserted as of an earlier release": inserted_as_of_an_earlier_release,
    "a row appended by a stranger": appended_by_a_stranger,
    "rows reordered": reordered,
    "rows reordered, hashes computed anew": reordered_and_rehashed,
    "the tail cut": cut,
    "the tail cut, and the database's line": cut_and_said_so,
    "the tail cut, the database's line and MLflow's tags": cut_and_told_mlflow,
    "yesterday's database": yesterday,
    "yesterday's database, continued": yesterday_continued,
    "all rows removed": emptied,
    "models swapped": models_swapped,
    "a row of another model": a_row_of_another_model,
    "versions swapped": versions_swapped,
    "a row of an earlier release": an_earlier_row,
    "the database's line": the_head,
    "the ledger's name": the_ledgers_name,
    "a signature, key or hash": a_signature,
    "a row signed by a stranger": signed_by_a_stranger,
    "another ledger": another_ledger,
    "a forged table of an earlier release": forged_earlier_table,
    "MLflow's tag": a_tag,
    "MLflow's tag gone": a_tag_gone,
    "the workspace's file": the_file,
}


def earlier(scene: Scene, model: str, count: int) -> None:
    """Write ``count`` rows as an earlier release did."""
    for number in range(1, count + 1):
        scene.sql(
            "INSERT INTO promotions (model, number, time, action, version, previous, decision, reasons, facts) VALUES "
            "(?, ?, '2026-11-01T00:00:00+00:00', 'promote', ?, ?, 'PASS', '[]', '{}')",
            model, number, str(number), str(number - 1) if number > 1 else None,
        )  # fmt: skip


def make_scene(folder: Path, seed: int) -> Scene:
    """Make the ledger, MLflow's store and the workspace; a copy of the database is kept as of each row."""
    from mlflow import MlflowClient

    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    trusted = make_signing_key()
    os.environ["XDG_CONFIG_HOME"] = str(folder / "elsewhere")
    scene = Scene(folder, trusted, make_signing_key(), random.Random(seed))
    create_repository(scene.root)
    (scene.root / "params.yaml").write_text("# a workspace\n")
    commit_files(scene.root, "begun")
    client = MlflowClient(scene.uri)
    with Database(f"sqlite:///{scene.database}").writing() as connection:
        EARLIER.create(connection)
    earlier(scene, MODELS[0], 3)
    for model in MODELS:
        client.create_registered_model(model)
        for _ in range(3):
            client.create_model_version(model, "models")
    for number in range(1, ROWS + 1):
        for model in MODELS:
            if len(scene.ledger().rows(model)) < number:
                version = str(number % 3 + 1)
                action = scene.rng.choice(["promote", "refuse", "rollback"])
                entry = Entry(action=action, version=version, decision="FAIL", facts={"gain": 0.01 * number})
                scene.ledger().append(scene.ledger().begin(model), entry)
                reconcile(scene.uri, scene.ledger(), model)
        shutil.copy(scene.database, folder / f"yesterday-{number}.db")
    for model in MODELS:
        heads.write_file(scene.root, scene.ledger().rows(model)[-1], scene.ledger().named(), commit=True)
    return scene


def run(mutations: int, seed: int, folder: Path) -> dict[str, Any]:
    """Mutate and verify; return how many were found, of how many, and which were not."""
    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"  # its database is put back under it
    scene = make_scene(folder, seed)
    kept = {path: path.read_bytes() for path in (scene.database, folder / "mlflow.db", scene.root / heads.FILE)}
    unchanged = scene.findings()
    found, missed = Counter(), []
    for number in range(mutations):
        name = list(MUTATIONS)[number % len(MUTATIONS)]
        MUTATIONS[name](scene, scene.rng.choice(MODELS))
        if scene.findings():
            found[name] += 1
        else:
            missed.append(f"{number}: {name}")
        for path, content in kept.items():
            path.write_bytes(content)
    return {
        "found": found.total(),
        "mutations": mutations,
        "kinds": dict(found),
        "missed": missed,
        "unchanged": unchanged,
    }


def main() -> None:
    """Run the mutations and print what was found."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--mutations", type=int, default=100)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    logging.disable(logging.INFO)
    with tempfile.TemporaryDirectory(prefix="mutations-") as name:
        said = run(options.mutations, options.seed, Path(name))
    if options.json:
        print(json.dumps(said))
    else:
        for kind, count in said["kinds"].items():
            print(f"{count:3} {kind}")
        print(f"found {said['found']} of {said['mutations']}", *[f"missed {one}" for one in said["missed"]], sep="\n")
        print(f"findings in the ledger that nobody changed: {len(said['unchanged'])}")
    sys.exit(1 if said["missed"] or said["unchanged"] else 0)


if __name__ == "__main__":
    main()
