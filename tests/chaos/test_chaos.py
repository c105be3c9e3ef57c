"""Runs that are disturbed at a seeded moment: all end as the undisturbed one, and nothing is left of them."""

from __future__ import annotations

import random
import signal
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from disturbed import (
    DONE,
    EPOCHS,
    GONE_WITHIN_S,
    MEMBERS,
    PREFECT,
    PROMISED_S,
    SEED,
    Moment,
    Running,
    check,
    cut,
    disturb,
    end_state,
    kill,
    note,
    running,
)  # fmt: skip
from doors import Door, State, door_before, failing
from shared_servers import mlflow_server

from segmill import progress
from segmill.params_change import set_params
from segmill.workspace import Workspace

pytestmark = pytest.mark.chaos

TRAINING = tuple(f"finetune@{member}" for member in MEMBERS)
STEPS = ("ensemble", "evaluate", "register", "promote", "report")
ENDS = {"flow": -signal.SIGKILL, "term": 130, "raylet": 4, "gcs": 4}  # the exit code of a run that it ends

Make = Callable[..., Workspace]


@dataclass(frozen=True)
class Point:
    """A disturbance (``kind``) at a moment."""

    kind: str
    moment: Moment

    def __str__(self) -> str:
        return f"{self.kind} {self.moment}"


def in_training(rng: random.Random, least: int = 0) -> Moment:
    return Moment(rng.choice(TRAINING), rng.randint(least, EPOCHS - 1), rng.uniform(0, 0.5))


def in_step(rng: random.Random, *steps: str) -> Moment:
    return Moment(rng.choice(steps or STEPS), 0, rng.uniform(0, 0.5))


def points() -> list[Point]:
    """Return the points to disturb a run at; the seed decides the moments."""
    rng = random.Random(SEED)
    on_ray = ("ensemble", "evaluate")
    return [
        *(Point("flow", in_training(rng)) for _ in range(2)),
        *(Point("flow", in_step(rng, step)) for step in STEPS),
        Point("term", in_training(rng)),
        Point("term", in_step(rng)),
        *(Point("worker", in_training(rng)) for _ in range(2)),
        *(Point(kind, moment) for kind in ("raylet", "gcs") for moment in (in_training(rng), in_step(rng, *on_ray))),
        Point("prefect", in_training(rng)),
        Point("prefect", in_step(rng)),
    ]


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Make) -> dict[str, Any]:
    """What a run comes to that nobody disturbs."""
    workspace = brain_workspace(tmp_path_factory.mktemp("undisturbed"), *MEMBERS, epochs=EPOCHS)
    with running(workspace, "segmill", "retrain") as run:
        assert run.end() in DONE, run.said
    return end_state(workspace)


def disturbance(kind: str, moment: Moment) -> Callable[[Running], None]:
    """Return what disturbs a run."""
    return {
        "flow": lambda run: kill(run.process),
        "term": lambda run: run.process.terminate(),
        "worker": lambda run: kill(run.rank(moment.step)),
        "raylet": lambda run: kill(run.named("raylet/raylet")),
        "gcs": lambda run: kill(run.named("gcs/gcs_server")),
        "prefect": lambda run: kill(run.named(PREFECT)),
    }[kind]


@pytest.mark.parametrize("point", points(), ids=str)
def test_a_killed_process_costs_at_most_an_epoch_and_changes_nothing(
    point: Point,
    tmp_path: Path,
    brain_workspace: Make,
    undisturbed: dict[str, Any],
    record_property: Callable[[str, object], None],
) -> None:
    workspace = brain_workspace(tmp_path, *MEMBERS, epochs=EPOCHS)
    with running(workspace, "segmill", "retrain") as run:
        recovered = disturb(run, point.moment, disturbance(point.kind, point.moment), MEMBERS)
    expected = (ENDS[point.kind],) if point.kind in ENDS else DONE
    assert recovered.code in expected, recovered
    if recovered.code == 4:
        assert recovered.said.startswith("error Ray") and "run again: what is done is kept" in recovered.said
    assert max(recovered.repeated.values(), default=0) <= 1, recovered
    check(workspace, undisturbed)
    note(record_property, point, recovered)


@pytest.fixture
def mlflow(tmp_path: Path) -> Iterator[tuple[Door, Path]]:
    """A door before MLflow's server, and the server's database."""
    database = tmp_path / "server.db"
    with mlflow_server(f"sqlite:///{database}", tmp_path / "artifacts") as uri, door_before(uri) as door:
        yield door, database


def away() -> list[tuple[State, float, Moment]]:
    """Return how MLflow's server fails, for how long (0: until the run is over), and when."""
    rng = random.Random(SEED)
    return [
        ("shut", 3.0, in_training(rng)),
        *(("shut", 10.0, in_step(rng, step)) for step in ("register", "promote")),
        ("slow", 0.0, in_training(rng)),
        *(("shut", 0.0, in_step(rng, step)) for step in ("register", "promote")),
        ("500", 0.0, in_step(rng, "register")),
    ]  # fmt: skip


