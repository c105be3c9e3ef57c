"""A model that retrains by itself: a real Prefect server, a real worker, real runs."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import psutil
import pytest
from postings import Endpoint, endpoint
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling
from prefect_servers import PrefectServers, prefect_servers
from ruamel.yaml import YAML
from sources import git, lasting
from terminal import run, run_json, states

import flows
from segmill.data.ingest.builtin import write_brain
from segmill.promotion.lease import leased, who_holds
from segmill.workspace import Workspace
from tasks.finetune import curves_path

pytestmark = [pytest.mark.slow, pytest.mark.long]
MODEL = "segmill-brain"


@pytest.fixture(scope="module")
def sink() -> Iterator[Endpoint]:
    """An address that Prefect's server calls."""
    with endpoint() as found:
        yield found


@pytest.fixture(scope="module")
def servers(tmp_path_factory: pytest.TempPathFactory, sink: Endpoint) -> Iterator[PrefectServers]:
    with prefect_servers(tmp_path_factory.mktemp("prefect"), {"SINK": sink.url}) as found:
        yield found


@pytest.fixture
def temporary() -> Iterator[Path]:
    """A folder for temporary files whose path is short enough for Ray's sockets."""
    with tempfile.TemporaryDirectory(prefix="t") as folder:
        yield Path(folder)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> Workspace:
    """A workspace where everything is up to date: a run of it takes seconds."""
    workspace = brain_workspace(tmp_path_factory.mktemp("trained"), "unet", epochs=1)
    run(workspace, "segmill", "retrain")
    return workspace


