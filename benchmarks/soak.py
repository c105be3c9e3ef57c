"""Nights on the stack, one after another, with data that grow and random kills: each must end with a verdict.

    python benchmarks/soak.py [--nights 50] [--seed 15] [--json FILE] [--folder DIR]

Starts production's servers in a temporary folder, makes a project with one tiny member whose lasting stores are there,
pushes it to the stack's git remote and deploys it. Most nights begin by the event of data that were added and pushed,
the others by a schedule or by hand, with another learning rate. In one night of three a process is killed (SIGKILL) at
a random moment: the run's, the one that trains, a raylet, Ray's GCS, or one of the servers, which is started again some
seconds later, as an operator would. A run that this ends is started again, and then comes to a verdict: Completed or
Refused. After each night no run is open at MLflow or Prefect, no lease is held, and no process and no temporary folder
of the run is left. Every fifth night what `keep` does not keep is deleted as if the seventh night before were a day
old. At the end there is a table of what the stack took after the first night, in the middle and at the end. Exit code 1
where any of this does not hold. Ctrl-C stops the stack and deletes everything.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path

import psutil
from soak_project import LOOK_S, Fault, Project, is_begun, wait_for
from stack_figures import figures

from deploy.stack.processes import families, find
from flows.environment import switch_telemetry_off
from segmill.errors import SegmillError
from segmill.retention.plan import DAY_S

MORE = (2, 4)  # samples of a night
KILLED = ("run", "trainer", "raylet", "gcs", "mlflow", "prefect", "worker", "postgres")
RUN_ONLY = {"run", "trainer"}  # the others are servers, which an operator starts again
NAMES = {"raylet": "raylet", "gcs": "gcs_server"}
BEGINS = ("data", "data", "data", "data", "hand", "schedule")
VERDICTS = ("Completed", "Refused")
COLLECT_EVERY, KEEP_NIGHTS = 5, 7
BEGINS_WITHIN_S, TRAINS_WITHIN_S, GONE_WITHIN_S = 150, 300, 60


@dataclass
class Night:
    """One night: what is done to it, and what came of it.

    Attributes:
        begins: what starts it: data, hand or schedule.
        kills: what is killed, "" for nothing.
        at: when, as a share of how long the last undisturbed run took.
        up_after_s: seconds after which a killed server is started again.
        first: how the disturbed run ended; "" for one that came to a verdict.
        run_s: seconds of the run with the verdict; ``seconds``: of all, from the author's commands on.
        faults: what does not hold.
    """

    number: int
    begins: str
    samples: int
    kills: str = ""
    at: float = 0.0
    up_after_s: float = 0.0
    first: str = ""
    verdict: str = ""
    version: str = ""
    run_s: float = 0.0
    seconds: float = 0.0
    faults: list[str] = field(default_factory=list)

    def line(self) -> str:
        killed = f"{self.kills} killed at {self.at:.2f}: {self.first or 'the run survived'}" if self.kills else ""
        took = f"{self.seconds:5.0f} s, run {self.run_s:4.0f} s"
        said = f"night {self.number:3}  {self.begins:8} {took}  {self.verdict:9} v{self.version:4} {killed}"
        return "\n".join([said.rstrip(), *(f"    FAULT: {fault}" for fault in self.faults)])


def plans(nights: int, seed: int) -> list[Night]:
    """Return the nights: of each three one is disturbed, the first never; each kind of kill is as frequent."""
    rng = random.Random(seed)
    found: list[Night] = []
    kinds: list[str] = []
    for number in range(nights):
        if number % 3 == 0:
            disturbed = number + rng.randrange(0 if number else 1, 3)
        night = Night(number + 1, rng.choice(BEGINS) if number else "data", rng.randint(*MORE))
        if number == disturbed:
            kinds = kinds or rng.sample(KILLED, len(KILLED))
            night.kills, night.at, night.up_after_s = kinds.pop(), rng.uniform(0.05, 0.95), rng.uniform(3, 20)
        found.append(night)
    return found


@dataclass
class Soak:
    """Lets nights happen to a project; ``run_s``: how long the last undisturbed run took."""

    project: Project
    rng: random.Random
    began: list[float] = field(default_factory=list)
    run_s: float = 40.0

    def live(self, night: Night) -> None:
        """Let a night begin, disturb it, and wait for its verdict; a run that failed is started once more."""
        began = time.monotonic()
        self.began.append(time.time())
        change = f"members.net.lr={self.rng.uniform(0.001, 0.004):.5f}"
        flow_run = self._begin(night, change)
        night.run_s, (verdict, said) = self._run(flow_run, night)
        if verdict not in VERDICTS:
            night.first = f"{verdict}, {said}".splitlines()[0][:160]
            if not night.kills:
                night.faults.append(f"nobody disturbed it, and it ended as {night.first}")
            again = self.project.start(*([change] if night.begins == "hand" else []))
            night.run_s, (verdict, said) = self._run(again, None)
        if not night.kills:
            self.run_s = night.run_s
        night.verdict = verdict
        if verdict not in VERDICTS:
            night.faults.append(f"no verdict: {verdict}, {said}")
        self._check(night)
        night.seconds = time.monotonic() - began

    def _begin(self, night: Night, change: str) -> str:
        """Let what starts the night happen; return the run that begins."""
        project = self.project
        before = {one["id"] for one in project.runs()}
        if night.begins == "hand":
            return project.start(change)
        if night.begins == "data":
            project.add_data(night.samples, f"night {night.number}")
        else:
            project.change(change)
            project.schedule("0.5")
        try:
            begun = wait_for(
                lambda: [one["id"] for one in project.runs() if one["id"] not in before],
                f"night {night.number}: no run begins by {night.begins}", BEGINS_WITHIN_S,
            )  # fmt: skip
        finally:
            if night.begins == "schedule":
                project.schedule("null")
        return str(begun[-1])

    def _run(self, flow_run: str, disturbed: Night | None) -> tuple[float, tuple[str, str]]:
        """Wait for the end of a run, which is disturbed as the night says; return its seconds and its end."""
        project = self.project
        wait_for(lambda: is_begun(project.read(flow_run)), "the run does not begin", BEGINS_WITHIN_S)
        began, processes = time.monotonic(), project.runners()
        if disturbed and disturbed.kills:
            self._disturb(disturbed, began)
        state = project.ended(flow_run, processes)
        return time.monotonic() - began, (state["name"], state["message"] or "")

    def _disturb(self, night: Night, run_began: float) -> None:
        """Kill what the night's plan says, and start again what an operator would."""
        if night.kills != "trainer":  # that one is killed as soon as it trains
            time.sleep(max(0.0, run_began + night.at * self.run_s - time.monotonic()))
        victims = self._victims(night.kills)
        if not victims:
            night.kills += " (there was none any more)"
            return
        for process in victims:
            process.kill()
        if night.kills not in RUN_ONLY:
            time.sleep(night.up_after_s)
            self._up(night)

    def _up(self, night: Night) -> None:
        """Start what was killed, as an operator does, who tries again where that fails."""
        try:
            self.project.up()
        except SegmillError as error:
            night.faults.append(f"the stack did not come up again: {error}")
            self.project.up()

    def _victims(self, kind: str) -> list[psutil.Process]:
        project, known = self.project, families(self.project.place)
        if kind == "run":
            return project.runners()
        if kind == "trainer":
            wait_for(lambda: project.trainers() or not project.runners(), "nothing trains", TRAINS_WITHIN_S)
            return project.trainers()
        if kind in NAMES:
            nodes = known.get("ray-head", set()) | known.get("ray-node", set())
            found = sorted((one for one in nodes if one.name() == NAMES[kind]), key=lambda one: one.pid)
            return [self.rng.choice(found)] if found else []
        if kind in ("mlflow", "prefect"):
            return list(known.get(kind, ()))  # the first one alone only starts the one that serves
        server = find(project.place, kind)
        return [server] if server else []

    def _check(self, night: Night) -> None:
        """Note what is left of the night's runs, and what MLflow and the ledger lack."""
        until = time.monotonic() + GONE_WITHIN_S
        while (left := self.project.left()) and time.monotonic() < until:
            time.sleep(LOOK_S)
        night.version, lacking = self.project.verdict()
        night.faults += left + lacking
        if any("does not run" in one for one in left):
            self._up(night)

    def collect(self, night: Night) -> str:
        """Delete what `keep` does not keep, as if all before the last nights were a day old; say what that was."""
        try:
            return self.project.collect(self.began[-min(KEEP_NIGHTS, len(self.began))] + DAY_S)
        except (Fault, SegmillError, OSError) as error:
            night.faults.append(f"nothing could be collected: {error}")
            return night.faults[-1]