@pytest.mark.parametrize(("state", "for_s", "moment"), away(), ids=str)
def test_an_mlflow_server_that_fails_costs_no_metric_and_no_verdict(
    state: State,
    for_s: float,
    moment: Moment,
    tmp_path: Path,
    brain_workspace: Make,
    undisturbed: dict[str, Any],
    mlflow: tuple[Door, Path],
    record_property: Callable[[str, object], None],
) -> None:
    door, database = mlflow
    workspace = brain_workspace(tmp_path, *MEMBERS, epochs=EPOCHS)

    with running(workspace, "segmill", "retrain", servers={"MLFLOW_TRACKING_URI": door.url}) as run:
        recovered = disturb(
            run, moment, lambda _: failing(door, state, for_s), MEMBERS, before_next=lambda: door.set("open")
        )
    assert recovered.code in ((4,) if state != "slow" and not for_s else DONE), recovered
    if recovered.code == 4:
        assert recovered.ended_s is not None and recovered.ended_s < PROMISED_S + GONE_WITHIN_S
        assert "MLflow at " in run.said and "does not answer" in run.said
    assert max(recovered.repeated.values(), default=0) == 0
    check(workspace, undisturbed, database)
    note(record_property, f"mlflow {state} {for_s:g} s {moment}", recovered)


def test_a_stage_that_dvc_runs_is_killed(
    tmp_path: Path,
    brain_workspace: Make,
    undisturbed: dict[str, Any],
    record_property: Callable[[str, object], None],
) -> None:
    """`dvc repro` says that it failed; `segmill retrain` resumes the training."""
    workspace, moment = brain_workspace(tmp_path, *MEMBERS, epochs=EPOCHS), Moment("finetune@fpn", 2, 0.1)
    note_path = workspace.progress / f"{moment.step}.json"
    with running(workspace, "dvc", "repro", "finetune@fpn") as run:
        progress.report(note_path, state="running")  # `segmill stage` writes no note of its own
        recovered = disturb(run, moment, lambda run: kill(run.named("finetune@fpn")), MEMBERS)
    assert recovered.code not in DONE and recovered.repeated.get("fpn", 0) <= 1, recovered
    check(workspace, undisturbed)
    note(record_property, f"dvc repro {moment}", recovered)


def files_cut() -> list[tuple[str, float, Moment]]:
    """Return what is cut while the run is dead: a glob, and what share of the file is left."""
    rng = random.Random(SEED)
    later = Moment("evaluate")
    return [
        *((".segmill/**/state.pt", share, in_training(rng, 2)) for share in (0.0, 0.5)),
        (".segmill/progress/*.json", 0.3, in_training(rng, 2)),
        ("models/members/fpn/weights.safetensors", 0.5, later),
        ("data/packed/train/*.bin", 0.5, later),
        (".dvc/cache/runs/**/*", 0.5, later),
    ]


@pytest.mark.parametrize(("pattern", "share", "moment"), files_cut(), ids=str)
def test_a_file_that_was_cut_is_made_again(
    pattern: str,
    share: float,
    moment: Moment,
    tmp_path: Path,
    brain_workspace: Make,
    undisturbed: dict[str, Any],
    record_property: Callable[[str, object], None],
) -> None:
    workspace = brain_workspace(tmp_path, *MEMBERS, epochs=EPOCHS)

    def cut_files() -> None:
        found = [path for path in workspace.root.glob(pattern) if path.is_file()]
        assert found, pattern
        for path in found:
            cut(path, share)

    with running(workspace, "segmill", "retrain") as run:
        recovered = disturb(run, moment, disturbance("flow", moment), MEMBERS, before_next=cut_files)
    check(workspace, undisturbed)
    note(record_property, f"cut {pattern} to {share:g}, {moment}", recovered)


def test_one_of_two_ranks_is_killed(
    tmp_path_factory: pytest.TempPathFactory,
    brain_workspace: Make,
    record_property: Callable[[str, object], None],
) -> None:
    """At the same number of ranks the weights are the same."""
    moment, found = Moment("finetune@fpn", 2, 0.1), []
    for what in ("undisturbed", "disturbed"):
        workspace = brain_workspace(tmp_path_factory.mktemp(what), "fpn", epochs=EPOCHS)
        set_params(workspace.params, ["ray.workers=2", "ray.cpus_per_worker=0.5"])
        with running(workspace, "segmill", "retrain") as run:
            if what == "undisturbed":
                assert run.end() in DONE, run.said
            else:
                recovered = disturb(run, moment, disturbance("worker", moment), ("fpn",))
                assert recovered.code in DONE and recovered.repeated["fpn"] <= 1, recovered
                note(record_property, f"one rank of two {moment}", recovered)
        found.append(end_state(workspace))
    assert found[0] == found[1]
