"""Races two to eight promoters, some of which are killed between two writes, and checks what is left each time.

    python benchmarks/promotion_races.py [--rounds 1000] [--database sqlite|postgres] [--seed 0] [--json]

The promoters are forked from one warm parent. Each has a version of its own with a quality; it brings MLflow in line,
judges its version against the champion, appends the verdict, judges again where another one was faster, and brings
MLflow in line again. At the named points (segmill/promotion/points.py) it waits for some milliseconds now and then, and
half of them are killed at one of these, if they come there (SIGKILL). MLflow is a real SQLite store; a trigger in it
keeps every move of its alias. PostgreSQL is started for the run and stopped after it.

After each round one more run brings MLflow in line, and then: one champion, the best of the versions that were judged;
each row judged against the champion before it; no verdict lost or recorded twice; each move of the alias is one that a
row made; nobody else is named for it; the chain and its heads are whole; another run finds nothing to do. Exit code 1
where any of these does not hold.
"""

from __future__ import annotations

import argparse
import gc
import json
import logging
import os
import random
import signal
import sqlite3
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from postgres_server import postgres

from segmill.promotion import points
from segmill.promotion.heads import examine
from segmill.promotion.keys import SigningKey, TrustedKeys, make_signing_key
from segmill.promotion.ledger import Conflict, Ledger, open_ledger
from segmill.promotion.reconcile import reconcile
from segmill.promotion.rows import Entry, LedgerRow, champion

ROUNDS_PER_MODEL = 5  # each after the first begins with a champion
MOST_PROMOTERS = 8
KILLED = 0.5  # of the promoters, if they come to the point
BETTER = 0.05  # what each version is better than the one before, beside chance: most races move the champion
PAUSES = 0.3  # of the points
PAUSE_S = 0.02
MEMORY = Path("/dev/shm")  # processes are killed here, not machines: nothing has to reach a disk

# Every move of the alias, kept by MLflow's database itself.
TRIGGERS = """
CREATE TABLE moves (name TEXT, alias TEXT, version TEXT);
CREATE TRIGGER made AFTER INSERT ON registered_model_aliases
    BEGIN INSERT INTO moves VALUES (NEW.name, NEW.alias, NEW.version); END;
CREATE TRIGGER changed AFTER UPDATE ON registered_model_aliases
    BEGIN INSERT INTO moves VALUES (NEW.name, NEW.alias, NEW.version); END;
CREATE TRIGGER dropped AFTER DELETE ON registered_model_aliases
    BEGIN INSERT INTO moves VALUES (OLD.name, OLD.alias, NULL); END;
"""


@dataclass
class Race:
    """Where the rounds of one model take place.

    Attributes:
        model: the registered model's name.
        uri: MLflow's address.
        url: the ledger's.
        key: everybody's.
        folder: where promoters write what they did; and a workspace.
        quality: of each version.
    """

    model: str
    uri: str
    url: str
    key: SigningKey
    folder: Path
    quality: dict[str, float] = field(default_factory=dict)

    def ledger(self) -> Ledger:
        return open_ledger(self.url, trusted=TrustedKeys((self.key.public,), "trusted_keys"), key=self.key)

    def note(self, version: str, kind: str) -> Path:
        """Return where a promoter writes what became of it: its ``row``, ``killed`` or ``error``."""
        return self.folder / f"{self.model}-{version}.{kind}"

    def moves(self) -> list[str | None]:
        """Return where the alias was, one after the other."""
        with sqlite3.connect(self.uri.removeprefix("sqlite:///")) as connection:
            found = connection.execute("SELECT version FROM moves WHERE name = ? ORDER BY rowid", (self.model,))
            return [version for (version,) in found]


def promote(race: Race, version: str) -> LedgerRow:
    """Do what a run does with its version: judge it against the champion until the verdict is recorded."""
    ledger = race.ledger()
    reconcile(race.uri, ledger, race.model)
    while True:
        writer = ledger.begin(race.model)
        rival = writer.champion
        better = rival is None or race.quality[version] > race.quality[rival]
        decision = {"action": "promote", "decision": "PASS"} if better else {"action": "refuse", "decision": "FAIL"}
        try:
            row = ledger.append(writer, Entry(version=version, **decision))
            break
        except Conflict:
            continue
    reconcile(race.uri, ledger, race.model)
    return row