@pytest.fixture(scope="module")
def untrained(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> Workspace:
    """A workspace where nothing ran."""
    return brain_workspace(tmp_path_factory.mktemp("untrained"), "unet", epochs=1)


@pytest.fixture(autouse=True)
def _nothing_is_left(request: pytest.FixtureRequest) -> Iterator[None]:
    """Each test begins with a server that has no deployment, automation, pool or run."""
    yield
    if "servers" not in request.fixturenames:
        return
    servers: PrefectServers = request.getfixturevalue("servers")
    with servers.client() as client:
        for automation in client.read_automations():
            client.delete_automation(automation.id)
        for deployment in client.read_deployments():
            client.delete_deployment(deployment.id)
        for one in client.read_flow_runs():
            client.delete_flow_run(one.id)
        for pool in client.read_work_pools():
            client.delete_work_pool(pool.name)


def schedule(workspace: Workspace, **keys: Any) -> None:
    """Write the block `schedule` of params.yaml."""
    yaml = YAML()
    params = yaml.load(workspace.params)
    yaml.dump({**params, "schedule": keys}, workspace.params)


def deploy(workspace: Workspace, servers: PrefectServers, *options: str) -> Any:
    return run_json(workspace, "segmill", "deploy", *options, servers=servers.env)


def status(workspace: Workspace, servers: PrefectServers) -> Any:
    return run_json(workspace, "segmill", "status", servers=servers.env)["schedule"]


def begin_run(servers: PrefectServers, **parameters: Any) -> FlowRun:
    """Start a run by hand."""
    with servers.client() as client:
        found = client.read_deployment_by_name(f"nightly/{MODEL}")
        return client.create_flow_run_from_deployment(found.id, parameters=parameters)


def names(runs: list[FlowRun]) -> list[str]:
    return [run.state.name for run in runs if run.state]


def all_ended(runs: list[FlowRun]) -> bool:
    return bool(runs) and all(run.state and run.state.is_final() for run in runs)


def test_deploy_makes_what_the_settings_say_once_changes_and_removes_it(
    untrained: Workspace, servers: PrefectServers
) -> None:
    schedule(untrained, cron="0 2 * * *", timezone="Europe/Berlin", alarms=[{"url_env": "SINK", "events": ["failed"]}])
    planned = deploy(untrained, servers, "--dry-run")
    with servers.client() as client:
        assert client.read_deployments() == client.read_work_pools() == [], "a dry run makes nothing"
    made = deploy(untrained, servers)
    assert (
        made["changes"]
        == planned["changes"]
        == [
            "work pool segmill: new, of type process",
            f"deployment nightly/{MODEL}: new",
            f"automation {MODEL}: new data: new",
            f"automation {MODEL}: drift: new",
            f"automation {MODEL}: failed to SINK: new",
        ]
    )
    with servers.client() as client:
        found = client.read_deployment_by_name(f"nightly/{MODEL}")
        (rhythm,) = found.schedules
        assert (rhythm.schedule.cron, rhythm.schedule.timezone) == ("0 2 * * *", "Europe/Berlin")  # type: ignore[union-attr]
        assert found.parameters == {"model": MODEL, "workspace": str(untrained.root), "max_hours": None}
        assert set(found.parameter_openapi_schema["properties"]) >= {"changes", "source"}  # type: ignore[index]
        due = [run.expected_start_time for run in servers.wait(lambda runs: len(runs) >= 3)]
        assert {at.astimezone(UTC).hour for at in due if at} <= {0, 1}, "two o'clock in Berlin"
        client.pause_deployment(found.id)
    assert deploy(untrained, servers)["changes"] == [], "it is there already"
    schedule(untrained, interval_minutes=90, max_hours=3, on_drift=False)
    assert deploy(untrained, servers)["changes"] == [
        f"deployment nightly/{MODEL}: parameters, description, schedule",
        f"automation {MODEL}: drift: removed",
        f"automation {MODEL}: failed to SINK: removed",
    ]
    with servers.client() as client:
        found = client.read_deployment_by_name(f"nightly/{MODEL}")
        assert found.paused, "whoever paused it resumes it"
        assert found.schedules[0].schedule.interval.total_seconds() == 5400  # type: ignore[union-attr]
    assert status(untrained, servers)["paused"] is True
    assert "is resumed" in run(untrained, "segmill", "deploy", "--resume", servers=servers.env)
    removed = deploy(untrained, servers, "--remove")
    assert f"deployment nightly/{MODEL}: removed" in removed["changes"]
    with servers.client() as client:
        assert client.read_deployments() == client.read_automations() == []
        assert client.read_block_documents_by_type("webhook") == []
    assert status(untrained, servers)["deployed"] is False


def test_a_pushed_data_version_starts_a_run_from_nothing_and_the_sink_hears_the_verdict(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], servers: PrefectServers, sink: Endpoint, temporary: Path
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=1)
    stores = tmp_path / "stores"
    stores.mkdir()
    schedule(workspace, source=str(stores / "source.git"), alarms=[{"url_env": "SINK"}])
    bare = lasting(workspace, stores).bare
    git(workspace.root, "remote", "add", "origin", str(bare))
    git(workspace.root, "push", "-q", "-u", "origin", "main")
    deploy(workspace, servers)
    heard = len(sink.postings)
    with servers.worker("--limit", "1", TMPDIR=str(temporary)):
        write_brain(tmp_path / "more", every=5)
        said = run(workspace, "segmill", "data", "add", str(tmp_path / "more"), "-m", "more", servers=servers.env)
        assert "samples added" in said and "segmill data push, which starts the deployed run" in said
        time.sleep(3)
        assert servers.runs() == [], "a clone would not see it yet"
        run(workspace, "segmill", "data", "push", servers=servers.env)
        (ended,) = servers.wait(all_ended, 280)
        assert ended.state and ended.state.name in ("Completed", "Refused"), servers.said()
        verdict = "promoted" if ended.state.name == "Completed" else "refused"
        until = time.monotonic() + 30
        while not (of := heard_of(sink, heard, verdict)) and time.monotonic() < until:
            time.sleep(0.2)
    assert of == [MODEL]
    assert "finetune@unet" in git(bare, "show", "main:dvc.lock")
    assert not workspace.overview.exists(), "nothing ran in the author's folder"
    time.sleep(10)
    assert list(temporary.glob("sm-*")) == [], "the clone is in a folder that ends with the run"


def heard_of(sink: Endpoint, since: int, verdict: str) -> list[str]:
    kinds = [json.loads(one.body) for one in sink.postings[since:]]
    return [one["data"]["model"] for one in kinds if one["type"] == f"segmill.{verdict}"]


def test_others_start_a_run_with_the_event_that_is_reserved_for_drift(
    untrained: Workspace, servers: PrefectServers
) -> None:
    schedule(untrained)
    deploy(untrained, servers)
    for model in ("segmill-street", MODEL):
        event = {
            "event": "segmill.drift",
            "occurred": datetime.now(UTC).isoformat(),
            "id": str(uuid4()),
            "resource": {"prefect.resource.id": f"segmill.model.{model}"},
            "payload": {},
        }
        headers = {"content-type": "application/json"}
        posted = Request(f"{servers.api}/events", json.dumps([event]).encode(), headers)
        urlopen(posted).close()
    servers.wait(lambda runs: len(runs) == 1, 30)
    time.sleep(3)
    (found,) = servers.runs()
    assert found.parameters == {"model": MODEL, "workspace": str(untrained.root), "max_hours": None}


def test_a_retrain_by_hand_leaves_the_model_to_the_run_that_has_its_lease(untrained: Workspace) -> None:
    with leased(f"sqlite:///{untrained.ledger}", MODEL, "a nightly run"):
        said = run(untrained, "segmill", "retrain", code=4)
    assert f"{MODEL} is being retrained by a nightly run on" in said


