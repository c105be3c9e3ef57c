"""What a run needs from outside fails at a seeded moment: databases, the clock, disks, buckets, a machine on loan."""

from __future__ import annotations

import random
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

import boto3
import psutil
import pytest
from databases import PostgreSQL, postgresql_server
from disks import SmallDisk, small_disk
from disturbed import (
    DONE,
    EPOCHS,
    GONE_WITHIN_S,
    PROMISED_S,
    SEED,
    Moment,
    Running,
    check,
    disturb,
    kill,
    note,
    running,
)
from doors import State, door_before, failing
from shared_servers import mlflow_server
from sources import Stores, git, lasting
from wrong_clock import wrong_clock

from segmill.data.versioning.publishing import has_unpushed, push_stages
from segmill.promotion.lease import who_holds
from segmill.workspace import Workspace

pytestmark = pytest.mark.chaos

MEMBERS = ("fpn",)
TRAINING = "finetune@fpn"
MODEL = "segmill-brain"
GRACE_S = 5.0  # from SIGTERM to SIGKILL, as whoever takes a machine away gives
Make = Callable[..., Workspace]
Record = Callable[[str, object], None]


def in_training(rng: random.Random) -> Moment:
    return Moment(TRAINING, rng.randint(1, EPOCHS - 1), rng.uniform(0, 0.3))


def in_step(rng: random.Random, step: str) -> Moment:
    return Moment(step, 0, rng.uniform(0, 0.3))


@pytest.fixture
def postgres() -> Iterator[PostgreSQL]:
    with postgresql_server() as server:
        yield server


def same(workspace: Workspace, one_member: dict[str, Any], database: Path | str = "", ledger: str = "") -> None:
    check(workspace, one_member, database, ledger, MEMBERS)


def away(postgres: PostgreSQL, for_s: float) -> Callable[[Running], None]:
    """Kill the server, and start it again after ``for_s``, which is 0 where it does not come back in this run."""

    def fail(run: Running) -> None:
        postgres.kill()
        if for_s:
            time.sleep(for_s)
            postgres.start()

    return fail


def back(postgres: PostgreSQL, for_s: float) -> Callable[[], None]:
    return lambda: None if for_s else postgres.start()


def killed_ledgers() -> list[tuple[float, Moment]]:
    rng = random.Random(SEED)
    return [
        (5.0, in_training(rng)),
        (5.0, in_step(rng, "promote")),
        *((0.0, in_step(rng, step)) for step in ("register", "promote")),
    ]


