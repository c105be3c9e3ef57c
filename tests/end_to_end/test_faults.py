"""A signal, a disk that runs full, weights out of reach: in the middle of a run, with the real libraries."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import termios
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from ruamel.yaml import YAML
from terminal import BIN, run, run_json, states, terminal

from segmill import progress
from segmill.workspace import Workspace
from tasks.finetune import curves_path

pytestmark = pytest.mark.slow

PROMPT_S = 5  # from Ctrl-C to the end of the command
END_S = 10  # from its end to that of all that it started


@pytest.fixture(scope="module")
def small_disk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder that is a file system of 700 MiB, where we may mount one."""
    folder = tmp_path_factory.mktemp("disk")
    mounted = not os.geteuid() and not subprocess.call(
        ["mount", "-t", "tmpfs", "-o", "size=700m", "tmpfs", str(folder)]
    )
    yield folder
    if mounted:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture(scope="module")
def stopped(small_disk: Path, brain_workspace: Callable[..., Workspace]) -> tuple[Workspace, str, list[psutil.Process]]:
    """A workspace whose first training a signal stopped, what was printed, and the processes that ran."""
    workspace = brain_workspace(small_disk, "fpn", epochs=200)
    said = workspace.root.with_name("said")
    own = terminal() | {"PYTHONFAULTHANDLER": "1"}
    with said.open("w") as out:
        process = psutil.Popen([BIN / "segmill", "retrain"], cwd=workspace.root, stdout=out, stderr=out, env=own)
    curves = curves_path(workspace, "fpn")
    while not curves.exists() or len(curves.read_text().splitlines()) < 1 + 4:  # epochs: who begins again has fewer
        assert process.poll() is None, said.read_text()
        time.sleep(0.1)
    started = process.children(recursive=True)
    process.terminate()
    assert process.wait(timeout=60) == 130, said.read_text()
    return workspace, said.read_text(), started


@pytest.mark.long
def test_a_stop_signal_ends_a_training_at_once_and_leaves_no_process(
    stopped: tuple[Workspace, str, list[psutil.Process]],
) -> None:
    workspace, said, started = stopped
    assert "interrupted; what was finished is recorded" in said
    assert len(started) > 3, "Ray's and Prefect's"
    assert psutil.wait_procs(started, timeout=30)[1] == []
    assert list(workspace.checkpoints.rglob("state.pt"))


@pytest.mark.long
def test_ctrl_c_in_a_terminal_reaches_the_run_and_leaves_its_servers_to_it(
    tmp_path: Path, brain_workspace: Callable[..., Workspace]
) -> None:
    """A terminal sends it to every process; a run whose Prefect server was gone asked it for minutes."""
    workspace = brain_workspace(tmp_path, epochs=200)
    terminal_end, own_end = os.openpty()
    process = psutil.Popen(
        [BIN / "segmill", "retrain"], cwd=workspace.root, stdin=own_end, stdout=own_end, stderr=own_end,
        start_new_session=True, preexec_fn=as_a_shell_does, env=terminal(),
    )  # fmt: skip
    os.close(own_end)
    with ThreadPoolExecutor(1) as background:
        said = background.submit(read_all, terminal_end)
        started = descendants_in_training(process, workspace, lambda: str(said.result()))
        os.write(terminal_end, b"\x03")
        assert process.wait(timeout=PROMPT_S) == 130, said.result()
        assert psutil.wait_procs(started, timeout=END_S)[1] == []
        last = said.result().splitlines()[-1]
    assert "interrupted; what was finished is recorded" in last
    assert_status_says_interrupted_training(workspace)


@pytest.mark.long
def test_nothing_outlives_a_killed_run(tmp_path: Path, brain_workspace: Callable[..., Workspace]) -> None:
    workspace = brain_workspace(tmp_path, epochs=200)
    said = tmp_path / "said"
    with said.open("w") as out:
        process = psutil.Popen([BIN / "segmill", "retrain"], cwd=workspace.root, stdout=out, stderr=out, env=terminal())
    started = descendants_in_training(process, workspace, said.read_text)
    process.kill()
    process.wait()
    assert psutil.wait_procs(started, timeout=END_S)[1] == []
    assert_status_says_interrupted_training(workspace)


