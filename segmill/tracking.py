"""MLflow runs: what was measured. Every call names its run; no run is "active", so threads do not meet."""

from __future__ import annotations

import contextlib
import csv
import errno
import logging
import math
import os
import socket
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, Literal, cast
from urllib.parse import quote, urlsplit

from segmill import owner
from segmill.alongside import alongside
from segmill.errors import InfrastructureError
from segmill.mlflow_pages import OF_TRAINING, pages
from segmill.names import mlflow_names
from segmill.passwords import without_password, without_passwords
from segmill.unsent import Update, Value, keep, kept

if TYPE_CHECKING:
    from mlflow import MlflowClient

# What one request may hold, by MLflow's REST API (mlflow.utils.validation).
METRICS_PER_REQUEST = 1000
PARAMS_PER_REQUEST = 100

FOLLOW_INTERVAL_S = 2.0
REFUSALS = ("PERMISSION_DENIED", "UNAUTHENTICATED", "CUSTOMER_UNAUTHORIZED")  # codes of MLflow's errors


def start_run(
    uri: str,
    experiment: str,
    name: str,
    *,
    tags: Mapping[str, str] | None = None,
    parent: str | None = None,
    artifacts: str | None = None,
) -> str:
    """Start a run and return its id.

    Args:
        uri: tracking URI, for example ``sqlite:////home/me/mlflow.db`` or ``http://mlflow:5000``.
        experiment: its name; made where there is none.
        name: the run's name.
        tags: facts to search by.
        parent: id of the run this one is shown under.
        artifacts: URI or folder where a NEW experiment keeps its files; an existing one keeps its own. None
            leaves the choice to the server, which for a database URI is ``./mlruns`` of the current folder.

    Raises:
        InfrastructureError: the tracking server or its database does not answer.
    """
    with reaching(uri) as client:
        experiment_id = _experiment(client, experiment, artifacts)
        own = {owner.TAG: owner.this_process(), **({"mlflow.parentRunId": parent} if parent else {})}
        run = client.create_run(experiment_id, run_name=name, tags={**(tags or {}), **own})
        return str(run.info.run_id)


@dataclass(frozen=True)
class Run:
    """An open run of a retrain and, nested under it, one per member (name to run id).

    ``unsent``: the folder that keeps what can't be sent, for ``send_kept``. ``rows``: how many rows of each member's
    curve are sent or kept.
    """

    uri: str
    id: str
    members: dict[str, str]
    unsent: Path
    rows: dict[str, int] = field(default_factory=dict)


def address(root: Path, named: str) -> str:
    """Return MLflow's address: MLFLOW_TRACKING_URI, else ``named``; a relative SQLite path is taken from ``root``."""
    named = os.environ.get("MLFLOW_TRACKING_URI") or named
    prefix = "sqlite:///"
    if named.startswith(prefix) and not named.startswith(prefix + "/"):
        return f"{prefix}{root / named.removeprefix(prefix)}"
    return named


def warm_up() -> None:
    """Import MLflow, which takes a second, and ask nothing of it: for a moment in which others are waited for."""
    import mlflow  # noqa: F401


def warm_up_without_pandas() -> None:
    """Import MLflow without pandas, which takes a fifth of the time and which only its data sets and models need.

    For a process that asks the registry and then ends: pandas can't be imported in it any more.
    """
    sys.modules.setdefault("pandas", cast(ModuleType, None))  # as the import system has a module that is not there
    warm_up()


@contextlib.contextmanager
def open_run(
    uri: str, experiment: str, name: str, members: Sequence[str], unsent: Path, *, artifacts: str | None = None
) -> Iterator[Run]:
    """Start a run with a nested one per member; close all of them with the block, FAILED where it raised.

    ``unsent``: the folder that keeps what MLflow could not be sent, for ``send_kept``: the rest of a curve, and that
    the run is over. Other args and errors as for ``start_run``.
    """
    parent = start_run(uri, experiment, name, artifacts=artifacts)
    run = Run(uri, parent, {member: start_run(uri, experiment, member, parent=parent) for member in members}, unsent)
    status: Literal["FINISHED", "FAILED"] = "FAILED"
    try:
        yield run
        status = "FINISHED"
    finally:
        _send_or_keep(uri, [_end(run_id, status) for run_id in (*run.members.values(), run.id)], unsent)


