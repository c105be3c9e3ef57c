"""What `segmill deploy` makes at a real Prefect server, and what `segmill status` says of it."""

from __future__ import annotations

import json
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from uuid import uuid4

import pytest
from postings import Endpoint
from prefect.client.schemas.actions import DeploymentUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.schedules import CronSchedule, IntervalSchedule
from prefect.states import Cancelling
from prefect_servers import PrefectServers, prefect_servers
from scheduling import MODEL, all_ended, begin_run, deploy, heard_of, names, schedule, status
from terminal import run

import flows
from flows.environment import PATIENCE
from segmill.promotion.lease import leased
from segmill.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_deploy_makes_what_the_settings_say_once_changes_and_removes_it(
    untrained: Workspace, prefect: PrefectServers
) -> None:
    schedule(untrained, cron="0 2 * * *", timezone="Europe/Berlin", alarms=[{"url_env": "SINK", "events": ["failed"]}])
    planned = deploy(untrained, prefect, "--dry-run")
    with prefect.client() as client:
        assert client.read_deployments() == client.read_work_pools() == [], "a dry run makes nothing"
    made = deploy(untrained, prefect)
    assert (
        made["changes"]
        == planned["changes"]
        == [
            "work pool segmill: new, of type process",
            f"deployment nightly/{MODEL}: new",
            f"address {MODEL}-alarm-sink: new",
            f"automation {MODEL}: new data: new",
            f"automation {MODEL}: drift: new",
            f"automation {MODEL}: failed to SINK: new",
        ]
    )
    with prefect.client() as client:
        found = client.read_deployment_by_name(f"nightly/{MODEL}")
        (rhythm,) = found.schedules
        assert rhythm.schedule == CronSchedule(cron="0 2 * * *", timezone="Europe/Berlin")
        assert found.parameters == {"model": MODEL, "workspace": str(untrained.root), "max_hours": None}
        assert set((found.parameter_openapi_schema or {})["properties"]) >= {"changes", "source"}
        assert found.job_variables == {"env": PATIENCE}
        due = [run.expected_start_time for run in prefect.wait(lambda runs: len(runs) >= 3)]
        assert {at.astimezone(UTC).hour for at in due if at} <= {0, 1}, "two o'clock in Berlin"
        own = {"env": {"PREFECT_CLIENT_MAX_RETRIES": "7", "MORE": "x"}, "stream_output": False}
        client.update_deployment(found.id, DeploymentUpdate(job_variables=own))
        client.pause_deployment(found.id)
    assert deploy(untrained, prefect)["changes"] == [], "it is there already"
    schedule(untrained, interval_minutes=90, max_hours=3, on_drift=False)
    assert deploy(untrained, prefect)["changes"] == [
        f"deployment nightly/{MODEL}: parameters, description, schedule",
        f"automation {MODEL}: drift: removed",
        f"automation {MODEL}: failed to SINK: removed",
        f"address {MODEL}-alarm-sink: removed",
    ]
    with prefect.client() as client:
        found = client.read_deployment_by_name(f"nightly/{MODEL}")
        assert found.paused, "whoever paused it resumes it"
        assert found.job_variables == own, "it is left to whoever wrote it"
        (rhythm,) = found.schedules
        assert isinstance(rhythm.schedule, IntervalSchedule) and rhythm.schedule.interval == timedelta(minutes=90)
    assert status(untrained, prefect)["paused"] is True
    assert "is resumed" in run(untrained, "segmill", "deploy", "--resume", servers=prefect.env)
    removed = deploy(untrained, prefect, "--remove")
    assert f"deployment nightly/{MODEL}: removed" in removed["changes"]
    with prefect.client() as client:
        assert client.read_deployments() == client.read_automations() == []
        assert client.read_block_documents_by_type("webhook") == []
    assert status(untrained, prefect)["deployed"] is False


def test_others_start_a_run_with_the_event_that_is_reserved_for_drift(
    untrained: Workspace, prefect: PrefectServers
) -> None:
    schedule(untrained)
    deploy(untrained, prefect)
    for model in ("segmill-street", MODEL):
        event = {
            "event": "segmill.drift",
            "occurred": datetime.now(UTC).isoformat(),
            "id": str(uuid4()),
            "resource": {"prefect.resource.id": f"segmill.model.{model}"},
            "payload": {},
        }
        headers = {"content-type": "application/json"}
        posted = Request(f"{prefect.api}/events", json.dumps([event]).encode(), headers)
        urlopen(posted).close()
    prefect.wait(lambda runs: len(runs) == 1, 30)
    time.sleep(3)
    (found,) = prefect.runs()
    assert found.parameters == {"model": MODEL, "workspace": str(untrained.root), "max_hours": None}


