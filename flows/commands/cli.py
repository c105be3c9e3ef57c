"""The `segmill` command: the list of its commands, and what each error becomes: a sentence and an exit code."""

from __future__ import annotations

import errno
import platform
import signal
import sys
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, NoReturn

import typer
from rich.console import Console
from rich.markup import escape

from flows.commands import (
    audit,
    deploy,
    doctor,
    gc,
    plan,
    predict,
    profile,
    promotion,
    retrain,
    serve,
    start,
    status,
    tune,
    ui,
    validate,
    verify,
    windows,
)  # fmt: skip
from flows.commands.data import data_app
from flows.commands.keys import keys_app
from flows.commands.ledger import ledger_app
from flows.commands.options import with_json
from flows.commands.signing import signing_app
from flows.commands.stopping import INTERRUPTED, leave, obey_signals
from flows.environment import switch_telemetry_off
from segmill.credentials import keep_from_helpers
from segmill.errors import GateRefused, SegmillError
from segmill.names import visible_lines
from segmill.workspace import free_bytes

app = typer.Typer(
    help="Retrain, compare and replace segmentation models, from versioned data to a gated promotion.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
)
err = Console(stderr=True)

COMMANDS: dict[str, Callable[..., None]] = {  # in the order of the help
    "init": start.init_command,
    "demo": start.demo_command,
    "validate": validate.validate_command,
    "retrain": retrain.retrain_command,
    "status": status.status_command,
    "history": status.history_command,
    "deploy": deploy.deploy_command,
    "promote": promotion.promote_command,
    "rollback": promotion.rollback_command,
    "approve": promotion.approve_command,
    "reject": promotion.reject_command,
    "verify": verify.verify_command,
    "predict": predict.predict_command,
    "audit": audit.audit_command,
    "plan": plan.plan_command,
    "tune": tune.tune_command,
    "profile": profile.profile_command,
    "serve": serve.serve_command,
    "windows": windows.windows_command,
    "ui": ui.ui_command,
    "doctor": doctor.doctor_command,
    "gc": gc.gc_command,
    "stage": retrain.stage_command,
}
FOR_DVC = ("stage",)  # dvc.yaml calls it; `segmill status --json` says what came of it


def say_version(asked: bool) -> None:
    """Print the release and what it runs on, and end the command."""
    if asked:
        print(f"segmill {version('segmill')} (Python {platform.python_version()}, {platform.system()})")
        raise typer.Exit


@app.callback()
def main_options(
    show_version: Annotated[
        bool, typer.Option("--version", help="Say which release this is.", callback=say_version, is_eager=True)
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks; allowed anywhere in the line.")] = False,
) -> None:
    """Options of every command (``--debug`` is taken out of the line before it is parsed)."""


for name, command in COMMANDS.items():
    app.command(name)(command if name in FOR_DVC else with_json(command))
app.add_typer(data_app, name="data")
app.add_typer(ledger_app, name="ledger")
app.add_typer(signing_app, name="signing")
app.add_typer(keys_app, name="keys")


def main() -> NoReturn:
    """Run the command line. Exit codes: 1 yours to mend, 2 usage, 3 the gate said no, 4 infrastructure."""
    debug = "--debug" in sys.argv
    arguments = [argument for argument in sys.argv[1:] if argument != "--debug"]
    switch_telemetry_off()
    keep_from_helpers()
    obey_signals(lambda: _say_interrupted(debug))
    try:
        app(arguments, prog_name="segmill")
        code = 0
    except SystemExit as stop:
        code = stop.code if isinstance(stop.code, int) else 1
        code = INTERRUPTED if code == signal.SIGTERM else code  # while Ray starts, SIGTERM ends a process so
    except KeyboardInterrupt:
        code = INTERRUPTED
    except SegmillError as error:
        code = _say(debug, str(error), error.exit_code)
    except OSError as error:
        code = _say(debug, *_about_the_system(error))
    except Exception as error:
        what = f"{type(error).__name__}: {error}".strip().splitlines()[0]
        code = _say(debug, f"unexpected {what}; run again with --debug for the traceback", 1)
    if code == INTERRUPTED:
        _say_interrupted(debug)
        leave()
    prefect = sys.modules.get("flows.prefect_server")
    if prefect and prefect.is_silent():
        leave(code)
    sys.exit(code)


def _say_interrupted(debug: bool) -> None:
    _say(debug, "interrupted; what was finished is recorded, and the next run resumes from there", INTERRUPTED)


def _say(debug: bool, sentence: str, code: int) -> int:
    if debug and sys.exc_info()[0]:
        err.print_exception()
    label = {GateRefused.exit_code: "[bold yellow]gate[/] ", INTERRUPTED: ""}.get(code, "[bold red]error[/] ")
    err.print(f"{label}{escape(visible_lines(sentence))}", highlight=False, soft_wrap=True)
    return code


def _about_the_system(error: OSError) -> tuple[str, int]:
    where = error.filename or "the workspace"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        folder = Path(error.filename) if error.filename else Path.cwd()
        free = free_bytes(folder) / 2**20
        return f"the disk is full: {free:.0f} MiB free on the disk of {where}; free some space and run again", 1
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return f"{where} may not be written or read ({error.strerror}); check its owner and permissions", 1
    return f"{where}: {error.strerror or error}; run again with --debug for the traceback", 1


if __name__ == "__main__":
    main()
