"""The bridge to DVC: is a stage stale and why, run it, record it as ``dvc repro`` would have."""

from __future__ import annotations

import importlib
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from segmill import progress
from segmill.data.schema.special_files import refuse_strange_files
from segmill.data.versioning.repository import repository
from segmill.errors import InputError, near_miss
from segmill.files import write_atomically
from segmill.fingerprint import fingerprints, package_folders
from segmill.params import Params, read_params
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from dvc.repo import Repo
    from dvc.stage import PipelineStage

# What runs the stages, in the order of dvc.yaml (a contract test holds the two together).
STAGES = ("fingerprint", "validate", "prepare", "augment", "finetune", "ensemble", "evaluate")

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


def survey(workspace: Workspace) -> dict[str, Outcome]:
    """Say of every stage, upstream first, whether it is fresh or stale and why. Runs and records nothing."""
    refuse_strange_files(workspace.root / read_params(workspace.params).data.path)
    watch_code(workspace)
    import networkx

    found: dict[str, Outcome] = {}
    with repository(workspace.root) as repo:
        graph = repo.index.graph
        for stage in reversed(list(networkx.topological_sort(graph))):
            if not hasattr(stage, "name"):
                continue
            upstream = {getattr(up, "name", "") for up in graph.successors(stage)} - {"fingerprint"}  # just refreshed
            followed = [name for name in upstream if name in found and found[name].state == "stale"]
            why = _why_stale(repo, stage) or (f"follows {', '.join(sorted(followed))}" if followed else "")
            found[stage.name] = Outcome(stage.name, "stale" if why else "fresh", why or "unchanged")
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
        stage = _find(repo, name)
        why = _why_stale(repo, stage)
        if not why:
            return _done(note, Outcome(name, "fresh", "unchanged"))
        _refuse_missing(stage)
        if _restore(repo, stage):
            return _done(note, Outcome(name, "restored", f"{why}; known result", time.monotonic() - started))
        before = _dependency_hashes(stage)
        stage.remove_outs()
    progress.report(note, stage=name, state="running", why=why, began=time.time())
    try:
        run(workspace, name)
    except BaseException:
        progress.report_failure(note, stage=name, state="failed", why=why)
        raise
    with repository(workspace.root) as repo:
        moved = sorted(path for path, value in _dependency_hashes(_find(repo, name)).items() if before[path] != value)
        if moved:
            progress.report_failure(note, stage=name, state="failed", why=why)
            raise InputError(f"{', '.join(moved)} changed while {name} ran, so its result was not recorded; run again")
        _record(repo, name)
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
    from ruamel.yaml import YAML

    lock = workspace.root / "dvc.lock"
    stages = YAML(typ="safe").load(lock.read_text())["stages"] if lock.is_file() else {}
    if name not in stages:
        return ""
    if dependency is None:
        found = stages[name]["outs"][:1]
    else:
        found = [dep for dep in stages[name]["deps"] if dep["path"] == dependency]
    return str(found[0]["md5"]).removesuffix(".dir") if found else ""


def _done(note: Path, outcome: Outcome) -> Outcome:
    progress.report(note, **asdict(outcome))
    return outcome


def _find(repo: Repo, name: str) -> PipelineStage:
    from dvc.exceptions import DvcException

    try:
        stage: PipelineStage = repo.stage.load_one(str(Path(repo.root_dir) / "dvc.yaml"), name)
    except DvcException as error:
        raise InputError(f"dvc.yaml does not give a stage {name}: {error}") from None
    return stage


def _address(repo: Repo, name: str) -> str:
    return f"{Path(repo.root_dir) / 'dvc.yaml'}:{name}"


def _record(repo: Repo, name: str) -> None:
    """Write the stage's hashes to dvc.lock and its outs to the cache, as ``dvc repro`` does after its command.

    The outs stay as they lie: DVC would take a fresh copy for every file that is a hard link (shards of the packed
    splits are).
    """
    repo.commit(_address(repo, name), force=True, relink=False)


def _refuse_missing(stage: PipelineStage) -> None:
    missing = [str(dep) for dep in stage.deps if not dep.exists]
    if missing:
        raise InputError(
            f"{stage.name} needs {', '.join(missing)}, which is not there; run `segmill retrain` or `dvc repro`"
        )


def _dependency_hashes(stage: PipelineStage) -> dict[str, Any]:
    return {str(dep): dep.get_hash().value for dep in stage.deps}


def _restore(repo: Repo, stage: PipelineStage) -> bool:
    """Bring the outs back from the cache, the remote or DVC's run-cache; False where this was never computed."""
    from dvc.exceptions import DvcException
    from dvc.stage.cache import RunCacheNotFoundError

    if not stage.changed(allow_missing=True):
        if stage.checkout(force=True).get("failed") and repo.config["core"].get("remote"):
            try:
                repo.fetch(_address(repo, stage.name))
                stage.checkout(force=True)
            except DvcException:
                return False
        return not stage.changed()
    try:
        repo.stage_cache.restore(stage)
    except RunCacheNotFoundError:
        return False
    _record(repo, stage.name)
    return True


def _why_stale(repo: Repo, stage: PipelineStage) -> str:
    """Say in a few words what differs from the recorded run; "" where nothing does."""
    if not stage.changed():
        return ""
    if all(not dep.hash_info for dep in stage.deps):
        return "never ran here"
    reasons: list[str] = []
    for dep in stage.deps:
        for what, how in dep.status().items():
            if isinstance(how, dict):
                now = dep.read_params()
                reasons += _value_changes(
                    {key: dep.hash_info.value.get(key) for key in how}, {key: now.get(key) for key in how}
                )
            elif what.startswith(".segmill/code/"):
                reasons.append(_code_change(repo, dep))
            else:
                reasons.append(f"{what} {'is missing' if how == 'deleted' else 'changed'}")
    for out in stage.outs:
        reasons += [f"{what} {'is missing' if how == 'deleted' else how}" for what, how in out.status().items()]
    if stage.changed_stage() and not reasons:
        reasons.append("its command or its lists in dvc.yaml changed")
    return "; ".join(reasons)


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


def _code_change(repo: Repo, dep: Any) -> str:
    """Name the modules whose hash moved, from the recorded list in DVC's cache where it still lies there."""
    now = set(Path(dep.fs_path).read_text().splitlines()) if dep.exists else set()
    cached = Path(repo.cache.local.oid_to_path(dep.hash_info.value))
    if not cached.is_file():
        return "its code changed"
    modules = sorted({line.split()[0] for line in now ^ set(cached.read_text().splitlines())})
    more = f" and {len(modules) - 3} more" if len(modules) > 3 else ""
    return f"code changed: {', '.join(modules[:3])}{more}"
