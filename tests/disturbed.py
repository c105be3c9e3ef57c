"""A retrain that is disturbed at a known moment, and what is promised of it: held against an undisturbed one."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import psutil
from sqlalchemy import create_engine, text
from sqlalchemy.pool import NullPool
from terminal import BIN, terminal

from segmill import progress
from segmill.workspace import Workspace
from tasks.finetune import curves_path

LOOK_S = 0.02
SEED = int(os.environ.get("CHAOS_SEED", "15"))  # decides the moments
EPOCHS = 6
MEMBERS = ("fpn", "unet")
PROMISED_S = 60  # from the loss of a server to the end of the run that can't do without
GONE_WITHIN_S = 60  # after the disturbance, or the end of a run that it does not end
RUN_WITHIN_S = 400
DONE = (0, 3)  # the run came to a verdict
PREFECT = "prefect.server.api.server:create_app"


@dataclass(frozen=True)
class Moment:
    """When a run is disturbed: ``after_s`` after ``step`` is seen to run, and to have trained ``epochs``."""

    step: str
    epochs: int = 0
    after_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.step}{f' epoch {self.epochs}' if self.epochs else ''} +{self.after_s:.2f} s"


@dataclass
class Recovered:
    """What came of a disturbed run.

    Attributes:
        code: the exit code of the run that was disturbed.
        ended_s: from the disturbance to the end of that run and all of its processes; None where it came to a verdict.
        repeated: epochs trained twice, by member.
        resume_s: from the next start to the end of the first epoch after it; 0 where none was trained.
        said: the last line of the run that was disturbed.
    """

    code: int
    ended_s: float | None
    repeated: dict[str, int]
    resume_s: float
    said: str


@dataclass
class Running:
    """A command that runs in a workspace; ``folder`` is all that it has for temporary files."""

    workspace: Workspace
    process: psutil.Popen
    output: Path
    folder: Path
    servers: Mapping[str, str] | None = None
    began: float = field(default_factory=time.monotonic)

    def wait_for(self, moment: Moment) -> None:
        until = time.monotonic() + RUN_WITHIN_S
        note = self.workspace.progress / f"{moment.step}.json"
        while (progress.read(note) or {}).get("state") != "running" or self.epochs(moment.step) < moment.epochs:
            assert self.process.poll() is None and time.monotonic() < until, f"not seen: {moment}\n{self.said}"
            time.sleep(LOOK_S)
        time.sleep(moment.after_s)

    @property
    def said(self) -> str:
        return self.output.read_text()

    def epochs(self, step: str) -> int:
        return epochs_of(self.workspace, step)

    def family(self) -> list[psutil.Process]:
        return [self.process, *self.process.children(recursive=True)]

    def named(self, *words: str) -> psutil.Process:
        """Return the one process of the run whose command line holds one of ``words``."""
        for process in self.family()[1:]:
            try:
                if any(word in part for part in process.cmdline()[:8] for word in words):
                    return process
            except psutil.Error:
                continue
        raise AssertionError(f"no process {words}: {[one.name() for one in self.family()]}")

    def rank(self, step: str) -> psutil.Process:
        """Return the process that trains a member; before its first step it has not said which that is."""
        note = self.workspace.progress / f"{step}.member.json"
        until = time.monotonic() + PROMISED_S
        while "pid" not in (facts := progress.read(note) or {}):
            assert time.monotonic() < until, f"nothing trains in {step}"
            time.sleep(LOOK_S)
        return psutil.Process(facts["pid"])

    def end(self, patience_s: float = RUN_WITHIN_S) -> int:
        return int(self.process.wait(patience_s))


@contextmanager
def running(
    workspace: Workspace, *command: str, servers: Mapping[str, str] | None = None, output: Path | None = None
) -> Iterator[Running]:
    """Run a command with a temporary folder of its own; what is left of it at the end of the block is killed.

    ``output``: the file for what it says; None: one beside the workspace.
    """
    folder = Path(tempfile.mkdtemp(prefix="c-", dir="/tmp"))  # short: sockets are made in it
    output = output or workspace.root.with_name(f"said-{time.monotonic_ns()}")
    with output.open("w") as out:
        process = psutil.Popen(
            [str(BIN / command[0]), *command[1:]], cwd=workspace.root, stdout=out, stderr=out,
            env={**terminal(servers), "TMPDIR": str(folder)}, start_new_session=True,
        )  # fmt: skip
    run = Running(workspace, process, output, folder, servers)
    try:
        yield run
    finally:
        for left in run.family() if process.is_running() else []:
            left.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def epochs_of(workspace: Workspace, step: str) -> int:
    """Return how many epochs of a training are in its curve."""
    path = curves_path(workspace, step.partition("@")[2])
    try:
        return max(0, len(path.read_text().splitlines()) - 1)
    except FileNotFoundError:
        return 0


class Resumption:
    """Watches, from a disturbance on, with how many epochs each member's curve is written first."""

    def __init__(self, workspace: Workspace, members: tuple[str, ...]) -> None:
        self._workspace = workspace
        self._before = {
            member: (epochs_of(workspace, f"finetune@{member}"), _stamp(workspace, member)) for member in members
        }
        self._first: dict[str, int] = {}
        self._over = threading.Event()
        self.seen: float | None = None
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def repeated(self) -> dict[str, int]:
        """Return the epochs trained twice: those of before the disturbance that the first curve after it lacks."""
        self._over.set()
        self._thread.join()
        return {member: max(0, self._before[member][0] + 1 - first) for member, first in self._first.items()}

    def _watch(self) -> None:
        while not self._over.wait(LOOK_S):
            for member, (_, stamp) in self._before.items():
                if member in self._first or _stamp(self._workspace, member) in (None, stamp):
                    continue
                self._first[member] = epochs_of(self._workspace, f"finetune@{member}")
                self.seen = self.seen or time.monotonic()


