"""The largest batch that fits the memory, found by trying real steps."""

from __future__ import annotations

import gc
import resource
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import torch

from segmill.cluster.memory import ran_out_of_memory
from segmill.errors import InputError

LARGEST = 64
# Normalisation over a single pixel of a single image (DeepLabV3's pooled branch) is refused by PyTorch.
SMALLEST = 2
# What prefetched batches, validation and a fragmented heap need in addition to a step.
MARGIN = 0.25
CGROUPS = ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes")


def largest_batch(step: Callable[[int], object], *, device: torch.device, share: float, largest: int = LARGEST) -> int:
    """Return the largest power of two, SMALLEST to ``largest``, whose steps fit ``share`` of the memory.

    On a GPU the sizes are tried downwards until one does not run out of memory. On a CPU, where running out would
    end the process, the peak of the process is measured at the first two sizes that raise it; it grows evenly
    with the batch.

    Args:
        step: takes one training step with so many images.
        share: of the GPU's, or of the machine's memory (the container's, where that is less), that is this process's.

    Raises:
        InputError: not even SMALLEST fits.
    """
    sizes = [SMALLEST]
    while 2 * sizes[-1] <= largest:
        sizes.append(2 * sizes[-1])
    fits = _largest_tried if device.type == "cuda" else _largest_foreseen
    found = fits(step, sizes, device, share)
    if found is None:
        raise InputError(
            f"not even {SMALLEST} images of this size fit {share:.0%} of the memory; lower prepare.size_px, choose a "
            "smaller backbone, set train.gradient_checkpointing to true or train fewer members at a time"
        )
    return found


def _largest_tried(step: Callable[[int], object], sizes: list[int], device: torch.device, share: float) -> int | None:
    torch.cuda.set_per_process_memory_fraction(min(1.0, share) * (1 - MARGIN / 2), device)
    try:
        return next((size for size in reversed(sizes) if _runs(step, size)), None)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0, device)
        torch.cuda.empty_cache()


def _runs(step: Callable[[int], object], size: int) -> bool:
    try:
        for _ in range(2):  # the optimizer's moments come with the first
            step(size)
    except RuntimeError as error:
        if not ran_out_of_memory(error):
            raise
        fits = False
    else:
        fits = True
    gc.collect()
    torch.cuda.empty_cache()
    return fits


def _largest_foreseen(
    step: Callable[[int], object], sizes: list[int], device: torch.device, share: float
) -> int | None:
    allowed = allowed_bytes(share)
    peaks = []
    fits = None
    before = peak_bytes()
    step(sizes[0])  # what a training keeps whatever its batch
    for size in sizes:
        step(size)
        peak = peak_bytes()
        if peak > allowed:
            peaks.append((size, peak))
            break
        fits = size
        if peak > before:
            peaks.append((size, peak))
        if len(peaks) == 2:
            break
        before = peak
    # One size alone may have raised the peak by what an earlier one left behind, so no line goes through it.
    return foresee(peaks[0], peaks[1], sizes, allowed) if len(peaks) == 2 else fits


def foresee(first: tuple[int, int], second: tuple[int, int], sizes: list[int], allowed: float) -> int | None:
    """Return the largest of ``sizes`` whose peak is at most ``allowed``, by the line through two (size, bytes)."""
    (first_size, first_peak), (size, peak) = first, second
    slope = (peak - first_peak) / (size - first_size)
    return max((one for one in sizes if peak + slope * (one - size) <= allowed), default=None)


def allowed_bytes(share: float) -> float:
    """Return what this process may grow to: its share of all memory, and no more than is free now, less a margin."""
    memory = psutil.virtual_memory()
    total: int = min([memory.total, *_container_limits()])
    free: int = psutil.Process().memory_info().rss + memory.available
    return (1 - MARGIN) * min(share * total, free)


def peak_bytes() -> int:
    """Return the most memory that this process ever held.

    Linux's getrusage would count what its parent held when it was started.
    """
    status = Path("/proc/self/status")
    if status.is_file():
        return 1024 * next(int(line.split()[1]) for line in status.open() if line.startswith("VmHWM:"))
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def _container_limits() -> list[int]:
    texts = [Path(path).read_text().strip() for path in CGROUPS if Path(path).is_file()]
    return [int(text) for text in texts if text.isdigit()]
