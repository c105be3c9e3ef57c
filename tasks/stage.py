"""The bridge to DVC: is a stage stale and why, run it, record it as ``dvc repro`` would have."""

from __future__ import annotations

import importlib
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from segmill import progress
from segmill.data.schema.special_files import refuse_special_files
from segmill.data.versioning.cloning import source_of
from segmill.data.versioning.dvc_adapter import DvcRepository, repository
from segmill.data.versioning.dvc_stage import DvcStage
from segmill.data.versioning.publishing import push_stages
from segmill.data.versioning.versions import recorded_version, share_data
from segmill.errors import InfrastructureError, InputError, Interrupted, near_miss
from segmill.former_pipeline import refuse_former_pipeline
from segmill.params import Params, read_params
from segmill.workspace import Workspace
from tasks.adoption import ADOPTED, Differs, adopt, made_by_earlier_release
from tasks.inputs import (
    Inputs,
    all_settings,
    code_path,
    settings_path,
    stage_inputs,
    value_changes,
    write_inputs,
    write_settings,
)

# What runs the stages, in the order of dvc.yaml (a contract test holds the two together).
STAGES = ("fingerprint", "validate", "prepare", "augment", "finetune", "ensemble", "evaluate")

MOST_NAMED = 3  # damaged files of an out
_DAMAGE = {"deleted": "is missing", "modified": "is damaged, or was changed by hand", "new": "is not recorded"}

State = Literal["fresh", "restored", "ran", "stale"]


@dataclass(frozen=True)
class Outcome:
    """What became of one stage: fresh (nothing to do), restored (from the cache), ran, or stale (only looked at)."""

    stage: str
    state: State
    why: str
    seconds: float = 0.0


def stage_names(params: Params) -> list[str]:
    """Return every stage in the order it runs, ``finetune`` once per member."""
    members = [f"finetune@{name}" for name in params.members]
    return [name for stage in STAGES for name in (members if stage == "finetune" else [stage])]


def stage_edges(workspace: Workspace) -> dict[str, set[str]]:
    """Return, per stage of dvc.yaml, upstream first, the stages that it directly depends on."""
    with repository(workspace.root) as repo:
        return repo.upstream()


def survey(workspace: Workspace, params: Params | None = None) -> dict[str, Outcome]:
    """Say of every stage, upstream first, whether it is fresh or stale and why. Runs, records and writes nothing.

    ``params``: None reads params.yaml.
    """
    params = params or read_params(workspace.params)
    refuse_special_files(workspace.root / params.data.path)
    refuse_former_pipeline(workspace)
    inputs = stage_inputs(params)
    found: dict[str, Outcome] = {}
    with repository(workspace.root) as repo:
        for name, upstream in repo.upstream().items():
            # What `fingerprint` would write is compared with the record here.
            stale = sorted(up for up in upstream - {"fingerprint"} if found[up].state == "stale")
            why = _why_stale(workspace, repo, repo.stage(name), inputs.get(name))
            why = why or (f"follows {', '.join(stale)}" if stale else "")
            found[name] = Outcome(name, "stale" if why else "fresh", why or "unchanged")
    return {name: found[name] for name in stage_names(params) if name in found}


def bring_up_to_date(workspace: Workspace, name: str, params: Params | None = None) -> Outcome:
    """Leave the stage ``name`` (as ``finetune@lite0``) fresh: skip, restore its outs, or run and record it.

    Args:
        params: as the run read them at its start; None reads params.yaml, for this stage alone.

    Raises:
        InputError: a dependency is missing, or moved while the stage ran (nothing is recorded then).
        SegmillError: whatever the stage itself raises.
    """
    started = time.monotonic()
    note = workspace.progress / f"{name}.json"
    params = params or read_params(workspace.params)
    if name == "fingerprint":
        return _done(note, _write_down(workspace, params, started))
    with repository(workspace.root) as repo:
        write_settings(workspace, params, name)
        stage = repo.stage(name)
        why = _why_stale(workspace, repo, stage, _written(workspace, name, params))
        if not why:
            return _done(note, Outcome(name, "fresh", "unchanged"))
        _refuse_missing(stage)
        if stage.restore():
            return _done(note, Outcome(name, "restored", f"{why}; known result", time.monotonic() - started))
        differs = _adopt(workspace, params, repo, stage)
        if differs == "":
            return _done(note, Outcome(name, "restored", ADOPTED, time.monotonic() - started))
        why = differs or why
        before = stage.dependency_hashes()
        stage.remove_outs()
    progress.report(note, stage=name, state="running", why=why, began=time.time())
    try:
        run(workspace, name, params)
    except BaseException as error:
        progress.report_failure(note, stage=name, state=_state_after(error), why=why)
        raise
    with repository(workspace.root) as repo:
        stage = repo.stage(name)
        moved = sorted(path for path, value in stage.dependency_hashes().items() if before[path] != value)
        if moved:
            progress.report_failure(note, stage=name, state="failed", why=why)
            raise InputError(f"{', '.join(moved)} changed while {name} ran, so its result was not recorded; run again")
        stage.record()
    if source_of(workspace.root):
        with suppress(InfrastructureError):  # it is sent again, with all others, before dvc.lock is pushed
            push_stages(workspace.root, [name])
    return _done(note, Outcome(name, "ran", why, time.monotonic() - started))