def _stamp(workspace: Workspace, member: str) -> int | None:
    try:
        return curves_path(workspace, member).stat().st_mtime_ns
    except FileNotFoundError:
        return None


def disturb(
    run: Running,
    moment: Moment,
    disturbance: Callable[[Running], None],
    members: tuple[str, ...],
    before_next: Callable[[], None] = lambda: None,
    command: tuple[str, ...] = ("segmill", "retrain"),
) -> Recovered:
    """Disturb the run at the moment, wait for its end, and start again: that comes to a verdict where it did not.

    Asserts what is promised of a run that ends: no process and no temporary file of it is left. ``before_next`` is
    called before the next start, by ``command``, which has nothing to do where the disturbed run came to a verdict.
    """
    run.wait_for(moment)
    family, resumption, began = run.family(), Resumption(run.workspace, members), time.monotonic()
    disturbance(run)
    code = run.end()
    over = code in DONE
    ended_s = assert_nothing_is_left(run, family, time.monotonic() if over else began)
    assert "Traceback" not in run.said, run.said
    last = (run.said.splitlines() or [""])[-1]
    before_next()
    if not over:
        resumption = Resumption(run.workspace, members)  # a worker may train on until it is ended too
    with running(run.workspace, *command, servers=run.servers) as again:
        assert again.end() in DONE, again.said
        assert_nothing_is_left(again, [], time.monotonic())
        assert not over or "nothing to do" in again.said, again.said
    resume_s = resumption.seen - again.began if resumption.seen and not over else 0.0
    return Recovered(code, None if over else ended_s, resumption.repeated(), resume_s, last)


def is_alive(process: psutil.Process) -> bool:
    with suppress(psutil.Error):
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    return False


def assert_nothing_is_left(run: Running, family: list[psutil.Process], since: float) -> float:
    """Wait until no process and no temporary file of the run is left; return the seconds that took."""
    while True:
        left = [process for process in family if is_alive(process)]
        files = list(run.folder.iterdir())
        if not left and not files:
            return time.monotonic() - since
        assert time.monotonic() - since < GONE_WITHIN_S, ([process.cmdline()[:6] for process in left], files)
        time.sleep(0.2)


