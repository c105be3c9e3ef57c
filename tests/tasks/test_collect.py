"""A collection over some nights: whatever it deletes, every version that stays loads, verifies and can serve again."""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from nights import ACTIONS, LATER_S, Nights, as_made, keeping, later, loads

from segmill import tracking
from segmill.data.versioning.dvc_adapter import repository
from segmill.data.versioning.versions import store
from segmill.errors import InputError
from segmill.promotion import history, registry
from segmill.promotion.collected import versions_of
from segmill.promotion.keys import signing_key
from segmill.promotion.lease import LeaseHeld, leased
from segmill.promotion.ledger import LedgerError
from segmill.promotion.ledger_url import ledger_url
from segmill.promotion.moves import Decision, approve, overrule, reject, roll_back
from segmill.promotion.rows import waiting
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, WorkspaceBusy, writing
from tasks.collect import collect, collect_after_run
from tasks.promote import mirrored
from tasks.verify import fetch, look_at_hashes, look_at_ledger


def verifies(nights: Nights, version: str, folder: Path) -> None:
    """Do what `segmill verify --quick` does."""
    subject = fetch(nights.workspace, nights.uri, nights.model, version, folder)
    checks = [*look_at_hashes(subject), *look_at_ledger(nights.workspace, nights.params, subject)]
    assert [check for check in checks if check.state != "agrees"] == []


def serves_again(nights: Nights, version: str) -> None:
    """Let it become the champion, by a rollback where it has served, and be the one that a rollback goes back from."""
    decision = Decision(because="to see whether it can", check=lambda chosen: loads(nights, chosen))
    book = nights.ledger
    rows = book.rows(nights.model)
    if rows[-1].champion == version:
        return
    if version in {row.champion for row in rows}:
        roll_back(book, nights.model, version, decision)
    else:
        overrule(book, nights.model, version, decision, approval="none", days=1)


def data_can_be_written(nights: Nights, folder: Path) -> None:
    """Every data version that a night had is whole, from the cache and from the remote alone."""
    for place in ("cache", "remote"):
        if place == "remote":
            shutil.rmtree(nights.workspace.root / ".dvc" / "cache")
        with store(nights.workspace.root, ".dvc-remote") as files:
            for version in sorted(set(nights.data.values())):
                files.write(version, folder / place / version)


def results_come_back(nights: Nights) -> None:
    """The outs of dvc.lock are restored, not made again."""
    shutil.rmtree(nights.workspace.member("net"))
    shutil.rmtree(nights.workspace.ensemble)
    with repository(nights.workspace.root) as repo:
        assert all(repo.stage(stage).restore() for stage in ("finetune@net", "ensemble", "evaluate"))


@dataclass(frozen=True)
class Case:
    """What happens before a collection, the settings it has, and which versions must stay."""

    keep: dict[str, Any]
    stay: set[str]
    rollback_to: str | None = None
    alias: str | None = None
    reject: bool = False


CASES = {
    "newest": Case({"versions": 1, "champions": 1}, {"3", "4", "6"}),
    "all": Case({"versions": 6, "champions": 1}, {"1", "2", "3", "4", "5", "6"}),
    "rolled back": Case({"versions": 1, "champions": 1}, {"1", "3", "6"}, rollback_to="3"),
    "to the first": Case({"versions": 1, "champions": 2}, {"1", "6"}, rollback_to="1"),
    "alias": Case({"versions": 1, "champions": 1, "remote": "false"}, {"2", "3", "4", "6"}, alias="2"),
    "rejected": Case({"versions": 2, "champions": 5}, {"1", "3", "4", "5", "6"}, reject=True),
}


def happen(nights: Nights, case: Case) -> None:
    if case.rollback_to:
        decision = Decision(because="it is better", check=lambda _: {})
        with mirrored(nights.workspace, nights.params, nights.uri, nights.ledger, nights.model):
            roll_back(nights.ledger, nights.model, case.rollback_to, decision)
    if case.alias:
        registry.set_alias(nights.uri, nights.model, "shadow", case.alias)
    if case.reject:
        reject(nights.ledger, nights.model, "6", "it misses trams")
    keeping(nights, **case.keep)