@contextlib.contextmanager
def following(run: Run, member: str, growing: Path, final: Path) -> Iterator[None]:
    """Log the rows of a member's curve while the block runs, each once, as they come.

    What MLflow does not take at once is sent again, and kept in ``run.unsent`` where it is still silent at the end.

    Args:
        run: the open run.
        member: its name.
        growing: the curve of a training, row by row; it may not be there yet.
        final: ``curves.csv`` of the finished member, for one that was not trained this time.
    """
    with alongside(lambda over: _follow(run, member, growing, final, over)):
        yield


def read_curves(path: Path) -> list[dict[str, str]]:
    """Return the rows of a ``curves.csv``; none where it is not there."""
    try:
        with path.open(newline="") as file:
            return list(csv.DictReader(file))
    except FileNotFoundError:
        return []


def log_metrics(
    uri: str, run_id: str, metrics: Mapping[str, float | None], *, step: int = 0, model: str | None = None
) -> None:
    """Log the values of one step. None and NaN (an absent class) are left out: MLflow cannot say them.

    ``model``: the id of a logged model, whose metrics they are too.
    """
    log_curves(uri, run_id, [{"epoch": step, **metrics}], model=model)


def log_curves(
    uri: str, run_id: str, rows: Sequence[Mapping[str, Any]], *, step: str = "epoch", model: str | None = None
) -> None:
    """Log rows of numbers, such as those of a member's ``curves.csv``, in as few requests as there can be.

    Args:
        uri: tracking URI.
        run_id: of the run.
        rows: one mapping per step. Values are numbers or their text; what is empty, None or NaN is left out.
        step: the key whose value is the step of its row.
        model: the id of a logged model, whose metrics they are too.

    Raises:
        InfrastructureError: the tracking server or its database does not answer.
    """
    send(uri, Update(run_id, _values(rows, step, model)))


def send(uri: str, update: Update) -> None:
    """Say to MLflow what an update holds; InfrastructureError where it does not answer."""
    from mlflow.entities import Metric

    metrics = [Metric(*value[:4], model_id=value[4]) for value in update.metrics]
    with reaching(uri) as client:
        for start in range(0, len(metrics), METRICS_PER_REQUEST):
            client.log_batch(update.run_id, metrics=metrics[start : start + METRICS_PER_REQUEST])
        if update.status:
            client.set_terminated(update.run_id, status=update.status, end_time=update.ended_ms)


def send_kept(uri: str, folder: Path) -> int:
    """Send what could not be sent before; return how many updates still wait, as MLflow does not answer.

    What is said of a run that was deleted meanwhile is dropped.
    """
    from mlflow.exceptions import MlflowException

    waiting = kept(folder, uri)
    for number, (path, update) in enumerate(waiting):
        try:
            send(uri, update)
        except InfrastructureError:
            return len(waiting) - number
        except MlflowException as error:
            if error.error_code not in ("RESOURCE_DOES_NOT_EXIST", "INVALID_PARAMETER_VALUE"):
                raise
        path.unlink(missing_ok=True)
    return 0


def log_params(uri: str, run_id: str, params: Mapping[str, Any]) -> None:
    """Log nested parameters under dotted names. A run's parameters cannot be changed later, only repeated.

    Passwords in addresses are left out.
    """
    from mlflow.entities import Param

    values = dict(_flatten(params))
    flat = [Param(name, without_passwords(str(values[key]))) for key, name in mlflow_names(values).items()]
    with reaching(uri) as client:
        for start in range(0, len(flat), PARAMS_PER_REQUEST):
            client.log_batch(run_id, params=flat[start : start + PARAMS_PER_REQUEST])


