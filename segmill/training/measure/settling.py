"""What params.yaml leaves to the machine, settled before a member's first step and kept with its run."""

from __future__ import annotations

import json
import logging
import os
import time
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from torch import distributed

from segmill import progress
from segmill.data.packing.packed import PackedSplit, PackInfo
from segmill.files import write_atomically
from segmill.models.members import MemberModule, MemberSpec
from segmill.training.clock import Rank
from segmill.training.measure.batch_size import LARGEST, SMALLEST, largest_batch
from segmill.training.measure.compiling import Speeds, measure, remembered
from segmill.training.measure.rehearsal import Rehearsal
from segmill.training.settings import Settings, run_folder

FILE = "settled.json"


def settle(
    args: dict[str, Any],
    module: MemberModule,
    spec: MemberSpec,
    settings: Settings,
    *,
    packed: PackInfo,
    rank: Rank,
    device: torch.device,
) -> tuple[dict[str, Any], Settings]:
    """Return ``args`` and ``settings`` with a number for batch_size auto, and on or off for compile.

    A run that goes on takes what its first start found: FILE in its run folder. All ranks get the same.

    Args:
        args: as launch.train_member takes them.
        packed: what its training images are.

    Raises:
        InputError: not even the smallest batch fits.
    """
    if args["batch_size"] != "auto" and args["compile"] == "off":
        return args, settings
    path = run_folder(args) / FILE
    found = _of_rank_0(json.loads(path.read_text()) if rank.index == 0 and path.is_file() else None, rank, device)
    if found is None:
        size_px = args["crop_size"] or packed.size or PackedSplit(Path(args["packed_dir"]) / "train").sizes()[0]
        samples = packed.samples["train"]
        found = _find(args, module, spec, settings, size_px=size_px, samples=samples, rank=rank, device=device)
        if rank.index == 0:
            write_atomically(path, json.dumps(found))
    record = {**args["params"], "train": {**args["params"]["train"], **found}}
    return {**args, **found, "params": record}, replace(settings, compile=found["compile"])


def _find(
    args: dict[str, Any],
    module: MemberModule,
    spec: MemberSpec,
    settings: Settings,
    *,
    size_px: tuple[int, int],
    samples: int,
    rank: Rank,
    device: torch.device,
) -> dict[str, Any]:
    def make_rehearsal(compiled: bool) -> Rehearsal:
        channels = spec.in_channels
        return Rehearsal(module, settings, size_px=size_px, channels=channels, device=device, compiled=compiled)

    def say(state: str) -> None:
        if rank.index == 0:
            path = Path(args["progress_path"])
            progress.report(path, member=args["name"], state=state, time=time.time(), pid=os.getpid())

    batch_size = args["batch_size"]
    if batch_size == "auto":
        say("looking for the largest batch that fits")
        share = args["gpus_per_worker"] if device.type == "cuda" else args["cpus_per_worker"] / (os.cpu_count() or 1)
        largest = max(SMALLEST, min(LARGEST, samples) // rank.count)
        own = largest_batch(make_rehearsal(False).step, device=device, share=min(1.0, share), largest=largest)
        batch_size = rank.count * min(_of_all_ranks(own, rank))
    if args["compile"] == "off":
        return {"batch_size": batch_size, "compile": "off"}
    say("measuring whether torch.compile pays")
    own = batch_size // rank.count
    facts = {
        "spec": asdict(replace(spec, name="")),
        "settings": asdict(replace(settings, member="", seed=0, epochs=1, max_minutes=None, lr=1.0)),
        "size": size_px,
        "batch": own,
        "device": device.type,
    }
    measured = asdict(remembered(facts, lambda: measure(make_rehearsal, own))) if rank.index == 0 else None
    speeds = Speeds(**_of_rank_0(measured, rank, device))
    steps = settings.epochs * max(1, samples // batch_size)
    if settings.max_minutes:
        steps = min(steps, int(60 * settings.max_minutes / speeds.eager_s))
    chosen = speeds.works if args["compile"] == "on" else speeds.pays(steps)
    said = speeds.say(steps) if args["compile"] == "auto" or not chosen else "compiled: params.yaml says so"
    logging.getLogger(__name__).warning("member %s is %s", args["name"], said)
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
