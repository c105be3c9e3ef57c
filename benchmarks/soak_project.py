"""A project that is deployed on a stack: what its author does, which runs there are, and what is left of them."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import psutil
from ruamel.yaml import YAML

from deploy.stack.__main__ import REPOSITORY, STOP, run
from deploy.stack.place import Place
from deploy.stack.processes import families, find
from deploy.stack.servers import ask, ask_prefect, pipeline_environment, superuser, urls
from flows.environment import prepare_environment
from segmill import progress
from segmill.data.ingest.builtin import FRAMES as STREET_FRAMES
from segmill.data.ingest.builtin import write_street
from segmill.params import read_params
from segmill.params_change import set_params
from segmill.workspace import Workspace

SEGMILL = str(Path(sys.executable).parent / "segmill")
MODEL = "segmill-street"
SEQUENCES, FRAMES, SIZE_PX = 30, 3, (64, 64)  # six groups judge: fewer can't show that a version is better
MEMBER = {"backbone": "mobilenetv3_small_050", "decoder": "fpn", "weights": "none", "lr": 0.003}
SETTINGS = (
    "train.epochs=1", "train.val_every=1", "prepare.size_px=[64, 64]", "promotion.floor_miou=0.0",
    "promotion.rule=plain", "keep.versions=5", "keep.champions=2", "keep.recent_days=1", "keep.run_days=1",
    "keep.prefect_days=1", "keep.scratch_days=1", "data.remote=s3://segmill-data/street",
)  # fmt: skip
OPEN = "state_type IN ('RUNNING', 'PENDING', 'CANCELLING')"
OPEN_AT = (  # database, what a row of it means, query
    ("mlflow", "MLflow has a run RUNNING", "SELECT name FROM runs WHERE status = 'RUNNING'"),
    ("prefect", "Prefect has a run open", f"SELECT name FROM flow_run WHERE {OPEN}"),
    ("prefect", "Prefect has a task open", f"SELECT name FROM task_run WHERE {OPEN}"),
    ("ledger", "the lease is held", "SELECT what FROM ledger_leases WHERE token <> ''"),
)
IDLE = re.compile("ray::(IDLE|.*Agent)")  # of Ray's processes, those that work for no run
ENDED = ("COMPLETED", "FAILED", "CRASHED", "CANCELLED")
ENDS_WITHIN_S, LEFT_OPEN_S, LOOK_S, TRIES = 900, 20, 0.5, 20
Found = TypeVar("Found")


class Fault(Exception):
    """Something that must hold does not, in a sentence."""


@dataclass
class Project:
    """A project with one tiny member in ``folder``, and the stack beside it; ``drawn``: sequences made so far."""

    folder: Path
    drawn: int = 0
    deployment: str = ""

    @property
    def place(self) -> Place:
        place = Place.open(self.folder / "stack")
        assert place is not None
        return place

    @property
    def author(self) -> Workspace:
        return Workspace(self.folder / "project")

    def set_up(self) -> None:
        """Start the stack and deploy the project onto it; it never ran before."""
        (self.folder / "tmp").mkdir()
        self.up()
        root, first = self.author.root, self.draw(SEQUENCES, FRAMES)
        self.command(SEGMILL, "init", str(root), "--data", str(first), "--name", "street", at=self.folder)
        yaml, source = YAML(), f"{urls(self.place)['git']}/{REPOSITORY}"
        yaml.dump({**yaml.load(self.author.params), "members": {"net": MEMBER}}, self.author.params)
        set_params(self.author.params, [*SETTINGS, f"schedule.source={source}"])
        self.git("remote", "add", "origin", source)
        self.commit()
        self.command(SEGMILL, "deploy")
        self.deployment = json.loads(ask_prefect(self.place, f"/deployments/name/nightly/{MODEL}"))["id"]

    def up(self) -> None:
        """Start what does not run of the stack."""
        run("up", self.folder / "stack")

    def down(self) -> None:
        """Stop the stack and delete all that there is of it and of the project."""
        run("down", self.folder / "stack")
        shutil.rmtree(self.folder)

    def command(self, *words: str, at: Path | None = None) -> str:
        """Run a command in the author's folder, with the pipeline's environment; return what it printed."""
        kept = {name: of for name, of in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "RAY_"))}
        environment = {**kept, "TMPDIR": str(self.folder / "tmp"), **pipeline_environment(self.place)}
        done = subprocess.run(words, cwd=at or self.author.root, env=environment, capture_output=True, text=True)
        if done.returncode:
            raise Fault(f"{' '.join(words)} ended with {done.returncode}: {done.stdout}{done.stderr}")
        return done.stdout

    def git(self, *words: str) -> None:
        self.command("git", *words)

    def pull(self) -> None:
        """Fetch what nights pushed."""
        self.git("pull", "-q", "--rebase", "--autostash", "origin", "main")

    def commit(self) -> None:
        """Commit everything and push it."""
        self.git("add", "--all")
        self.git("-c", "user.name=author", "-c", "user.email=author@localhost", "commit", "-qm", "Settings")
        self.git("push", "-q", "-u", "origin", "main")

    def draw(self, sequences: int, frames: int) -> Path:
        """Draw the next sequences of street scenes, each a group of so many samples, into a new folder."""
        folder = self.folder / f"samples-{self.drawn}"
        write_street(folder, count=sequences * STREET_FRAMES, size=SIZE_PX, first=self.drawn * STREET_FRAMES)
        for path in [*folder.glob("images/*"), *folder.glob("masks/*")]:
            if int(path.stem.rpartition("_f")[2]) >= frames:
                path.unlink()
        self.drawn += sequences
        return folder

    def add_data(self, count: int, message: str) -> None:
        """Add a group of so many samples and push the version, which starts a run."""
        self.pull()
        more = self.draw(1, count)
        self.command(SEGMILL, "data", "add", str(more), "-m", message)
        shutil.rmtree(more)
        self.command(SEGMILL, "data", "push")

    def change(self, *settings: str) -> None:
        """Push settings of params.yaml onto what nights pushed."""
        self.pull()
        set_params(self.author.params, list(settings))
        self.commit()

    def schedule(self, minutes: str) -> None:
        """Deploy with another interval; only the deployment has it, not the source."""
        set_params(self.author.params, [f"schedule.interval_minutes={minutes}"])
        self.command(SEGMILL, "deploy")
        self.git("checkout", "-q", "--", "params.yaml")

    def start(self, *changes: str) -> str:
        """Start a run as a person does on Prefect's page; return its id."""
        parameters = {"changes": list(changes)} if changes else {}
        body = json.dumps({"state": {"type": "SCHEDULED"}, "parameters": parameters}).encode()
        return str(json.loads(ask_prefect(self.place, f"/deployments/{self.deployment}/create_flow_run", body))["id"])

    def runs(self) -> list[Any]:
        """Return the newest runs that began, the last one first; a schedule plans a hundred others."""
        body = {
            "deployments": {"id": {"any_": [self.deployment]}},
            "flow_runs": {"state": {"type": {"not_any_": ["SCHEDULED", "PENDING"]}}},
            "sort": "EXPECTED_START_TIME_DESC",
            "limit": 100,
        }
        return list(self._prefect("/flow_runs/filter", json.dumps(body).encode()))

    def read(self, flow_run: str) -> Any:
        """Return a run, as Prefect's API has it."""
        return self._prefect(f"/flow_runs/{flow_run}")

    def _prefect(self, path: str, body: bytes | None = None) -> Any:
        """Ask Prefect's API, which answers 500 while its database comes back."""
        for tries_left in reversed(range(TRIES)):
            try:
                return json.loads(ask_prefect(self.place, path, body))
            except OSError:
                if not tries_left:
                    raise
                time.sleep(4 * LOOK_S)

    def runners(self) -> list[psutil.Process]:
        """Return the processes that Prefect's worker started, one per run."""
        worker = find(self.place, "worker")
        return worker.children() if worker else []

    def trainers(self) -> list[psutil.Process]:
        """Return the processes that train, once they have said which they are."""
        notes = (self.place.run / "tmp").glob("*/clone-*/.segmill/progress/*.member.json")
        ids = [(progress.read(note) or {}).get("pid", 0) for note in notes]
        return [psutil.Process(pid) for pid in ids if pid and psutil.pid_exists(pid)]

    def ended(self, flow_run: str, processes: list[psutil.Process]) -> Any:
        """Wait for the end of a run and return its state; ``processes``: those that run it.

        A run whose processes are gone, and which Prefect takes for running for longer, is left open.
        """
        until, gone = time.monotonic() + ENDS_WITHIN_S, 0.0
        while (state := self.read(flow_run)["state"])["type"] not in ENDED:
            gone = 0.0 if any(is_alive(process) for process in processes) else gone or time.monotonic()
            if gone and time.monotonic() - gone > LEFT_OPEN_S:
                return {"name": state["name"], "message": "its process is gone"}
            if time.monotonic() > until:
                return {"name": state["name"], "message": f"no end within {ENDS_WITHIN_S} s"}
            time.sleep(LOOK_S)
        return state

    def left(self) -> list[str]:
        """Return what is left of runs that are over, in words: open at a server, held, or running."""
        found, place = [], self.place
        for database, what, query in OPEN_AT:
            with superuser(place, database) as connection:
                found += [f"{what}: {name}" for (name,) in connection.execute(query).fetchall()]
        known = {name: set[psutil.Process]() for name in STOP} | families(place)
        found += [f"{name} does not run" for name, processes in known.items() if not processes]
        found += [f"a process of the run: {_title(one)}" for one in known["worker"] - {find(place, "worker")}]
        titles = [_title(process) for server in ("ray-head", "ray-node") for process in known[server]]
        found += [f"Ray works: {title}" for title in titles if title.startswith("ray::") and not IDLE.search(title)]
        names = [path.name for path in (place.run / "tmp").iterdir()]
        return found + [f"a temporary folder: {name}" for name in names if name.startswith(("sm-", "clone-"))]

    def verdict(self) -> tuple[str, list[str]]:
        """Return the newest version, and what MLflow or the ledger lacks of its verdict."""
        user = f"pipeline:{self.place.secret('mlflow-pipeline')}"
        page = f"{urls(self.place)['mlflow']}/api/2.0/mlflow/model-versions/search?max_results=200"
        listed = json.loads(ask(page, user=user)).get("model_versions", [])
        if not listed:
            return "none", ["no version is registered"]
        newest = max(listed, key=lambda one: int(one["version"]))
        with superuser(self.place, "ledger") as connection:
            rows = connection.execute("SELECT payload FROM ledger_rows").fetchall()
        judged = {
            "MLflow": any(tag["key"] == "verdict" for tag in newest["tags"]),
            "the ledger": newest["version"] in [json.loads(payload)["version"] for (payload,) in rows],
        }
        version = str(newest["version"])
        return version, [f"{where} has no verdict on version {version}" for where, known in judged.items() if not known]

    def collect(self, now_s: float) -> str:
        """Delete what `keep` does not keep, as if it were ``now_s`` seconds since 1970; say what that was."""
        self.pull()
        os.environ.update(pipeline_environment(self.place))
        params = read_params(self.author.params)
        prepare_environment(self.author, params)
        from tasks.collect import collect  # MLflow and Prefect read their variables when they are imported

        done = collect(self.author, params, now_s=now_s, wait=True)
        return f"{'; '.join(done.sentences()) or 'nothing to delete'} ({done.seconds:.0f} s)"


def is_begun(flow_run: Any) -> bool:
    """Tell whether a process runs it, or ran it."""
    return flow_run["state_type"] not in ("SCHEDULED", "PENDING")


def is_alive(process: psutil.Process) -> bool:
    """Tell whether a process runs."""
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_for(what: Callable[[], Found], absent: str, within_s: float) -> Found:
    """Return what is found once that is something. Raises Fault, saying ``absent``, after so many seconds."""
    until = time.monotonic() + within_s
    while not (found := what()):
        if time.monotonic() > until:
            raise Fault(f"{absent} within {within_s:g} s")
        time.sleep(LOOK_S)
    return found


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())[:60]
    except psutil.Error:
        return ""