def log_artifacts(uri: str, run_id: str, path: Path, folder: str | None = None) -> None:
    """Copy a file, or a folder's contents, to the run's artifacts, under ``folder`` where one is given."""
    with reaching(uri) as client:
        send = client.log_artifacts if path.is_dir() else client.log_artifact
        send(run_id, str(path), folder)


def read_artifact(uri: str, run_id: str, path: str) -> bytes | None:
    """Return the bytes of a file among the run's artifacts; None where there is none."""
    with reaching(uri) as client, tempfile.TemporaryDirectory() as folder:
        if path not in [entry.path for entry in client.list_artifacts(run_id, path.rpartition("/")[0])]:
            return None
        return Path(client.download_artifacts(run_id, path, folder)).read_bytes()


def finished_runs(uri: str, tag: str, value: str) -> list[tuple[str, dict[str, str]]]:
    """Return id and tags of the finished runs of any experiment with this tag, the newest first."""
    with reaching(uri) as client:
        everywhere = [experiment.experiment_id for experiment in client.search_experiments()]
        wanted = f"tags.`{tag}` = '{value}' and attributes.status = 'FINISHED'"
        found = client.search_runs(everywhere, wanted, order_by=["attributes.start_time DESC"])
    return [(str(run.info.run_id), dict(run.data.tags)) for run in found]


def run_page(uri: str, run_id: str) -> str:
    """Return the address of the run's page."""
    with reaching(uri) as client:
        experiment = client.get_run(run_id).info.experiment_id
    return f"{pages(uri)}/#/experiments/{experiment}/runs/{run_id}{OF_TRAINING}"


def model_pages(uri: str, model: str) -> dict[str, str]:
    """Return the addresses of the pages of a model: its ``runs``, where there are any, and the ``model`` itself."""
    with reaching(uri) as client:
        experiment = client.get_experiment_by_name(model)
    base = f"{pages(uri)}/#"
    runs = {"runs": f"{base}/experiments/{experiment.experiment_id}/runs{OF_TRAINING}"} if experiment else {}
    return {**runs, "model": f"{base}/models/{quote(model, safe='')}{OF_TRAINING}"}


def set_tags(uri: str, run_id: str, tags: Mapping[str, str]) -> None:
    """Set facts to search by; an existing tag is replaced."""
    with reaching(uri) as client:
        for key, name in mlflow_names(tags).items():
            client.set_tag(run_id, name, tags[key])


def drop_member(run: Run, member: str) -> None:
    """End the run of a member that failed, and leave it out of all that follows."""
    finish(run.uri, run.members.pop(member), "FAILED", run.unsent)


def describe(run: Run, markdown: str) -> None:
    """Put text on the run's page."""
    set_tags(run.uri, run.id, {"mlflow.note.content": markdown})


def finish(uri: str, run_id: str, status: Literal["FINISHED", "FAILED", "KILLED"], unsent: Path | None = None) -> None:
    """Close the run; where MLflow does not answer, that is kept in ``unsent``, or InfrastructureError without it."""
    if unsent:
        _send_or_keep(uri, [_end(run_id, status)], unsent)
    else:
        send(uri, _end(run_id, status))


def _end(run_id: str, status: str) -> Update:
    return Update(run_id, status=status, ended_ms=int(time.time() * 1000))


def _send_or_keep(uri: str, updates: list[Update], unsent: Path) -> None:
    """Send updates up to the first that is not taken; keep the rest, each try with a silent server taking seconds."""
    with contextlib.suppress(InfrastructureError, OSError):
        while updates:
            send(uri, updates[0])
            del updates[0]
    with contextlib.suppress(OSError):  # a disk too full for it must not hide what went wrong
        for update in updates:
            keep(unsent, uri, update)


