"""Notices go to webhooks and to a real Prefect server; a target that is down costs one line and no exception."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from ledgers import record
from postings import HANGS_S, SECRET, a_row, endpoint, free_port, is_signed
from ruamel.yaml import YAML

from flows.notices import deliver_pending, notices_state, targets
from segmill.params import Params, parse_params
from segmill.promotion.database import Database
from segmill.promotion.delivery import LEASE_S, Delivered, deliver
from segmill.promotion.keys import make_signing_key, trust
from segmill.promotion.ledger import workspace_ledger
from segmill.promotion.outbox import METADATA, add
from segmill.promotion.rows import LedgerRow
from segmill.workspace import Workspace, template


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workspace:
    """Return a workspace with an empty outbox in its ledger; no server of Prefect is configured."""
    monkeypatch.setenv("HOOK_SECRET", SECRET)
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    monkeypatch.delenv("SEGMILL_LEDGER_URL", raising=False)
    with Database(f"sqlite:///{tmp_path}/ledger.db").writing() as connection:
        METADATA.create_all(connection)
    return Workspace(tmp_path)


def append(place: Workspace, *rows: LedgerRow) -> None:
    with Database(f"sqlite:///{place.ledger}").writing() as connection:
        for row in rows:
            add(connection, row)


def settings(notify: dict[str, Any], api: str | None = None) -> Params:
    values = YAML(typ="safe").load(template("params.yaml").read_text())
    return parse_params(values | {"notify": notify, "prefect": {"api_url": api}}, "params.yaml")


def hooks(*urls: str) -> dict[str, Any]:
    return {"webhooks": [{"url": url, "secret_env": "HOOK_SECRET"} for url in urls]}


def events_at(api: str, model: str) -> list[dict[str, Any]]:
    """Return what the server has stored of a model, asked without Prefect's client, once there is anything."""
    asked = {"filter": {"any_resource": {"id": [f"segmill.model.{model}"]}}, "limit": 50}
    until = time.monotonic() + 20
    while True:
        request = urllib.request.Request(
            f"{api}/events/filter", json.dumps(asked).encode(), {"content-type": "application/json"}
        )
        with urllib.request.urlopen(request) as answer:
            events: list[dict[str, Any]] = json.load(answer)["events"]
        if events or time.monotonic() > until:
            return events
        time.sleep(0.2)


@pytest.mark.slow
def test_a_notice_is_an_event_of_the_model_at_the_prefect_server(place: Workspace, servers: dict[str, str]) -> None:
    api, row = servers["PREFECT_API_URL"], a_row(model=f"segmill-{os.getpid()}")
    append(place, row)
    assert deliver_pending(place, settings({}, api)) == Delivered(sent=1)
    (event,) = events_at(api, row.model)
    assert (
        event["event"] == "segmill.promoted"
        and event["resource"]["prefect.resource.id"] == f"segmill.model.{row.model}"
    )
    assert event["related"][0]["prefect.resource.id"] == f"segmill.version.{row.model}.2"
    assert event["payload"]["reasons"] == row.reasons
    assert event["occurred"].startswith("2026-11-29T08:00:00")


@pytest.mark.slow
def test_an_event_that_is_sent_again_is_stored_once(place: Workspace, servers: dict[str, str]) -> None:
    api, row, now = servers["PREFECT_API_URL"], a_row(model=f"again-{os.getpid()}"), time.time()
    append(place, row)
    (target,) = targets(settings({}, api))

    def sent_and_not_noted(notice: Any, timeout_s: float) -> None:
        target.send(notice, timeout_s)
        raise ConnectionError("the answer was lost")

    lost = type(target)(target.name, target.kinds, sent_and_not_noted)
    assert deliver(f"sqlite:///{place.ledger}", [lost], now=now).failed == 1
    assert deliver(f"sqlite:///{place.ledger}", [target], now=now + LEASE_S).sent == 1
    time.sleep(2)
    assert len(events_at(api, row.model)) == 1


