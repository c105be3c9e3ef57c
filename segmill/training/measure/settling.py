"""What params.yaml leaves to the machine, settled before a member's first step and kept with its run."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from typing import Any

import torch
from torch import distributed

from segmill.data.packing.packed import PackedSplit, PackInfo
from segmill.files import write_atomically
from segmill.models.members import MemberModule, MemberSpec
from segmill.training.clock import Rank
from segmill.training.job import TrainJob, Workers
from segmill.training.measure.batch_size import LARGEST, SMALLEST, largest_batch
from segmill.training.measure.compiling import Speeds, measure, remembered
from segmill.training.measure.rehearsal import Rehearsal
from segmill.training.settings import Settings

FILE = "settled.json"
# What a step's time does not depend on, or what is said of it besides the settings.
NO_MATTER_OF_SPEED: dict[str, Any] = {
    "member": "", "seed": 0, "epochs": 1, "max_minutes": None, "lr": 1.0, "batch_size": 1, "crop_size": None,
    "class_weights": "none", "warm_start": False,
}  # fmt: skip


def settle(
    job: TrainJob,
    module: MemberModule,
    spec: MemberSpec,
    settings: Settings,
    *,
    packed: PackInfo,
    rank: Rank,
    device: torch.device,
    on_state: Callable[[str], None],
) -> tuple[TrainJob, Settings]:
    """Return ``job`` and ``settings`` with a number for batch_size auto, and on or off for compile.

    A resumed run takes what its first start found: FILE in its run folder. All ranks get the same.

    Args:
        packed: what its training images are.
        on_state: called with what takes long.

    Raises:
        InputError: not even the smallest batch fits.
    """
    if settings.batch_size != "auto" and settings.compile == "off":
        return job, settings
    path = job.run_folder / FILE
    found = _of_rank_0(json.loads(path.read_text()) if rank.index == 0 and path.is_file() else None, rank, device)
    if found is None:
        size_px = settings.crop_size or packed.size or PackedSplit(job.data.packed_dir / "train").sizes()[0]
        samples = packed.samples["train"] + sum(job.data.record()["extra_samples"].values())
        found = _find(
            job.workers, module, spec, settings,
            size_px=size_px, samples=samples, rank=rank, device=device, on_state=on_state,
        )  # fmt: skip
        if rank.index == 0:
            write_atomically(path, json.dumps(found))
    return replace(job, train=replace(job.train, **found)), replace(settings, **found)


def _find(
    workers: Workers,
    module: MemberModule,
    spec: MemberSpec,
    settings: Settings,
    *,
    size_px: tuple[int, int],
    samples: int,
    rank: Rank,
    device: torch.device,
    on_state: Callable[[str], None],
) -> dict[str, Any]:
    def make_rehearsal(compiled: bool) -> Rehearsal:
        return Rehearsal(module, settings, size_px=size_px, device=device, compiled=compiled)

    batch_size = settings.batch_size
    if batch_size == "auto":
        on_state("looking for the largest batch that fits")
        share = workers.gpus if device.type == "cuda" else workers.cpus / (os.cpu_count() or 1)
        largest = max(SMALLEST, min(LARGEST, samples) // rank.count)
        own = largest_batch(make_rehearsal(False).step, device=device, share=min(1.0, share), largest=largest)
        batch_size = rank.count * min(_of_all_ranks(own, rank))
    if settings.compile == "off":
        return {"batch_size": batch_size, "compile": "off"}
    on_state("measuring whether torch.compile pays")
    own = batch_size // rank.count
    facts = {
        "spec": asdict(replace(spec, name="")),
        "settings": asdict(replace(settings, **NO_MATTER_OF_SPEED)),
        "size": size_px,
        "batch": own,
        "device": device.type,
    }
    measured = asdict(remembered(facts, lambda: measure(make_rehearsal, own))) if rank.index == 0 else None
    speeds = Speeds(**_of_rank_0(measured, rank, device))
    steps = settings.epochs * max(1, samples // batch_size)
    if settings.max_minutes:
        steps = min(steps, int(60 * settings.max_minutes / speeds.eager_s))
    chosen = speeds.works if settings.compile == "on" else speeds.pays(steps)
    said = speeds.say(steps) if settings.compile == "auto" or not chosen else "compiled: params.yaml says so"
    logging.getLogger(__name__).warning("member %s is %s", settings.member, said)
    return {"batch_size": batch_size, "compile": "on" if chosen else "off"}


def _of_rank_0(fact: Any, rank: Rank, device: torch.device) -> Any:
    facts = [fact]
    if rank.count > 1:
        distributed.broadcast_object_list(facts, src=0, device=device)
    return facts[0]


def _of_all_ranks(fact: Any, rank: Rank) -> list[Any]:
    facts = [fact] * rank.count
    if rank.count > 1:
        distributed.all_gather_object(facts, fact)
    return facts