@contextmanager
def noted(workspace: Workspace, name: str) -> Iterator[None]:
    """Tell whoever watches that the step ``name``, which is no stage, runs, ran or failed."""
    note = workspace.progress / f"{name}.json"
    began = time.time()
    progress.report(note, stage=name, state="running", why="", began=began)
    try:
        yield
    except BaseException as error:
        progress.report_failure(note, stage=name, state=_state_after(error), why="")
        raise
    progress.report(note, stage=name, state="ran", why="", seconds=time.time() - began)


def _state_after(error: BaseException) -> str:
    stopped = isinstance(error, Interrupted) or not isinstance(error, Exception)
    return "interrupted" if stopped else "failed"


def run(workspace: Workspace, name: str, params: Params) -> None:
    """Run the stage's function and nothing else: this is what ``dvc repro`` calls through ``segmill stage NAME``."""
    base, _, item = name.partition("@")
    if base not in STAGES:
        raise InputError(f"there is no stage {name}{near_miss(base, STAGES)} (stages: {', '.join(STAGES)})")
    function = getattr(importlib.import_module(f"tasks.{base}"), base)
    if base != "finetune":
        function(workspace, params)
    elif item in params.members:
        function(workspace, params, item)
    else:
        members = tuple(params.members)
        raise InputError(f"there is no member {item!r}{near_miss(item, members)} (members: {', '.join(members)})")


def same_as_recorded(workspace: Workspace, params: Params) -> bool:
    """Tell whether dvc.lock records every stage as it would be made now; files of data and outs may be missing."""
    data = recorded_version(workspace.root, params.data.path)
    inputs = stage_inputs(params)
    with repository(workspace.root) as repo:
        entries = repo.lock_entries()
        if data is None or not entries.keys() >= set(stage_names(params)):
            return False
        versions = {
            str(dep.get("md5")).removesuffix(".dir")
            for entry in entries.values()
            for dep in entry.get("deps", [])
            if dep["path"] == params.data.path
        }
        return versions == {data.md5} and not any(
            repo.stage(name).redefined or _input_changes(workspace, repo, name, inputs[name]) for name in inputs
        )


def recorded_stages(workspace: Workspace) -> bytes:
    """Return dvc.lock as it is between two writes: DVC rewrites it in place."""
    with repository(workspace.root) as repo:
        return repo.lock_file()


def recorded_md5(workspace: Workspace, name: str, dependency: str | None = None) -> str:
    """Return the md5 that dvc.lock records for the first out of the stage ``name``, or for the ``dependency`` (a path)
    it ran with; "" where it was never run."""
    with repository(workspace.root) as repo:
        stages = repo.lock_entries()
    if name not in stages:
        return ""
    if dependency is None:
        found = stages[name].get("outs", [])[:1]
    else:
        found = [dep for dep in stages[name].get("deps", []) if dep["path"] == dependency]
    return str(found[0]["md5"]).removesuffix(".dir") if found else ""


def share_recorded(workspace: Workspace, params: Params) -> None:
    """Give back what copies take that an earlier release or `dvc` made: of recorded outs, and of a remote folder."""
    with repository(workspace.root) as repo:
        for name in stage_names(params):
            if name in repo.lock_entries() and (stage := repo.stage(name)).fresh:
                stage.share()
    share_data(workspace.root, params.data.path, params.data.remote)


