"""One writer at a time, with real processes: named, waited for, forgotten when dead, no bar to its own children."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from typer.testing import CliRunner

from flows.commands.cli import app
from segmill.params import read_params
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, WorkspaceBusy, writer, writing
from tests.flows.commands.test_cli import segmill

HOLD = """
import subprocess, sys
from pathlib import Path
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing
with writing(Workspace(Path(sys.argv[1])), Part(sys.argv[2]), "segmill retrain"):
    print("holds", flush=True)
    for line in sys.stdin:
        subprocess.run([sys.executable, "-c", line], check=True)
        print("ran", flush=True)
"""


@contextmanager
def holder(workspace: Workspace, part: Part = Part.WORKSPACE) -> Iterator[subprocess.Popen[str]]:
    """A process that writes until it is told to end; what comes to its standard input runs in a child of it."""
    command = [sys.executable, "-c", HOLD, str(workspace.root), part]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdin and process.stdout
    try:
        assert process.stdout.readline() == "holds\n"
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.fixture
def empty(tmp_path: Path) -> Workspace:
    return Workspace(tmp_path)


def test_the_other_is_named_with_command_begin_and_process(empty: Workspace) -> None:
    with holder(empty) as process:
        wanted = rf"`segmill retrain` has been running in {empty.root} since \d\d:\d\d:\d\d \(process {process.pid}\)"
        with pytest.raises(WorkspaceBusy, match=wanted) as busy, writing(empty, Part.WORKSPACE, "segmill tune"):
            pass
        assert busy.value.exit_code == 4
        assert writer(empty, Part.WORKSPACE).endswith(f"(process {process.pid})")
        assert writer(empty, Part.DATA) == ""
        with writing(empty, Part.DATA, "segmill data add"):
            pass


def test_a_killed_writer_does_not_count(empty: Workspace) -> None:
    with holder(empty) as process:
        process.kill()
        process.wait()
        assert (empty.scratch / "locks" / "workspace.json").is_file(), "it could not tidy up"
        assert writer(empty, Part.WORKSPACE) == ""
        with writing(empty, Part.WORKSPACE, "segmill retrain"):
            assert f"(process {os.getpid()})" in subprocess.run(
                [sys.executable, "-c", f"""
from pathlib import Path
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writer
print(writer(Workspace(Path({str(empty.root)!r})), Part.WORKSPACE))
"""], capture_output=True, text=True, check=True).stdout  # fmt: skip
    assert not (empty.scratch / "locks" / "workspace.json").exists()


def test_who_waits_is_told_and_goes_on_when_the_other_is_done(empty: Workspace) -> None:
    said: list[str] = []
    with holder(empty) as process:

        def say(sentence: str) -> None:
            said.append(sentence)
            process.stdin.close()  # type: ignore[union-attr]

        with writing(empty, Part.WORKSPACE, "segmill retrain", wait=True, say=say):
            assert process.wait(timeout=10) == 0
    (sentence,) = said
    assert sentence.endswith(f"(process {process.pid}); waiting until it is done")


def test_children_and_the_process_itself_are_the_same_writer(empty: Workspace) -> None:
    again = "import os, runpy, sys; sys.argv[1:] = {arguments!r}; exec({code!r})"
    code = HOLD.partition("    for line")[0]
    with holder(empty) as process:
        assert process.stdin and process.stdout
        began = time.monotonic()
        process.stdin.write(again.format(arguments=[str(empty.root), "workspace"], code=code) + "\n")
        process.stdin.flush()
        assert process.stdout.readline() == "holds\n", "the child, inside its parent"
        assert process.stdout.readline() == "ran\n"
        assert time.monotonic() - began < 30
        assert writer(empty, Part.WORKSPACE), "the child's end did not free its parent's lock"
    with writing(empty, Part.WORKSPACE, "segmill demo"), writing(empty, Part.WORKSPACE, "segmill retrain"):
        pass
    assert writer(empty, Part.WORKSPACE) == ""


def test_commands_that_write_leave_with_exit_code_4_and_change_nothing(workspace: Workspace) -> None:
    before = workspace.params.read_bytes()
    with holder(workspace) as process:
        for command in (["retrain", "--set", "train.epochs=7"], ["validate"], ["audit"], ["tune", "lite0-unet"],
                        ["stage", "augment"], ["doctor", "--fix"]):  # fmt: skip
            done = CliRunner().invoke(app, [*command, "--workspace", str(workspace.root)])
            assert isinstance(done.exception, WorkspaceBusy) and not done.output, command
            assert f"(process {process.pid}); wait until it is done, or add --wait" in str(done.exception)
        code, said = segmill("retrain", "--set", "train.epochs=7", cwd=workspace.root)
        assert code == 4, said
        (line,) = said.splitlines()
        assert line.startswith("error `segmill retrain` has been running in ")
        assert line.endswith(f"(process {process.pid}); wait until it is done, or add --wait")
        code, said = segmill("status", cwd=workspace.root)
        assert code == 0 and f"(process {process.pid})" in said
    assert workspace.params.read_bytes() == before


def test_data_is_added_beside_a_run_that_has_read_it_and_not_before(workspace: Workspace, street: Path) -> None:
    command = ("data", "add", str(street), "-m", "the same")
    with holder(workspace), holder(workspace, Part.DATA) as process:
        code, said = segmill(*command, cwd=workspace.root)
        assert code == 4 and f"(process {process.pid})" in said
        code, said = segmill("stage", "prepare", cwd=workspace.root)
        assert code == 4
    with holder(workspace):
        code, said = segmill(*command, cwd=workspace.root)
        assert (code, "80 known already" in said) == (0, True), said


def test_a_demo_whose_workspace_is_taken_names_the_other(workspace: Workspace) -> None:
    with holder(workspace) as process:
        code, said = segmill("demo", "--workspace", str(workspace.root), cwd=workspace.root)
    assert code == 4 and f"(process {process.pid})" in said


def test_dvc_repro_stops_with_the_same_sentence(workspace: Workspace) -> None:
    from tasks.version import version

    version(workspace, read_params(workspace.params))
    folder = Path(sys.executable).parent
    with holder(workspace) as process:
        done = subprocess.run(
            [str(folder / "dvc"), "repro", "validate"], cwd=workspace.root, capture_output=True, text=True,
            env={**os.environ, "PATH": f"{folder}{os.pathsep}{os.environ['PATH']}"},
        )  # fmt: skip
    assert done.returncode != 0
    assert f"(process {process.pid}); wait until it is done" in done.stdout + done.stderr
