"""Where a training step's time goes, and how near it comes to the machine's matrix multiplication."""

from __future__ import annotations

import math
import statistics
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import count, islice
from typing import Any

import torch
from torch import Tensor
from torch.profiler import ProfilerActivity
from torch.utils.flop_counter import FlopCounterMode

from segmill.data.loading.batches import Batch
from segmill.data.packing.packed import PackedSplit, read_pack
from segmill.models.depthwise import quicken_depthwise
from segmill.models.members import MemberModule
from segmill.models.precision import autocast_dtype, pick_device
from segmill.training.checkpoint import Training
from segmill.training.clock import Rank
from segmill.training.loop import begin
from segmill.training.losses import class_weights
from segmill.training.measure.batch_size import largest_batch, peak_bytes
from segmill.training.measure.profile_job import ProfileJob, ProfileResult
from segmill.training.measure.rehearsal import Rehearsal
from segmill.training.objective import Learner
from segmill.training.settings import Settings
from segmill.training.step import train_step
from segmill.training.train import first_module, make_batches, make_settings

PHASES = ("data", "copy", "forward", "loss", "backward", "optimizer", "average")
KINDS = (
    "dense convolution", "depthwise convolution", "normalisation", "activation", "interpolation", "matmul",
    "copying", "other",
)  # fmt: skip
# Parts of the names of PyTorch's operators, looked for in this order.
PARTS = {
    "normalisation": ("_norm",),
    "interpolation": ("upsample", "grid_sampler"),
    "activation": (
        "relu", "hardtanh", "threshold", "clamp", "gelu", "silu", "hardswish", "hardsigmoid", "sigmoid", "tanh",
    ),
    "matmul": ("::mm", "::addmm", "::bmm", "::baddbmm", "::linear", "scaled_dot_product", "_attention"),
    "copying": ("::copy_", "::cat", "::fill_", "::zero_", "::_to_copy", "::clone"),
}  # fmt: skip
WARM_UP = 2
PROFILED = 2
MATRIX = {"cpu": (1024, 2048), "cuda": (4096, 8192)}


def profile_member(job: ProfileJob) -> ProfileResult:
    """Take the job's training steps, not compiled, and return what they cost."""
    torch.set_num_threads(job.threads)
    device = pick_device("auto" if job.gpus else "cpu")
    packed = job.made_up or read_pack(job.data.packed_dir)
    torch.manual_seed(job.train.seed)
    network = replace(job.network, weights="none")
    module, _, _ = first_module(job.name, network, packed, None)
    settings = make_settings(job.name, network, job.train, packed, pretrained=False)
    size_px = settings.crop_size or packed.size or PackedSplit(job.data.packed_dir / "train").sizes()[0]
    batch_size = settings.batch_size
    if batch_size == "auto":
        rehearsal = Rehearsal(module, settings, size_px=size_px, device=device)
        batch_size = largest_batch(rehearsal.step, device=device, share=job.share)
        settings = replace(settings, batch_size=batch_size)
    if job.made_up:
        batches = random_batches(batch_size, size_px, packed.num_classes)
    else:
        loader = make_batches(job.data, packed, settings, rank=Rank(), device=device, loader_workers=job.loader_workers)
        batches = (batch for epoch in count() for batch in loader.epoch(epoch))
    dtype = autocast_dtype(settings.precision, device)
    weights = class_weights(settings.class_weights, packed.class_pixels, device)
    costs = measure_steps(module, settings, batches, device=device, dtype=dtype, class_weights=weights, steps=job.steps)
    peak_flops = matmul_peak(dtype, device)
    step_s = sum(costs.phases.values())
    result = ProfileResult(
        member=job.name,
        device=torch.cuda.get_device_name() if device.type == "cuda" else "cpu",
        threads=job.threads,
        precision=str(dtype or torch.float32).removeprefix("torch."),
        batch_size=batch_size,
        size_px=size_px,
        made_up=job.made_up is not None,
        steps=job.steps,
        step_s=step_s,
        images_s=batch_size / step_s,
        step_flop=costs.step_flop,
        phases=costs.phases,
        kinds=costs.kinds,
        peak_memory_bytes=costs.peak_memory_bytes,
        reached_flops=costs.step_flop / step_s,
        peak_flops=peak_flops,
        share_of_peak=costs.step_flop / step_s / peak_flops,
    )
    return replace(result, advice=advice(result))