@contextmanager
def deployed(folder: Path | None) -> Iterator[Project]:
    """Yield a project that is deployed on a new stack; both are gone afterwards."""
    project = Project(Path(tempfile.mkdtemp(prefix="soak-", dir=folder)))
    try:
        project.set_up()
        yield project
    except BaseException:
        log = project.place.log("worker")
        print("\n".join(log.read_text().splitlines()[-40:] if log.exists() else []), file=sys.stderr)
        raise
    finally:
        project.down()


def table(taken: dict[int, dict[str, float]], nights: int) -> str:
    """Return the figures after the first night, in the middle of ``nights`` and at the end, and how they grew."""
    shown = sorted({1, nights // 2, max(taken)} & set(taken))
    lines = [f"{'after night':32}" + "".join(f"{number:>10}" for number in shown) + f"{'growth':>10}"]
    for name in taken[shown[0]]:
        values = [taken[number].get(name, 0.0) for number in shown]
        growth = f"{values[-1] / values[0]:>9.2f}x" if values[0] else ""
        lines.append(f"{name:32}" + "".join(f"{value:>10.1f}" for value in values) + growth)
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--nights", type=int, default=50)
    parser.add_argument("--seed", type=int, default=15)
    parser.add_argument("--json", type=Path, help="a file that is written again after each night")
    parser.add_argument("--folder", type=Path, help="where the temporary folder is made")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    switch_telemetry_off()
    nights, began = plans(options.nights, options.seed), time.monotonic()
    taken: dict[int, dict[str, float]] = {}
    with deployed(options.folder) as project:
        print(f"the stack is up and the project deployed after {time.monotonic() - began:.0f} s", flush=True)
        soak = Soak(project, random.Random(options.seed))
        for night in nights:
            try:
                soak.live(night)
            except (Fault, SegmillError, OSError) as error:
                night.faults.append(f"{type(error).__name__}: {error}")
            print(night.line(), flush=True)
            if night.number % COLLECT_EVERY == 0:
                print(f"    {soak.collect(night)}", flush=True)
            taken[night.number] = figures(project.place)
            if night.number % COLLECT_EVERY == 0 or night.number == 1:
                print(table(taken, options.nights), flush=True)
            if options.json:
                done = [asdict(one) for one in nights[: night.number]]
                options.json.write_text(json.dumps({"seed": options.seed, "nights": done, "figures": taken}, indent=1))
    faults = [fault for night in nights for fault in night.faults]
    print("", table(taken, options.nights), "", *(night.line() for night in nights), "", sep="\n")
    print(f"{len(nights)} nights in {(time.monotonic() - began) / 60:.0f} minutes, {len(faults)} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
