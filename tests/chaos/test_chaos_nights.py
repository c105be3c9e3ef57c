"""A nightly run whose Prefect worker or server is killed in its middle: the next one comes to the undisturbed end."""

from __future__ import annotations

import random
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest
from disturbed import EPOCHS, GONE_WITHIN_S, RUN_WITHIN_S, SEED, Recovered, Resumption, check, kill, note
from prefect_servers import PrefectServers, prefect_servers
from scheduling import MODEL, all_ended, begin_run, deploy, names, schedule, wait_for_epochs

from segmill.promotion.lease import who_holds
from segmill.workspace import Workspace
from tasks.finetune import curves_path

pytestmark = pytest.mark.chaos

VERDICTS = ("Completed", "Refused")


@dataclass(frozen=True)
class Night:
    """A run that a worker started and that trains; ``temporary`` is all that it has for temporary files."""

    worker: psutil.Process
    run: list[psutil.Process]
    temporary: Path

    def left(self) -> list[Any]:
        """Return what is left of the run; Prefect's worker, where it is killed, leaves an empty folder of its own."""
        return [*(process for process in self.run if process.is_running()), *self.temporary.glob("sm-*")]

    def wait_for_end(self, within_s: float) -> float:
        """Wait until no process and no temporary file is left; return the seconds that took."""
        began = time.monotonic()
        while left := self.left():
            assert time.monotonic() - began < within_s, left
            time.sleep(0.2)
        return time.monotonic() - began


@pytest.fixture
def prefect(tmp_path: Path, workspace: Workspace) -> Iterator[PrefectServers]:
    with prefect_servers(tmp_path / "prefect") as found:
        schedule(workspace)
        deploy(workspace, found)
        yield found


def moments() -> list[tuple[str, int]]:
    rng = random.Random(SEED)
    return [(what, rng.randint(1, EPOCHS - 1)) for what in ("worker", "server", "server for 5 s")]


@pytest.mark.parametrize(("what", "epochs"), moments())
def test_a_night_whose_worker_or_server_is_killed(
    what: str,
    epochs: int,
    workspace: Workspace,
    prefect: PrefectServers,
    one_member: dict[str, Any],
    record_property: Callable[[str, object], None],
) -> None:
    with tempfile.TemporaryDirectory(prefix="n-", dir="/tmp") as temporary:
        with prefect.worker(TMPDIR=temporary) as worker:
            begin_run(prefect)
            wait_for_epochs(prefect, curves_path(workspace, "fpn"), epochs)
            night = Night(worker, worker.children(recursive=True), Path(temporary))
            resumption = Resumption(workspace, ("fpn",))
            if what == "worker":
                kill(worker)
            else:
                prefect.kill()
                if what == "server for 5 s":
                    time.sleep(5)
                    prefect.start()
            # Without the server it comes to its verdict.
            ended_s = night.wait_for_end(GONE_WITHIN_S if what == "worker" else RUN_WITHIN_S)
        if what == "server":
            prefect.start()
        print(prefect.said())
        before = names(prefect.runs())
    with prefect.worker():
        began = time.monotonic()
        begin_run(prefect)
        runs = prefect.wait(all_ended, 250)
    assert names(runs)[-1] in VERDICTS, prefect.said()
    if what == "worker":
        assert before == ["Failed"] and "worker that started it is gone" in str(runs[0].state and runs[0].state.message)
    assert who_holds(f"sqlite:///{workspace.ledger}", MODEL) is None
    check(workspace, one_member, members=("fpn",))
    with prefect.client() as client:
        assert [run.name for run in client.read_flow_runs() if run.state and not run.state.is_final()] == []
    resume_s = resumption.seen - began if resumption.seen and resumption.seen > began else 0.0
    recovered = Recovered(0, ended_s, resumption.repeated(), resume_s, str(before))
    assert max(recovered.repeated.values(), default=0) <= 1, recovered
    note(record_property, f"{what} of a night, epoch {epochs}", recovered)