def test_prefects_own_command_deploys_by_prefect_yaml(untrained: Workspace, servers: PrefectServers) -> None:
    named = {**servers.env, "SEGMILL_MODEL": MODEL, "SEGMILL_WORKSPACE": str(untrained.root)}
    root = Path(flows.__file__).parents[1]
    run(Workspace(root), "prefect", "work-pool", "create", "segmill", "--type", "process", servers=named)
    said = run(Workspace(root), "prefect", "--no-prompt", "deploy", "--all", servers=named)
    assert "successfully created" in said
    with servers.client() as client:
        (found,) = client.read_deployments()
        assert (found.name, found.entrypoint) == (MODEL, "flows.nightly.nightly")
        (trigger,) = client.read_automations()
        assert f"segmill.model.{MODEL}" in str(trigger.trigger)
    schedule(untrained, cron="0 2 * * *")
    assert deploy(untrained, servers)["changes"][0].startswith(f"deployment nightly/{MODEL}: "), "it takes it over"


def test_of_a_hundred_missed_runs_one_runs_and_the_others_say_why_they_did_not(
    trained: Workspace, tmp_path: Path, sink: Endpoint
) -> None:
    heard = len(sink.postings)
    with prefect_servers(tmp_path / "prefect", {"SINK": sink.url}) as servers:
        schedule(trained, interval_minutes=0.01, alarms=[{"url_env": "SINK", "events": ["late"]}])
        deploy(trained, servers)
        servers.wait(lambda runs: len(runs) >= 100)
        servers.stop()
        time.sleep(65)  # 100 runs every 0.6 s are due meanwhile
        servers.start(PREFECT_SERVER_SERVICES_SCHEDULER_ENABLED="false")
        missed = servers.runs()
        now = datetime.now(UTC)
        assert len(missed) >= 100 and all(run.expected_start_time < now for run in missed if run.expected_start_time)
        with servers.worker("--limit", "1"):
            runs = servers.wait(all_ended, 200)
        assert names(runs).count("Completed") == 1 and names(runs).count("Skipped") == len(missed) - 1, names(runs)
        (ran,) = [run for run in runs if run.state and run.state.name == "Completed"]
        reasons = {run.state.message or "" for run in runs if run.state and run.state.name == "Skipped"}
        assert all(ran.name in why and "after this one was due" in why for why in reasons), reasons
        assert "nothing to do" in str(ran.state and ran.state.message)
        assert len(heard_of(sink, heard, "late")) == 1, "a hundred late runs are one alarm"


def test_cancel_ends_everything_within_30_s(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], servers: PrefectServers, temporary: Path
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=200)
    schedule(workspace)
    deploy(workspace, servers)
    curves = curves_path(workspace, "unet")
    with servers.worker(TMPDIR=str(temporary)) as worker:
        begin_run(servers)
        until = time.monotonic() + 200
        while not curves.exists() or len(curves.read_text().splitlines()) < 2:
            assert time.monotonic() < until, servers.said()
            time.sleep(0.2)
        assert list(temporary.glob("sm-*"))
        (running,) = servers.runs()
        started = worker.children(recursive=True)
        assert len(started) > 3, "Ray's"
        assert who_holds(f"sqlite:///{workspace.ledger}", MODEL)
        began = time.monotonic()
        with servers.client() as client:
            client.set_flow_run_state(running.id, Cancelling())
        left = psutil.wait_procs(started, timeout=40)[1]
        took_s = time.monotonic() - began
        (ended,) = servers.wait(all_ended, 20)
    assert left == [] and took_s < 30, took_s
    assert list(temporary.glob("sm-*")) == [], "Ray's session, and a clone if there is one"
    assert ended.state and ended.state.is_cancelled()
    assert who_holds(f"sqlite:///{workspace.ledger}", MODEL) is None
    with servers.client() as client:
        assert [run.name for run in client.read_flow_runs() if run.state and not run.state.is_final()] == []
    assert run_json(workspace, "segmill", "status")["interrupted"]


def test_a_run_that_takes_too_long_is_stopped_and_says_so(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], servers: PrefectServers, sink: Endpoint
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=2000)
    schedule(workspace, max_hours=60 / 3600, alarms=[{"url_env": "SINK", "events": ["failed"]}])
    deploy(workspace, servers)
    heard = len(sink.postings)
    with servers.worker():
        begin_run(servers)
        (ended,) = servers.wait(all_ended, 150)
        assert ended.state and ended.state.name == "Failed"
        assert "took longer than schedule.max_hours (0.0166667)" in str(ended.state.message)
        until = time.monotonic() + 20
        while len(sink.postings) == heard and time.monotonic() < until:
            time.sleep(0.2)
    alarm = json.loads(sink.postings[-1].body)
    assert alarm["type"] == "segmill.failed" and alarm["data"]["name"] == ended.name
    assert "took longer" in json.dumps(alarm["data"]["facts"])


