"""A model that retrains by itself: a real Prefect server, a real worker, real runs."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
from postings import Endpoint
from prefect.states import Cancelling
from prefect_servers import PrefectServers, prefect_servers
from scheduling import MODEL, all_ended, begin_run, deploy, heard_of, names, schedule, status, wait_for_epochs
from sources import git, lasting
from terminal import run, run_json, states

from segmill.data.ingest.builtin import write_brain
from segmill.params import read_params
from segmill.promotion.lease import leased, who_holds
from segmill.workspace import Workspace
from tasks.finetune import curves_path

pytestmark = [pytest.mark.slow, pytest.mark.long]


def test_a_pushed_data_version_starts_a_run_from_nothing_and_the_sink_hears_the_verdict(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], prefect: PrefectServers, sink: Endpoint, temporary: Path
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=1)
    stores = tmp_path / "stores"
    stores.mkdir()
    schedule(workspace, source=str(stores / "source.git"), alarms=[{"url_env": "SINK"}])
    bare = lasting(workspace, stores).bare
    git(workspace.root, "remote", "add", "origin", str(bare))
    git(workspace.root, "push", "-q", "-u", "origin", "main")
    deploy(workspace, prefect)
    heard = len(sink.postings)
    with prefect.worker("--limit", "1", TMPDIR=str(temporary)):
        write_brain(tmp_path / "more", every=5)
        said = run(workspace, "segmill", "data", "add", str(tmp_path / "more"), "-m", "more", servers=prefect.env)
        assert "samples added" in said and "segmill data push, which starts the deployed run" in said
        time.sleep(3)
        assert prefect.runs() == [], "a clone would not see it yet"
        run(workspace, "segmill", "data", "push", servers=prefect.env)
        (ended,) = prefect.wait(all_ended, 280)
        assert ended.state and ended.state.name in ("Completed", "Refused"), prefect.said()
        verdict = "promoted" if ended.state.name == "Completed" else "refused"
        until = time.monotonic() + 30
        while not (of := heard_of(sink, heard, verdict)) and time.monotonic() < until:
            time.sleep(0.2)
    assert of == [MODEL]
    assert "finetune@unet" in git(bare, "show", "main:dvc.lock")
    assert not workspace.overview.exists(), "nothing ran in the author's folder"
    time.sleep(10)
    assert list(temporary.glob("sm-*")) == [], "the clone is in a folder that ends with the run"


def test_a_retrain_by_hand_leaves_the_model_to_the_run_that_has_its_lease(untrained: Workspace) -> None:
    with leased(f"sqlite:///{untrained.ledger}", MODEL, "a nightly run"):
        said = run(untrained, "segmill", "retrain", code=4)
    assert f"{MODEL} is being retrained by a nightly run on" in said


def test_of_a_hundred_missed_runs_one_runs_and_the_others_say_why_they_did_not(
    trained: Workspace, tmp_path: Path
) -> None:
    with prefect_servers(tmp_path / "prefect") as servers:
        schedule(trained, interval_minutes=0.01)
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


def test_cancel_ends_everything_within_30_s(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], prefect: PrefectServers, temporary: Path
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=200)
    schedule(workspace)
    deploy(workspace, prefect)
    curves = curves_path(workspace, "unet")
    with prefect.worker(TMPDIR=str(temporary)) as worker:
        begin_run(prefect)
        wait_for_epochs(prefect, curves, 1)
        assert list(temporary.glob("sm-*"))
        (running,) = prefect.runs()
        started = worker.children(recursive=True)
        assert len(started) > 3, "Ray's"
        assert who_holds(f"sqlite:///{workspace.ledger}", MODEL)
        began = time.monotonic()
        with prefect.client() as client:
            client.set_flow_run_state(running.id, Cancelling())
        left = psutil.wait_procs(started, timeout=40)[1]
        took_s = time.monotonic() - began
        (ended,) = prefect.wait(all_ended, 20)
    assert left == [] and took_s < 30, took_s
    assert list(temporary.glob("sm-*")) == [], "Ray's session, and a clone if there is one"
    assert ended.state and ended.state.is_cancelled()
    assert who_holds(f"sqlite:///{workspace.ledger}", MODEL) is None
    with prefect.client() as client:
        assert [run.name for run in client.read_flow_runs() if run.state and not run.state.is_final()] == []
    assert run_json(workspace, "segmill", "status")["interrupted"]


def test_a_run_by_hand_with_changes_that_takes_too_long_is_stopped_and_says_so(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], prefect: PrefectServers, sink: Endpoint
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=1)
    schedule(workspace, max_hours=90 / 3600, alarms=[{"url_env": "SINK", "events": ["failed"]}])
    deploy(workspace, prefect)
    heard = len(sink.postings)
    with prefect.worker():
        asked = ("deployment", "run", f"nightly/{MODEL}", "--param", 'changes=["train.epochs=2000"]')
        run(workspace, "prefect", *asked, servers=prefect.env)
        (ended,) = prefect.wait(all_ended, 200)
        assert ended.state and ended.state.name == "Failed"
        assert "took longer than schedule.max_hours (0.025)" in str(ended.state.message)
        until = time.monotonic() + 20
        while len(sink.postings) == heard and time.monotonic() < until:
            time.sleep(0.2)
    assert read_params(workspace.params).train.epochs == 2000
    alarm = json.loads(sink.postings[-1].body)
    assert alarm["type"] == "segmill.failed" and alarm["data"]["name"] == ended.name
    assert "took longer" in json.dumps(alarm["data"]["facts"])


def test_a_run_waits_for_the_lease_and_a_run_that_another_covered_is_skipped(
    trained: Workspace, prefect: PrefectServers
) -> None:
    schedule(trained)
    deploy(trained, prefect)
    with prefect.worker():
        with leased(f"sqlite:///{trained.ledger}", MODEL, "a test"):
            begin_run(prefect)
            prefect.wait(lambda runs: names(runs) == ["Running"])
            time.sleep(5)
            assert names(prefect.runs()) == ["Running"]
            late = status(trained, prefect)["late"]
            assert f"the lease of {MODEL} is held by a test on " in late["why"] and late["runs"] == 1
        (ended,) = prefect.wait(all_ended)
        assert ended.state and ended.state.name == "Completed"
    assert status(trained, prefect)["late"] is None
    assert status(trained, prefect)["last"][0]["name"] == ended.name


def test_a_killed_run_is_ended_by_the_next_one(
    tmp_path: Path, brain_workspace: Callable[..., Workspace], prefect: PrefectServers
) -> None:
    workspace = brain_workspace(tmp_path, "unet", epochs=30)
    schedule(workspace)
    deploy(workspace, prefect)
    curves = curves_path(workspace, "unet")
    with prefect.worker() as worker:
        begin_run(prefect)
        wait_for_epochs(prefect, curves, 3)
        started = [worker, *worker.children(recursive=True)]
        for process in started:  # the machine dies
            process.kill()
        psutil.wait_procs(started, timeout=20)
    assert names(prefect.runs()) == ["Running"]
    with prefect.worker():
        begin_run(prefect)
        runs = prefect.wait(all_ended, 250)
    ended = {run.state.name: str(run.state.message) for run in runs if run.state}
    assert set(ended) in ({"Crashed", "Completed"}, {"Crashed", "Refused"}), ended
    assert "took its lease over" in ended["Crashed"]
    assert states(prefect.said())["finetune@unet"] == "ran"