def _done(note: Path, outcome: Outcome) -> Outcome:
    progress.report(note, **asdict(outcome))
    return outcome


def _refuse_missing(stage: DvcStage) -> None:
    missing = stage.missing_dependencies()
    if missing:
        raise InputError(
            f"{stage.name} needs {', '.join(missing)}, which is not there; run `segmill retrain` or `dvc repro`"
        )


def _adopt(workspace: Workspace, params: Params, repo: DvcRepository, stage: DvcStage) -> str | None:
    """Keep and record the member that an earlier release trained; "" then, else why that is not the same.

    None where it is no member, or no earlier release recorded it.
    """
    kind, _, member = stage.name.partition("@")
    if kind != "finetune" or not made_by_earlier_release(repo, member):
        return None
    try:
        adopt(workspace, params, repo, member)
    except Differs as reason:
        return f"an earlier release made it, and it is not the same: {reason}"
    stage.record()
    return ""


def _write_down(workspace: Workspace, params: Params, started: float) -> Outcome:
    """Be the stage ``fingerprint``: its outs are written first, in a new clone with the links that it depends on."""
    write_inputs(workspace, params)
    with repository(workspace.root) as repo:
        stage = repo.stage("fingerprint")
        if stage.fresh:
            return Outcome(stage.name, "fresh", "unchanged")
        reasons = [f"{change.path} changed" for change in stage.changes() if change.kind == "dependency"]
        why = "; ".join(reasons) if stage.recorded else "never ran here"
        stage.record()
    return Outcome(stage.name, "ran", why or "what it writes changed", time.monotonic() - started)


def _written(workspace: Workspace, name: str, params: Params) -> Inputs:
    """Return the inputs of a stage as they are written in the workspace; no code where that was never hashed."""
    code = code_path(workspace, name)
    return Inputs(code.read_text() if code.is_file() else "", all_settings(params)[name])


def _why_stale(workspace: Workspace, repo: DvcRepository, stage: DvcStage, inputs: Inputs | None) -> str:
    """Say in a few words what differs from the recorded run; "" where nothing does.

    Args:
        inputs: what it would be made with now; None for the stage ``fingerprint``.
    """
    if not stage.recorded:
        return "never ran here"
    reasons = _input_changes(workspace, repo, stage.name, inputs) if inputs else []
    own = f"{workspace.scratch.name}/"
    changes = [change for change in stage.changes() if not inputs or not change.path.startswith(own)]
    reasons += [
        f"{change.path} {'is missing' if change.how == 'deleted' else 'changed'}"
        for change in changes
        if change.kind == "dependency"
    ]
    damaged = [change for change in changes if change.kind == "out"]
    if len(damaged) > MOST_NAMED:
        reasons.append(f"{damaged[0].path} and {len(damaged) - 1} more files are missing or damaged")
    else:
        reasons += [f"{change.path} {_DAMAGE.get(change.how, change.how)}" for change in damaged]
    if not reasons and any(change.kind == "stage" for change in changes):
        reasons.append("its command in dvc.yaml changed")
    return "; ".join(reasons)


def _input_changes(workspace: Workspace, repo: DvcRepository, name: str, inputs: Inputs) -> list[str]:
    """Say what differs between a stage's code and settings and those that dvc.lock records for it."""
    entry = repo.lock_entries().get(name, {})
    code, settings = (str(path(workspace, name).relative_to(workspace.root)) for path in (code_path, settings_path))
    code_md5 = {dep["path"]: dep.get("md5") for dep in entry.get("deps", [])}.get(code)
    values = entry.get("params", {}).get(settings)
    if code_md5 is None or values is None:
        return ["an earlier release made it"]
    reasons = value_changes(values, inputs.settings) if values != inputs.settings else []
    return reasons + ([_code_change(repo, inputs, code_md5)] if code_md5 != inputs.code_md5 else [])


def _code_change(repo: DvcRepository, inputs: Inputs, old_md5: str) -> str:
    """Name the modules whose hash moved, from the recorded list where DVC's cache still has it."""
    cached = repo.cache_path(old_md5)
    if not cached.is_file():
        return "its code changed"
    lines = set(inputs.code.splitlines()) ^ set(cached.read_text().splitlines())
    modules = sorted({line.split()[0] for line in lines})
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return f"code changed: {', '.join(modules[:3])}{more}"