@pytest.mark.parametrize("name", [pytest.param(name, marks=[pytest.mark.long] * (name != "newest")) for name in CASES])
def test_every_version_that_stays_loads_verifies_and_can_serve_again(nights: Nights, tmp_path: Path, name: str) -> None:
    case = CASES[name]
    happen(nights, case)
    plan = later(nights, dry_run=True)
    done = later(nights)
    assert set(done.kept) == set(plan.kept) == case.stay
    assert [one.facts()["stores"] for one in (plan, done)] == [done.facts()["stores"]] * 2, "it does what it said"
    assert plan.freed_bytes == done.freed_bytes
    for version in sorted(case.stay):
        loads(nights, version)
        if name != "newest" or version == min(case.stay):  # the oldest, whose data are the most in danger
            verifies(nights, version, tmp_path / f"verify-{version}")
    for version in {"1", "2", "3", "4", "5", "6"} - case.stay:
        with pytest.raises(InputError, match=rf"files of version {version} of .* were deleted on 20.* by `segmill gc`"):
            loads(nights, version)
    assert later(nights).removals == []
    results_come_back(nights)
    if nights.params.keep.remote:
        data_can_be_written(nights, tmp_path)
    for version in sorted(case.stay):
        serves_again(nights, version)
    assert nights.ledger.verify(nights.model) == []


MOVES = ("rollback", "overrule", "reject", "approve", "alias", "collect")


def move(nights: Nights, what: str, version: str) -> None:
    """Let a person move the champion, an alias or what waits, as far as that is allowed and the files are there."""
    book, model = nights.ledger, nights.model
    decision = Decision(because="it is better", check=lambda chosen: loads(nights, chosen))
    with suppress(InputError), mirrored(nights.workspace, nights.params, nights.uri, book, model):
        if what == "rollback":
            roll_back(book, model, version, decision)
        elif what == "overrule":
            overrule(book, model, version, decision, approval="none", days=1)
        elif what == "reject":
            reject(book, model, None, "it misses trams")
        elif what == "approve":
            approve(book, model, None, decision, key_id=signing_key().public.id)
        elif what == "alias":
            loads(nights, version)
            registry.set_alias(nights.uri, model, "shadow", version)
        else:
            later(nights)


@pytest.mark.long
@settings(
    max_examples=6, deadline=None, derandomize=True, phases=[Phase.generate], suppress_health_check=list(HealthCheck)
)
@given(
    moves=st.lists(st.tuples(st.sampled_from(MOVES), st.integers(1, len(ACTIONS))), max_size=5),
    versions=st.integers(1, 3),
    champions=st.integers(1, 2),
)
def test_after_any_collection_whatever_stays_loads_verifies_and_can_be_gone_back_to(
    made_nights: tuple[Nights, Path],
    tmp_path_factory: pytest.TempPathFactory,
    moves: list[tuple[str, int]],
    versions: int,
    champions: int,
) -> None:
    nights, folder = as_made(made_nights), tmp_path_factory.mktemp("verified")
    keeping(nights, versions=versions, champions=champions)
    for what, number in moves:
        move(nights, what, str(number))
    before = history.line(nights.ledger.rows(nights.model))
    waits = waiting(nights.ledger.rows(nights.model))
    done = later(nights)
    newest = [one.version for one in versions_of(nights.uri, nights.model)[0] if not one.gone][-versions:]
    assert {*before[-champions - 1 :], *newest, *([waits.version] if waits else [])} <= set(done.kept)
    assert later(nights).removals == []
    for version in done.kept:
        loads(nights, version)
        verifies(nights, version, folder / version)
    results_come_back(nights)
    data_can_be_written(nights, folder)
    for version in done.kept:
        serves_again(nights, version)
    assert nights.ledger.verify(nights.model) == []


