"""The flow `score`: masks and a table of scores for a folder, a prefix in S3 or a data version, each image once."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pyarrow.compute as pc
from prefect import flow
from rich.console import Console

from flows.display import counting
from flows.environment import prepare_environment, ray_address, tracking_uri
from flows.prefect_server import claim_run, run_flow, start_server
from segmill.cluster.connection import connect, connecting
from segmill.errors import InputError
from segmill.orphans import end_with_this_process
from segmill.params import Params, read_params
from segmill.promotion import registry, versions
from segmill.promotion.heads import in_workspace
from segmill.promotion.keys import trusted_keys
from segmill.promotion.ledger import workspace_ledger
from segmill.serving.batch.scores import ImageStatus
from segmill.serving.batch.shell import BatchPlan, BatchRequest, planned, predict_left, statuses
from segmill.serving.batch.sources import DATA, S3, list_folder, list_s3, list_version, without_shared_masks
from segmill.serving.head import read_head
from segmill.workspace import Workspace
from tasks.register import model_name

SHOWN = 3  # images without a mask, with the reason

_plans: dict[str, BatchPlan] = {}  # that the caller of the flow has made, by the folder of its scores
_ended: dict[str, dict[str, Any]] = {}


def run_score(
    workspace: Workspace, params: Params, source: str, to: Path, asked: str, workers: int | None, console: Console
) -> dict[str, Any]:
    """Score a source, and return what came of it. Ray and Prefect's server start only where something is left to do.

    Args:
        source: a folder, s3://BUCKET/PREFIX, or ``data:VERSION``.
        to: folder for the scores of each version.
        asked: an alias or a version number.
        workers: how many at most; None: as many as the cluster has room for.

    Raises: as for ``shell.planned`` and ``shell.predict_left``.
    """
    began = time.monotonic()
    with _planned(workspace, params, source, to, asked) as plan:
        for sentence in plan.said:
            console.print(sentence, markup=False, highlight=False, soft_wrap=True)
        if not plan.left:
            return _finish(plan, 0, 0, began)
        end_with_this_process(temporary_folder=True)
        key = str(plan.job.folder)
        _plans[key] = plan
        with connecting(ray_address(params)):
            start_server()
            found = run_flow(lambda: score(str(workspace.root), source, str(to), asked, workers), _ended, key)
        return found | {"seconds": round(time.monotonic() - began, 1)}


@flow(name="score", flow_run_name="score {source} in {workspace}", persist_result=False)
def score(
    workspace: str, source: str, to: str, version: str = "champion", workers: int | None = None
) -> dict[str, Any]:
    """Predict the images of a source that are new or changed, and write ``scores.parquet`` of all.

    Args:
        workspace: Its folder.
        source: A folder, s3://BUCKET/PREFIX, or data:VERSION for a data version of the workspace.
        to: Folder for the masks and the table, in a folder for each version of the model.
        version: An alias or a number; champion is what the ledger says.
        workers: How many predict at the same time, at most.
    """
    began = time.monotonic()
    with suppress(httpx.HTTPError):
        claim_run()
    opened = Workspace.open(workspace)
    params = read_params(opened.params)
    prepare_environment(opened, params)
    with _ready_plan(opened, params, source, to, version) as plan:
        if not plan.left:
            return _finish(plan, 0, 0, began)
        note = plan.job.note
        classes = len(registry.known_classes(plan.job.uri, note.model, note.version))
        with connect(ray_address(params)), counting(Console(), unit="images") as on_count:
            predicted, used = predict_left(
                plan, classes, workers, lambda done, total: on_count("predicted", done, total)
            )
        found = _ended[str(plan.job.folder)] = _finish(plan, predicted, used, began)
        return found


@contextmanager
def _planned(workspace: Workspace, params: Params, source: str, to: Path, asked: str) -> Iterator[BatchPlan]:
    """List the source and choose the version; nobody else writes to the folder of its scores while the block runs."""
    uri, name, trusted = tracking_uri(workspace, params), model_name(workspace, params), trusted_keys(workspace.root)
    if source.startswith(DATA):
        named = source.removeprefix(DATA)
        version, images = list_version(workspace.root, params.data.path, params.data.remote, named)
        source = f"{DATA}{version}"
    elif source.startswith(S3):
        source = source.rstrip("/")
        images = list_s3(source)
    elif not Path(source).is_dir():
        raise InputError(f"there is no folder {source}", "name a folder, s3://BUCKET/PREFIX or a data version")
    else:
        source = str(Path(source).resolve())
        images = list_folder(Path(source), without=to)
    with planned(
        BatchRequest(to=to, source=source, model=name, asked=asked, uri=uri, trusted=trusted),
        without_shared_masks(images),
        version_of=lambda asked: _version_of(workspace, params, asked),
        manifest_of=lambda version: versions.check_signed(uri, name, version, trusted),
    ) as plan:
        yield plan


@contextmanager
def _ready_plan(workspace: Workspace, params: Params, source: str, to: str, asked: str) -> Iterator[BatchPlan]:
    """Give the plan that the caller of the flow made, or make one."""
    ready = [plan for folder, plan in _plans.items() if Path(folder).parent == Path(to).resolve()]
    if ready:
        yield _plans.pop(str(ready[0].job.folder))
    else:
        with _planned(workspace, params, source, Path(to).resolve(), asked) as plan:
            yield plan


def _version_of(workspace: Workspace, params: Params, asked: str) -> str:
    """Return the version that is called so; the champion is the one of the ledger's verified last row.

    Raises:
        InputError: none is.
        LedgerError: the ledger is not to be believed.
    """
    name = model_name(workspace, params)
    if asked != registry.CHAMPION:
        return registry.version_called(tracking_uri(workspace, params), name, asked)
    ledger = workspace_ledger(workspace.root, params.promotion.ledger_url)
    version = read_head(ledger, name, in_workspace(workspace.root, name)).version
    if version is None:
        raise InputError(f"by the ledger no version of {name} is the champion", "name one with --version")
    return version


def _finish(plan: BatchPlan, predicted: int, workers: int, began: float) -> dict[str, Any]:
    """Write the table; return what came of the run."""
    note = replace(plan.job.note, finished=True)
    table = plan.output.finish(plan.images, note)
    counts = Counter(status for status, _ in statuses(table).values())
    bad = table.filter(pc.field("status") != str(ImageStatus.OK)).slice(0, SHOWN)
    return {
        "folder": str(plan.output.folder), "scores": str(plan.output.scores), "model": note.model,
        "version": note.version, "images": len(plan.images), "predicted": predicted,
        "known": len(plan.images) - len(plan.left), "unreadable": counts[ImageStatus.UNREADABLE],
        "failed": counts[ImageStatus.FAILED], "workers": workers, "seconds": round(time.monotonic() - began, 1),
        "reasons": [f"{row['path']}: {row['reason']}" for row in bad.to_pylist()],
    }  # fmt: skip
