from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest

from segmill.cluster.connection import LOOPBACK_ONLY, connect
from segmill.cluster.work import on_ray, wait
from segmill.errors import InfrastructureError, SegmillError


def sleep(seconds: int) -> int:
    time.sleep(seconds)
    return seconds


@pytest.mark.parametrize("module", ["alive", "connection", "memory", "queue", "resources", "work"])
def test_importing_it_is_light(module: str) -> None:
    heavy = "('torch', 'ray', 'numpy')"
    code = f"import sys, segmill.cluster.{module}; print([m for m in {heavy} if m in sys.modules])"
    assert subprocess.check_output([sys.executable, "-c", code], text=True).strip() == "[]"


def test_no_cluster_at_the_address() -> None:
    with pytest.raises(InfrastructureError, match="no Ray cluster at"), connect("nowhere"):
        pass


def test_a_cluster_that_is_gone_is_said_at_once() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound and not listening: nobody answers
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        began = time.monotonic()
        with pytest.raises(InfrastructureError, match=f"no Ray cluster at {address} .*refused"), connect(address):
            pass
    assert time.monotonic() - began < 10


@pytest.mark.slow
@pytest.mark.long
def test_an_interrupt_ends_whoever_waits_in_another_thread_and_work_is_taken_again_later() -> None:
    """Within ray.get the thread may stay for ever, taking a whole core."""
    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(KeyboardInterrupt), connect("local", 1):
            waiting = threads.submit(lambda: wait(on_ray(sleep, 60)))
            with pytest.raises(TimeoutError):
                waiting.result(timeout=3)
            raise KeyboardInterrupt
        with pytest.raises(SegmillError, match=r"^the run was stopped$"):
            waiting.result(timeout=20)
        with pytest.raises(SegmillError, match=r"^the run was stopped$"):
            on_ray(sleep, 0)
    with connect("local", 1):
        assert wait(on_ray(sleep, 0)) == 0


def test_a_ray_that_does_not_start_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_TMPDIR", "/dev/null")
    with pytest.raises(InfrastructureError, match=r"^Ray did not start on this machine \("), connect("local", 1):
        pass


NEEDED = {"MLFLOW_TRACKING_PASSWORD": "fetches versions", "OPENS_NOTHING": "1"}
PLANTED = {"SEGMILL_SIGNING_KEY": "canary-7f3a", "PREFECT_API_AUTH_STRING": "canary-7f3a", **NEEDED}
STARTS = """
import json, psutil
from segmill.cluster.connection import connect
from segmill.cluster.work import on_ray, wait
from tests.cluster.test_connection import PLANTED, variables_of
with connect("local", num_cpus=1):
    said = {"worker": wait(on_ray(variables_of, tuple(PLANTED))), "own": variables_of(tuple(PLANTED))}
    here = psutil.Process()
    children = here.children(recursive=True)
    listening = [c for p in (here, *children) for c in p.net_connections() if c.status == "LISTEN"]
    said["listening"] = sorted({c.laddr.ip for c in listening})
    said["children"] = {p.pid: [" ".join(p.cmdline()), "canary-7f3a" in p.environ().values()] for p in children}
    print(json.dumps(said))
"""


def variables_of(names: tuple[str, ...]) -> dict[str, str]:
    return {name: os.environ[name] for name in names if name in os.environ}


@pytest.fixture(scope="module")
def started() -> dict[str, Any]:
    """What a Ray that is started here says of itself."""
    own = {name: value for name, value in os.environ.items() if name != LOOPBACK_ONLY} | PLANTED
    done = subprocess.run([sys.executable, "-c", STARTS], env=own, capture_output=True, text=True, check=True)
    said: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return said


@pytest.mark.slow
def test_a_ray_that_is_started_here_listens_on_loopback_alone(started: dict[str, Any]) -> None:
    """Its servers run what they are sent, and listened on every interface of the machine."""
    found = set(started["listening"])
    assert found and found <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


@pytest.mark.slow
def test_a_ray_that_is_started_here_gets_no_credential_but_what_reaches_mlflow(started: dict[str, Any]) -> None:
    assert (started["worker"], started["own"]) == (NEEDED, PLANTED)
    assert len(started["children"]) > 3
    assert [command for command, has_canary in started["children"].values() if has_canary] == []
