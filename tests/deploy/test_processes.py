"""Servers of a stack as processes: started, found, stopped by their process ids, none left."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import stat
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from deploy.stack.place import Place
from deploy.stack.processes import MARK, Server, alive, find, marked, start, stop, stop_rest, wait_ready
from deploy.stack.servers import delete_ray_sessions
from segmill.errors import InfrastructureError, InputError
from segmill.orphans import is_watcher

PARENT = """
import signal, subprocess, sys, time
{how}
subprocess.Popen([sys.executable, "-c", "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"])
print("serving", flush=True)
time.sleep(600)
"""


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    made = Place.create(tmp_path / "stack")
    yield made
    stop_rest(made)
    if made.run.exists():
        made.remove()


def server(place: Place, code: str, name: str = "one") -> Server:
    return Server(name, [sys.executable, "-c", code], {}, None, lambda: "serving" in place.log(name).read_text())


def test_files_are_the_owners_alone(place: Place) -> None:
    password = place.secret("postgres")
    assert len(password) == 32 and place.secret("postgres") == password != place.secret("prefect")
    place.keep("postgres", "another")
    assert stat.S_IMODE(place.secret_file("postgres").stat().st_mode) == 0o600
    assert stat.S_IMODE(place.folder.stat().st_mode) == 0o700
    assert len(set(place.ports.values())) == len(place.ports)
    assert "another" not in (place.folder / "stack.json").read_text()


def test_a_folder_of_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "mine").write_text("")
    with pytest.raises(InputError, match="holds no stack's record; remove it, or name another --folder"):
        Place.create(tmp_path)
    assert (tmp_path / "mine").exists() and Place.open(tmp_path) is None


def test_a_server_sees_nothing_of_the_users(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "mine")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "mine")
    start(place, server(place, PARENT.format(how="")))
    wait_ready(place, server(place, ""))
    process = find(place, "one")
    assert process is not None
    seen = process.environ()
    assert "mine" not in seen.values() and seen["HOME"] == str(place.folder / "home") and seen[MARK] == place.id


@pytest.mark.parametrize(
    ("how", "killed"),
    [("", []), ("signal.signal(15, signal.SIG_IGN)", ["one"])],
    ids=["ends by SIGTERM", "ignores SIGTERM"],
)
def test_a_server_ends_with_what_it_started(
    place: Place, how: str, killed: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("deploy.stack.processes.ENDS_WITHIN_S", 1)
    monkeypatch.setattr("deploy.stack.processes.ALONE_S", 1)
    start(place, server(place, PARENT.format(how=how)))
    wait_ready(place, server(place, ""))
    assert len(marked(place)) == 2
    assert stop(place, {"one": signal.SIGTERM}) == killed
    assert marked(place) == set() and not alive(place, "one")


def test_what_a_killed_server_left_ends_where_it_is_stopped(place: Place, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("deploy.stack.processes.ALONE_S", 1)
    for name in ("one", "two"):
        start(place, server(place, PARENT.format(how=""), name))
        wait_ready(place, server(place, "", name))
    os.kill(place.processes["one"][0], signal.SIGKILL)
    psutil.wait_procs([process for process in marked(place) if process.pid == place.processes["one"][0]], 5)
    assert len(marked(place, "one")) == 1
    assert stop(place, {"one": signal.SIGTERM}) == []
    assert marked(place, "one") == set() and len(marked(place, "two")) == 2
    place.processes.clear()
    stop_rest(place)
    assert marked(place) == set()


def test_another_process_with_the_same_id_is_left_alone(place: Place) -> None:
    stranger = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    try:
        place.processes["one"] = stranger.pid, time.time() - 1000
        assert not alive(place, "one")
        stop(place, {"one": signal.SIGTERM})
        assert stranger.poll() is None
    finally:
        stranger.kill()
        stranger.wait()


def test_a_server_that_does_not_start_says_why(place: Place) -> None:
    broken = server(place, "raise SystemExit('the port is taken')")
    start(place, broken)
    with pytest.raises(InfrastructureError, match=r"(?s)one did not start; .*one\.log ends with:\nthe port is taken"):
        wait_ready(place, broken)


def test_a_record_names_what_runs(place: Place) -> None:
    start(place, server(place, PARENT.format(how="")))
    again = Place.open(place.folder)
    assert again == place and alive(again, "one")
    start(again, server(again, "raise SystemExit('twice')"))
    assert again.processes == place.processes


def test_what_a_killed_server_left_ends_before_it_is_started_again(place: Place) -> None:
    start(place, server(place, PARENT.format(how="")))
    start(place, server(place, PARENT.format(how=""), "two"))
    wait_ready(place, server(place, ""), server(place, "", "two"))
    left, other = marked(place, "one"), marked(place, "two")
    os.kill(place.processes["one"][0], signal.SIGKILL)
    psutil.wait_procs([process for process in left if process.pid == place.processes["one"][0]], 5)
    assert len(left) == len(other) == 2 and any(process.is_running() for process in left)
    start(place, server(place, PARENT.format(how="")))
    assert not [process for process in left if process.is_running()]
    assert marked(place, "two") == other


def test_the_temporary_folder_of_a_run_is_deleted_where_its_server_was_killed(place: Place) -> None:
    run = "import time; from segmill.orphans import end_with_this_process as end; end(temporary_folder=True)"
    worker = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {run!r} + '; time.sleep(600)'])"
    one = server(place, worker)
    start(place, one)
    until = time.monotonic() + 30
    while not any(is_watcher(process) for process in marked(place)) and time.monotonic() < until:
        time.sleep(0.1)
    (folder,) = (place.run / "tmp").glob("sm-*")
    known = find(place, "one")
    assert known is not None
    known.kill()
    known.wait(5)
    start(place, server(place, "import time; time.sleep(600)"))
    assert not folder.exists() and len(marked(place)) == 1


def test_a_server_whose_start_no_record_names_is_not_started_twice(place: Place) -> None:
    start(place, server(place, PARENT.format(how="")))
    wait_ready(place, server(place, ""))
    place.processes.clear()  # as after a kill between the start and the record
    first = marked(place)
    start(place, server(place, PARENT.format(how="")))
    wait_ready(place, server(place, ""))
    assert len(first) == len(marked(place)) == 2 and not first & marked(place)


def test_a_port_that_another_program_has_is_said(place: Place) -> None:
    one = replace(server(place, PARENT.format(how="")), port=place.ports["s3"])
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", place.ports["s3"]))
        taken.listen()
        with pytest.raises(InputError, match=f"port {place.ports['s3']}, which is one's on this stack, is used by an"):
            start(place, one)
    start(place, one)
    assert alive(place, "one")


def test_a_stack_whose_making_was_cut_off_is_completed(place: Place) -> None:
    shutil.rmtree(place.folder / "secrets")
    shutil.rmtree(place.run)
    again = Place.open(place.folder)
    assert again == place
    again.make_folders()
    again.secret_file("ray").touch()  # as after a kill before it was written
    assert len(again.secret("ray")) == 32 and (again.run / "tmp").is_dir()


def test_of_rays_sessions_the_last_one_stays(place: Place) -> None:
    delete_ray_sessions(place)
    ray = place.run / "ray"
    for name in ("session_2026-11-29_02-00-00_1_7", "session_2026-11-30_02-00-00_1_8"):
        (ray / name / "logs").mkdir(parents=True)
    (ray / "session_latest").symlink_to(ray / "session_2026-11-30_02-00-00_1_8")
    delete_ray_sessions(place)
    assert sorted(path.name for path in ray.iterdir()) == ["session_2026-11-30_02-00-00_1_8", "session_latest"]
