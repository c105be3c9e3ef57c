"""What changed between two runs: their data, settings and code, by what dvc.lock recorded of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from segmill.data.versioning.dvc_adapter import DvcRepository, repository
from segmill.data.versioning.history import SHORT, LogEntry, log_path, read_log
from segmill.params import Params
from segmill.reports.run_facts import Changes
from segmill.workspace import Workspace
from tasks.inputs import all_settings, code_path, settings_path, value_changes

MOST_MODULES = 8
Lock = Mapping[str, Any]  # stage -> its entry of dvc.lock


def changes_since(workspace: Workspace, params: Params, lock_then: bytes) -> Changes:
    """Return what differs between the run that left ``lock_then``, the bytes of its dvc.lock, and the last one here."""
    from ruamel.yaml import YAML

    then: Lock = (YAML(typ="safe").load(lock_then) or {}).get("stages") or {}
    with repository(workspace.root) as repo:
        now = repo.lock_entries()
        settings = {stage: _settings(workspace, then, stage) for stage in all_settings(params)}
        if settings["ensemble"] is None or settings["prepare"] is None:
            return Changes(unknown="an earlier release made it, which recorded settings and code in another way")
        members = settings["ensemble"]["members"]
        return Changes(
            data=_data_lines(workspace, params, then, now),
            settings=_settings_lines(settings, all_settings(params), members),
            code=_code_lines(workspace, repo, [(then, now, stage) for stage, values in settings.items() if values]),
        )


def _settings(workspace: Workspace, lock: Lock, stage: str) -> dict[str, Any] | None:
    path = str(settings_path(workspace, stage).relative_to(workspace.root))
    found: dict[str, Any] | None = lock.get(stage, {}).get("params", {}).get(path)
    return found


def _dependency(lock: Lock, stage: str, path: str) -> str:
    """Return the recorded md5; "" where the stage never ran."""
    return str({dep["path"]: dep["md5"] for dep in lock.get(stage, {}).get("deps", [])}.get(path, ""))


def _data_lines(workspace: Workspace, params: Params, then: Lock, now: Lock) -> list[str]:
    """Say from which version to which, and what the log has about those between; nothing where it is the same."""
    old, new = (_dependency(lock, "prepare", params.data.path).removesuffix(".dir") for lock in (then, now))
    if old == new:
        return []
    by_version = {entry.version: entry for entry in read_log(log_path(workspace.root / params.data.path))}
    between: list[LogEntry] = []
    version = new
    while version != old and version in by_version:
        between.append(by_version.pop(version))
        version = between[-1].before or ""
    known = reversed(between) if version == old else ()
    return [f"version {old[:SHORT]} -> {new[:SHORT]}", *(_entry_line(one) for one in known)]


def _entry_line(entry: LogEntry) -> str:
    counts = {"added": entry.added, "removed": entry.removed, "relabelled": entry.relabelled, "with a new image":
              entry.reimaged}  # fmt: skip
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"{entry.message}{f': {said}' if said else ''} ({entry.samples} samples in all)"


def _settings_lines(then: Mapping[str, Any], now: Mapping[str, Any], members_then: Collection[str]) -> list[str]:
    """Return a line per value that differs, one for all members where it differs alike in each."""
    members = [stage.partition("@")[2] for stage in now if stage.startswith("finetune@")]
    lines = [f"member {name} is new" for name in members if name not in members_then]
    lines += [f"member {name} is gone" for name in members_then if name not in members]
    for stage, values in now.items():
        if not stage.startswith("finetune@"):
            old, new = (
                {key: value for key, value in one.items() if key != "members"} for one in (then[stage] or {}, values)
            )
            lines += value_changes(old, new) if old != new else []
    of_members: dict[str, list[str]] = {}
    both = [name for name in members if name in members_then and then[f"finetune@{name}"]]
    for name in both:
        old, new = then[f"finetune@{name}"], now[f"finetune@{name}"]
        for line in value_changes(old, new) if old != new else []:
            of_members.setdefault(line, []).append(name)
    for line, names in of_members.items():
        alike = names == both or line.startswith("members.")
        lines.append(line if alike else f"{', '.join(names)}: {line}")
    return lines


def _code_lines(workspace: Workspace, repo: DvcRepository, pairs: list[tuple[Lock, Lock, str]]) -> list[str]:
    """Name the stages whose code differs, and the modules where DVC's cache has both lists of them."""
    found: dict[str, list[str]] = {}
    for then, now, stage in pairs:
        path = str(code_path(workspace, stage).relative_to(workspace.root))
        old, new = (_dependency(lock, stage, path) for lock in (then, now))
        if old != new:
            files = [repo.cache_path(md5) for md5 in (old, new)]
            texts = [file.read_text().splitlines() if file.is_file() else [] for file in files]
            modules = sorted({line.split()[0] for line in set(texts[0]) ^ set(texts[1])}) if all(texts) else []
            more = [f"{len(modules) - MOST_MODULES} more"] if len(modules) > MOST_MODULES else []
            found.setdefault(", ".join([*modules[:MOST_MODULES], *more]), []).append(stage)
    return [f"{', '.join(stages)}{f': {modules}' if modules else ''}" for modules, stages in found.items()]