def test_prefects_own_command_deploys_by_prefect_yaml(untrained: Workspace, prefect: PrefectServers) -> None:
    named = {**prefect.env, "SEGMILL_MODEL": MODEL, "SEGMILL_WORKSPACE": str(untrained.root)}
    root = Path(flows.__file__).parents[1]
    run(Workspace(root), "prefect", "work-pool", "create", "segmill", "--type", "process", servers=named)
    said = run(Workspace(root), "prefect", "--no-prompt", "deploy", "--all", servers=named)
    assert "successfully created" in said
    with prefect.client() as client:
        (found,) = client.read_deployments()
        assert (found.name, found.entrypoint) == (MODEL, "flows.nightly.nightly")
        (trigger,) = client.read_automations()
        assert f"segmill.model.{MODEL}" in str(trigger.trigger)
    schedule(untrained, cron="0 2 * * *")
    assert deploy(untrained, prefect)["changes"][0].startswith(f"deployment nightly/{MODEL}: "), "it takes it over"


def test_why_a_run_is_late(untrained: Workspace, prefect: PrefectServers) -> None:
    def late() -> str:
        found = status(untrained, prefect)
        assert found["late"], found
        return str(found["late"]["why"])

    def pool(**facts: Any) -> None:
        with prefect.client() as client:
            client.request("PATCH", "/work_pools/{name}", path_params={"name": "segmill"}, json=facts)

    def cancel(run: FlowRun) -> None:
        with prefect.client() as client:
            client.set_flow_run_state(run.id, Cancelling())

    schedule(untrained)
    deploy(untrained, prefect)
    first = begin_run(prefect)
    time.sleep(31)
    assert "no worker polls the work pool segmill; `prefect worker start" in late()
    pool(is_paused=True)
    assert "the work pool segmill is paused" in late()
    pool(is_paused=False)
    queue = ("default", "--pool", "segmill")
    run(untrained, "prefect", "work-queue", "pause", *queue, servers=prefect.env)
    assert f"the work queue default of pool segmill is paused; `prefect work-queue resume {' '.join(queue)}`" in late()
    run(untrained, "prefect", "work-queue", "resume", *queue, servers=prefect.env)
    with leased(f"sqlite:///{untrained.ledger}", MODEL, "a test"), prefect.worker():
        pool(is_paused=False, concurrency_limit=1)
        prefect.wait(lambda runs: names(runs) == ["Running"])
        until = time.monotonic() + 60
        while "waiting for a test" not in prefect.said():
            assert time.monotonic() < until, prefect.said()
            time.sleep(0.5)
        assert f"the lease of {MODEL} is held by a test on " in late()
        cancel(first)
        prefect.wait(all_ended, 40)
        with prefect.client() as client:  # one that holds the pool's only place
            there = client.read_deployment_by_name(f"nightly/{MODEL}")
            client.create_deployment(
                there.flow_id, "another", work_pool_name="segmill", entrypoint=there.entrypoint,
                parameters={**there.parameters}, pull_steps=there.pull_steps,
            )  # fmt: skip
            other = client.create_flow_run_from_deployment(client.read_deployment_by_name("nightly/another").id)
        prefect.wait(lambda runs: "Running" in names([run for run in runs if run.id == other.id]))
        second = begin_run(prefect)
        time.sleep(31)
        assert f"the work pool segmill allows 1 runs at a time ({other.name})" in late()
        cancel(second)
        cancel(other)
        prefect.wait(all_ended, 40)


def test_twenty_late_runs_are_one_alarm(untrained: Workspace, prefect: PrefectServers, sink: Endpoint) -> None:
    """Runs by hand: Prefect may send the alarm for a run of a schedule a quarter of an hour late (docs/log.md)."""
    schedule(untrained, alarms=[{"url_env": "SINK", "events": ["late"]}])
    deploy(untrained, prefect)
    heard = len(sink.postings)
    for _ in range(20):
        begin_run(prefect)
    prefect.wait(lambda runs: names(runs) == 20 * ["Late"])
    time.sleep(10)  # an alarm is posted within seconds
    assert heard_of(sink, heard, "late") == [MODEL]


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