def assert_status_says_interrupted_training(workspace: Workspace) -> None:
    found = run_json(workspace, "segmill", "status")
    assert found["interrupted"]["steps"] == ["finetune@fpn", "finetune@unet"]
    assert found["interrupted"]["began"] <= found["interrupted"]["last_heard"]


def descendants_in_training(
    process: psutil.Popen, workspace: Workspace, said: Callable[[], str]
) -> list[psutil.Process]:
    """Wait until two members train; return all processes of the run: Ray's, Prefect's and their watcher."""
    curves = [curves_path(workspace, member) for member in ("fpn", "unet")]
    while not all(curve.exists() and len(curve.read_text().splitlines()) >= 2 for curve in curves):
        assert process.poll() is None, said()
        time.sleep(0.1)
    started: list[psutil.Process] = process.children(recursive=True)
    assert len(started) >= 10
    return started


def as_a_shell_does() -> None:
    """Take standard input for the terminal, and hear Ctrl-C: who is started in the background ignores it."""
    fcntl.ioctl(0, termios.TIOCSCTTY, 0)
    signal.signal(signal.SIGINT, signal.SIG_DFL)


def read_all(terminal_end: int) -> str:
    """Return what a terminal shows until the last process closes it."""
    shown = b""
    with suppress(OSError):  # Linux's way to say that it is closed
        while block := os.read(terminal_end, 65536):
            shown += block
    os.close(terminal_end)
    return shown.decode()


@pytest.mark.fault
def test_the_next_run_resumes_and_a_disk_that_runs_full_in_the_middle_costs_only_that_stage(
    stopped: tuple[Workspace, str, list[psutil.Process]], small_disk: Path, servers: dict[str, str]
) -> None:
    """On a real file system of 700 MiB, filled to the last byte while the member trains."""
    if not os.path.ismount(small_disk):
        pytest.skip("mounting a small file system needs root")
    workspace = stopped[0]
    filler, note = small_disk / "filler", workspace.progress / "finetune@fpn.member.json"
    epochs = len(curves_path(workspace, "fpn").read_text().splitlines()) - 1
    note.unlink()
    with ThreadPoolExecutor(1) as background:
        running = background.submit(run, workspace, "segmill", "retrain", code=1, servers=servers)
        while "epoch" not in (facts := progress.read(note) or {}):
            assert not running.done(), running.result()
            time.sleep(0.1)
        with suppress(OSError), filler.open("wb", buffering=0) as file:
            while True:
                file.write(bytes(2**20))
        said = running.result()
    assert facts["epoch"] >= epochs, "it did not begin again"
    assert said.splitlines()[-1].startswith("error the disk is full: ")
    os.truncate(filler, filler.stat().st_size - 100 * 2**20)
    assert "a run may take about 3" in run(workspace, "segmill", "retrain", code=1), "refused before anything starts"
    filler.unlink()
    yaml = YAML()
    yaml.dump(
        yaml.load(workspace.params) | {"train": yaml.load(workspace.params)["train"] | {"epochs": 1}}, workspace.params
    )
    found = states(run(workspace, "segmill", "retrain", servers=servers))
    assert (found["prepare"], found["finetune@fpn"], found["promote"]) == ("fresh", "ran", "ran")
    assert run_json(workspace, "segmill", "status")["interrupted"] is None


@pytest.mark.long
def test_weights_out_of_reach_stop_the_run_before_any_training(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    brain_workspace: Callable[..., Workspace],
    servers: dict[str, str],
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    workspace = brain_workspace(tmp_path, "fpn")
    said = run(workspace, "segmill", "retrain", "--set", "members.fpn.weights=timm", code=1, servers=servers)
    assert "weights" in said.splitlines()[-1] and "none" in said.splitlines()[-1], "says what to write instead"
    assert "finetune@fpn" not in states(said)
    assert not list(workspace.checkpoints.rglob("state.pt"))