def run_promoter(race: Race, version: str, kill_at: str | None, seed: int) -> None:
    """Promote in this process, which ends here: by itself, or killed at a point, which is noted first."""
    rng = random.Random(seed)

    def at(point: str) -> None:
        if point == kill_at:
            race.note(version, "killed").write_text(point)
            os.kill(os.getpid(), signal.SIGKILL)
        if rng.random() < PAUSES:
            time.sleep(rng.random() * PAUSE_S)

    points.at = at
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    code = 1
    try:
        row = promote(race, version)
        race.note(version, "row").write_text(str(row.number))
        code = 0
    except BaseException as error:
        race.note(version, "error").write_text(f"{type(error).__name__}: {error}")
    finally:
        os._exit(code)


def run_round(race: Race, versions: list[str], rng: random.Random) -> tuple[list[str], Counter[str]]:
    """Race promoters, one per version; return what does not hold afterwards, and who was killed where."""
    children = []
    for version in versions:
        kill_at = rng.choice(points.POINTS) if rng.random() < KILLED else None
        seed = rng.randrange(2**32)
        if (child := os.fork()) == 0:
            run_promoter(race, version, kill_at, seed)
        children.append(child)
    for child in children:
        os.waitpid(child, 0)
    kills = Counter(said for version in versions if (said := read_note(race, version, "killed")))
    found = [said for version in versions if (said := read_note(race, version, "error"))]
    return found + check(race, versions), kills


def check(race: Race, versions: list[str]) -> list[str]:
    """Repair as the next run does, and return what does not hold then."""
    ledger, found = race.ledger(), []
    found += reconcile(race.uri, ledger, race.model)
    rows = ledger.rows(race.model)
    serves, before = champion(rows), None
    for row in rows:
        if row.previous != before:
            found.append(f"row {row.number} was judged against {row.previous}, and {before} served")
        better = before is None or race.quality[row.version] > race.quality[before]
        if (row.action == "promote") != better:
            found.append(f"row {row.number} says {row.action} of {row.version} against {before}")
        before = row.champion
    if [row.writer for row in rows] != sorted({row.writer for row in rows}):
        found.append(f"fencing numbers {[row.writer for row in rows]}")
    times = Counter(row.version for row in rows)
    for version in versions:
        found += check_promoter(race, version, times[version], rows)
    judged = [version for version in race.quality if times[version]]
    if judged and serves != max(judged, key=lambda version: race.quality[version]):
        found.append(f"{serves} serves, which is not the best of {judged}")
    moves = race.moves()
    champions = {row.champion for row in rows}
    found += [
        f"the alias was at {version}, which no row made champion" for version in moves if version not in champions
    ]
    if (moves[-1] if moves else None) != serves:
        found.append(f"the alias is at {moves[-1] if moves else None} and {serves} serves")
    found += examine(race.uri, race.folder, ledger, race.model)
    moved = len(moves)
    found += reconcile(race.uri, ledger, race.model)
    if len(ledger.rows(race.model)) != len(rows) or len(race.moves()) != moved:
        found.append("the next run did something")
    return found


def check_promoter(race: Race, version: str, times: int, rows: list[LedgerRow]) -> list[str]:
    """Return what does not fit to what a promoter said, or to where it was killed; ``times``: rows of its version."""
    if number := read_note(race, version, "row"):
        own = [row.number for row in rows if row.version == version]
        return [] if own == [int(number)] else [f"{version} was recorded as row {number}, and rows {own} are about it"]
    if not (point := read_note(race, version, "killed")):
        return [] if read_note(race, version, "error") else [f"{version} ended without a word"]
    # A promoter also brings MLflow in line before it judges, so a kill there may come before its own row.
    expected = {"before append": {0}, "in append": {0}, "after append": {1}}.get(point, {0, 1})
    return [] if times in expected else [f"{version} was killed {point} and has {times} rows"]