@dataclass(frozen=True)
class Costs:
    """What training steps cost: see ProfileResult."""

    step_flop: int
    phases: dict[str, float]
    kinds: dict[str, float]
    peak_memory_bytes: int


def measure_steps(
    module: MemberModule,
    settings: Settings,
    batches: Iterator[Batch],
    *,
    device: torch.device,
    dtype: torch.dtype | None,
    class_weights: Tensor | None,
    steps: int,
) -> Costs:
    """Train ``module`` a few steps and return what they cost."""
    module = module.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    stages = module.encoder_stages()
    training = begin(module, stages, settings, class_weights, device, dtype)
    learner = Learner(module, training.objective, dtype)

    def step(some: Iterator[Batch]) -> dict[str, float]:
        return _step(training, learner, some, device, settings.max_grad_norm)

    # Counted before anything is computed twice or another way.
    counted = {torch.ops.aten.convolution_backward: flop_of_convolution_backward}
    with FlopCounterMode(display=False, custom_mapping=counted) as counter:
        step(iter([next(batches)]))
    quicken_depthwise(module)
    module.set_gradient_checkpointing(settings.gradient_checkpointing)
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    seconds = [step(batches) for _ in range(WARM_UP + steps)][WARM_UP:]
    peak_memory = torch.cuda.max_memory_allocated(device) if device.type == "cuda" else peak_bytes()
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if device.type == "cuda" else [])]
    ahead = list(islice(batches, PROFILED))
    with torch.profiler.profile(activities=activities, record_shapes=True) as profiler:
        for batch in ahead:
            step(iter([batch]))
    on_device = device.type == "cuda"
    operators = [
        (event.key, event.input_shapes, event.self_device_time_total if on_device else event.self_cpu_time_total)
        for event in profiler.key_averages(group_by_input_shape=True)
    ]
    return Costs(
        step_flop=counter.get_total_flops(),
        phases={phase: statistics.median(one[phase] for one in seconds) for phase in PHASES},
        kinds=shares_of_kinds(operators),
        peak_memory_bytes=peak_memory,
    )


def _step(
    training: Training, learner: Learner, batches: Iterator[Batch], device: torch.device, max_grad_norm: float
) -> dict[str, float]:
    """Take one step of the loop, waiting for the device between its phases; return the seconds of each."""
    seconds: dict[str, float] = {}
    began = time.perf_counter()

    def over(phase: str) -> None:
        nonlocal began
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        now = time.perf_counter()
        seconds[phase] = now - began
        began = now

    batch = next(batches)
    over("data")
    batch = batch.each(lambda tensor: tensor.to(device))
    over("copy")
    hooks = [
        learner.module.register_forward_hook(lambda *_: over("forward")),
        learner.objective.register_forward_hook(lambda *_: over("loss")),
    ]
    try:
        train_step(training, learner, batch, max_grad_norm=max_grad_norm, after=over)
    finally:
        for hook in hooks:
            hook.remove()
    return seconds


def flop_of_convolution_backward(
    grad: Sequence[int],
    x: Sequence[int],
    weight: Sequence[int],
    bias: Any,
    stride: Any,
    padding: Any,
    dilation: Any,
    transposed: bool,
    output_padding: Any,
    groups: int,
    output_mask: Sequence[bool],
    **options: Any,
) -> int:
    """Return the FLOP of a convolution's gradients, each as many as the convolution's own.

    More than eight parameters: they are those of PyTorch's operator.

    PyTorch 2.14's own formula counts the weight's gradient of a grouped convolution as if it had one group.
    """
    images, _, *places = x if transposed else grad
    return 2 * images * math.prod(places) * math.prod(weight) * sum(output_mask[:2])