@contextlib.contextmanager
def reaching(uri: str) -> Iterator[MlflowClient]:
    """Yield MLflow's client for ``uri``; a silent server or database becomes InfrastructureError.

    A full disk stays an OSError, also where SQLite says so.
    """
    from mlflow import MlflowClient
    from mlflow.exceptions import MlflowException
    from sqlalchemy.exc import OperationalError

    logging.getLogger("mlflow.store.db.utils").setLevel(logging.CRITICAL)  # prints tracebacks of what is raised too
    try:
        _knock(uri)
        yield MlflowClient(tracking_uri=uri, registry_uri=uri)
    except (OSError, OperationalError) as error:
        if getattr(error, "errno", None) == errno.ENOSPC:
            raise
        if "disk is full" in str(error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), urlsplit(uri).path) from error
        raise _unreachable(uri, error) from error
    except ModuleNotFoundError as error:
        raise InfrastructureError(f"MLflow at {without_password(uri)} needs {error.name}; pip install it.") from error
    except MlflowException as error:
        if error.error_code in ("TEMPORARILY_UNAVAILABLE", *REFUSALS) or "API request to" in str(error):
            raise _unreachable(uri, error) from error
        raise


def _knock(uri: str) -> None:
    """Connect once: MLflow keeps trying an absent server for 247 s and an absent database for 107 s."""
    address = urlsplit(uri)
    if not address.hostname:
        return  # A file on this machine.
    usual = {"http": 80, "https": 443, "mysql": 3306, "mssql": 1433, "postgresql": 5432}
    port = address.port or usual.get(address.scheme.partition("+")[0])
    if port:
        socket.create_connection((address.hostname, port), timeout=10).close()


def _unreachable(uri: str, error: Exception) -> InfrastructureError:
    said = without_passwords(str(error)).strip().splitlines()[0]
    if getattr(error, "error_code", None) in REFUSALS:
        fix = "check MLFLOW_TRACKING_USERNAME, MLFLOW_TRACKING_PASSWORD and what this user may do there."
        return InfrastructureError(f"MLflow at {without_password(uri)} refuses ({said}); {fix}")
    fix = "start it, or set mlflow.tracking_uri or MLFLOW_TRACKING_URI."
    return InfrastructureError(f"MLflow at {without_password(uri)} does not answer ({said}); {fix}")


def _follow(run: Run, member: str, growing: Path, final: Path, over: threading.Event) -> None:
    pending: list[Value] = []
    while True:
        last = over.wait(FOLLOW_INTERVAL_S)
        rows = read_curves(growing) or (read_curves(final) if last else [])
        pending += _values(rows[run.rows.get(member, 0) :], "epoch", None)
        run.rows[member] = max(run.rows.get(member, 0), len(rows))
        update = Update(run.members[member], pending)
        if last:
            _send_or_keep(run.uri, [update] if pending else [], run.unsent)
            return
        with contextlib.suppress(InfrastructureError, OSError):  # the next round sends it too
            if pending:
                send(run.uri, update)
            pending = []


def _values(rows: Sequence[Mapping[str, Any]], step: str, model: str | None) -> list[Value]:
    now_ms = int(time.time() * 1000)
    names = mlflow_names(dict.fromkeys(key for row in rows for key in row))
    return [
        (names[key], number, now_ms, int(float(row[step])), model)
        for row in rows
        for key, value in row.items()
        if key != step and not math.isnan(number := _number(value))
    ]


def _experiment(client: MlflowClient, name: str, artifacts: str | None) -> str:
    from mlflow.exceptions import MlflowException

    found = client.get_experiment_by_name(name)
    if found is None:
        try:
            kind = {"mlflow.experimentKind": "custom_model_development"}  # opens with its runs, not with chat traces
            return str(client.create_experiment(name, artifact_location=artifacts, tags=kind))
        except MlflowException:
            # Another run made it between the question and the answer.
            found = client.get_experiment_by_name(name)
            if found is None:
                raise
    return str(found.experiment_id)


def _number(value: Any) -> float:
    return float("nan") if value is None or value == "" else float(value)


def _flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, Mapping):
            yield from _flatten(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