def test_a_dry_run_changes_nothing_and_a_young_workspace_loses_nothing(nights: Nights) -> None:
    root, changing = nights.workspace.root, {".git", "locks", "tmp", "mlflow.db"}

    def state() -> dict[str, int]:
        found = (path for path in root.rglob("*") if path.is_file() and not changing & {*path.relative_to(root).parts})
        return {str(path): path.stat().st_size for path in found}

    keeping(nights, versions=1, champions=1)
    before = state()
    assert later(nights, dry_run=True).freed_bytes > 0
    assert before.items() ^ state().items() == set()
    now = collect(nights.workspace, nights.params)
    assert set(now.kept) == {"1", "2", "3", "4", "5", "6"} and [one.store for one in now.removals] == []


def test_the_bytes_that_it_says_are_the_bytes_that_the_disk_gains(nights: Nights) -> None:
    def used() -> int:
        found = {}
        for top, _, names in os.walk(nights.workspace.root):
            for name in names:
                file = os.lstat(os.path.join(top, name))
                if name not in ("mlflow.db", "ledger.db") and "/.git" not in top:
                    found[file.st_dev, file.st_ino] = file.st_size
        return sum(found.values())

    keeping(nights, versions=1, champions=1)
    before = used()
    done = later(nights)
    assert done.freed_bytes > 1_000_000
    assert before - used() == pytest.approx(done.freed_bytes, abs=20_000)