def random_batches(batch_size: int, size_px: tuple[int, int], num_classes: int) -> Iterator[Batch]:
    """Yield the same batch of random pixels for ever, its distances 0."""
    height, width = size_px
    image_BHWC = torch.randint(256, (batch_size, height, width, 3), dtype=torch.uint8)
    mask_BHW = torch.randint(num_classes, (batch_size, height, width), dtype=torch.uint8)
    batch = Batch(image_BHWC, mask_BHW, torch.zeros(batch_size, num_classes, height, width, dtype=torch.float16))
    while True:
        yield batch


def shares_of_kinds(operators: Sequence[tuple[str, Sequence[Sequence[int]], float]]) -> dict[str, float]:
    """Return each kind's share of the time of (name, shapes of the inputs, own time) of operators."""
    times: defaultdict[str, float] = defaultdict(float)
    for name, shapes, own_time in operators:
        times[kind_of(name, shapes)] += own_time
    total = sum(times.values()) or 1.0
    return {kind: times[kind] / total for kind in KINDS}


def kind_of(name: str, shapes: Sequence[Sequence[int]]) -> str:
    """Return which of KINDS a PyTorch operator is, by its name and the shapes of its inputs."""
    if "conv" in name:
        place = 2 if "backward" in name else 1
        weight = shapes[place] if len(shapes) > place else ()
        return "depthwise convolution" if len(weight) > 2 and weight[1] == 1 < weight[0] else "dense convolution"
    return next((kind for kind, parts in PARTS.items() if any(part in name for part in parts)), "other")


def matmul_peak(dtype: torch.dtype | None, device: torch.device) -> float:
    """Return the FLOP per second of the fastest square matrix product of this process."""
    best = 0.0
    for side in MATRIX[device.type]:
        left, right = (torch.randn(side, side, device=device).to(dtype or torch.float32) for _ in range(2))
        for _ in range(6):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            began = time.perf_counter()
            left @ right
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            best = max(best, 2 * side**3 / (time.perf_counter() - began))
    return best


def advice(facts: ProfileResult) -> str:
    """Return what bounds the step, and what to do about it, in a sentence."""
    of_step = {phase: seconds / facts.step_s for phase, seconds in facts.phases.items()}
    kinds = facts.kinds
    if of_step["data"] > 0.1:
        return f"{of_step['data']:.0%} of a step waits for data: set ray.loader_workers, or a lighter augment.recipe"
    if of_step["optimizer"] + of_step["average"] > 0.15:
        return (
            f"{of_step['optimizer'] + of_step['average']:.0%} of a step updates weights, whatever the batch: a larger "
            "train.batch_size or train.grad_accum_steps spreads that over more images"
        )
    if of_step["loss"] > 0.2:
        return f"{of_step['loss']:.0%} of a step is the loss at full size: fewer terms in train.loss make it lighter"
    if facts.share_of_peak > 0.5:
        return (
            f"it reaches {facts.share_of_peak:.0%} of what matrix products reach here: only less work (a smaller "
            "prepare.size_px, backbone or decoder), a shorter number format or more cores make it quicker"
        )
    bound, share = max(((kind, kinds[kind]) for kind in KINDS if kind != "other"), key=lambda entry: entry[1])
    if bound == "dense convolution":
        return (
            f"dense convolutions take {share:.0%} of the operators' time, at {facts.share_of_peak:.0%} of the "
            "peak over the whole step; the operations between them are limited by memory: train.compile: auto may "
            "fuse some of them"
        )
    return (
        f"{bound} takes {share:.0%} of the operators' time and few multiply-adds: it is bound by memory, not by "
        "arithmetic; a backbone or decoder with less of it, or train.compile: auto, makes it quicker"
    )
