"""What commands share: the workspace, written to by one alone; the terminal; and one object for machines instead."""

from __future__ import annotations

import functools
import inspect
import json
import math
import os
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, redirect_stdout
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO

import typer
from rich.console import Console

from segmill.names import visible_lines
from segmill.workspace import Workspace
from segmill.workspace_lock import Part, writing

if TYPE_CHECKING:
    from segmill.params import Params

out = Console()


class Answer:
    """The object that a command prints with --json: docs/json.md lists its keys."""

    def __init__(self, to: TextIO) -> None:
        self.facts: Any = {}
        self._to: TextIO | None = to

    def send(self) -> None:
        """Print it, once."""
        if self._to:
            print(json.dumps(_plain(self.facts), indent=2), file=self._to, flush=True)
            self._to = None


WorkspaceOption = Annotated[Path, typer.Option("--workspace", "-w", help="Folder with params.yaml and dvc.yaml.")]
WaitOption = Annotated[
    bool, typer.Option("--wait", help="Where another command writes to the workspace, wait until it is done.")
]
JsonOption = Annotated[bool, typer.Option("--json", help="Print one JSON object; all else goes to standard error.")]
HERE = Path()


def members_of(context: typer.Context) -> list[str]:
    """Return the members of the workspace that the line names, for the shell to complete; none where it has a fault."""
    from ruamel.yaml import YAML
    from ruamel.yaml.error import YAMLError

    try:
        text = Path(context.params.get("workspace") or HERE, "params.yaml").read_text()
        return list(YAML(typ="safe").load(text)["members"])
    except (OSError, ValueError, YAMLError, KeyError, TypeError):
        return []


def stages_of(context: typer.Context) -> list[str]:
    """Return the stages of the workspace that the line names, for the shell to complete."""
    from tasks.stage import STAGES

    members = [f"finetune@{member}" for member in members_of(context)]
    return [name for stage in STAGES for name in (members if stage == "finetune" else [stage])]


_answers: list[Answer] = []  # of the command that runs, where it was asked for with --json


def open_workspace(folder: Path) -> tuple[Workspace, Params]:
    """Return the workspace at ``folder`` and its settings, with the environment of every library prepared."""
    from flows.environment import prepare_environment
    from segmill.params import read_params

    workspace = Workspace.open(folder)
    params = read_params(workspace.params)
    prepare_environment(workspace, params)
    return workspace, params


def alone(
    workspace: Workspace, command: str, part: Part = Part.WORKSPACE, *, wait: bool = False
) -> AbstractContextManager[None]:
    """Be the only writer of the workspace; what it holds is read inside, since another may have changed it."""
    return writing(workspace, part, command, wait=wait, say=say)


def say(line: str) -> None:
    """Print a line as it is: no markup, no colours, not broken; no character in it moves the cursor."""
    out.print(visible_lines(line), highlight=False, markup=False, soft_wrap=True)


def tell(whole: Sequence[Any] | None = None, /, **facts: Any) -> bool:
    """Add ``facts`` to the object that ``--json`` prints, or print the list ``whole``; nothing without that option.

    Returns whether it was given, so that who asks for a report gets it once.
    """
    for answer in _answers:
        answer.facts = list(whole) if whole is not None else {**answer.facts, **facts}
    return bool(_answers)


def answer_now() -> None:
    """Print what ``tell`` was given, for a command that runs until it is stopped."""
    for answer in _answers:
        answer.send()


def with_json(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command the option ``--json``."""

    @functools.wraps(command)
    def run(*arguments: Any, as_json: bool = False, **options: Any) -> None:
        with _answering() if as_json else nullcontext():
            command(*arguments, **options)

    own = inspect.signature(command, eval_str=True)
    option = inspect.Parameter("as_json", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=JsonOption)
    run.__signature__ = own.replace(parameters=[*own.parameters.values(), option])  # type: ignore[attr-defined]
    run.__annotations__ = {**inspect.get_annotations(command, eval_str=True), "as_json": JsonOption}
    return run


@contextmanager
def _answering() -> Iterator[None]:
    """Print what the block tells as one object, with ``error`` where it fails; that leaves the exit code as it is."""
    with _all_else_to_standard_error() as to:
        answer = Answer(to)
        _answers.append(answer)
        try:
            yield
        except typer.Exit:
            raise
        except BaseException as error:
            tell(error=str(error) or type(error).__name__)
            raise
        finally:
            answer.send()
            _answers.remove(answer)


@contextmanager
def _all_else_to_standard_error() -> Iterator[TextIO]:
    """Send what this process and its children print to standard error; give where standard output was."""
    shown = sys.stdout
    try:
        number = shown.fileno()
    except (AttributeError, OSError):  # no file: a test reads it
        with redirect_stdout(sys.stderr):
            yield shown
        return
    shown.flush()
    kept = os.dup(number)
    os.dup2(sys.stderr.fileno(), number)
    try:
        with os.fdopen(os.dup(kept), "w", encoding="utf-8") as to:
            yield to
    finally:
        shown.flush()
        os.dup2(kept, number)
        os.close(kept)


def _plain(value: Any) -> Any:
    """Return a value as JSON has it: paths as text, and null for a figure that is none (of a class without pixels)."""
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(one) for one in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, str | int | float) else str(value)
