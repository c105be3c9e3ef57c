"""Step report: write the page of a run, which says its verdict, and keep it with the run in MLflow. Idempotent."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from importlib.metadata import version as installed_version
from typing import TYPE_CHECKING, Any

from segmill import tracking
from segmill.cluster.work import on_ray, wait
from segmill.evaluation.report_job import ReportJob, report_on_ray
from segmill.mlflow_pages import is_server, version_page
from segmill.params import Params
from segmill.promotion import registry
from segmill.reports.run_facts import Changes, Link, RunFacts, VerdictFacts
from segmill.workspace import Workspace
from tasks.changes import changes_since
from tasks.inputs import all_settings
from tasks.judging import gate_state, predictions_of
from tasks.promote import Judged, opened_ledger
from tasks.register import PIPELINE_FILES, Registered
from tasks.stage import Outcome

if TYPE_CHECKING:
    from segmill.metrics.intervals import Interval


@dataclass(frozen=True, kw_only=True)
class RunEnd:
    """What a run came to. ``data_version``: that it began with; ``seconds``: since it began; ``warnings``: lines."""

    data_version: str
    outcomes: Sequence[Outcome]
    registered: Registered
    judged: Judged
    warnings: Sequence[str]
    next_steps: Sequence[str]
    seconds: float


def report(workspace: Workspace, params: Params, run: tracking.Run, end: RunEnd) -> dict[str, Interval]:
    """Write index.html and overview.png into ``reports`` and log the folder; return the ensemble's scores.

    Raises InfrastructureError where MLflow does not answer.
    """
    facts = end.judged.facts
    manifests = [facts.get("manifest_sha256"), facts.get("champion_manifest_sha256")]  # none of an earlier release
    kept = [predictions_of(workspace, params, one) for one in manifests if one]
    job = ReportJob(
        reports_dir=workspace.reports,
        ensemble_dir=workspace.ensemble,
        packed_dir=workspace.packed,
        augmented_dir=workspace.augmented,
        sealed=params.split.sealed,
        run=_facts(workspace, params, run, end),
        predictions=(kept[0], kept[1]) if len(kept) == 2 and all(path.is_file() for path in kept) else None,
    )
    scores = wait(on_ray(report_on_ray, job))
    tracking.log_artifacts(run.uri, run.id, workspace.reports, "report")
    return scores


def _facts(workspace: Workspace, params: Params, run: tracking.Run, end: RunEnd) -> RunFacts:
    policy = params.promotion.model_dump(exclude={"ledger_url"})  # it may hold a password
    settings: dict[str, Any] = {**all_settings(params), "promotion": {"promotion": policy}}
    return RunFacts(
        model=end.registered.model,
        finished=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        seconds=end.seconds,
        data_version=end.data_version,
        commit=end.registered.git_commit,
        segmill_version=installed_version("segmill"),
        trained={
            outcome.stage.partition("@")[2]: outcome.seconds if outcome.state == "ran" else None
            for outcome in end.outcomes
            if outcome.stage.startswith("finetune@")
        },
        settings={stage: list(_rows(values)) for stage, values in settings.items()},
        links=_links(run, end),
        member_links={name: tracking.run_page(run.uri, run_id) for name, run_id in run.members.items()},
        local_pages=not is_server(run.uri),
        verdict=VerdictFacts(
            decision=end.judged.decision,
            outcome=end.judged.outcome,
            reasons=end.judged.reasons,
            warnings=end.warnings,
            next_steps=end.next_steps,
            version=end.registered.version,
            rival=end.judged.rival,
            rival_serves=end.judged.rival_serves,
            facts=shown_facts(workspace, params, end),
        ),
        changes=_changes(workspace, params, run.uri, end),
    )


def shown_facts(workspace: Workspace, params: Params, end: RunEnd) -> dict[str, Any]:
    """Return the verdict's facts with what renews the judgements of the test set, for pages."""
    rows = opened_ledger(workspace, params).rows(end.registered.model)
    state = gate_state(workspace, params, rows)
    return {**end.judged.facts, "renewal": state["renewal"]} if state else end.judged.facts


def _rows(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield dotted key and value of nested settings."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _rows(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", "unset" if value is None else str(value)


def _links(run: tracking.Run, end: RunEnd) -> list[Link]:
    model, version, rival = end.registered.model, end.registered.version, end.judged.rival
    links = [
        Link("this run", tracking.run_page(run.uri, run.id)),
        Link(f"version {version}", version_page(run.uri, model, version)),
    ]
    return [*links, Link(f"version {rival}", version_page(run.uri, model, rival))] if rival else links


def _changes(workspace: Workspace, params: Params, uri: str, end: RunEnd) -> Changes | None:
    """Return what differs from what the rival was made from; None without one."""
    if end.judged.rival is None:
        return None
    run_id = registry.run_of(uri, end.registered.model, end.judged.rival)
    lock = tracking.read_artifact(uri, run_id, f"{PIPELINE_FILES}/dvc.lock")
    if lock is None:
        return Changes(unknown="its dvc.lock is not among the files of its run any more")
    return changes_since(workspace, params, lock)