def test_prefect_is_a_target_where_a_server_is_named_and_settings_do_not_say_no(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def names(prefect: bool | None, api: str | None) -> list[str]:
        return [target.name for target in targets(settings({"prefect": prefect}, api))]

    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    assert names(None, None) == [] and names(False, "http://host/api") == []
    assert names(None, "http://user:w0rd@host/api") == ["prefect http://host/api"]
    assert names(True, None) == ["prefect"]
    monkeypatch.setenv("PREFECT_API_URL", "http://other/api")
    assert names(None, "http://host/api") == ["prefect http://other/api"]


def test_prefect_that_settings_ask_for_and_name_nowhere_is_said(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    append(place, a_row())
    assert deliver_pending(place, settings({"prefect": True})).failed == 1
    said = capsys.readouterr().err
    assert said.startswith("notices: prefect: no server is named; set prefect.api_url or PREFECT_API_URL; 1 to be sent")


def test_targets_that_are_down_are_one_line_on_standard_error(
    place: Workspace, capsys: pytest.CaptureFixture[str]
) -> None:
    down = settings(hooks(f"http://user:w0rd@127.0.0.1:{free_port()}/a", f"http://127.0.0.1:{free_port()}/b"))
    append(place, a_row(number=1), a_row(number=2))
    delivered = deliver_pending(place, down)
    assert delivered.failed == 2 and delivered.waiting == 2
    said = capsys.readouterr()
    assert said.err.count("\n") == 1 and "2 to be sent by a later command" in said.err and said.out == ""
    assert "w0rd" not in said.err and SECRET not in said.err
    assert deliver_pending(place, down).waiting == 2
    assert capsys.readouterr().err == "", "nothing was tried again so soon"


def test_a_rollback_in_the_workspaces_ledger_reaches_the_webhook(
    place: Workspace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CONFIG_HOME", str(place.root / "config"))
    trust(place.root, make_signing_key().public)
    row = record(workspace_ledger(place.root), "rollback", "3")
    with endpoint() as there:
        assert deliver_pending(place, settings(hooks(there.url))) == Delivered(sent=1)
        (posting,) = there.postings
    content = json.loads(posting.body)
    assert content["type"] == "segmill.rolled_back" and content["timestamp"] == row.time
    assert (content["data"]["champion"], content["data"]["hash"]) == ("3", row.hash)


def test_a_ledger_elsewhere_is_asked_in_status_too(place: Workspace, monkeypatch: pytest.MonkeyPatch) -> None:
    append(place, a_row())
    with endpoint() as there:
        other = Workspace(place.root / "other")
        assert notices_state(other, settings(hooks(there.url))) == {"waiting": 0, "last_error": None}
        assert there.postings == []
        monkeypatch.setenv("SEGMILL_LEDGER_URL", f"sqlite:///{place.ledger}")
        assert notices_state(other, settings(hooks(there.url))) == {"waiting": 0, "last_error": None}
        assert len(there.postings) == 1


def test_status_sends_what_is_due_and_says_what_waits(place: Workspace) -> None:
    with endpoint() as there:
        params = settings(hooks(there.url))
        assert notices_state(place, params) == {"waiting": 0, "last_error": None}
        append(place, a_row())
        there.answers = [503]
        assert notices_state(place, params) == {"waiting": 1, "last_error": f"webhook {there.url}: answered 503"}
        append(place, a_row(number=2))
        assert notices_state(place, params)["waiting"] == 1, "a new one is tried at once"
        assert [is_signed(posting) for posting in there.postings] == [True, True]


def test_status_waits_two_seconds_at_most(place: Workspace) -> None:
    with endpoint() as there:
        there.answers = ["hang"]
        append(place, a_row())
        began = time.monotonic()
        assert notices_state(place, settings(hooks(there.url)))["waiting"] == 1
        assert time.monotonic() - began < HANGS_S / 2


def loaded_by_status(place: Workspace, api: str) -> set[str]:
    """Return which libraries `notices_state` imports in a process of its own."""
    program = (
        "import sys; from flows.notices import notices_state; from segmill.params import read_params; "
        "from segmill.workspace import Workspace; from pathlib import Path; "
        "notices_state(Workspace(Path(sys.argv[1])), read_params(Path(sys.argv[2]))); "
        "print(*{'prefect', 'sqlalchemy', 'httpx', 'torch', 'mlflow'} & set(sys.modules))"
    )
    params = str(template("params.yaml"))
    environment = {**os.environ, "PREFECT_API_URL": api}
    done = subprocess.run(
        [sys.executable, "-c", program, str(place.root), params], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return set(done.stdout.split())


def test_status_imports_prefect_only_where_an_event_is_due(place: Workspace) -> None:
    api = f"http://127.0.0.1:{free_port()}/api"
    assert loaded_by_status(place, api) == set()
    append(place, a_row())
    assert loaded_by_status(place, api) == {"sqlalchemy", "httpx", "prefect"}
    assert loaded_by_status(place, api) == {"sqlalchemy"}, "it is not tried again so soon"
