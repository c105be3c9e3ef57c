"""The command line as a person meets it: one sentence, the right exit code, no traceback."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from PIL import Image
from terminal import BIN, terminal
from typer.testing import CliRunner

from flows.commands import cli
from flows.commands.cli import app
from segmill.errors import GateRefused, InfrastructureError
from segmill.workspace import Workspace

COMMANDS = (
    "init", "demo", "validate", "retrain", "status", "history", "deploy", "promote", "rollback", "approve", "reject",
    "verify", "predict", "audit", "plan", "tune", "profile", "serve", "windows", "ui",
    "doctor", "gc", "stage", "data", "ledger", "signing", "keys",
)  # fmt: skip


def segmill(*arguments: str, cwd: Path | None = None, columns: int = 200) -> tuple[int, str]:
    """Return the exit code and all that was printed."""
    environment = {**terminal(), "COLUMNS": str(columns)}
    done = subprocess.run([BIN / "segmill", *arguments], cwd=cwd, capture_output=True, text=True, env=environment)
    return done.returncode, done.stdout + done.stderr


def test_help_has_a_line_per_command() -> None:
    code, said = segmill("--help", columns=80)
    assert code == 0
    for command in COMMANDS:
        (line,) = [line for line in said.splitlines() if line.strip().startswith(f"{command} ")]
        assert line.rstrip().endswith(".") and not line.rstrip().endswith("...")


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help(command: str) -> None:
    done = CliRunner(env={"COLUMNS": "200"}).invoke(app, [command, "--help"], prog_name="segmill")
    assert done.exit_code == 0
    assert f"Usage: segmill {command} " in done.output


ASKED = {
    "bash": lambda line: {"COMP_WORDS": line, "COMP_CWORD": str(len(line.split(" ")) - 1)},
    "zsh": lambda line: {"_TYPER_COMPLETE_ARGS": line},
    "fish": lambda line: {"_TYPER_COMPLETE_ARGS": line, "_TYPER_COMPLETE_FISH_ACTION": "get-args"},
}


@pytest.mark.parametrize(
    "shell", ["bash", *(pytest.param(shell, marks=pytest.mark.long) for shell in ASKED if shell != "bash")]
)
def test_a_shell_completes_commands_options_and_members(shell: str, workspace: Workspace) -> None:
    def completed(line: str) -> str:
        asked = {**terminal(), "_SEGMILL_COMPLETE": f"complete_{shell}", **ASKED[shell](line)}
        done = subprocess.run([BIN / "segmill"], cwd=workspace.root, capture_output=True, text=True, env=asked)
        return done.stdout

    assert "status" in completed("segmill sta") and "retrain" not in completed("segmill sta")
    assert "--workspace" in completed("segmill status --wo")
    assert "lite0-unet" in completed("segmill tune lite") and "regnety" not in completed("segmill tune lite")
    assert "finetune@lite0-unet" in completed("segmill stage finetune@l")


def test_bash_completes_what_is_typed(tmp_path: Path) -> None:
    script = subprocess.run(
        [BIN / "segmill"], capture_output=True, text=True, check=True,
        env={**terminal(), "_SEGMILL_COMPLETE": "source_bash"},
    ).stdout  # fmt: skip
    typed = "COMP_WORDS=(segmill data che); COMP_CWORD=2; _segmill_completion segmill; echo ${COMPREPLY[*]}"
    done = subprocess.run(["bash", "-c", f"{script}\n{typed}"], capture_output=True, text=True, env=terminal())
    assert done.stdout.strip() == "checkout"


def test_wrong_usage_is_exit_code_2() -> None:
    code, said = segmill("retrian")
    assert code == 2
    assert "No such command" in said


def test_no_workspace_says_how_to_make_one(tmp_path: Path) -> None:
    code, said = segmill("status", cwd=tmp_path)
    assert code == 1
    assert "is not a workspace" in said and "segmill init" in said and "segmill demo" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("name", ["params.yaml", "dvc.yaml"])
def test_a_workspace_that_lost_a_file_is_not_made_anew(workspace: Workspace, name: str) -> None:
    folder = workspace.root.with_name("my workspace")
    workspace.root.rename(folder)
    (folder / ".segmill").mkdir(exist_ok=True)
    before = (folder / name).read_bytes()
    (folder / name).unlink()
    code, said = segmill("status", cwd=folder)
    assert code == 1 and f"has lost its {name}; " in said and "init" not in said
    command = said.split("`")[1]
    assert f"'{folder}'" in command, "a path with a space in it is quoted"
    subprocess.run(command, shell=True, check=True, capture_output=True)
    assert (folder / name).read_bytes() == before


def test_the_release_is_said() -> None:
    done = CliRunner().invoke(app, ["--version"])
    assert done.exit_code == 0
    assert done.output.startswith(f"segmill {version('segmill')} (Python 3.")


def test_a_mistyped_key_stops_before_anything_runs(workspace: Workspace) -> None:
    workspace.params.write_text(workspace.params.read_text().replace("epochs:", "epoch:"))
    code, said = segmill("retrain", cwd=workspace.root)
    assert code == 1
    assert "error params.yaml: unknown key train.epoch; did you mean 'epochs'?" in said, "nobody gave a --set"
    assert not (workspace.root / "dvc.lock").exists()


def test_all_bad_files_are_listed_at_once_and_nothing_is_trusted(workspace: Workspace) -> None:
    images, masks = workspace.root / "data/raw/images", workspace.root / "data/raw/masks"
    names = sorted(path.stem for path in images.glob("*.png"))
    (images / f"{names[0]}.png").write_bytes((images / f"{names[0]}.png").read_bytes()[:200])
    Image.new("L", (10, 10)).save(masks / f"{names[1]}.png")
    Image.new("L", (64, 64), 77).save(masks / f"{names[2]}.png")
    (masks / f"{names[3]}.png").unlink()
    code, said = segmill("validate", cwd=workspace.root)
    assert code == 1
    for name in names[:4]:
        assert name in said
    assert "Traceback" not in said
    assert not workspace.manifest.exists()


def test_debug_shows_the_traceback_wherever_it_stands(tmp_path: Path) -> None:
    for line in (("--debug", "status"), ("status", "--debug")):
        code, said = segmill(*line, cwd=tmp_path)
        assert code == 1
        assert "Traceback" in said


def test_status_of_a_new_workspace(workspace: Workspace) -> None:
    code, said = segmill("status", cwd=workspace.root)
    assert code == 0
    assert "none yet" not in said and "no run yet" in said  # init recorded the set as its first version


@pytest.mark.slow
def test_init_makes_a_workspace_that_validates(street: Path, tmp_path: Path) -> None:
    code, said = segmill("init", "mine", "--data", str(street), cwd=tmp_path)
    assert code == 0 and "segmill validate, then segmill plan" in said, said
    assert segmill("init", "mine", "--data", str(street), cwd=tmp_path)[0] == 1
    code, said = segmill("validate", cwd=tmp_path / "mine")
    assert code == 0, said
    assert "train" in said and "vehicle" in said


def test_init_refuses_what_is_no_labelled_set(tmp_path: Path) -> None:
    (tmp_path / "pictures").mkdir()
    code, said = segmill("init", "mine", "--data", "pictures", cwd=tmp_path)
    assert code == 1
    assert "dataset.yaml" in said
    assert not (tmp_path / "mine").exists()


def test_a_full_disk_is_one_sentence(tmp_path: Path, street: Path) -> None:
    """On a real file system of 1 MiB that runs full."""
    small = tmp_path / "small"
    small.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(small)]).returncode:
        pytest.skip("mounting a small file system needs root")
    try:
        code, said = segmill("init", str(small / "mine"), "--data", str(street))
    finally:
        subprocess.run(["umount", str(small)], check=True)
    assert code == 1
    assert "the disk is full" in said and "Traceback" not in said


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (
            PermissionError(errno.EACCES, "Permission denied", "/x"),
            1,
            "/x may not be written or read (Permission denied)",
        ),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "free on the disk of the workspace; free some space"),
        (OSError(errno.EIO, "Input/output error", "/x"), 1, "error /x: Input/output error; run again with --debug"),
        (KeyError("lost"), 1, "error unexpected KeyError: 'lost'; run again with --debug for the traceback"),
        (InfrastructureError("[b]nobody[/b] answers"), 4, "error [b]nobody[/b] answers"),
        (GateRefused("not better"), 3, "gate not better"),
        (KeyboardInterrupt(), 130, "interrupted; what was finished is recorded"),
        (SystemExit(signal.SIGTERM), 130, "interrupted; what was finished is recorded"),
        (SystemExit("nothing"), 1, ""),
    ],
)
def test_every_error_becomes_one_sentence_and_an_exit_code(
    raised: BaseException, code: int, said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise raised

    monkeypatch.setattr(cli, "app", fail)
    monkeypatch.setattr(cli, "obey_signals", lambda say: None)
    monkeypatch.setattr("os._exit", sys.exit)
    monkeypatch.setattr("sys.argv", ["segmill", "status"])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == code
    assert said in capsys.readouterr().err


def test_a_command_that_succeeds_ends_with_0(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cli, "app", lambda *_, **__: None)
    monkeypatch.setattr(cli, "obey_signals", lambda say: None)
    with pytest.raises(SystemExit) as stop:
        cli.main()
    assert stop.value.code == 0