def test_a_run_waits_for_the_lease_and_a_run_that_another_covered_is_skipped(
    trained: Workspace, servers: PrefectServers
) -> None:
    schedule(trained)
    deploy(trained, servers)
    with servers.worker():
        with leased(f"sqlite:///{trained.ledger}", MODEL, "a test"):
            begin_run(servers)
            servers.wait(lambda runs: names(runs) == ["Running"])
            time.sleep(5)
            assert names(servers.runs()) == ["Running"]
            late = status(trained, servers)["late"]
            assert f"the lease of {MODEL} is held by a test on " in late["why"] and late["runs"] == 1
        (ended,) = servers.wait(all_ended)
        assert ended.state and ended.state.name == "Completed"
    assert status(trained, servers)["late"] is None
    assert status(trained, servers)["last"][0]["name"] == ended.name


def test_why_a_run_is_late(untrained: Workspace, servers: PrefectServers) -> None:
    def late() -> str:
        found = status(untrained, servers)
        assert found["late"], found
        return str(found["late"]["why"])

    def pool(**facts: Any) -> None:
        with servers.client() as client:
            client.request("PATCH", "/work_pools/{name}", path_params={"name": "segmill"}, json=facts)

    def cancel(run: FlowRun) -> None:
        with servers.client() as client:
            client.set_flow_run_state(run.id, Cancelling())

    schedule(untrained)
    deploy(untrained, servers)
    first = begin_run(servers)
    time.sleep(31)
    assert "no worker polls the work pool segmill; `prefect worker start" in late()
    pool(is_paused=True)
    assert "the work pool segmill is paused" in late()
    with leased(f"sqlite:///{untrained.ledger}", MODEL, "a test"), servers.worker():
        pool(is_paused=False, concurrency_limit=1)
        servers.wait(lambda runs: names(runs) == ["Running"])
        until = time.monotonic() + 60
        while "waiting for a test" not in servers.said():
            assert time.monotonic() < until, servers.said()
            time.sleep(0.5)
        assert f"the lease of {MODEL} is held by a test on " in late()
        cancel(first)
        servers.wait(all_ended, 40)
        with servers.client() as client:  # one that holds the pool's only place
            there = client.read_deployment_by_name(f"nightly/{MODEL}")
            client.create_deployment(
                there.flow_id, "another", work_pool_name="segmill", entrypoint=there.entrypoint,
                parameters={**there.parameters}, pull_steps=there.pull_steps,
            )  # fmt: skip
            other = client.create_flow_run_from_deployment(client.read_deployment_by_name("nightly/another").id)
        servers.wait(lambda runs: "Running" in names([run for run in runs if run.id == other.id]))
        second = begin_run(servers)
        time.sleep(31)
        assert f"the work pool segmill allows 1 runs at a time ({other.name})" in late()
        cancel(second)
        cancel(other)
        servers.wait(all_ended, 40)


def test_a_server_that_is_away_is_named_within_seconds(untrained: Workspace, tmp_path: Path) -> None:
    with prefect_servers(tmp_path / "prefect") as servers:
        schedule(untrained, cron="0 2 * * *")
        deploy(untrained, servers)
        assert status(untrained, servers)["error"] is None
        servers.stop()
        began = time.monotonic()
        found = status(untrained, servers)
        assert "does not answer" in found["error"] and servers.api in found["error"]
        assert time.monotonic() - began < 30
        assert "does not answer" in run(untrained, "segmill", "deploy", code=4, servers=servers.env)


def test_a_killed_run_is_ended_by_the_next_one(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], servers: PrefectServers
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=30)
    schedule(workspace)
    deploy(workspace, servers)
    curves = curves_path(workspace, "unet")
    with servers.worker() as worker:
        begin_run(servers)
        until = time.monotonic() + 200
        while not curves.exists() or len(curves.read_text().splitlines()) < 4:
            assert time.monotonic() < until, servers.said()
            time.sleep(0.2)
        started = [worker, *worker.children(recursive=True)]
        for process in started:  # the machine dies
            process.kill()
        psutil.wait_procs(started, timeout=20)
    assert names(servers.runs()) == ["Running"]
    with servers.worker():
        begin_run(servers)
        runs = servers.wait(all_ended, 250)
    ended = {run.state.name: str(run.state.message) for run in runs if run.state}
    assert set(ended) in ({"Crashed", "Completed"}, {"Crashed", "Refused"}), ended
    assert "took its lease over" in ended["Crashed"]
    assert states(servers.said())["finetune@unet"] == "ran"