def end_state(workspace: Workspace, ledger: str = "") -> dict[str, Any]:
    """Return what must be the same after a disturbed run: weights, scores, verdict, and that nothing was done twice.

    ``ledger``: its address, where it is not the workspace's own.
    """
    models = sorted((workspace.root / "models").rglob("*.safetensors"))
    with create_engine(ledger or f"sqlite:///{workspace.ledger}").connect() as connection:
        payloads = connection.scalars(text("SELECT payload FROM ledger_rows ORDER BY number"))
        acted = [json.loads(payload)["action"] for payload in payloads]
    return {
        "weights": {str(path.relative_to(workspace.root)): _sha256(path) for path in models},
        "scores": json.loads(workspace.metrics.read_text()),
        "ledger": acted,
    }


def check(
    workspace: Workspace,
    undisturbed: dict[str, Any],
    database: Path | str = "",
    ledger: str = "",
    members: tuple[str, ...] = MEMBERS,
    epochs: int = EPOCHS,
) -> None:
    """Assert that it came to the same, and nothing was done twice or is still taken for running.

    ``database``: MLflow's, and ``ledger``: the ledger's address, where they are not the workspace's own.
    """
    database = database or workspace.root / "mlflow.db"
    assert end_state(workspace, ledger) == undisturbed
    assert versions(database) == 1
    assert open_runs(workspace, database) == {"mlflow": [], "flows": [], "tasks": []}
    assert [curve_steps(database, member) for member in members] == len(members) * [list(range(1, epochs + 1))]
    assert not list(workspace.unsent.glob("*"))


def note(record_property: Callable[[str, object], None], what: object, recovered: Recovered) -> None:
    """Record what a disturbance cost, for the table at the end."""
    facts = asdict(recovered)
    for key in ("code", "ended_s", "resume_s"):
        value = facts[key]
        record_property(key, f"{value:.1f}" if isinstance(value, float) else value)
    record_property("repeated", max(facts["repeated"].values(), default=0))
    record_property("what", str(what))  # text can go from a process of pytest-xdist to another


def versions(database: Path | str) -> int:
    """Return how many versions are registered in an MLflow database."""
    return int(_ask(database, "SELECT count(*) FROM model_versions")[0][0])


def open_runs(workspace: Workspace, database: Path | str) -> dict[str, list[Any]]:
    """Return the runs that MLflow's database and the workspace's Prefect still take for running."""
    prefect = workspace.prefect_home / "prefect.db"
    running = "state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"
    return {
        "mlflow": _ask(database, "SELECT name FROM runs WHERE status = 'RUNNING'"),
        "flows": _ask(prefect, f"SELECT name FROM flow_run WHERE {running}") if prefect.exists() else [],
        "tasks": _ask(prefect, f"SELECT name FROM task_run WHERE {running}") if prefect.exists() else [],
    }


def curve_steps(database: Path | str, member: str) -> list[int]:
    """Return the epochs of a member's loss in its last run that came to its end."""
    query = (
        "SELECT step FROM metrics WHERE key = 'loss' AND run_uuid = (SELECT run_uuid FROM runs WHERE name = :name AND "
        "status = 'FINISHED' ORDER BY start_time DESC LIMIT 1) ORDER BY step"
    )
    return [int(step) for (step,) in _ask(database, query, name=member)]


def _ask(database: Path | str, query: str, **values: str) -> list[Any]:
    address = database if isinstance(database, str) else f"sqlite:///file:{database}?mode=ro&uri=true&timeout=30"
    engine = create_engine(address, poolclass=NullPool)
    with engine.connect() as connection:
        return [tuple(row) for row in connection.execute(text(query), values)]


def _sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def kill(process: psutil.Process) -> None:
    process.send_signal(signal.SIGKILL)


def cut(path: Path, share: float = 0.5) -> None:
    """Leave the first part of a file, as a disk that lost the rest does; DVC's cache is read-only."""
    path.chmod(0o644)
    with path.open("r+b") as file:
        file.truncate(int(path.stat().st_size * share))
