"""A process of Ray's own is killed: whoever waits for work gets a sentence, within seconds, and the driver lives."""

from __future__ import annotations

import socket
import subprocess
import sys
import time

import pytest

from segmill.cluster.alive import Server

PROGRAM = """
import sys, time
import psutil
from segmill.cluster.connection import connect
from segmill.cluster.resources import total_resources
from segmill.cluster.work import on_ray, wait
from segmill.errors import SegmillError

def nap(seconds):
    time.sleep(seconds)

def ask():
    while total_resources():
        time.sleep(0.1)

try:
    with connect("local", 1):
        work = on_ray(nap, 300)
        victim, how = sys.argv[1:]
        time.sleep(1)
        next(one for one in psutil.Process().children(recursive=True) if victim in one.name()).kill()
        began = time.monotonic()
        try:
            wait(work) if how == "wait" else ask()
        finally:
            print(f"after {time.monotonic() - began:.1f} s", flush=True)
except SegmillError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@pytest.mark.slow
@pytest.mark.parametrize(
    ("victim", "named"), [("raylet", "raylet"), pytest.param("gcs_server", "head (GCS)", marks=pytest.mark.long)]
)
@pytest.mark.parametrize("how", [pytest.param("wait", marks=pytest.mark.long), "ask"])
def test_the_sentence_comes_before_ray_ends_the_process(victim: str, named: str, how: str) -> None:
    began = time.monotonic()
    done = subprocess.run([sys.executable, "-c", PROGRAM, victim, how], capture_output=True, text=True, timeout=120)
    assert done.returncode == 4, done.stdout + done.stderr
    lines = done.stdout.splitlines()  # Ray's own, too: what the raylet logged last
    (after,) = (line for line in lines if line.startswith("after "))
    assert float(after.split()[1]) < 15
    said = lines[-1]
    assert said.startswith(f"Ray's {named} at ") and said.endswith("run again: what is done is kept")
    assert time.monotonic() - began < 100


def test_a_server_listens_or_does_not() -> None:
    with socket.create_server(("127.0.0.1", 0)) as there:
        port = there.getsockname()[1]
        assert Server("one", "127.0.0.1", port, 1.0).listens()
    assert not Server("one", "127.0.0.1", port, 1.0).listens()