def test_who_writes_to_the_workspace_is_waited_for(nights: Nights) -> None:
    holder = (
        "import sys, time\nfrom pathlib import Path\nfrom segmill.workspace import Workspace\n"
        "from segmill.workspace_lock import Part, writing\n"
        "with writing(Workspace(Path(sys.argv[1])), Part.WORKSPACE, 'segmill retrain'):\n"
        "    print('holds', flush=True)\n    time.sleep(60)\n"
    )
    command = ["python", "-c", holder, str(nights.workspace.root)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"holds\n"
        try:
            with pytest.raises(WorkspaceBusy, match="segmill retrain"):
                later(nights)
        finally:
            other.kill()
    with writing(nights.workspace, Part.WORKSPACE, "segmill deploy"):
        assert later(nights).kept, "a run that holds the workspace may collect"


@pytest.mark.long
def test_where_the_model_is_retrained_elsewhere_nothing_is_deleted_but_its_own_run_may(nights: Nights) -> None:
    keeping(nights, versions=1, champions=1)
    url = ledger_url(nights.workspace.root)
    holder = (
        "import sys, time\nfrom segmill.promotion.lease import leased\n"
        "with leased(sys.argv[1], sys.argv[2], 'nightly run'):\n    print('holds', flush=True)\n    time.sleep(60)\n"
    )
    with subprocess.Popen(["python", "-c", holder, url, nights.model], stdout=subprocess.PIPE) as other:
        assert other.stdout and other.stdout.readline() == b"holds\n"
        try:
            with pytest.raises(LeaseHeld, match="nightly run"):
                later(nights)
            (said,) = collect_after_run(nights.workspace, nights.params)
            assert "was not deleted" in said and "nightly run" in said
            assert later(nights, dry_run=True).removals, "it only looks"
        finally:
            other.kill()
    with leased(url, nights.model, "nightly run"):
        done = later(nights)
    (said,) = done.sentences()
    assert "3 of registry" in said and f"freed {done.freed_bytes / 2**20:,.1f} MiB" in said
    assert later(nights).sentences() == []
    loads(nights, "4")


def test_a_night_that_fetched_nothing_collects_nothing_and_says_nothing(nights: Nights) -> None:
    keeping(nights, versions=1, champions=1)
    raw = nights.workspace.root / nights.params.data.path
    raw.rename(raw.with_name("not fetched"))
    assert collect_after_run(nights.workspace, nights.params) == []


def test_where_mlflow_is_another_one_than_that_of_the_last_run_nothing_is_deleted(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its database names no version, so results that the champion was made of would be taken for unneeded."""
    (nights.workspace.root / "mlflow.db").unlink()
    monkeypatch.setenv("SEGMILL_LEDGER_URL", f"sqlite:///{nights.workspace.root}/another.db")
    for dry_run in (True, False):
        with pytest.raises(LedgerError, match="nothing is deleted"):
            later(nights, dry_run=dry_run)


def test_a_ledger_that_is_not_the_models_deletes_nothing(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    keeping(nights, versions=1, champions=1)
    monkeypatch.setenv("SEGMILL_LEDGER_URL", f"sqlite:///{nights.workspace.root}/another.db")
    for dry_run in (True, False):
        with pytest.raises(LedgerError):
            later(nights, dry_run=dry_run)
    monkeypatch.undo()
    loads(nights, "1")


def test_files_of_which_another_model_has_a_version_stay(nights: Nights) -> None:
    keeping(nights, versions=1, champions=1)
    with tracking.reaching(nights.uri) as client:
        client.create_registered_model("production")
        found = client.get_model_version(nights.model, "2")
        client.create_model_version("production", found.source, found.run_id)
    assert later(nights).kept["2"] == "has its files with production/1"
    loads(nights, "2")


def test_old_runs_go_with_their_rows_and_a_version_keeps_that_of_its_run(nights: Nights) -> None:
    keeping(nights, versions=1, champions=1, run_days=10)
    experiment = nights.model
    spare = tracking.start_run(nights.uri, experiment, "a search")
    tracking.log_metrics(nights.uri, spare, {"loss": 1.0})
    tracking.finish(nights.uri, spare, "FINISHED")
    versions, _ = versions_of(nights.uri, nights.model)
    runs = {one.version: one.run_id for one in versions}
    done = later(nights)
    assert {one.what for one in done.removals if one.store == "runs"} >= {"run a search"}
    with tracking.reaching(nights.uri) as client:
        left = {run.info.run_id: run for run in client.search_runs(
            [client.get_experiment_by_name(experiment).experiment_id], run_view_type=3
        )}  # fmt: skip
        artifacts = {version: client.list_artifacts(run_id) for version, run_id in runs.items()}
    assert spare not in left, "nor is it among the deleted"
    assert set(runs.values()) <= set(left)
    assert {version for version, files in artifacts.items() if files} == set(done.kept)
    assert [one for one in later(nights).removals if one.store == "runs"] == []


def test_a_clone_that_does_not_know_all_of_git_deletes_nothing_in_the_remote(nights: Nights, tmp_path: Path) -> None:
    keeping(nights, versions=1, champions=1)
    root = nights.workspace.root
    shared = tmp_path / "shared.git"
    for command in (
        ["git", "clone", "-q", "--bare", str(root), str(shared)],
        ["git", "-C", str(root), "remote", "add", "origin", str(shared)],
        ["git", "clone", "-q", str(shared), str(tmp_path / "colleague")],
        ["git", "-C", str(tmp_path / "colleague"), "-c", "user.name=a", "-c", "user.email=a@b", "commit", "-q",
         "--allow-empty", "-m", "more"],
        ["git", "-C", str(tmp_path / "colleague"), "push", "-q"],
    ):  # fmt: skip
        subprocess.run(command, check=True)
    done = later(nights, dry_run=True)
    assert any("git fetch origin" in note for note in done.notes)
    assert "remote" not in {one.store for one in done.removals} and "dvc_cache" in {one.store for one in done.removals}
    subprocess.run(["git", "-C", str(root), "fetch", "-q", "origin"], check=True)
    assert "remote" in {one.store for one in later(nights, dry_run=True).removals}


def test_a_workspace_in_which_nothing_ran_has_nothing_to_delete(workspace: Workspace) -> None:
    done = collect(workspace, Nights(workspace).params, now_s=time.time() + LATER_S)
    assert (done.kept, [one for one in done.removals if one.store not in ("temporary", "ray")]) == ({}, [])
    assert not (workspace.root / "mlflow.db").exists()