def read_note(race: Race, version: str, kind: str) -> str:
    """Return what a promoter wrote, "" where it wrote nothing."""
    path = race.note(version, kind)
    return path.read_text() if path.exists() else ""


def make_race(number: int, uri: str, url: str, key: SigningKey, folder: Path) -> Race:
    """Make a registered model without versions."""
    from mlflow import MlflowClient

    race = Race(f"race-{number}", uri, url, key, folder)
    MlflowClient(uri).create_registered_model(race.model)
    return race


def make_versions(race: Race, count: int, rng: random.Random) -> list[str]:
    """Register ``count`` versions with a quality each; their artifacts do not matter here."""
    from mlflow import MlflowClient

    client = MlflowClient(race.uri)
    made = [str(client.create_model_version(race.model, "models").version) for _ in range(count)]
    race.quality |= {version: rng.random() + BETTER * int(version) for version in made}
    return made


def run(rounds: int, url: Callable[[Path], str], seed: int, folder: Path) -> dict[str, Any]:
    """Run the rounds; return how many, who was killed where, what did not hold, and seconds."""
    from mlflow import MlflowClient

    os.environ["MLFLOW_SQLALCHEMYSTORE_POOLCLASS"] = "NullPool"  # nothing open is shared with forked processes
    os.environ["XDG_CONFIG_HOME"] = str(folder / "config")
    rng, key = random.Random(seed), make_signing_key()
    uri = f"sqlite:///{folder}/mlflow.db"
    MlflowClient(uri).search_registered_models()
    with sqlite3.connect(folder / "mlflow.db") as connection:
        connection.executescript(TRIGGERS)
    warm = make_race(-1, uri, url(folder), key, folder)
    for version in make_versions(warm, 2, rng):
        promote(warm, version)
    gc.freeze()  # else the first collection in each child would copy all of the parent's memory
    kills: Counter[str] = Counter()
    violations: list[str] = []
    promoters, began = 0, time.monotonic()
    for number in range(rounds):
        if number % ROUNDS_PER_MODEL == 0:
            race = make_race(number // ROUNDS_PER_MODEL, uri, url(folder), key, folder)
        versions = make_versions(race, rng.randint(2, MOST_PROMOTERS), rng)
        promoters += len(versions)
        found, killed = run_round(race, versions, rng)
        kills += killed
        violations += [f"round {number}: {one}" for one in found]
        if sys.stderr.isatty() or (number + 1) % 50 == 0:
            print(f"{number + 1} of {rounds} rounds, {len(violations)} violations", file=sys.stderr, flush=True)
    seconds = round(time.monotonic() - began, 1)
    rows = len(race.ledger().rows()) if rounds else 0
    return {
        "rounds": rounds, "promoters": promoters, "rows": rows, "kills": dict(sorted(kills.items())),
        "violations": violations, "seconds": seconds,
    }  # fmt: skip


def main() -> None:
    """Run the races and print what came of them."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000)
    parser.add_argument("--database", choices=("sqlite", "postgres"), default="sqlite")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that PostgreSQL is stopped
    with ExitStack() as stack:
        folder = Path(
            stack.enter_context(tempfile.TemporaryDirectory(prefix="races-", dir=MEMORY if MEMORY.is_dir() else None))
        )
        server = stack.enter_context(postgres()) if options.database == "postgres" else None
        logging.disable(logging.INFO)
        said = run(options.rounds, lambda folder: server or f"sqlite:///{folder}/ledger.db", options.seed, folder)
    if options.json:
        print(json.dumps(said))
    else:
        print(f"{said['rounds']} rounds, {said['promoters']} promoters, {said['rows']} rows on {options.database}")
        print(f"killed: {', '.join(f'{count} {point}' for point, count in said['kills'].items())}")
        print(f"violations: {len(said['violations'])}", *said["violations"][:20], sep="\n  ")
        print(f"{said['seconds']} s")
    sys.exit(1 if said["violations"] else 0)


if __name__ == "__main__":
    main()
