"""Runs from nothing: `segmill retrain --source` in empty folders, one after another and side by side."""

from __future__ import annotations

import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from sources import Stores, git, lasting
from terminal import BIN, run, states, terminal

from segmill.workspace import Workspace

pytestmark = [pytest.mark.slow, pytest.mark.long]
NOT_KEPT = {"fingerprint", "prepare"}  # what takes no time, and what is made again where it is needed


@pytest.fixture(scope="module")
def stores(tmp_path_factory: pytest.TempPathFactory, brain_workspace: Callable[..., Workspace]) -> Stores:
    folder = tmp_path_factory.mktemp("stores")
    return lasting(brain_workspace(folder, "fpn", epochs=1), folder)


def retrain(stores: Stores, name: str, *more: str, code: int | tuple[int, ...] = (0, 3)) -> str:
    """Run in the folder ``name``, empty unless a run was there before; PASS or not is no matter here."""
    folder = Workspace(stores.bare.parent)
    source = ("--source", f"{stores.bare}@main", "--workspace", str(folder.root / name))
    return run(folder, "segmill", "retrain", *source, *more, code=code)


def ran(said: str) -> set[str]:
    return {stage for stage, state in states(said).items() if state == "ran"} - NOT_KEPT - {"version", "register"}


@pytest.fixture(scope="module")
def first(stores: Stores) -> str:
    return retrain(stores, "first")


def stages_of(said: set[str]) -> set[str]:
    return said & {"validate", "augment", "finetune@fpn", "ensemble", "evaluate"}


def test_the_first_run_pushes_what_it_made_and_says_in_git_what_ran(stores: Stores, first: str) -> None:
    assert stages_of(ran(first)) == {"validate", "augment", "finetune@fpn", "ensemble", "evaluate"}
    log = git(stores.bare, "log", "--format=%s%n%b", "main")
    assert "retrain segmill-brain on data" in log and "finetune@fpn: ran (never ran here)" in log
    assert "ledger of segmill-brain" in log, "the ledger's head is pushed after the verdict"
    assert git(stores.bare.parent / "first", "status", "--porcelain") == ""


def fetched(stores: Stores, name: str) -> int:
    """Return the bytes that the clone has in its cache."""
    cache = stores.bare.parent / name / ".dvc" / "cache"
    return sum(path.stat().st_size for path in cache.rglob("*") if path.is_file())


def test_an_empty_machine_fetches_nothing_where_the_verdict_is_known(stores: Stores, first: str) -> None:
    shutil.rmtree(stores.bare.parent / "first")
    before, began = git(stores.bare, "rev-parse", "main"), time.monotonic()
    said = retrain(stores, "second", code=0)
    print(f"{time.monotonic() - began:.1f} s, {fetched(stores, 'second')} bytes fetched")
    assert "nothing to do" in said and "nothing was fetched" in said and "version 1 of segmill-brain" in said
    assert not (stores.bare.parent / "second" / "data" / "raw").exists() and fetched(stores, "second") < 2**16
    assert git(stores.bare, "rev-parse", "main") == before


def test_an_empty_machine_restores_what_was_trained_and_runs_only_what_differs(stores: Stores, first: str) -> None:
    stores.push("evaluate.overlays=1")
    began = time.monotonic()
    said = retrain(stores, "third")
    print(f"{time.monotonic() - began:.1f} s, {fetched(stores, 'third') / 2**20:.2f} MiB fetched and packed")
    assert stages_of(ran(said)) == {"evaluate"} and states(said)["finetune@fpn"] == "restored"
    assert "version 1 of segmill-brain" in said, "the ensemble has the same bytes"
    assert stages_of(ran(retrain(stores, "second"))) == set(), "a clone of before is brought up to date"


def test_a_machine_that_dies_after_training_leaves_the_member_to_the_next(stores: Stores, first: str) -> None:
    folder = stores.bare.parent / "dies"
    stores.push("train.seed=5")
    process = subprocess.Popen(
        [str(BIN / "segmill"), "retrain", "--source", str(stores.bare), "--workspace", str(folder)],
        env=terminal(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    runs = Path(stores.remote) / "runs"
    before, until = len(list(runs.rglob("*"))), time.monotonic() + 300
    member = folder / ".segmill/progress/finetune@fpn.json"
    while not (member.is_file() and '"ran"' in member.read_text()):
        assert process.poll() is None and time.monotonic() < until
        time.sleep(0.05)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert len(list(runs.rglob("*"))) > before
    shutil.rmtree(folder)
    assert "finetune@fpn" not in ran(retrain(stores, "next"))


def test_two_machines_at_once_end_with_one_history(stores: Stores, first: str) -> None:
    stores.push("train.seed=6")
    machines = [
        subprocess.Popen(
            [str(BIN / "segmill"), "retrain", "--source", str(stores.bare), "-w", str(stores.bare.parent / name)],
            env=terminal(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )
        for name in ("left", "right")
    ]  # fmt: skip
    said = [machine.communicate(timeout=550)[0] for machine in machines]
    assert [machine.returncode in (0, 3) for machine in machines] == [True, True], said
    log = git(stores.bare, "log", "--format=%s", "main").splitlines()
    assert sum(line.startswith("retrain segmill-brain") for line in log) >= 2
    assert stages_of(ran(retrain(stores, "after"))) == set()