@pytest.mark.parametrize(("for_s", "moment"), killed_ledgers(), ids=str)
def test_the_postgresql_of_the_ledger_is_killed(
    for_s: float,
    moment: Moment,
    workspace: Workspace,
    postgres: PostgreSQL,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    with running(workspace, "segmill", "retrain", servers={**servers, "SEGMILL_LEDGER_URL": postgres.url}) as run:
        recovered = disturb(run, moment, away(postgres, for_s), MEMBERS, before_next=back(postgres, for_s))
    assert recovered.code in (DONE if for_s else (4,)), recovered
    assert for_s or "the ledger at " in recovered.said
    assert max(recovered.repeated.values(), default=0) == 0
    assert who_holds(postgres.url, MODEL) is None
    same(workspace, one_member, ledger=postgres.url)
    note(record_property, f"ledger's PostgreSQL {for_s:g} s {moment}", recovered)


@pytest.fixture
def mlflow(tmp_path: Path, postgres: PostgreSQL) -> Iterator[str]:
    """The address of an MLflow server whose database is PostgreSQL."""
    with mlflow_server(postgres.url, tmp_path / "artifacts") as uri:
        yield uri


def killed_backends() -> list[tuple[float, Moment]]:
    rng = random.Random(SEED)
    return [(5.0, in_training(rng)), (5.0, in_step(rng, "register")), (0.0, in_step(rng, "register"))]


@pytest.mark.parametrize(("for_s", "moment"), killed_backends(), ids=str)
def test_the_postgresql_of_mlflow_is_killed(
    for_s: float,
    moment: Moment,
    workspace: Workspace,
    postgres: PostgreSQL,
    mlflow: str,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    with running(workspace, "segmill", "retrain", servers={**servers, "MLFLOW_TRACKING_URI": mlflow}) as run:
        recovered = disturb(run, moment, away(postgres, for_s), MEMBERS, before_next=back(postgres, for_s))
    assert recovered.code in (DONE if for_s else (4,)), recovered
    if not for_s:
        assert recovered.ended_s is not None and recovered.ended_s < PROMISED_S + GONE_WITHIN_S
        assert "MLflow at " in recovered.said and "does not answer" in recovered.said
    assert max(recovered.repeated.values(), default=0) == 0
    same(workspace, one_member, postgres.url)
    note(record_property, f"MLflow's PostgreSQL {for_s:g} s {moment}", recovered)


def wrong_clocks() -> list[tuple[int, Moment]]:
    """Return by how many days the clock is wrong, and when the run is killed."""
    rng = random.Random(SEED)
    return [(2, in_training(rng)), (-2, in_step(rng, "promote"))]


@pytest.mark.parametrize(("days", "moment"), wrong_clocks(), ids=str)
def test_a_run_with_a_wrong_clock_is_killed_and_the_next_has_the_right_one(
    days: int,
    moment: Moment,
    workspace: Workspace,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    """The flow and all that it starts; Ray and Prefect are elsewhere, with the right clock."""
    ledger = f"sqlite:///{workspace.ledger}"

    def fail(run: Running) -> None:
        holder = who_holds(ledger, MODEL)
        assert holder is not None
        off = datetime.fromisoformat(holder.since) - datetime.now().astimezone()
        assert abs(off - timedelta(days=days)) < timedelta(minutes=10), "its clock is wrong"
        kill(run.process)

    with running(workspace, "segmill", "retrain", servers={**servers, **wrong_clock(days)}) as run:

        def with_the_right_clock() -> None:
            run.servers = servers

        recovered = disturb(run, moment, fail, MEMBERS, before_next=with_the_right_clock)
    assert recovered.code == -signal.SIGKILL
    assert max(recovered.repeated.values(), default=0) <= 1, recovered
    assert who_holds(ledger, MODEL) is None
    same(workspace, one_member)
    note(record_property, f"{days:+d} days, {moment}", recovered)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[SmallDisk]:
    with small_disk(tmp_path / "disk") as found:
        yield found


def full_disks() -> list[Moment]:
    rng = random.Random(SEED)
    return [in_training(rng), *(in_step(rng, step) for step in ("register", "report"))]


@pytest.mark.parametrize("moment", full_disks(), ids=str)
def test_the_disk_of_the_workspace_is_full(
    moment: Moment,
    tmp_path: Path,
    disk: SmallDisk,
    brain_workspace: Make,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    workspace = brain_workspace(disk.folder, *MEMBERS, epochs=EPOCHS)
    with running(workspace, "segmill", "retrain", servers=servers, output=tmp_path / "said") as run:
        recovered = disturb(run, moment, lambda _: disk.fill(), MEMBERS, before_next=disk.make_room)
    assert recovered.code == 1 and recovered.said.startswith("error the disk is full: 0 MiB free"), recovered
    assert max(recovered.repeated.values(), default=0) <= 1, recovered
    same(workspace, one_member)
    note(record_property, f"disk full {moment}", recovered)


def test_the_disk_of_mlflows_files_is_full(
    workspace: Workspace,
    tmp_path: Path,
    disk: SmallDisk,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    moment, database = Moment("register"), tmp_path / "server.db"
    with (
        mlflow_server(f"sqlite:///{database}", disk.folder) as uri,
        running(workspace, "segmill", "retrain", servers={**servers, "MLFLOW_TRACKING_URI": uri}) as run,
    ):
        recovered = disturb(run, moment, lambda _: disk.fill(), MEMBERS, before_next=disk.make_room)
    assert recovered.code == 4 and "MLflow at " in recovered.said, recovered
    same(workspace, one_member, database)
    note(record_property, f"disk of MLflow's files full {moment}", recovered)


@dataclass(frozen=True)
class Source:
    """A run from nothing: the folder of its clone, the stores that outlast it, and the command."""

    clone: Workspace
    stores: Stores

    @property
    def command(self) -> tuple[str, ...]:
        named = f"{self.stores.bare}@main"
        return ("segmill", "retrain", "--source", named, "--workspace", str(self.clone.root))

    def check(self, one_member: dict[str, Any]) -> None:
        folder = self.stores.bare.parent
        same(self.clone, one_member, folder / "mlflow.db", f"sqlite:///{folder}/ledger.db")
        assert not has_unpushed(self.clone.root) and "finetune@fpn" in git(self.stores.bare, "show", "main:dvc.lock")
        assert push_stages(self.clone.root) == 0, "the remote has all that dvc.lock names"


def from_nothing(folder: Path, author: Workspace, remote: str) -> Source:
    stores = lasting(author, folder, remote)
    clone = folder / "clone"
    clone.mkdir()
    return Source(Workspace(clone), stores)


def test_the_disk_of_dvcs_remote_is_full(
    workspace: Workspace,
    tmp_path: Path,
    disk: SmallDisk,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    moment = Moment("evaluate")
    source = from_nothing(tmp_path, workspace, str(disk.folder / "remote"))
    with running(source.clone, *source.command, servers=servers) as run:
        recovered = disturb(
            run, moment, lambda _: disk.fill(), MEMBERS, disk.make_room, source.command
        )  # fmt: skip
    assert recovered.code == 4 and "No space left on device" in recovered.said, recovered
    assert max(recovered.repeated.values(), default=0) == 0
    source.check(one_member)
    note(record_property, f"disk of DVC's remote full {moment}", recovered)


def failing_buckets() -> list[tuple[State, float, Moment]]:
    """Return how the object store fails, for how long (0: until the run is over), and when."""
    rng = random.Random(SEED)
    return [
        ("slow", 0.0, in_training(rng)),
        ("500", 8.0, in_step(rng, "ensemble")),
        ("500", 0.0, in_step(rng, "report")),
    ]


@pytest.mark.parametrize(("state", "for_s", "moment"), failing_buckets(), ids=str)
def test_the_object_store_of_dvcs_remote_fails(
    state: State,
    for_s: float,
    moment: Moment,
    workspace: Workspace,
    tmp_path: Path,
    s3: str,
    credentials: None,
    servers: dict[str, str],
    one_member: dict[str, Any],
    record_property: Record,
) -> None:
    bucket = f"chaos-{state}-{for_s:g}"
    boto3.client("s3").create_bucket(Bucket=bucket)
    source = from_nothing(tmp_path, workspace, f"s3://{bucket}/prefix")
    with (
        door_before(s3, slow_s=0.5) as door,
        running(source.clone, *source.command, servers={**servers, "AWS_ENDPOINT_URL": door.url}) as run,
    ):
        recovered = disturb(
            run, moment, lambda _: failing(door, state, for_s), MEMBERS, lambda: door.set("open"), source.command
        )
    assert recovered.code in (DONE if for_s or state == "slow" else (4,)), recovered
    assert recovered.code in DONE or f"the remote s3://{bucket}/prefix does not answer" in recovered.said
    assert max(recovered.repeated.values(), default=0) == 0
    source.check(one_member)
    note(record_property, f"bucket {state} {for_s:g} s {moment}", recovered)


def test_a_rank_is_asked_to_end_and_then_killed(
    workspace: Workspace, one_member: dict[str, Any], record_property: Record
) -> None:
    moment = in_training(random.Random(SEED))

    def take_away(run: Running) -> None:
        rank = run.rank(moment.step)
        rank.terminate()
        with suppress(psutil.Error):
            rank.wait(GRACE_S)
        with suppress(psutil.NoSuchProcess):
            kill(rank)

    with running(workspace, "segmill", "retrain") as run:
        recovered = disturb(run, moment, take_away, MEMBERS)
    assert recovered.code in DONE and max(recovered.repeated.values(), default=0) <= 1, recovered
    same(workspace, one_member)
    note(record_property, f"SIGTERM, {GRACE_S:g} s, SIGKILL of a rank {moment}", recovered)
