"""The bridge to DVC: is a stage stale and why, run it, record it as ``dvc repro`` would have."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from segmill import progress
from segmill.data.schema.special_files import refuse_special_files
from segmill.data.versioning.dvc_adapter import DvcRepository, DvcStage, repository
from segmill.errors import InputError, near_miss
from segmill.files import write_atomically
from segmill.fingerprint import fingerprints, package_folders
from segmill.params import Params, read_params
from segmill.workspace import Workspace

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


def survey(workspace: Workspace, *, refresh: bool = True) -> dict[str, Outcome]:
    """Say of every stage, upstream first, whether it is fresh or stale and why. Runs and records nothing.

    ``refresh``: look at the installed code first. False beside a run: its stages hold the code they began with.
    """
    refuse_special_files(workspace.root / read_params(workspace.params).data.path)
    if refresh:
        watch_code(workspace)
    found: dict[str, Outcome] = {}
    with repository(workspace.root) as repo:
        for name, upstream in repo.upstream().items():
            followed = [
                up for up in upstream - {"fingerprint"} if found[up].state == "stale"
            ]  # that was just refreshed
            why = _why_stale(repo, repo.stage(name)) or (f"follows {', '.join(sorted(followed))}" if followed else "")
            found[name] = Outcome(name, "stale" if why else "fresh", why or "unchanged")
    return {name: found[name] for name in stage_names(read_params(workspace.params)) if name in found}


def bring_up_to_date(workspace: Workspace, name: str) -> Outcome:
    """Leave the stage ``name`` (as ``finetune@lite0``) fresh: skip, restore its outs, or run and record it.

    Raises:
        InputError: a dependency is missing, or moved while the stage ran (nothing is recorded then).
        SegmillError: whatever the stage itself raises.
    """
    started = time.monotonic()
    note = workspace.progress / f"{name}.json"
    if name == "fingerprint":
        watch_code(workspace)  # makes the links it depends on, in a new clone or where the installation moved
    with repository(workspace.root) as repo:
        stage = repo.stage(name)
        why = _why_stale(repo, stage)
        if not why:
            return _done(note, Outcome(name, "fresh", "unchanged"))
        _refuse_missing(stage)
        if stage.restore():
            return _done(note, Outcome(name, "restored", f"{why}; known result", time.monotonic() - started))
        before = stage.dependency_hashes()
        stage.remove_outs()
    progress.report(note, stage=name, state="running", why=why, began=time.time())
    try:
        run(workspace, name)
    except BaseException:
        progress.report_failure(note, stage=name, state="failed", why=why)
        raise
    with repository(workspace.root) as repo:
        stage = repo.stage(name)
        moved = sorted(path for path, value in stage.dependency_hashes().items() if before[path] != value)
        if moved:
            progress.report_failure(note, stage=name, state="failed", why=why)
            raise InputError(f"{', '.join(moved)} changed while {name} ran, so its result was not recorded; run again")
        stage.record()
    return _done(note, Outcome(name, "ran", why, time.monotonic() - started))


@contextmanager
def noted(workspace: Workspace, name: str) -> Iterator[None]:
    """Tell whoever watches that the step ``name``, which is no stage, runs, ran or failed."""
    note = workspace.progress / f"{name}.json"
    began = time.time()
    progress.report(note, stage=name, state="running", why="", began=began)
    try:
        yield
    except BaseException:
        progress.report_failure(note, stage=name, state="failed", why="")
        raise
    progress.report(note, stage=name, state="ran", why="", seconds=time.time() - began)


def run(workspace: Workspace, name: str) -> None:
    """Run the stage's function and nothing else: this is what ``dvc repro`` calls through ``segmill stage NAME``."""
    base, _, item = name.partition("@")
    if base not in STAGES:
        raise InputError(f"there is no stage {name}{near_miss(base, STAGES)} (stages: {', '.join(STAGES)})")
    params = read_params(workspace.params)
    function = getattr(importlib.import_module(f"tasks.{base}"), base)
    if base != "finetune":
        function(workspace, params)
    elif item in params.members:
        function(workspace, params, item)
    else:
        members = tuple(params.members)
        raise InputError(f"there is no member {item!r}{near_miss(item, members)} (members: {', '.join(members)})")


def watch_code(workspace: Workspace) -> None:
    """Link the installed code into the workspace and write, per stage, the hash of the code that stage can reach.

    Files are touched only where they change, so DVC keeps what it knows of them.
    """
    for name, folder in package_folders().items():
        link = workspace.sources / name
        if not link.is_symlink() or link.resolve() != folder.resolve():
            link.parent.mkdir(parents=True, exist_ok=True)
            link.unlink(missing_ok=True)
            link.symlink_to(os.path.relpath(folder, link.parent.resolve()))
    modules = {name: f"tasks.{name}" for name in STAGES if name != "fingerprint"}
    texts = fingerprints(modules.values())
    workspace.code.mkdir(parents=True, exist_ok=True)
    for name, module in modules.items():
        path = workspace.code / name
        if not path.is_file() or path.read_text() != texts[module]:
            write_atomically(path, texts[module])


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


def _done(note: Path, outcome: Outcome) -> Outcome:
    progress.report(note, **asdict(outcome))
    return outcome


def _refuse_missing(stage: DvcStage) -> None:
    missing = stage.missing_dependencies()
    if missing:
        raise InputError(
            f"{stage.name} needs {', '.join(missing)}, which is not there; run `segmill retrain` or `dvc repro`"
        )


def _why_stale(repo: DvcRepository, stage: DvcStage) -> str:
    """Say in a few words what differs from the recorded run; "" where nothing does."""
    if stage.fresh:
        return ""
    if not stage.recorded:
        return "never ran here"
    changes = stage.changes()
    reasons: list[str] = []
    for change in changes:
        if change.kind == "parameter":
            reasons += _value_changes({change.path: change.old}, {change.path: change.new})
        elif change.kind == "dependency" and change.path.startswith(".segmill/code/"):
            reasons.append(_code_change(repo, change.path, change.old))
        elif change.kind == "dependency":
            reasons.append(f"{change.path} {'is missing' if change.how == 'deleted' else 'changed'}")
    damaged = [change for change in changes if change.kind == "out"]
    if len(damaged) > MOST_NAMED:
        reasons.append(f"{damaged[0].path} and {len(damaged) - 1} more files are missing or damaged")
    else:
        reasons += [f"{change.path} {_DAMAGE.get(change.how, change.how)}" for change in damaged]
    return "; ".join(reasons) or "its command or its lists in dvc.yaml changed"


def _value_changes(old: Any, new: Any, key: str = "") -> list[str]:
    if isinstance(old, dict) and isinstance(new, dict):
        return [
            change
            for part in dict.fromkeys([*old, *new])
            if old.get(part) != new.get(part)
            for change in _value_changes(old.get(part), new.get(part), f"{key}.{part}".lstrip("."))
        ]
    return [f"{key} {_brief(old)} -> {_brief(new)}"]


def _brief(value: Any) -> str:
    text = "unset" if value is None else str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."


def _code_change(repo: DvcRepository, path: str, old: str) -> str:
    """Name the modules whose hash moved, from the recorded list where DVC's cache still has it."""
    now = repo.root / path
    cached = repo.cache_path(old)
    if not cached.is_file():
        return "its code changed"
    lines = set(now.read_text().splitlines()) if now.is_file() else set()
    modules = sorted({line.split()[0] for line in lines ^ set(cached.read_text().splitlines())})
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return f"code changed: {', '.join(modules[:3])}{more}"
